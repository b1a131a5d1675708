"""The families around a transformer: Stable Diffusion 3, FLUX.1 and FLUX.2, Z-Image, Qwen-Image, PixArt and Sana."""

from __future__ import annotations

from typing import Any

from tests.families import parts


def _flow(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


def stable_diffusion_3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=parts.vary(transformer, parts.GAIN),
        scheduler=_flow(shift=3.0),
        vae=parts.flow_autoencoder(),
        text_encoder=parts.clip("CLIPTextModelWithProjection"),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip("CLIPTextModelWithProjection", hidden_act="gelu"),
        tokenizer_2=parts.clip_tokenizer("!"),
        text_encoder_3=parts.t5(64),
        tokenizer_3=parts.t5_tokenizer(),
    )


def _flux(kind: str = "FluxPipeline", guidance: bool = True, channels: int = 64) -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    return getattr(diffusers, kind)(
        scheduler=_flow(**shift, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096),
        vae=parts.flow_autoencoder(),
        text_encoder=parts.clip(),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.t5(64),
        tokenizer_2=parts.t5_tokenizer(),
        transformer=parts.vary(transformer, parts.GAIN),
    )


def flux_dev() -> Any:
    return _flux()


def flux_schnell() -> Any:
    return _flux(guidance=False)


def flux_kontext() -> Any:
    return _flux("FluxKontextPipeline")


def flux_fill() -> Any:
    """64 channels of noise, 64 of the masked picture, and 8 * 8 mask values for each of a token's four latents."""
    return _flux("FluxFillPipeline", channels=64 + 64 + 256)


def flux2_klein() -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), latent_channels=8, layers_per_block=1, norm_num_groups=4, sample_size=64
    )
    vae.bn.running_mean.normal_(0, 0.2)
    vae.bn.running_var.uniform_(0.5, 1.5)
    return Flux2KleinPipeline(
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True, time_shift_type="exponential"),
        vae=parts.loud(parts.vary(vae, parts.GAIN)),
        text_encoder=parts.qwen3(16, 28),  # the pipeline reads the layers 9, 18 and 27
        tokenizer=parts.qwen_tokenizer(),
        transformer=parts.vary(transformer, parts.GAIN),
        is_distilled=False,
    )


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=parts.flow_autoencoder(),
        text_encoder=parts.qwen3(16, 2, "Qwen3Model"),
        tokenizer=parts.qwen_tokenizer(),
        transformer=parts.vary(transformer, parts.GAIN),
    )


def _qwen(kind: str = "QwenImagePipeline", **more: Any) -> Any:
    import diffusers

    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=kind == "QwenImageEditPlusPipeline",  # as Qwen-Image-Edit-2511
    )
    # Whatever an edit's size, its pictures are read at a million pixels: one halving more makes that bearable here.
    deeper = [True] * ("Edit" in kind)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, *map(int, deeper)],
        num_res_blocks=0,
        temperal_downsample=[False, True, True, *deeper],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
    )
    return getattr(diffusers, kind)(
        scheduler=_flow(
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
        vae=parts.loud(parts.vary(vae, parts.GAIN)),
        text_encoder=parts.qwen_vl(),
        tokenizer=parts.qwen_tokenizer(),
        transformer=parts.vary(transformer, parts.GAIN),
        **more,
    )


def qwenimage() -> Any:
    return _qwen()


def qwenimage_edit() -> Any:
    return _qwen("QwenImageEditPipeline", processor=parts.qwen_processor())


def qwenimage_edit_plus() -> Any:
    return _qwen("QwenImageEditPlusPipeline", processor=parts.qwen_processor())


def pixart_sigma() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=32,  # 32, 64, 128 and 256 only: each has a table of aspect ratios
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        cross_attention_dim=32,
        caption_channels=32,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        vae=parts.autoencoder(scaling_factor=0.13025),
        transformer=parts.vary(transformer, parts.GAIN),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        sample_size=16,  # 16, 32, 64 and 128 only: each has a table of aspect ratios
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
    )
    widths = (4, 4, 8, 8, 16, 16)
    vae = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (), (5,), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        tokenizer=parts.gemma_tokenizer(),
        text_encoder=parts.gemma(),
        vae=parts.vary(vae, parts.GAIN),
        transformer=parts.vary(transformer, parts.GAIN),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
    )
