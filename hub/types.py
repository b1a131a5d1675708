"""The domain's nouns, as they travel from the API to a provider and back. No wire, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

Task = Literal["text-to-image", "image-to-image"]
Quality = Literal["auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"]
Effort = Literal["low", "medium", "high"]
Style = Literal["vivid", "natural"]

MAX_SEED = 2**63 - 1


class Size(Struct, frozen=True):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class ImageRequest(Struct, frozen=True, kw_only=True):
    """What a caller wants, after the wire was checked and before a model's defaults are filled in.

    `images` are the source pictures of an edit, as encoded files (PNG, JPEG or WebP bytes). `size` None means that
    the model chooses. `seed` None means a fresh random one. `label` names the request in logs.
    """

    prompt: str
    n: int = 1
    size: Size | None = None
    images: tuple[bytes, ...] = ()
    quality: Quality | None = None
    style: Style | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    strength: float | None = None
    strict: bool = False
    label: str = ""


class ImageResult(Struct, frozen=True, kw_only=True):
    """Finished pictures (PNG bytes), the seed of the first (picture k used seed + k), and what was not honoured."""

    images: tuple[bytes, ...]
    seed: int
    warnings: tuple[str, ...] = ()


class Progress(Struct, frozen=True, kw_only=True):
    """How far a request is: denoising steps done of all steps, summed over its pictures."""

    step: int
    steps: int


OnProgress = Callable[[Progress], None]
