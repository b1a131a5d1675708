"""Sana was trained by flow matching, which its solver's list of compatible schedulers does not tell."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """Its autoencoder divides by 32."""
    multiple = (found.factor or 32) * found.patch
    return Suggested(native=found.side, multiple=multiple, steps=20, guidance=4.5)


def suggest_sprint(found: Found) -> Suggested:
    """Distilled to one to four steps; the guidance is an input."""
    multiple = (found.factor or 32) * found.patch
    return Suggested(native=found.side, multiple=multiple, steps=2, guidance=4.5)


FAMILIES = (
    Family(
        classes=("SanaPipeline",),
        schedulers=("FlowMatchEulerDiscreteScheduler",),
        tasks=("text-to-image",),
        suggest=suggest,
    ),
    Family(classes=("SanaSprintPipeline",), tasks=("text-to-image",), suggest=suggest_sprint),
)
