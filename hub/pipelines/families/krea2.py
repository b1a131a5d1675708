"""Krea 2 guides at any scale above 0."""

from __future__ import annotations

import functools

from hub.pipelines.families import Family, by_guidance
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As diffusers calls it."""
    usual = Suggested(native=1024, multiple=found.packed(), steps=28, guidance=4.5)
    if found.named("turbo"):
        return usual.guess("By its name (turbo) distilled to few steps.", steps=8, guidance=0.0)
    return usual


FAMILIES = (
    Family(
        classes=("Krea2Pipeline",),
        adapt=functools.partial(by_guidance, off=0),
        tasks=("text-to-image",),
        suggest=suggest,
    ),
)
