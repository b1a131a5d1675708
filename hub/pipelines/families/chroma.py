"""Chroma: FLUX.1 schnell made anew, with true guidance."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published."""
    return Suggested(native=1024, multiple=found.packed(), steps=40, guidance=3.0)


FAMILIES = (Family(classes=("ChromaPipeline",), tasks=("text-to-image",), suggest=suggest),)
