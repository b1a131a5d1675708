"""Z-Image guides at any scale above 0."""

from __future__ import annotations

import functools

from hub.pipelines.families import Family, by_guidance

FAMILIES = (
    Family(
        classes=tuple(f"ZImage{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        adapt=functools.partial(by_guidance, off=0),
    ),
)
