"""FLUX.1: guidance is an input of the model (dev) or none at all (schnell). A negative prompt works only by true
classifier-free guidance, at twice the time, and only where a manifest's arguments switch it on."""

from __future__ import annotations

from hub.pipelines.families import Arguments, Family, Unused

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


FAMILIES = (
    Family(
        classes=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        embedded_guidance=True,
        adapt=by_true_cfg,
    ),
    Family(
        classes=("FluxFillPipeline",),
        pipelines={"inpainting": "FluxFillPipeline"},
        embedded_guidance=True,
        adapt=by_true_cfg,
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
    ),
)
