"""FLUX.1: guidance is an input of the model (dev) or none at all (schnell). A negative prompt works only by true
classifier-free guidance, at twice the time, and only where a manifest's arguments switch it on."""

from __future__ import annotations

import functools

from msgspec.structs import replace

from hub.pipelines.families import ALL_TASKS, CONTROL, Arguments, Family, Unused
from hub.pipelines.suggested import Found, Suggested

PREFERRED_AREA = 1024 * 1024
"""Kontext was trained on seventeen shapes of about this many pixels."""


def by_true_cfg(wanted: Arguments) -> Unused:
    """A negative prompt needs `true_cfg_scale` above 1."""
    if not wanted.get("negative_prompt") or wanted.get("true_cfg_scale", 1) > 1:
        return {}
    del wanted["negative_prompt"]
    return {"negative_prompt": "it has no effect on this model unless its manifest sets true_cfg_scale above 1"}


def kontext(wanted: Arguments) -> Unused:
    """The picture is drawn at our size, not at one that the pipeline picks; references go to a trained shape only
    where we draw at the trained area."""
    area = wanted["width"] * wanted["height"]
    wanted["max_area"] = area
    wanted["_auto_resize"] = area >= 0.9 * PREFERRED_AREA
    return by_true_cfg(wanted)


def suggest(found: Found, *, steps: int = 50, guidance: float = 3.5) -> Suggested:
    """Where guidance is an input of the transformer the numbers that were published; else schnell's."""
    usual = Suggested(native=1024, multiple=found.packed(), min=256, steps=steps, guidance=guidance)
    if not found.denoiser.get("guidance_embeds", False):
        return replace(usual, steps=4, guidance=None, arguments={"max_sequence_length": 256})
    if found.named("turbo|lightning|hyper"):
        why = "By its name distilled to few steps."
        return usual.guess(why, steps=found.steps_named() or 8)
    return usual


def suggest_control(found: Found) -> Suggested:
    """Edges want more of it than depth, which alone the name tells."""
    usual = suggest(found, guidance=10.0)
    if found.named("depth"):
        return replace(usual, steps=30)
    return usual.guess("FLUX.1 Canny wants a guidance of 30, Depth one of 10.", guidance=30.0)


FAMILIES = (
    Family(
        classes=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        embedded_guidance=True,
        adapt=by_true_cfg,
        tasks=ALL_TASKS,
        suggest=suggest,
    ),
    Family(
        classes=("FluxFillPipeline",),
        pipelines={"inpainting": "FluxFillPipeline"},
        embedded_guidance=True,
        adapt=by_true_cfg,
        suggest=functools.partial(suggest, guidance=30.0),
    ),
    Family(
        classes=("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
        pipelines={
            "text-to-image": "FluxKontextPipeline",
            "image-to-image": "FluxKontextPipeline",
            "inpainting": "FluxKontextInpaintPipeline",
        },
        images="reference",
        embedded_guidance=True,
        adapt=kontext,
        suggest=functools.partial(suggest, steps=28, guidance=2.5),
    ),
    replace(
        CONTROL,
        classes=("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"),
        tasks=ALL_TASKS,
        suggest=suggest_control,
    ),
)
