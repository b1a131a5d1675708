"""The domain's nouns, as they travel from the API to a provider and back. No wire, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct

Task = Literal["text-to-image", "image-to-image", "inpainting"]
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"]
Effort = Literal["low", "medium", "high"]
Style = Literal["vivid", "natural"]

MAX_SEED = 2**63 - 1
MAX_LORAS = 8


class Size(Struct, frozen=True):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Lora(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA by its name, and how much of it: 1 is as it was trained."""

    name: Annotated[str, Meta(min_length=1, max_length=256, examples=["styles/ink"])]
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class ImageRequest(Struct, frozen=True, kw_only=True):
    """What a caller wants, after the wire was checked and before a model's defaults are filled in.

    `images` are the source pictures of an edit, as encoded files (PNG, JPEG or WebP bytes), and `mask`, another such
    file, says which part of the first one may change (docs/masks.md). A `variation` has a source and no prompt.
    `size` None means that the model chooses. `seed` None means a fresh random one. `output_compression` is the
    quality of jpeg and webp, 0 to 100. `partial_images`: how many previews of each picture are wanted while it is
    made. `scheduler` is a noise scheduler's class name; None is the model's own. `lora_identities` are those of the
    files of `loras` when the caller looked; without them, the files count that are there now. `owner` is the name of
    the caller's key, "" without one: requests of several take turns. `label` names the request in logs.
    """

    prompt: str
    n: int = 1
    size: Size | None = None
    images: tuple[bytes, ...] = ()
    mask: bytes | None = None
    variation: bool = False
    quality: Quality | None = None
    style: Style | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    strength: float | None = None
    scheduler: str | None = None
    loras: tuple[Lora, ...] = ()
    lora_identities: tuple[str, ...] = ()
    output_format: OutputFormat = "png"
    output_compression: int = 100
    partial_images: int = 0
    strict: bool = False
    owner: str = ""
    label: str = ""


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of a request: of its text, of its source pictures, and of the pictures that were made."""

    text_tokens: int
    image_tokens: int
    output_tokens: int


class ImageResult(Struct, frozen=True, kw_only=True):
    """Finished pictures (encoded files in the format asked for), the seed of the first (picture k used seed + k), the
    size and quality that they have, the sizes of the source pictures and the mask, and what was not honoured. `usage`
    is what a provider has metered; None where it does not meter."""

    images: tuple[bytes, ...]
    seed: int
    size: Size
    quality: Effort
    sources: tuple[Size, ...] = ()
    warnings: tuple[str, ...] = ()
    usage: Usage | None = None


class Accepted(Struct, frozen=True, kw_only=True):
    """The request was checked as far as it can be without the model, and waits for its turn. Its pictures will have
    this size, quality and format."""

    size: Size
    quality: Effort
    output_format: OutputFormat


class Progress(Struct, frozen=True, kw_only=True):
    """How far a request is: denoising steps done of all steps, summed over its pictures."""

    step: int
    steps: int


class Preview(Struct, frozen=True, kw_only=True):
    """How picture `index` of the request looks so far, as an encoded file of the format and size asked for; `partial`
    counts its previews from 0."""

    index: int
    partial: int
    image: bytes


Event = Accepted | Progress | Preview
OnEvent = Callable[[Event], None]
"""Hears of a request's life, in order. Called on the event loop; it must not block."""
