"""Stable Diffusion 3 and 3.5: the one flow-matching family whose loop follows a solver of second order."""

from __future__ import annotations

from hub.pipelines.families import ALL_TASKS, Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """3.5 large has 38 layers, 3.5 medium attends twice in some, and 3 does neither. Turbo is told by its name."""
    config, largest = found.denoiser, None
    steps, guidance = 28, 7.0
    if config.get("num_layers") == 38:
        guidance = 3.5
    elif config.get("dual_attention_layers"):
        steps, guidance = 40, 4.5
        largest = 1440 if found.side == 1024 else None
    usual = Suggested(
        native=found.side,
        multiple=(found.factor or 8) * found.patch,
        max=largest,
        steps=steps,
        guidance=guidance,
    )
    if found.named("turbo"):
        return usual.guess("By its name (turbo) distilled to four steps without guidance.", steps=4, guidance=0.0)
    return usual


FAMILIES = (
    Family(
        classes=tuple(f"StableDiffusion3{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        schedulers=("FlowMatchHeunDiscreteScheduler",),
        tasks=ALL_TASKS,
        suggest=suggest,
    ),
)
