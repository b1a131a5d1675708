"""Stable Diffusion 3 is the one flow-matching family whose loop follows a solver of second order."""

from __future__ import annotations

from hub.pipelines.families import Family

FAMILIES = (
    Family(
        classes=tuple(f"StableDiffusion3{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        schedulers=("FlowMatchHeunDiscreteScheduler",),
    ),
)
