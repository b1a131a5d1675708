"""What a picture follows from, kept in its own file: enough to make it again.

Two texts: `parameters`, as the tools of the Stable Diffusion web UIs write and read it, and `hub`, the same as JSON.
"""

from __future__ import annotations

import io
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from PIL import Image, UnidentifiedImageError

from hub.types import MAX_SEED, Size, Task

KEYWORD = "hub"
PARAMETERS = "parameters"
SHORT = 10
"""Digits of a model's hash that the web UIs show."""
MAX_TEXT = 1024 * 1024


class DrawnLora(Struct, frozen=True):
    """A LoRA by its name, how much of it, and the SHA-256 of its file."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    weight: Annotated[float, Meta(ge=-10, le=10)]
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}:{self.weight:g} ({self.sha256[:SHORT]})"


class Receipt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a picture was drawn from.

    `model` is the manifest's id, `weights` the SHA-256 over its safetensors. `native` is what the model drew, `size`
    what became of it. `scheduler` is the noise scheduler's class. `sources` are digests of the pixels of source
    pictures, and of the mask, as the pipeline got them. `lossy` is what the owner gave quality away for. `versions` are
    those of the programs that drew it, by name.
    """

    model: str
    weights: str
    task: Task
    prompt: str
    negative_prompt: str | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)]
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    scheduler: str | None = None
    loras: tuple[DrawnLora, ...] = ()
    native: Size
    size: Size
    arguments: dict[str, Any] = {}
    sources: tuple[str, ...] = ()
    mask: str | None = None
    dtype: str
    device: str
    lossy: dict[str, Any] = {}
    versions: dict[str, str]

    def texts(self) -> dict[str, str]:
        """By keyword, for the file."""
        return {PARAMETERS: self.parameters(), KEYWORD: msgspec.json.encode(self).decode()}

    def parameters(self) -> str:
        """The prompt, the negative prompt, and a line of settings."""
        settings: dict[str, object] = {
            "Steps": self.num_inference_steps,
            "Sampler": self.scheduler,
            "CFG scale": self.guidance_scale,
            "Seed": self.seed,
            "Size": self.native,
            "Model hash": self.weights[:SHORT],
            "Model": self.model,
            "Denoising strength": self.strength,
            "Lora hashes": self._lora_hashes(),
            "Version": f"hub {self.versions.get('hub', '')}",
        }
        lines = [" ".join([self.prompt, *(f"<lora:{lora.name}:{lora.weight:g}>" for lora in self.loras)])]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
        return "\n".join(lines)

    def _lora_hashes(self) -> str | None:
        told = ", ".join(f"{lora.name}: {lora.sha256[:SHORT]}" for lora in self.loras)
        return f'"{told}"' if told else None

    def differences(self, other: Receipt) -> list[str]:
        """What another picture was drawn from in another way, in words; seeds and sizes, which are asked for, aside."""
        found = []
        for name in (
            "weights",
            "task",
            "strength",
            "scheduler",
            "loras",
            "native",
            "arguments",
            "sources",
            "mask",
            "dtype",
            "device",
            "lossy",
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{name}: {_told(mine)} then, {_told(theirs)} now")
        for name in sorted({*self.versions, *other.versions}):
            before, now = self.versions.get(name, "none"), other.versions.get(name, "none")
            if before != now:
                found.append(f"{name}: {before} then, {now} now")
        return found


def _told(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_told(item) for item in value) or "none"
    if isinstance(value, str) and len(value) == 64:
        return value[:SHORT]
    return "none" if value is None or value == {} else str(value)


class NoReceipt(Exception):
    """A file that tells nothing of how it was made, in words for its owner."""


def receipt_in(file: bytes) -> Receipt:
    """The receipt of a PNG. Raises NoReceipt."""
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as picture:
            picture.load()  # texts may stand behind the pixels
            text = getattr(picture, "text", {}).get(KEYWORD)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise NoReceipt("it is not a PNG that can be read") from None
    if text is None:
        raise NoReceipt("it has no receipt: it was not made by a hub, or with `receipts = false`, or was saved anew")
    try:
        return msgspec.json.decode(text[:MAX_TEXT], type=Receipt)
    except (msgspec.DecodeError, ValueError):
        raise NoReceipt("its receipt is damaged, or from another version of the hub") from None
