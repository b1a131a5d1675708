"""OpenRouter's Image API: the models of many providers behind `POST /images`, each answer with its price.

A model refuses the parameters that it does not have, so a manifest names those that it has (`remote.honours`), and
lists either `aspect_ratios` or `sizes`. Shapes as in the official SDK, `openrouter.components`:
ImageGenerationRequest, ImageGenerationResponse and ImageStreamingResponse.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from hub.errors import HubError, ProviderFailed
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Base64, Call, Made, Partial, Pending, blocked, raw_base64
from hub.remote.wish import Wish, tier
from hub.types import Usage

FURTHER = frozenset({"quality", "seed", "output_format", "output_compression", "background", "partial_images"})
"""Parameters that some models take."""


class Item(Struct):
    """One picture."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")


class CostDetails(Struct):
    """What the provider behind has taken from an account of the owner's there."""

    upstream_inference_cost: float | None = None


class Tokens(Struct):
    """Tokens and US dollars. `is_byok`: the owner pays the provider behind directly, and `cost` is the fee alone."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    is_byok: bool = False
    cost_details: CostDetails | None = None


class Images(Struct):
    """ImageGenerationResponse."""

    data: list[Item]
    usage: Tokens | None = None


class Event(Struct):
    """Of a stream: image_generation.partial_image, image_generation.completed, or error."""

    type: str = ""
    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    partial_image_index: int = 0
    usage: Tokens | None = None


class OpenRouter(Adapter):
    """openrouter.ai."""

    name = "openrouter"
    title = "OpenRouter"
    base_url = "https://openrouter.ai/api/v1"
    key_variable = "OPENROUTER_API_KEY"
    honours = frozenset({"size"})
    documentation = "https://openrouter.ai/docs/guides/overview/multimodal/image-generation"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """And those of FURTHER that the manifest names."""
        return self.honours | (FURTHER & set(manifest.remote.honours))

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """A shape and a tier, or pixels: both together are refused."""
        request, honoured = wish.request, self.honoured(wish.manifest)
        streams = "partial_images" in honoured and request.partial_images > 0
        lossy = "output_format" in honoured and wish.output_format != "png"
        level = tier(wish.size) if wish.size is not None else 1
        body: dict[str, object] = {
            "model": wish.model,
            "prompt": wish.prompt,
            "n": n if n > 1 else None,
            "aspect_ratio": wish.aspect_ratio,
            "resolution": f"{level}K" if wish.aspect_ratio is not None and level > 1 else None,
            "size": str(wish.size) if wish.size is not None and wish.aspect_ratio is None else None,
            "quality": wish.effort if "quality" in honoured else None,
            "seed": wish.seed(first) if "seed" in honoured else None,
            "output_format": wish.output_format if lossy else None,
            "output_compression": request.output_compression if lossy and "output_compression" in honoured else None,
            "background": request.background if "background" in honoured and request.background != "auto" else None,
            "stream": True if streams else None,
            "input_references": [{"type": "image_url", "image_url": {"url": each.data_url}} for each in wish.images]
            or None,
            "user": request.user,
        }
        return Call("/images", json=wish.with_options(body), stream=streams)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """ImageGenerationResponse."""
        del wish
        found = answer.read(Images)
        pictures = [Base64(text) for item in found.data if (text := raw_base64(item.b64_json)) is not None]
        return Made(pictures, usage=_usage(found.usage), cost=_cost(found.usage))

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """Events tell their name in their data alone. How many previews come is not for us to say; of more than were
        asked for the rest is dropped."""
        del name
        if data == b"[DONE]":
            return None
        try:
            found = msgspec.json.decode(data, type=Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            words = f"{self.title} sent something else than pictures."
            raise ProviderFailed(words, may_have_billed=True) from None
        if found.type == "error":
            raise ProviderFailed(f"{self.title} failed.", may_have_billed=True)
        text = raw_base64(found.b64_json)
        if text is None:
            return None
        if found.type == "image_generation.completed":
            return Made([Base64(text)], usage=_usage(found.usage), cost=_cost(found.usage))
        if found.type == "image_generation.partial_image" and found.partial_image_index < wish.request.partial_images:
            return Partial(0, found.partial_image_index, Base64(text))
        return None

    def refusal(self, answer: Answer) -> HubError:
        """A 403 that names reasons is moderation's, and not for the key."""
        if answer.status == 403 and isinstance(answer.peek("error", "metadata", "reasons"), list):
            return blocked(self.title)
        return super().refusal(answer)


def _usage(told: Tokens | None) -> Usage | None:
    """Prompts and source pictures are told as one."""
    if told is None:
        return None
    return Usage(text_tokens=told.prompt_tokens, image_tokens=0, output_tokens=told.completion_tokens)


def _cost(told: Tokens | None) -> float | None:
    """What the owner pays in all."""
    if told is None or told.cost is None:
        return None
    behind = told.cost_details.upstream_inference_cost if told.is_byok and told.cost_details is not None else None
    return told.cost + (behind or 0.0)


adapter = OpenRouter()
