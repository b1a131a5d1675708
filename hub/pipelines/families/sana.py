"""Sana was trained by flow matching, which its solver's list of compatible schedulers does not tell."""

from __future__ import annotations

from hub.pipelines.families import Family

FAMILIES = (Family(classes=("SanaPipeline",), schedulers=("FlowMatchEulerDiscreteScheduler",)),)
