"""Stability AI's Stable Image: a path for each service, forms, one picture a call.

`remote.model` is `ultra`, `core`, `inpaint`, or a model of the Stable Diffusion 3.5 family, which share a path. Shapes:
platform.stability.ai, "REST API (v2beta)"; the SDK on PyPI speaks an older gRPC API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hub.errors import HubError, NothingMade
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Form, Made, Pending, blocked
from hub.remote.reading import picture_of, seed
from hub.remote.wish import Notice, Wish

PATHS = {"ultra": "/generate/ultra", "core": "/generate/core", "inpaint": "/edit/inpaint"}
SD3 = "/generate/sd3"
STRENGTH = 0.8
"""How much of a source picture is given up, where nobody says it: as for local models. There is no default there."""
MAX_SEED = 2**32 - 2
COMMON = frozenset({"seed", "negative_prompt", "output_format"})
HONOURS: Mapping[str, frozenset[str]] = {
    "ultra": COMMON | {"size", "strength"},
    "core": COMMON | {"size"},
    "inpaint": COMMON,
}
DISTILLED = ("turbo", "flash")
"""Of Stable Diffusion 3.5: without guidance, and so without a negative prompt."""


class Generated(Struct):
    """The answer as JSON. `finish_reason`: SUCCESS, or CONTENT_FILTERED with a blurred picture."""

    image: msgspec.Raw = msgspec.Raw(b"null")
    finish_reason: Any = None
    seed: Any = None


class Stability(Adapter):
    """api.stability.ai."""

    name = "stability"
    title = "Stability AI"
    base_url = "https://api.stability.ai/v2beta/stable-image"
    key_variable = "STABILITY_API_KEY"
    documentation = "https://platform.stability.ai/docs/api-reference"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """By service."""
        return _honoured(manifest.remote.model)

    def unmet(self, wish: Wish) -> Sequence[Notice]:
        """Edits keep the source's shape, a manifest's `models` may take less, and a seed of 0 means none."""
        notices = wish.left_out(*sorted(self.honoured(wish.manifest) - _honoured(wish.model) - {"size"}))
        if wish.images and wish.request.size is not None and "size" in self.honoured(wish.manifest):
            notices.append(Notice("size", f"{wish.manifest.id} keeps the shape of the picture that it edits"))
        if wish.request.seed == 0:
            notices.append(Notice("seed", f"{self.title} takes 0 for a random one"))
        return notices

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """A form, also where there is no file."""
        del n
        request, honoured = wish.request, _honoured(wish.model)
        path = PATHS.get(wish.model, SD3)
        edits = bool(wish.images) and "strength" in honoured
        strength = request.strength if request.strength is not None else STRENGTH
        fields: dict[str, object] = {
            "prompt": wish.prompt,
            "model": wish.model if path == SD3 else None,
            "mode": ("image-to-image" if edits else "text-to-image") if path == SD3 else None,
            "strength": strength if edits else None,
            "aspect_ratio": wish.aspect_ratio if not wish.images else None,
            "negative_prompt": request.negative_prompt if "negative_prompt" in honoured else None,
            "cfg_scale": request.guidance_scale if "guidance_scale" in honoured else None,
            "seed": wish.seed(first, MAX_SEED),
            "output_format": wish.output_format,
        }
        files = [("image", each.file_name, each.data, each.media_type) for each in wish.images]
        if wish.mask is not None:
            files.append(("mask", "mask.png", wish.mask.white_changes, "image/png"))
        return Call(path, form=Form.of(wish.with_options(fields), files))

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """A filtered picture is blurred, and not billed."""
        del wish
        found = answer.read(Generated)
        if found.finish_reason == "CONTENT_FILTERED":
            raise blocked(self.title)
        picture = picture_of(found.image)
        if picture is None:
            raise NothingMade(f"{self.title} answered without a picture.", may_have_billed=True)
        return Made([picture], seed=seed(found.seed))

    def refusal(self, answer: Answer) -> HubError:
        """A 403 is moderation's where it says so, and else for the key."""
        if answer.status == 403 and answer.peek("name") == "content_moderation":
            return blocked(self.title)
        return super().refusal(answer)


def _honoured(model: str) -> frozenset[str]:
    if model in HONOURS:
        return HONOURS[model]
    distilled = any(word in model for word in DISTILLED)
    without = {"guidance_scale", "negative_prompt"} if distilled else set()
    return (COMMON | {"size", "strength", "guidance_scale"}) - without


adapter = Stability()
