"""Small pipelines in the layout that their models were published in: one file, other names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name


def ldm_unet(name: str, layers: int, attending: set[str]) -> str:
    """As CompVis' U-Net calls a weight of a UNet2DConditionModel. `attending`: the blocks up that attend."""
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_renamed(rest, RESNET) if kind == 'resnets' else rest}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    if not found:
        return _renamed(name, UNET)
    way, block, kind, index, rest = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if block in attending else 1
        return f"output_blocks.{int(block) * (layers + 1) + layers}.{place}.{rest}"
    place = int(block) * (layers + 1) + int(index)
    side = f"input_blocks.{1 + place}" if way == "down" else f"output_blocks.{place}"
    return f"{side}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"{side}.1.{rest}"


def ldm_vae(name: str, blocks: int) -> str:
    """As CompVis' autoencoder calls a weight of an AutoencoderKL."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if found := re.match(r"(.*)mid_block\.attentions\.0\.(.*)", name):
        return f"{found[1]}mid.attn_1.{_renamed(found[2], ATTENTION)}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda f: f"up.{blocks - 1 - int(f[1])}.block.{f[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda f: f"up.{blocks - 1 - int(f[1])}.upsample", name)


def unet_tensors(unet: Any) -> dict[str, torch.Tensor]:
    weights, layers = unet.state_dict(), unet.config["layers_per_block"]
    attending = {found[1] for name in weights if (found := re.match(r"up_blocks\.(\d)\.attentions", name))}
    return {f"model.diffusion_model.{ldm_unet(name, layers, attending)}": each for name, each in weights.items()}


def vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    blocks = len(vae.config["up_block_types"])
    named = {f"first_stage_model.{ldm_vae(name, blocks)}": each for name, each in vae.state_dict().items()}
    for name, each in named.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):  # 1x1 convolutions in their day
            named[name] = each[:, :, None, None]
    return named


def clip_tensors(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    weights = {name.removeprefix("text_model."): each for name, each in encoder.state_dict().items()}
    return {f"{prefix}text_model.{name}": each for name, each in weights.items()}


def open_clip_tensors(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    """As OpenCLIP calls the weights of a CLIPTextModelWithProjection."""
    weights = {name.removeprefix("text_model."): each for name, each in encoder.state_dict().items()}
    named = {
        "positional_embedding": weights.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": weights.pop("embeddings.token_embedding.weight"),
        "text_projection": weights.pop("text_projection.weight").T,
    }
    for name in ("weight", "bias"):
        named[f"ln_final.{name}"] = weights.pop(f"final_layer_norm.{name}")
        for layer in range(encoder.config.num_hidden_layers):
            old = f"encoder.layers.{layer}.self_attn"
            parts = [weights.pop(f"{old}.{part}_proj.{name}") for part in "qkv"]
            named[f"transformer.resblocks.{layer}.attn.in_proj_{name}"] = torch.cat(parts)
    new = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj"}
    for name, each in weights.items():
        words = [new.get(word, word) for word in name.removeprefix("encoder.layers.").split(".")]
        named["transformer.resblocks." + ".".join(words)] = each
    return {f"{prefix}{name}": each for name, each in named.items()}


def write_ldm(pipe: Any, file: Path, **changes: torch.Tensor | None) -> Path:
    """All weights of a Stable Diffusion as its first checkpoints have them, or of an SDXL."""
    tensors = {**unet_tensors(pipe.unet), **vae_tensors(pipe.vae)}
    if hasattr(pipe, "text_encoder_2"):
        tensors |= clip_tensors(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= open_clip_tensors(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    else:
        tensors |= clip_tensors(pipe.text_encoder, "cond_stage_model.transformer.")
    tensors |= changes
    save_file({name: each.contiguous() for name, each in tensors.items() if each is not None}, file)
    return file
