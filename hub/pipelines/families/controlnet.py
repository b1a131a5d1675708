"""ControlNet draws along a map (edges, depth, a pose …): the first picture, or the second where one is repainted."""

from __future__ import annotations

from hub.pipelines.families import Family

FAMILIES = (
    Family(
        classes=tuple(
            f"{model}ControlNet{task}Pipeline"
            for model in ("StableDiffusion", "StableDiffusionXL")
            for task in ("", "Img2Img", "Inpaint")
        ),
        images="control",
        max_images=2,
    ),
)
