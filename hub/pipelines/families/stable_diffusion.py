"""Stable Diffusion 1 and 2, and what was made of them: called as usual, at the size that the U-Net tells."""

from __future__ import annotations

from hub.pipelines.families import ALL_TASKS, Family
from hub.pipelines.suggested import Found, Suggested, few_steps

FAST_SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")


def suggest(found: Found) -> Suggested:
    """Half the steps do where the folder has a faster solver. SD-Turbo and its kind say so by scheduler and name."""
    steps = 25 if found.scheduler_class in FAST_SOLVERS else 50
    usual = Suggested(native=found.side, multiple=max(8, found.factor or 8), steps=steps, guidance=7.5)
    return few_steps(found, usual)


def suggest_consistency(found: Found) -> Suggested:
    """Latent consistency models: the guidance is an input."""
    return Suggested(native=found.side, multiple=max(8, found.factor or 8), steps=4, guidance=8.0)


FAMILIES = (
    Family(
        classes=tuple(f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        tasks=ALL_TASKS,
        suggest=suggest,
    ),
    Family(
        classes=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        tasks=("text-to-image", "image-to-image"),
        suggest=suggest_consistency,
    ),
)
