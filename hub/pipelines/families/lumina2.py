"""Lumina 2: called as usual."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published."""
    return Suggested(native=1024, multiple=found.packed(), steps=50, guidance=4.0)


FAMILIES = (Family(classes=("Lumina2Pipeline",), tasks=("text-to-image",), suggest=suggest),)
