"""AuraFlow: called as usual."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published."""
    return Suggested(native=found.side, multiple=(found.factor or 8) * found.patch, steps=50, guidance=3.5)


FAMILIES = (Family(classes=("AuraFlowPipeline",), tasks=("text-to-image",), suggest=suggest),)
