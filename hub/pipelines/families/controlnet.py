"""ControlNets of Stable Diffusion and SDXL: these, drawing along a map."""

from __future__ import annotations

from msgspec.structs import replace

from hub.pipelines.families import ALL_TASKS, CONTROL
from hub.pipelines.families.stable_diffusion import suggest
from hub.pipelines.families.stable_diffusion_xl import suggest as suggest_xl


def _classes(start: str) -> tuple[str, ...]:
    return tuple(f"{start}{task}Pipeline" for task in ("", "Img2Img", "Inpaint"))


FAMILIES = (
    replace(CONTROL, classes=_classes("StableDiffusionControlNet"), tasks=ALL_TASKS, suggest=suggest),
    replace(CONTROL, classes=_classes("StableDiffusionXLControlNet"), tasks=ALL_TASKS, suggest=suggest_xl),
    replace(CONTROL, classes=_classes("StableDiffusionXLControlNetUnion"), tasks=ALL_TASKS, suggest=suggest_xl),
)
