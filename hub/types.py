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
Background = Literal["auto", "opaque", "transparent"]

EFFORTS: dict[Quality, Effort] = {
    "auto": "medium",
    "low": "low",
    "medium": "medium",
    "standard": "medium",
    "high": "high",
    "hd": "high",
    "xhigh": "high",
    "max": "high",
}
"""What the names of all model generations mean in a manifest."""

MAX_SEED = 2**63 - 1
MAX_LORAS = 8


class Size(Struct, frozen=True):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


DEFAULT_SIZE = Size(1024, 1024)
"""Of a generation that says none, as the documentation promises."""


class Lora(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA by its name, and how much of it: 1 is as it was trained."""

    name: Annotated[str, Meta(min_length=1, max_length=256, examples=["styles/ink"])]
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class ImageRequest(Struct, frozen=True, kw_only=True):
    """What a caller wants, after the wire was checked and before a model's defaults are filled in.

    `images` are the source pictures of an edit, as encoded files (PNG, JPEG or WebP bytes), and `mask`, another such
    file, says which part of the first one may change (docs/masks.md). A `variation` has a source and no prompt.
    `size` None means that the model chooses; `default_size` is what the documentation promises for a request without
    one, to which a local model keeps. `seed` None means a fresh random one. `output_compression` is the
    quality of jpeg and webp, 0 to 100. `partial_images`: how many previews of each picture are wanted while it is
    made. `scheduler` is a noise scheduler's class name; None is the model's own. `lora_identities` are those of the
    files of `loras` when the caller looked; without them, the files count that are there now. `background`,
    `moderation` and `input_fidelity` are OpenAI's, `user` and `safety_identifier` name the end user to those remote
    providers that ask for it. `owner` is the name of the caller's key, "" without one: requests of several take turns.
    `label` names the request in logs.
    """

    prompt: str
    n: int = 1
    size: Size | None = None
    default_size: Size | None = None
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
    background: Background | None = None
    moderation: Literal["auto", "low"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    strict: bool = False
    owner: str = ""
    label: str = ""

    @property
    def task(self) -> Task:
        """What kind of work it asks for, by what came with it."""
        if self.mask is not None:
            return "inpainting"
        return "image-to-image" if self.images else "text-to-image"

    @property
    def effort(self) -> Effort | None:
        """The quality that it names, None where it leaves that to the model."""
        return EFFORTS[self.quality] if self.quality not in (None, "auto") else None


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of a request: of its text, of its source pictures, and of the pictures that were made."""

    text_tokens: int
    image_tokens: int
    output_tokens: int


class ImageResult(Struct, frozen=True, kw_only=True):
    """Finished pictures and all that is told of them.

    `images` are encoded files, each of `output_format` (None: as asked). `seed` is that of the first one (of those
    drawn here, picture k used seed + k), None where a remote provider tells none. `sources` are the sizes of the source
    pictures and the mask. `warnings`: what was not honoured. `usage` is what a provider has metered; None where it does
    not meter. `encoded`: the same files in base64, where a provider sent them so and nothing was changed: they are
    passed on as they came. `revised_prompts`: of each picture, what the provider made of the prompt, empty where it
    tells none; or nothing at all. `target` is the id of the model that has drawn. `quality_told`: whether `quality` is
    more than the hub's guess. `cost` is in US dollars, None where nothing tells it; `device_seconds` is what a local
    device has worked.
    """

    images: tuple[bytes, ...]
    seed: int | None
    size: Size
    quality: Effort
    output_format: OutputFormat | None = None
    background: Background = "opaque"
    sources: tuple[Size, ...] = ()
    warnings: tuple[str, ...] = ()
    usage: Usage | None = None
    encoded: tuple[bytes | memoryview, ...] = ()
    revised_prompts: tuple[str, ...] = ()
    target: str = ""
    quality_told: bool = True
    cost: float | None = None
    device_seconds: float = 0.0


class Accepted(Struct, frozen=True, kw_only=True):
    """The request was checked as far as it can be without the model, and waits for its turn. Its pictures will have
    this size, quality and format."""

    size: Size
    quality: Effort
    output_format: OutputFormat
    background: Background = "opaque"


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
