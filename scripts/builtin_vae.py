"""First training stage of the built-in model: the autoencoder between pictures and latents.

A plain diffusers ``AutoencoderKL`` of factor 8 with few channels where the picture is large, so
that decoding stays cheap on a CPU.  The training begins on small crops around the shape's edge: many
cheap steps, which is what learning the colours takes, and flat areas teach nothing anyway.  The end
runs on whole pictures because GroupNorm statistics differ between the two.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from builtin_data import coverage, draw_spec, render
from builtin_loop import Stage
from diffusers import AutoencoderKL
from numpy.random import Generator
from PIL import Image
from torch import Tensor

log = logging.getLogger("train_builtin")
SIDE = 128
# (share of the time at which it ends, side of the crops, pictures in a batch)
PHASES = ((0.25, 32, 24), (0.85, 64, 16), (1.01, SIDE, 8))


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: [n, 3, 128, 128] <-> [n, 4, 16, 16], 0.8 million parameters."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # start with a posterior of deviation 0.1, or noise drowns the first minutes
        vae.quant_conv.bias[4:] = -4.6
    return vae


def _random_fill(rng: Generator, side: int) -> np.ndarray:
    """Any colour at all, at times a straight gradient: [side, side, 3] float 0..255."""
    first = rng.uniform(0, 255, 3)
    if rng.random() < 0.6:
        return np.broadcast_to(first, (side, side, 3)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    grid = np.linspace(-0.5, 0.5, side)
    ramp = np.clip(0.5 + np.cos(angle) * grid[None, :] + np.sin(angle) * grid[:, None], 0, 1)[..., None]
    return (first + ramp * (rng.uniform(0, 255, 3) - first)).astype(np.float32)


def picture_batch(rng: Generator, count: int, crop: int) -> Tensor:
    """Pictures for the autoencoder: [count, 3, crop, crop], -1..1.

    A third gets colours from outside the palette, so that img2img copes with other pictures.
    """
    out = np.empty((count, crop, crop, 3), dtype=np.uint8)
    for i in range(count):
        spec = draw_spec(rng)
        colours = (_random_fill(rng, SIDE), _random_fill(rng, SIDE)) if rng.random() < 0.33 else None
        picture = render(spec, SIDE, colours)
        if crop < SIDE:
            edge = np.argwhere(np.abs(coverage(spec, SIDE) - 0.5) < 0.45)
            y, x = edge[rng.integers(len(edge))] if len(edge) else (SIDE // 2, SIDE // 2)
            y, x = (int(np.clip(c - rng.integers(crop), 0, SIDE - crop)) for c in (y, x))
            picture = picture[y : y + crop, x : x + crop]
        out[i] = picture
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 and L2 on the pixels plus L1 on neighbour differences, which is what keeps edges clean."""
    diff = made - wanted
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(made), _gradients(wanted), strict=True))
    return diff.abs().mean() + 2 * diff.square().mean() + edges


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> tuple[float, Tensor]:
    """Peak signal-to-noise ratio in dB of reconstructions, and the reconstructions themselves."""
    made = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    error = ((made - pictures) / 2).square().mean((1, 2, 3)).clamp_min(1e-8)
    return float((-10 * error.log10()).mean()), made


def save_sheet(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures ([n, 3, h, w], -1..1) as one PNG, row by row."""
    array = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.hstack(list(array[i : i + columns])) for i in range(0, len(array) // columns * columns, columns)]
    Image.fromarray(np.vstack(rows)).save(path)


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latent.

    Afterwards latents have mean 0 and deviation 1 per channel, exactly what the diffusion's noise
    has, and ``scaling_factor`` is simply 1.  The pipeline has no way to subtract a mean itself.
    """
    latents = vae.encode(pictures).latent_dist.mode()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    count = len(mean)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    weight[:count] /= std[:, None, None, None]
    bias[:count] = (bias[:count] - mean) / std
    bias[count:] -= 2 * std.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std[None, :, None, None]


def train_vae(work: Path, minutes: float, seed: int, device: str) -> None:
    """Train for ``minutes`` of running time (earlier runs count) and leave ``work/vae``."""
    torch.manual_seed(seed)
    vae = new_vae().to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    stage = Stage("vae", work, minutes, {"vae": vae, "optimizer": optimizer})
    check = picture_batch(np.random.default_rng(seed + 1), 32, SIDE).to(device)
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, step))
        _, crop, count = next(phase for phase in PHASES if progress < phase[0])
        wanted = picture_batch(rng, count, crop).to(device, memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - progress)
        posterior = vae.encode(wanted).latent_dist
        made = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(made, wanted) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            quality, again = psnr(vae, check)
            log.info(
                "vae step %d loss %.4f whole pictures %.2f dB deviation of the posterior %.3f",
                step,
                loss.item(),
                quality,
                posterior.std.mean().item(),
            )
            save_sheet(torch.cat([check[:16], again[:16]]), work / "vae.png")
    whiten_latents(vae, picture_batch(np.random.default_rng(seed + 2), 256, SIDE).to(device))
    log.info("vae done: %.2f dB", psnr(vae, check)[0])
    vae.save_pretrained(work / "vae")


def train_decoder(work: Path, minutes: float, seed: int, device: str) -> None:
    """Sharpen the decoder of ``work/vae`` while the encoder, and so every latent, stays as it is.

    It may run at any time after ``train_vae``, even when the diffusion is trained already.  A
    little noise on the latents prepares the decoder for latents that the diffusion made.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0, betas=(0.9, 0.99))
    parts = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv, "optimizer": optimizer}
    stage = Stage("decoder", work, minutes, parts)
    check = picture_batch(np.random.default_rng(seed + 1), 32, SIDE).to(device)
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 40, step))
        wanted = picture_batch(rng, 8, SIDE).to(device, memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 50) * max(0.02, 1 - progress)
        with torch.no_grad():
            latents = vae.encode(wanted).latent_dist.mode()
            amount = 0.15 * torch.rand(len(latents), 1, 1, 1, device=device)
            latents = latents + amount * torch.randn_like(latents)
        loss = reconstruction_loss(vae.decode(latents).sample, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 100 == 0:
            quality, again = psnr(vae, check)
            log.info("decoder step %d loss %.4f whole pictures %.2f dB", step, loss.item(), quality)
            save_sheet(torch.cat([check[:16], again[:16]]), work / "vae.png")
    log.info("decoder done: %.2f dB", psnr(vae, check)[0])
    vae.save_pretrained(work / "vae")
