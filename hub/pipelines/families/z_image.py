"""Z-Image guides at any scale above 0."""

from __future__ import annotations

import functools

from hub.pipelines.families import ALL_TASKS, Family, by_guidance
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """Turbo is told by its name, or by its noise scheduler, which shifts by 3 where the other one's shifts by 6."""
    usual = Suggested(native=1024, multiple=found.packed(), steps=50, guidance=4.0)
    if found.named("turbo") or found.scheduler.get("shift") == 3.0:
        why = (
            "By its name or noise scheduler Z-Image-Turbo, distilled to eight steps (its pipeline leaves out the last)."
        )
        return usual.guess(why, steps=9, guidance=0.0)
    return usual


FAMILIES = (
    Family(
        classes=tuple(f"ZImage{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        adapt=functools.partial(by_guidance, off=0),
        tasks=ALL_TASKS,
        suggest=suggest,
    ),
)
