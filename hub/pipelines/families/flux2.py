"""FLUX.2 looks at any number of pictures, and has no negative prompt."""

from __future__ import annotations

from hub.pipelines.families import Arguments, Family, Unused
from hub.pipelines.suggested import Found, Suggested


def no_negative(wanted: Arguments) -> Unused:
    """The pipelines steer away from the empty prompt alone."""
    if wanted.pop("negative_prompt", None):
        return {"negative_prompt": "this model has none"}
    return {}


def suggest(found: Found) -> Suggested:
    """The klein models say themselves whether they were distilled."""
    distilled = found.index.get("is_distilled") is True
    steps, guidance = (4, None) if distilled else (50, 4.0)
    return Suggested(native=1024, multiple=found.packed(), min=256, steps=steps, guidance=guidance)


FAMILIES = (
    Family(
        classes=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        pipelines={
            "text-to-image": "Flux2KleinPipeline",
            "image-to-image": "Flux2KleinPipeline",
            "inpainting": "Flux2KleinInpaintPipeline",
        },
        images="reference",
        max_images=10,
        adapt=no_negative,
        suggest=suggest,
    ),
    Family(
        classes=("Flux2Pipeline",),
        pipelines={"text-to-image": "Flux2Pipeline", "image-to-image": "Flux2Pipeline"},
        images="reference",
        max_images=10,
        adapt=no_negative,
        suggest=suggest,
    ),
)
