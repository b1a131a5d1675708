"""First training stage of the built-in model: the autoencoder between pictures and latents.

A plain diffusers ``AutoencoderKL`` of factor 4 with few channels where the picture is large, so
that decoding stays cheap on a CPU.  The training begins on small crops around the shape's edge: many
cheap steps, which is what learning the colours takes, and flat areas teach nothing anyway.  The end
runs on whole pictures because GroupNorm statistics differ between the two.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from builtin_loop import Stage
from builtin_vae import psnr, reconstruction_loss, save_sheet, whiten_latents
from diffusers import AutoencoderKL
from numpy.random import Generator
from torch import Tensor

from builtin.scenes import SIDE, draw_scene, render

log = logging.getLogger("train_builtin")
# (share of the time at which it ends, side of the crops, pictures in a batch)
PHASES = ((0.25, 32, 24), (0.85, 64, 16), (1.01, SIDE, 8))


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: [n, 3, 128, 128] <-> [n, 4, 32, 32], 1.8 million parameters."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(20, 48, 80),
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


def picture_batch(rng: Generator, pictures: np.ndarray, count: int, crop: int) -> Tensor:
    """Scenes for the autoencoder, or parts of them: [count, 3, crop, crop], -1..1. `pictures`: of the things."""
    out = np.empty((count, crop, crop, 3), dtype=np.uint8)
    each = SIDE // crop  # crops of a scene: to draw it takes longer than to learn from one
    for i in range(count):
        if i % each == 0:
            scene = draw_scene(rng, len(pictures))
            whole = render(scene, pictures)
            if rng.random() < 0.15:  # other colours than the palette's, so that img2img copes with other pictures
                whole = whole[..., rng.permutation(3)]
        picture = whole
        if crop < SIDE:
            cx, cy = (scene.objects[0].cx, scene.objects[0].cy) if scene.objects else (0.5, 0.5)
            spread = SIDE * 0.3
            x, y = (
                int(np.clip(at * SIDE - crop / 2 + rng.uniform(-spread, spread), 0, SIDE - crop)) for at in (cx, cy)
            )
            picture = picture[y : y + crop, x : x + crop]
        out[i] = picture
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(work: Path, pictures: np.ndarray, minutes: float, seed: int, device: str) -> None:
    """Train for ``minutes`` of running time (earlier runs count) and leave ``work/vae``."""
    torch.manual_seed(seed)
    vae = new_vae().to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    stage = Stage("vae", work, minutes, {"vae": vae, "optimizer": optimizer})
    check = picture_batch(np.random.default_rng(seed + 1), pictures, 32, SIDE).to(device)
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, step))
        _, crop, count = next(phase for phase in PHASES if progress < phase[0])
        wanted = picture_batch(rng, pictures, count, crop).to(device, memory_format=torch.channels_last)
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
    whiten_latents(vae, picture_batch(np.random.default_rng(seed + 2), pictures, 256, SIDE).to(device))
    log.info("vae done: %.2f dB", psnr(vae, check)[0])
    vae.save_pretrained(work / "vae")


def train_decoder(work: Path, pictures: np.ndarray, minutes: float, seed: int, device: str) -> None:
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
    check = picture_batch(np.random.default_rng(seed + 1), pictures, 32, SIDE).to(device)
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 40, step))
        wanted = picture_batch(rng, pictures, 8, SIDE).to(device, memory_format=torch.channels_last)
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
