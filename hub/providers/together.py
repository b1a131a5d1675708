"""Together AI: many open models behind one endpoint, much like OpenAI's generations.

What a model takes beyond size, seed and format, its manifest says (`remote.honours`). Shapes as in the official SDK,
`together.types.ImageGenerateParams` and `ImageFile`.
"""

from __future__ import annotations

from hub.errors import HubError, NothingMade
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Pending
from hub.remote.openai_wire import openai_refusal, read_made
from hub.remote.wish import Wish

FURTHER = {"num_inference_steps": "steps", "guidance_scale": "guidance_scale", "negative_prompt": "negative_prompt"}
"""Parameters that some models take: the hub's name, and Together's."""


class Together(Adapter):
    """api.together.ai."""

    name = "together"
    title = "Together AI"
    base_url = "https://api.together.ai/v1"
    key_variable = "TOGETHER_API_KEY"
    honours = frozenset({"size", "seed", "output_format"})
    documentation = "https://docs.together.ai/docs/inference/images/overview"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """And those of FURTHER that the manifest names."""
        return self.honours | (set(FURTHER) & set(manifest.remote.honours))

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Kontext takes one source picture by a name of its own, and a shape where its manifest lists them."""
        further = set(FURTHER) & self.honoured(wish.manifest)
        sized = wish.size if wish.aspect_ratio is None else None
        kontext = "kontext" in wish.model.lower()
        sources = [each.data_url for each in wish.images] or None
        body = {
            "model": wish.model,
            "prompt": wish.prompt,
            "n": n,
            "width": sized.width if sized else None,
            "height": sized.height if sized else None,
            "aspect_ratio": wish.aspect_ratio,
            "seed": wish.seed(first),
            **{theirs: getattr(wish.request, ours) for ours, theirs in FURTHER.items() if ours in further},
            "output_format": wish.output_format,
            "response_format": "base64",
            "image_url": sources[0] if sources and kontext else None,
            "reference_images": sources if not kontext else None,
        }
        return Call("/images/generations", json=wish.with_options(body))

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """ImageFile, whose pictures have OpenAI's fields."""
        del wish
        return read_made(answer)

    def refusal(self, answer: Answer) -> HubError:
        """A 403 can mean that the account does not allow a partner's model, and not that the key is wrong."""
        if "third_party_data_sharing_blocked" in (answer.peek("error", "code"), answer.peek("error", "type")):
            words = (
                f"{self.title} gives this partner's model to accounts alone that allow it. This hub's owner has to act."
            )
            return NothingMade(words)
        return openai_refusal(self, answer) or super().refusal(answer)


adapter = Together()
