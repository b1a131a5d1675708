"""OpenAI's image API: generations and edits, whole and streamed. All current models are gpt-image ones: they answer in
base64, and take no `response_format`.

They differ in what they take, as the official SDK says beside each parameter (ImageGenerateParams, ImageEditParams).
The rules here go by the model's name; of a name that tells no version, everything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hub.errors import HubError, InvalidRequest
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Partial, Pending
from hub.remote.openai_wire import body_of, form_of, made_of_event, openai_refusal, read_made
from hub.remote.wish import Notice, Wish
from hub.types import ImageRequest

_MODEL = re.compile(r"gpt-image-(?P<version>[0-9]+(?:\.[0-9]+)?)(?P<mini>-mini)?(?![0-9.])")
_FINER = ("xhigh", "max")


class OpenAI(Adapter):
    """api.openai.com."""

    name = "openai"
    title = "OpenAI"
    base_url = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"
    honours = frozenset(
        {
            "size",
            "quality",
            "output_format",
            "output_compression",
            "background",
            "moderation",
            "input_fidelity",
            "partial_images",
        }
    )
    documentation = "https://platform.openai.com/docs/api-reference/images"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """All but `input_fidelity`, which only some models can choose."""
        return self.honours if _chooses_fidelity(manifest.remote.model) else self.honours - {"input_fidelity"}

    def unmet(self, wish: Wish) -> Sequence[Notice]:
        """What was asked for and the model, or the path, does not have."""
        request, found = wish.request, []
        if request.quality in _FINER and not _is_finer(wish.model):
            found.append(Notice("quality", f"{wish.manifest.id} has no {request.quality}; high was asked for"))
        if not wish.images and "input_fidelity" in self.honoured(wish.manifest):
            found += wish.left_out("input_fidelity")
        if request.moderation == "low" and wish.images:
            found.append(Notice("moderation", f"{wish.manifest.id} has no such parameter in edits; it was not used"))
        return found

    def most(self, manifest: RemoteManifest, request: ImageRequest) -> int:
        """A stream has one picture."""
        return 1 if request.partial_images else super().most(manifest, request)

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Generations as JSON; edits as a form, which has no `moderation`."""
        del first
        request = wish.request
        if request.background == "transparent" and wish.output_format == "jpeg":
            words = "background: a JPEG cannot be transparent; ask for png or webp."
            raise InvalidRequest(words, param="background", code="unsupported_value")
        further: dict[str, object] = {
            "user": request.user,
            "safety_identifier": request.safety_identifier,
            "quality": request.quality if request.quality in _FINER and _is_finer(wish.model) else wish.effort,
        }
        streams = request.partial_images > 0
        if not wish.images:
            body = body_of(wish, n, {**further, "moderation": request.moderation})
            return Call("/images/generations", json=body, stream=streams)
        if _chooses_fidelity(wish.model):
            further["input_fidelity"] = request.input_fidelity
        return Call("/images/edits", form=form_of(wish, body_of(wish, n, further)), stream=streams)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """ImagesResponse."""
        del wish
        return read_made(answer)

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """image_generation.* and image_edit.*; an `error` event ends the stream."""
        return made_of_event(self, wish, name, data)

    def refusal(self, answer: Answer) -> HubError:
        """`error.code` and `error.param` say more than the status."""
        return openai_refusal(self, answer) or super().refusal(answer)


def _is_finer(model: str) -> bool:
    """Whether it has the qualities xhigh and max."""
    match = _MODEL.match(model)
    return float(match["version"]) >= 2.5 if match else not model.startswith("chatgpt-image-")


def _chooses_fidelity(model: str) -> bool:
    """Whether `input_fidelity` may be high: newer models always look closely, the mini one never."""
    match = _MODEL.match(model)
    return float(match["version"]) < 2 and not match["mini"] if match else not model.startswith("chatgpt-image-")


adapter = OpenAI()
