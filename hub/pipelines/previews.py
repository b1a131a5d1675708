"""Previews: latents as a picture, at a fraction of a decode's cost, for any model; and after which steps to show them.

Pipelines that carry their latents as tokens (FLUX, Qwen-Image) tell how to unfold them; VAEs that were made for films
get a time axis of one. For latents of any other form `viewer_for` offers nothing, and the answer says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

SMALL_DECODER = 5_000_000
"""Parameters up to which a decoder is cheap beside a denoising step, and decodes previews itself."""
FIT_SIDE, FIT_BATCHES, FIT_BATCH = 64, 4, 8
"""The linear map is fitted on so many synthetic pictures of so many pixels: the work of about one decode."""


def preview_steps(partial_images: int, steps: int) -> list[int]:
    """After which of `steps` denoising steps a preview is shown: spread evenly, never twice after the same step, and
    never after the last, which makes the picture itself. There may be fewer than asked for."""
    parts = partial_images + 1
    after = {(2 * steps * k + parts) // (2 * parts) for k in range(1, parts)}  # round(steps * k / parts)
    return sorted(step for step in after if 0 < step < steps)


Unfold = Callable[[torch.Tensor, int, int], torch.Tensor]
"""From tokens (batch x tokens x channels) and the picture's height and width to batch x channels x height x width."""


def viewer_for(pipeline: Any) -> LatentViewer | None:
    """A viewer for the pipeline's latents, or None where they have no form that it knows."""
    vae = getattr(pipeline, "vae", None)
    if vae is None or not hasattr(vae, "encode") or _channels(vae.config) is None:
        return None
    unfold = _unfolding(pipeline)
    packed = any(hasattr(pipeline, name) for name in ("_pack_latents", "_unpack_latents", "_patchify_latents"))
    return None if packed and unfold is None else LatentViewer(vae, unfold=unfold)


def _channels(config: Any) -> int | None:
    return getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)


def _unfolding(pipeline: Any) -> Unfold | None:
    """What the pipeline itself does with its tokens before it decodes them."""
    scale = getattr(pipeline, "vae_scale_factor", None)
    if scale and hasattr(pipeline, "_unpack_latents"):
        return lambda tokens, height, width: pipeline._unpack_latents(tokens, height, width, scale)
    bn = getattr(pipeline.vae, "bn", None)
    if not scale or bn is None or not hasattr(pipeline, "_unpatchify_latents"):
        return None

    def unfold(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:  # FLUX.2: a token is 2 x 2 latents
        grid = tokens.transpose(1, 2).reshape(1, -1, height // (2 * scale), width // (2 * scale))
        deviation = (bn.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
        shape = (1, -1, 1, 1)
        shown = grid * deviation.view(shape).to(grid) + bn.running_mean.view(shape).to(grid)
        return pipeline._unpatchify_latents(shown)  # type: ignore[no-any-return]

    return unfold


class LatentViewer:
    """Shows a model's latents: by its own decoder where that is small, else by a linear map from latents to colours,
    fitted to the model's own encoder, so that no family needs a table."""

    def __init__(self, vae: Any, *, linear: bool | None = None, unfold: Unfold | None = None) -> None:
        """`linear`: which of the two ways; None chooses by the decoder's size. `unfold`: for latents that come as
        tokens. Fits the map at once where it is used: call it outside of a run."""
        self._vae = vae
        self._unfold = unfold
        self._dtype = next(vae.parameters()).dtype
        if linear is None:
            linear = sum(parameter.numel() for parameter in vae.parameters()) > SMALL_DECODER
        # The same arguments as in pipelines, so that previews and last decodes of one dtype can share a forward.
        takes = inspect.signature(type(vae).decode).parameters
        self._options = {"return_dict": False} | ({"generator": None} if "generator" in takes else {})
        self._weights = fit_linear_map(vae) if linear else None

    def unfolded(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """The first of a pipeline's latents, of a picture of so many pixels, as 1 x channels x height x width; None
        where they are not what the VAE decodes."""
        if latents.dim() == 3 and self._unfold is not None:
            try:
                latents = self._unfold(latents[:1], height, width)
            except RuntimeError:  # another number of tokens: the pipeline draws a size of its own
                return None
        if latents.dim() == 5 and latents.shape[2] == 1:
            latents = latents[:, :, 0]
        fits = latents.dim() == 4 and latents.shape[1] == _channels(self._vae.config)
        return latents[:1] if fits else None

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        """Unfolded latents as a picture, 3 x height x width, 0 to 1; of the full size or of one pixel per latent.
        Within a run it waits at the decoder's meeting point."""
        inner = _to_vae(latents.float(), self._vae.config)
        if self._weights is not None:
            weights = self._weights.to(inner.device)
            picture = torch.einsum("chw,cd->dhw", inner[0], weights[:-1]) + weights[-1][:, None, None]
        else:
            films = _films(self._vae)
            given = inner.to(self._dtype)
            picture = self._vae.decode(given.unsqueeze(2) if films else given, **self._options)[0][0].float()
            picture = picture[:, 0] if films else picture
        return (picture / 2 + 0.5).clamp(0, 1)


def fit_linear_map(vae: Any) -> torch.Tensor:
    """Least squares: colours (-1 to 1), averaged over each latent's pixels, from the latent's channels and 1.

    Returns (latent channels + 1) x 3. The pictures that it is fitted on are smooth, of all colours, and the same on
    every machine.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    parameter = next(vae.parameters())
    plain = parameter.dtype
    upcast = plain == torch.float16 and bool(getattr(vae.config, "force_upcast", False))  # its encoder overflows
    if upcast:
        vae.to(torch.float32)
    rows, colours = [], []
    try:
        for number in range(FIT_BATCHES):
            knots = torch.rand(FIT_BATCH, 3, 1 + number, 1 + number, generator=generator) * 2 - 1
            smooth = interpolate(knots, (FIT_SIDE, FIT_SIDE), mode="bicubic", align_corners=False).clamp(-1, 1)
            given = smooth.to(parameter.device, torch.float32 if upcast else plain)
            films = _films(vae)
            latents = _mode(vae.encode(given.unsqueeze(2) if films else given)).float().cpu()
            latents = latents[:, :, 0] if films else latents
            rows.append(latents.permute(0, 2, 3, 1).flatten(0, 2))
            pooled = adaptive_avg_pool2d(smooth, (latents.shape[2], latents.shape[3]))
            colours.append(pooled.permute(0, 2, 3, 1).flatten(0, 2))
    finally:
        if upcast:
            vae.to(plain)
    known = torch.cat(rows).double()
    known = torch.cat([known, torch.ones(len(known), 1, dtype=known.dtype)], 1)
    weights: torch.Tensor = torch.linalg.lstsq(known, torch.cat(colours).double()).solution
    return weights.float()


def _films(vae: Any) -> bool:
    """Whether the VAE was made for films: its pictures have a time axis."""
    return any(parameter.dim() == 5 for parameter in vae.parameters())


def _mode(encoded: Any) -> torch.Tensor:
    """The likeliest latents: of a posterior, or of an encoder that gives them directly."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()  # type: ignore[no-any-return]
    return encoded.latents if hasattr(encoded, "latents") else encoded[0]  # type: ignore[no-any-return]


def _to_vae(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """A denoiser's latents as its VAE's: what pipelines do before they decode."""
    inner = latents / (getattr(config, "scaling_factor", None) or 1.0)
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        shape = (1, -1, 1, 1)
        return inner * latents.new_tensor(deviation).view(shape) + latents.new_tensor(mean).view(shape)
    return inner + (getattr(config, "shift_factor", None) or 0.0)
