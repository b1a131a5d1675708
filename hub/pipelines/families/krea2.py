"""Krea 2 guides at any scale above 0."""

from __future__ import annotations

import functools

from hub.pipelines.families import Family, by_guidance

FAMILIES = (Family(classes=("Krea2Pipeline",), adapt=functools.partial(by_guidance, off=0)),)
