"""Sana resamples what it draws unless it is told not to."""

from __future__ import annotations

from hub.pipelines.families import Family, unbinned

FAMILIES = (Family(classes=("SanaPipeline",), adapt=unbinned, schedulers=("FlowMatchEulerDiscreteScheduler",)),)
