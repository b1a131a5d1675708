"""Any server that speaks OpenAI's image API: LocalAI, stable-diffusion.cpp, vLLM-Omni, SGLang, LiteLLM's proxy, another
hub.

They differ in what else they take. The manifest says so: `remote.honours` names the parameters that this server has
(`seed`, `negative_prompt`, `guidance_scale` …), and `remote.options` adds fields to every body
(`response_format = "b64_json"` saves the way for each picture, where a server would answer with links; `stream = false`
says that it cannot stream, so that no previews are asked for).
"""

from __future__ import annotations

from hub.errors import HubError
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, File, Made, Partial, Pending
from hub.remote.openai_wire import body_of, form_of, made_of_event, openai_refusal, read_made
from hub.remote.wish import Wish

EXTENSIONS = (
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "strength",
    "scheduler",
    "style",
    "loras",
    "moderation",
    "input_fidelity",
    "user",
    "safety_identifier",
    "strict",
)
"""Parameters that not every such server has, by the hub's names, which are sent as they are."""


class OpenAICompatible(Adapter):
    """A server of the owner's, or of anybody's."""

    name = "openai_compatible"
    title = "The server"
    needs_key = False
    honours = frozenset({"size", "quality", "output_format", "output_compression", "background", "partial_images"})
    documentation = "https://platform.openai.com/docs/api-reference/images"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """OpenAI's, and those that the manifest names."""
        found = self.honours | set(manifest.remote.honours).intersection(EXTENSIONS)
        return found - {"partial_images"} if manifest.remote.options.get("stream") is False else found

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Generations as JSON, edits as a form."""
        request, honoured = wish.request, self.honoured(wish.manifest)
        values = {name: getattr(request, name) for name in EXTENSIONS if name in honoured}
        if "seed" in values:
            values["seed"] = wish.seed(first)
        streams = request.partial_images > 0 and "partial_images" in honoured
        if not streams:
            values |= {"stream": None, "partial_images": None}
        body = body_of(wish, n, {name: value for name, value in values.items() if value is not False and value != ()})
        if not wish.images:
            return Call("/images/generations", json=body, stream=streams)
        return Call("/images/edits", form=form_of(wish, body), stream=streams)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """ImagesResponse, with base64 or links; or the picture itself, which vLLM-Omni sends for
        `response_format = "file"`."""
        if answer.media_type.startswith("image/"):
            return Made([File(bytes(answer.body))])
        return read_made(answer, wish.manifest.remote.base_url or "")

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """As OpenAI's."""
        return made_of_event(self, wish, name, data)

    def refusal(self, answer: Answer) -> HubError:
        """As OpenAI's."""
        return openai_refusal(self, answer) or super().refusal(answer)


adapter = OpenAICompatible()
