"""Single files with all of a model: which family's they are, and what of it they hold, by the names and shapes of their
tensors. Without torch: diffusers answers the same (hub.pipelines.parts asks it, and a test compares), but whoever adds
a file is told before anything is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from hub.pipelines.headers import Tensor

FAMILIES = {
    "StableDiffusion": ("v1", "v2", "inpainting", "inpainting_v2"),
    "StableDiffusionXL": ("xl_base", "xl_refiner", "xl_inpaint", "playground-v2-5"),
    "StableDiffusionInstructPix2Pix": ("instruct-pix2pix",),
    "StableDiffusionUpscale": ("upscale",),
    "StableDiffusion3": ("sd3", "sd35_large", "sd35_medium"),
    "Flux": ("flux-dev", "flux-fill", "flux-depth", "flux-schnell"),
    "Flux2": ("flux-2-dev",),
    "Chroma": ("chroma",),
    "ZImage": ("z-image-turbo",),
    "Sana": ("sana",),
    "Lumina2": ("lumina2",),
    "AuraFlow": ("auraflow",),
    "HiDreamImage": ("hidream",),
    "Krea2": ("krea2",),
}
"""How the names of a family's pipelines begin, and what diffusers calls its checkpoints."""

DENOISERS = ("unet", "transformer")
LDM = "model.diffusion_model."
LDM_INPUT = f"{LDM}input_blocks.0.0.weight"
LDM_CROSS = f"{LDM}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
VAE = ("first_stage_model.", "vae.")
T5 = "text_encoders.t5xxl.transformer.shared.weight"
CLIP_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
CLIP = (
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",
    "text_encoders.clip_g.transformer.text_model.embeddings.position_embedding.weight",
    "cond_stage_model.model.token_embedding.weight",
    "conditioner.embedders.1.model.positional_embedding",
    "conditioner.embedders.0.model.text_projection",
)
"""One of these is in every file that has a CLIP."""
LORA = re.compile(r"lora_(A|B|down|up|magnitude)|\.lora\.(down|up)|hada_w[12]|lokr_w[12]|^lora_(unet|te)")


class Sign(Struct, frozen=True):
    """What a kind of file is known by: `some` of these tensors or `every` one of those, and of `tensor` the length of
    an `axis`. `family` is None for kinds that no pipeline here reads, which have to be told apart all the same."""

    family: str | None
    some: tuple[str, ...] = ()
    every: tuple[str, ...] = ()
    tensor: tuple[str, ...] = ()
    axis: int = 0
    lengths: tuple[int, ...] = ()

    def is_on(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the file has it."""
        if self.some and not any(name in tensors for name in self.some):
            return False
        if not all(name in tensors for name in self.every):
            return False
        if not self.tensor:
            return True
        return any(_length(tensors, name, self.axis) in self.lengths for name in self.tensor if name in tensors)


def _length(tensors: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    shape = tensors[name].shape
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _either(name: str) -> tuple[str, ...]:
    """A tensor's name, and how it is called in files that keep CompVis' prefix."""
    return (name, f"{LDM}{name}")


XL = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
REFINER = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"
MOTION = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
SD3_BIAS = _either("joint_blocks.0.context_block.adaLN_modulation.1.bias")
AURA = ("double_layers.0.attn.w2q.weight", "double_layers.0.attn.w1q.weight", "cond_seq_linear.weight")
SANA = tuple(f"blocks.0.cross_attn.{layer}_linear.{kind}" for layer in ("q", "kv") for kind in ("weight", "bias"))
LTX = (
    *_either("patchify_proj.weight"),
    *_either("transformer_blocks.27.scale_shift_table"),
    "vae.decoder.last_scale_shift_table",
    "vae.decoder.up_blocks.9.res_blocks.0.conv1.conv.weight",
)
LTX2 = (
    f"{LDM}av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight",
    "vae.per_channel_statistics.mean-of-means",
    "audio_vae.per_channel_statistics.mean-of-means",
)
COSMOS = "net.x_embedder.proj.1.weight"

SIGNS = (
    Sign("StableDiffusionXL", every=(XL,), tensor=(LDM_INPUT,), axis=1, lengths=(9,)),
    Sign("StableDiffusion", tensor=(LDM_INPUT,), axis=1, lengths=(9,)),
    Sign("StableDiffusion", tensor=(LDM_CROSS,), axis=-1, lengths=(1024,)),
    Sign("StableDiffusionXL", some=("edm_mean", XL, REFINER)),
    Sign("StableDiffusionUpscale", every=(f"{LDM}input_blocks.10.0.skip_connection.bias",)),
    Sign(None, some=("control_model.time_embed.0.weight", "controlnet_cond_embedding.conv_in.weight")),
    Sign(None, tensor=("clip_txt_mapper.weight",), axis=0, lengths=(1536, 2048)),
    Sign(None, tensor=("down_blocks.1.0.channelwise.0.weight",), axis=-1, lengths=(576, 640)),
    Sign("StableDiffusion3", tensor=SD3_BIAS, axis=-1, lengths=(9216,)),
    Sign("StableDiffusion3", some=_either("joint_blocks.37.x_block.mlp.fc1.weight")),
    Sign(None, every=(MOTION,)),
    Sign("Flux2", some=_either("single_stream_modulation.lin.weight")),
    Sign(None, some=_either("early_stream_modulations.image.lin.weight")),
    Sign("Chroma", some=_either("distilled_guidance_layer.in_proj.bias")),
    Sign("Flux", some=_either("double_blocks.0.img_attn.norm.key_norm.scale")),
    Sign(None, some=LTX),
    Sign(None, every=("decoder.stages.1.op_list.0.main.conv.conv.bias",)),
    Sign(None, some=_either("blocks.0.attn.qkv_x.weight")),
    Sign(None, every=("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",)),
    Sign("AuraFlow", every=(*AURA, "t_embedder.mlp.0.weight")),
    Sign("StableDiffusionInstructPix2Pix", tensor=(LDM_INPUT,), axis=1, lengths=(8,)),
    Sign("ZImage", some=_either("layers.0.adaLN_modulation.0.weight")),
    Sign("Lumina2", some=_either("cap_embedder.0.weight")),
    Sign("Sana", some=SANA),
    Sign(None, some=_either("head.modulation")),
    Sign(None, some=_either("txt_in.text_norm.weight")),
    Sign("Krea2", some=_either("txtfusion.projector.weight")),
    Sign(None, every=("decoder.middle.0.residual.0.gamma",)),
    Sign("HiDreamImage", every=("double_stream_blocks.0.block.adaLN_modulation.1.bias",)),
    Sign(
        None, every=(COSMOS, "net.blocks.block1.blocks.0.block.attn.to_q.0.weight", "net.extra_pos_embedder.pos_emb_h")
    ),
    Sign(None, every=(COSMOS, "net.blocks.0.self_attn.q_proj.weight", "net.pos_embedder.dim_spatial_range")),
    Sign(None, some=("control_layers.14.adaLN_modulation.0.weight", "control_all_x_embedder.2-1.weight")),
    Sign(None, some=LTX2),
    Sign(None, every=("token_refiner.blocks.0.attn.qkv_proj.weight",)),
    Sign("StableDiffusion", every=(LDM_INPUT,)),
)
"""In the order in which they count: a file may have several."""


def family_of_file(tensors: Mapping[str, Tensor]) -> str | None:
    """How the names of the pipelines begin for which a checkpoint's tensors are; None where no whole model is known
    by them."""
    return next((sign.family for sign in SIGNS if sign.is_on(tensors)), None)


def family_by_name(cls: str) -> str | None:
    """The same, of a pipeline's class."""
    return max((family for family in FAMILIES if cls.startswith(family)), key=len, default=None)


def is_lora(tensors: Collection[str]) -> bool:
    """Whether they change a model instead of being one."""
    return any(LORA.search(name) for name in tensors)


def is_held(part: str, cls: str, tensors: Collection[str]) -> bool:
    """Whether a checkpoint of the pipeline's family has the component of that name and class."""
    if part in DENOISERS:
        return True
    if part == "vae":
        return any(name.startswith(VAE) for name in tensors)
    if cls == "T5EncoderModel" and T5 in tensors:
        return True
    return cls in CLIP_CLASSES and any(name in tensors for name in CLIP)


def misfit(tensors: Mapping[str, Tensor], denoiser: Mapping[str, Any]) -> str | None:
    """What tells that a checkpoint is of another model than a denoiser's configuration, though of its family: words
    that go on after "has"; None where nothing does."""
    for names, axis, wanted, words in (
        ((LDM_INPUT,), 1, denoiser.get("in_channels"), "input channels"),
        ((LDM_INPUT,), 0, _first(denoiser.get("block_out_channels")), "channels in its first block"),
        ((LDM_CROSS,), -1, denoiser.get("cross_attention_dim"), "numbers for a token of the prompt"),
        (_either("img_in.weight"), 1, denoiser.get("in_channels"), "input channels"),
        (_either("img_in.weight"), 0, _inner(denoiser), "channels"),
        (_either("x_embedder.proj.weight"), 0, _inner(denoiser), "channels"),
    ):
        for name in names:
            found = _length(tensors, name, axis) if name in tensors else None
            if found is not None and type(wanted) is int and found != wanted:
                return f"{found} {words}, and the configuration {wanted}"
    guided = any(name.removeprefix(LDM).startswith("guidance_in.") for name in tensors)
    embeds = denoiser.get("guidance_embeds")
    if isinstance(embeds, bool) and "double_blocks" in " ".join(list(tensors)[:2000]) and guided != embeds:
        return "guidance as an input, and the configuration not" if guided else "no guidance, and the configuration one"
    return None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _inner(denoiser: Mapping[str, Any]) -> int | None:
    heads, width = denoiser.get("num_attention_heads"), denoiser.get("attention_head_dim")
    return heads * width if type(heads) is int and type(width) is int else None
