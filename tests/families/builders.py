"""Small random pipelines by family, each saved as an ordinary diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.families import transformers, unets

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "stable-diffusion": unets.stable_diffusion,
    "stable-diffusion-2": unets.stable_diffusion_2,
    "stable-diffusion-inpainting": unets.stable_diffusion_inpainting,
    "stable-diffusion-xl": unets.stable_diffusion_xl,
    "controlnet": unets.controlnet,
    "controlnet-xl": unets.controlnet_xl,
    "other": unets.other,
    "unconditional": unets.unconditional,
    "stable-diffusion-3": transformers.stable_diffusion_3,
    "flux-dev": transformers.flux_dev,
    "flux-schnell": transformers.flux_schnell,
    "flux-kontext": transformers.flux_kontext,
    "flux-fill": transformers.flux_fill,
    "flux2-klein": transformers.flux2_klein,
    "z-image": transformers.z_image,
    "qwenimage": transformers.qwenimage,
    "qwenimage-edit": transformers.qwenimage_edit,
    "qwenimage-edit-plus": transformers.qwenimage_edit_plus,
    "pixart-sigma": transformers.pixart_sigma,
    "sana": transformers.sana,
}


def build(family: str, folder: Path) -> Path:
    """Builds the family's small pipeline, the same at each call, and saves it in the folder."""
    import torch

    torch.manual_seed(0)
    BUILDERS[family]().save_pretrained(folder, safe_serialization=True)
    return folder


# The size each draws at when the test has no other in mind. Fit: multiples of 8 (a U-Net), 16 (a transformer), 32.
NATIVE: dict[str, tuple[int, int]] = dict.fromkeys(BUILDERS, (64, 64))
