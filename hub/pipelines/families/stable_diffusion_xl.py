"""Stable Diffusion XL: called as usual."""

from __future__ import annotations

from msgspec.structs import replace

from hub.pipelines.families import ALL_TASKS, Family
from hub.pipelines.suggested import Found, Suggested, few_steps


def suggest(found: Found) -> Suggested:
    """A refiner only goes on from a picture: it has half of the text encoders, and asks how beautiful it shall be."""
    usual = Suggested(native=found.side, multiple=max(8, found.factor or 8), steps=50, guidance=5.0)
    if found.index.get("requires_aesthetics_score") is True:
        return replace(usual, tasks=("image-to-image",), notes=("A refiner: it edits pictures, and draws none.",))
    if found.wants_masks:
        return replace(usual, steps=20, guidance=8.0)
    return few_steps(found, usual)


FAMILIES = (
    Family(
        classes=tuple(f"StableDiffusionXL{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        tasks=ALL_TASKS,
        suggest=suggest,
    ),
)
