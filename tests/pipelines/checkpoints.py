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
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name


def ldm_unet(name: str, layers: int, blocks: int) -> str:
    """As CompVis' U-Net calls a weight of a UNet2DConditionModel."""
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
        attends = 2 if int(block) == 0 else 1  # the first block up attends, in the small pipeline of the tests
        return f"output_blocks.{int(block) * (layers + 1) + layers}.{attends}.{rest}"
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


def ldm_tensors(pipe: Any) -> dict[str, torch.Tensor]:
    """All weights of a Stable Diffusion as its first checkpoints have them."""
    layers, blocks = pipe.unet.config["layers_per_block"], len(pipe.vae.config["up_block_types"])
    unet = {ldm_unet(name, layers, blocks): each for name, each in pipe.unet.state_dict().items()}
    vae = {ldm_vae(name, blocks): each for name, each in pipe.vae.state_dict().items()}
    for name, each in vae.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):  # 1x1 convolutions in their day
            vae[name] = each[:, :, None, None]
    text = {name.removeprefix("text_model."): each for name, each in pipe.text_encoder.state_dict().items()}
    return {
        **{f"model.diffusion_model.{name}": each for name, each in unet.items()},
        **{f"first_stage_model.{name}": each for name, each in vae.items()},
        **{f"cond_stage_model.transformer.text_model.{name}": each for name, each in text.items()},
    }


def write_ldm(pipe: Any, file: Path, **changes: torch.Tensor | None) -> Path:
    tensors = {**ldm_tensors(pipe), **changes}
    save_file({name: each.contiguous() for name, each in tensors.items() if each is not None}, file)
    return file
