"""Kolors: SDXL's U-Net, which reads ChatGLM."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published."""
    return Suggested(native=found.side, multiple=max(8, found.factor or 8), steps=50, guidance=5.0)


FAMILIES = (
    Family(
        classes=("KolorsPipeline", "KolorsImg2ImgPipeline"), tasks=("text-to-image", "image-to-image"), suggest=suggest
    ),
)
