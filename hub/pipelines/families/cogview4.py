"""CogView 4: called as usual."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published."""
    return Suggested(native=1024, multiple=2 * found.packed(), steps=50, guidance=3.5)


FAMILIES = (Family(classes=("CogView4Pipeline",), tasks=("text-to-image",), suggest=suggest),)
