"""The families around a U-Net: Stable Diffusion 1, 2 and XL, their ControlNets, and what no mapping names."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.families import parts

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BLOCKS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 16,
}
XL = {
    "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (4, 8),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,  # 6 * 8 + 32
}
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


def _unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {"sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 8, "up_block_types": UP, **BLOCKS}
    return parts.vary(UNet2DConditionModel(**{**settings, **changes}), parts.GAIN)


def _controlnet(**changes: Any) -> Any:
    from diffusers import ControlNetModel

    settings = {
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "conditioning_embedding_out_channels": (8, 8, 16, 16),
        **BLOCKS,
    }
    model = ControlNetModel(**{**settings, **changes})
    parts.vary(model.controlnet_cond_embedding, 2 * parts.GAIN)
    return parts.vary(model)


def _plain(kind: str = "StableDiffusionPipeline", **changes: Any) -> Any:
    import diffusers

    components = {
        "vae": parts.autoencoder(),
        "text_encoder": parts.clip(),
        "tokenizer": parts.clip_tokenizer(),
        "unet": _unet(),
        "scheduler": diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),
        "safety_checker": None,
        "feature_extractor": None,
        **changes,
    }
    return getattr(diffusers, kind)(**components, requires_safety_checker=False)


def stable_diffusion() -> Any:
    from diffusers import StableDiffusionPipeline

    from tests.conftest import build_small_stable_diffusion

    with tempfile.TemporaryDirectory() as folder:
        pipe = StableDiffusionPipeline.from_pretrained(build_small_stable_diffusion(Path(folder)))
    for part in (pipe, pipe.unet, pipe.vae):
        part.register_to_config(_name_or_path="")
    return pipe


def stable_diffusion_2() -> Any:
    from diffusers import DDIMScheduler

    return _plain(
        text_encoder=parts.clip(width=48, hidden_act="gelu", projection_dim=64),
        tokenizer=parts.clip_tokenizer("!"),
        unet=_unet(cross_attention_dim=48, use_linear_projection=True, attention_head_dim=(4, 8)),
        scheduler=DDIMScheduler(
            prediction_type="v_prediction", steps_offset=1, clip_sample=False, set_alpha_to_one=False, **BETAS
        ),
    )


def stable_diffusion_inpainting() -> Any:
    return _plain("StableDiffusionInpaintPipeline", unet=_unet(in_channels=9))


def controlnet() -> Any:
    from diffusers import UniPCMultistepScheduler

    return _plain(
        "StableDiffusionControlNetPipeline",
        controlnet=_controlnet(),
        scheduler=UniPCMultistepScheduler(steps_offset=1, **BETAS),
    )


def _large(kind: str = "StableDiffusionXLPipeline", **changes: Any) -> Any:
    import diffusers

    components = {
        "vae": parts.autoencoder(scaling_factor=0.13025, force_upcast=True),
        "text_encoder": parts.clip(),
        "text_encoder_2": parts.clip("CLIPTextModelWithProjection", hidden_act="gelu"),
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer("!"),
        "unet": _unet(**XL),
        "scheduler": diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS),
        **changes,
    }
    return getattr(diffusers, kind)(**components, force_zeros_for_empty_prompt=True, add_watermarker=False)


def stable_diffusion_xl() -> Any:
    return _large()


def controlnet_xl() -> Any:
    return _large("StableDiffusionXLControlNetPipeline", controlnet=_controlnet(**XL))


def other() -> Any:
    """In none of diffusers' AUTO mappings: other names for its components, no callback, no number of timesteps."""
    from diffusers import DDIMScheduler, LDMTextToImagePipeline

    return LDMTextToImagePipeline(
        vqvae=parts.autoencoder(),
        bert=parts.clip(),
        tokenizer=parts.clip_tokenizer(),
        unet=_unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, **BETAS),
    )


def unconditional() -> Any:
    """Draws without a prompt."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=64,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    return DDPMPipeline(parts.vary(unet, parts.GAIN), DDPMScheduler())
