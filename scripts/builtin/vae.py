"""First training stage of the built-in model: the autoencoder between pictures and latents.

A diffusers ``AutoencoderTiny`` of factor 4. Three of its four latent channels are held to the picture itself, shrunk;
the fourth says what is lost by that, such as where in a 4x4 square an edge runs. So colours are right from the first
minute, `latents` can be looked at, and without normalisation layers it may be trained on crops of pictures.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from builtin.loop import Stage
from builtin.scenes import SIDE, draw_scene, render

log = logging.getLogger("train_builtin")
FACTOR = 4
CROP, CROPS, SCENES = 64, 4, 6
"""A step learns from CROPS crops of each of SCENES pictures: to draw one takes longer than to learn from it."""
DETAIL = 0.7
"""Deviation of the fourth channel."""


def new_vae() -> AutoencoderTiny:
    """An untrained autoencoder: [n, 3, 128, 128] <-> [n, 4, 32, 32]."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32), num_encoder_blocks=(1, 1, 2),
        decoder_block_out_channels=(40, 40, 40), num_decoder_blocks=(3, 2, 1),
        latent_channels=4, scaling_factor=1.0,
    )  # fmt: skip


def picture_batch(rng: Generator, pictures: np.ndarray, scenes: int, crop: int) -> Tensor:
    """Scenes for the autoencoder, or CROPS parts of each: [n, 3, crop, crop], -1..1. `pictures`: of the things."""
    out = []
    for _ in range(scenes):
        scene = draw_scene(rng, len(pictures))
        whole = render(scene, pictures)
        if rng.random() < 0.15:  # other colours than the palette's, so that img2img copes with other pictures
            whole = whole[..., rng.permutation(3)]
        for _ in range(1 if crop == SIDE else CROPS):
            middle = [(one.left + one.side / 2, one.top + one.side / 2) for one in scene.objects[:1]]
            wanted = np.array(middle[0] if middle else (SIDE / 2, SIDE / 2)) + rng.uniform(-30, 30, 2)
            x, y = (int(np.clip(at - crop / 2, 0, SIDE - crop)) for at in wanted)
            out.append(whole[y : y + crop, x : x + crop])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 and L2 on the pixels plus L1 on neighbour differences, which is what keeps edges clean."""
    diff = made - wanted
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(made), _gradients(wanted), strict=True))
    return diff.abs().mean() + 2 * diff.square().mean() + edges


def latent_loss(latents: Tensor, wanted: Tensor) -> Tensor:
    """How far three channels are from the shrunken picture, and the fourth from mean 0 and deviation DETAIL."""
    detail = latents[:, 3]
    held = F.mse_loss(latents[:, :3], F.avg_pool2d(wanted, FACTOR))
    return 4 * held + 0.05 * (detail.mean().square() + (detail.std() - DETAIL).square())


@torch.no_grad()
def psnr(vae: AutoencoderTiny, pictures: Tensor) -> tuple[float, Tensor]:
    """Peak signal-to-noise ratio in dB of reconstructions, and the reconstructions themselves."""
    made = vae.decode(vae.encode(pictures).latents).sample.clamp(-1, 1)
    error = ((made - pictures) / 2).square().mean((1, 2, 3)).clamp_min(1e-8)
    return float((-10 * error.log10()).mean()), made


def save_sheet(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures ([n, 3, h, w], -1..1) as one PNG, row by row."""
    array = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.hstack(list(array[i : i + columns])) for i in range(0, len(array) // columns * columns, columns)]
    Image.fromarray(np.vstack(rows)).save(path)


def load_vae(work: Path) -> AutoencoderTiny:
    """As trained so far: with the sharpened decoder where there is one."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", map_location="cpu", weights_only=True)["parts"]["vae"])
    if (work / "decoder.pt").exists():
        sharpened = torch.load(work / "decoder.pt", map_location="cpu", weights_only=True)["parts"]
        vae.decoder.load_state_dict(sharpened["decoder"])
    return vae.eval()


def train_vae(work: Path, pictures: np.ndarray, steps: int, seed: int, device: str) -> None:
    """Train encoder and decoder; leaves ``work/vae.pt``."""
    torch.manual_seed(seed)
    vae = new_vae().to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    stage = Stage("vae", work, steps, {"vae": vae, "optimizer": optimizer})
    _train(stage, vae, 1.2e-3, pictures, seed)


def train_decoder(work: Path, pictures: np.ndarray, steps: int, seed: int, device: str) -> None:
    """Sharpen the decoder while the encoder, and so every latent, stays as it is; leaves ``work/decoder.pt``.

    It may run at any time after ``train_vae``, even when the diffusion is trained already. Noise on the latents
    prepares the decoder for latents that the diffusion made.
    """
    torch.manual_seed(seed)
    vae = load_vae(work).to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1e-3, weight_decay=0, betas=(0.9, 0.99))
    stage = Stage("decoder", work, steps, {"decoder": vae.decoder, "optimizer": optimizer})
    _train(stage, vae, 7e-4, pictures, seed + 1)


def _train(stage: Stage, vae: AutoencoderTiny, rate: float, pictures: np.ndarray, seed: int) -> None:
    device = vae.device.type
    optimizer = stage.parts["optimizer"]
    check = picture_batch(np.random.default_rng(seed + 1), pictures, 32, SIDE).to(device)
    for step, factor in stage.steps():
        wanted = picture_batch(np.random.default_rng((seed, 40, step)), pictures, SCENES, CROP)
        wanted = wanted.to(device, memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        with torch.autocast(device, torch.bfloat16):
            latents = vae.encode(wanted).latents
            amount = 0.12 * torch.rand(len(latents), 1, 1, 1, device=device)
            made = vae.decode(latents + amount * torch.randn_like(latents)).sample
        loss = reconstruction_loss(made.float(), wanted) + latent_loss(latents.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            quality, again = psnr(vae, check)
            held = F.mse_loss(latents[:, :3].float(), F.avg_pool2d(wanted, FACTOR)).item() ** 0.5
            log.info("%s step %d loss %.4f whole pictures %.2f dB, off the shrunken picture by %.3f",
                     stage.name, step, loss.item(), quality, held)  # fmt: skip
            save_sheet(torch.cat([check[:16], again[:16]]), stage.path.with_suffix(".png"))
    log.info("%s done: %.2f dB", stage.name, psnr(vae, check)[0])
