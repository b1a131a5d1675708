"""OpenRouter's Image API: the models of many providers behind `POST /images`, each answer with its price.

A model refuses the parameters that it does not have, so a manifest names those that it has (`remote.honours`), and
lists either `aspect_ratios` or `sizes`. Shapes as in the official SDK, `openrouter.components`:
ImageGenerationRequest, ImageGenerationResponse and ImageStreamingResponse.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from hub.errors import HubError, ProviderFailed
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Partial, Pending, blocked
from hub.remote.reading import at, count, event_of, number, picture_of
from hub.remote.sizes import tier
from hub.remote.wish import Wish
from hub.types import Usage

FURTHER = frozenset({"quality", "seed", "output_format", "output_compression", "background", "partial_images"})
"""Parameters that some models take."""


class Item(Struct):
    """One picture."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")


class Images(Struct):
    """ImageGenerationResponse. `usage`: tokens and US dollars."""

    data: list[Item]
    usage: Any = None


class Event(Struct):
    """Of a stream: image_generation.partial_image, image_generation.completed, or error."""

    type: Any = None
    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    partial_image_index: Any = None
    usage: Any = None


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
        pictures = [picture for item in found.data if (picture := picture_of(item.b64_json)) is not None]
        return Made(pictures, usage=_usage(found.usage), cost=_cost(found.usage))

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """Events tell their name in their data alone. How many previews come is not for us to say; of more than were
        asked for the rest is dropped."""
        del name
        if data == b"[DONE]":
            return None
        found = event_of(self.title, data, Event)
        if found.type == "error":
            raise ProviderFailed(f"{self.title} failed.", may_have_billed=True)
        picture, index = picture_of(found.b64_json), count(found.partial_image_index)
        if picture is None:
            return None
        if found.type == "image_generation.completed":
            return Made([picture], usage=_usage(found.usage), cost=_cost(found.usage))
        if found.type == "image_generation.partial_image" and index < wish.request.partial_images:
            return Partial(0, index, picture)
        return None

    def refusal(self, answer: Answer) -> HubError:
        """A 403 that names reasons is moderation's, and not for the key."""
        if answer.status == 403 and isinstance(answer.peek("error", "metadata", "reasons"), list):
            return blocked(self.title)
        return super().refusal(answer)


def _usage(told: object) -> Usage | None:
    """Prompts and source pictures are told as one."""
    prompt, output = count(at(told, "prompt_tokens")), count(at(told, "completion_tokens"))
    return Usage(text_tokens=prompt, image_tokens=0, output_tokens=output) if prompt or output else None


def _cost(told: object) -> float | None:
    """What the owner pays in all: with `is_byok` the provider behind is paid directly, and `cost` is the fee alone."""
    cost = number(at(told, "cost"))
    if cost is None or at(told, "is_byok") is not True:
        return cost
    return cost + (number(at(told, "cost_details", "upstream_inference_cost")) or 0.0)


adapter = OpenRouter()
