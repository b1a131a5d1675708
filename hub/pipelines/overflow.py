"""VAEs that overflow in float16: their pictures would be black, or not numbers at all."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger("hub.worker")


def keep_in_float32(vae: Any, device: torch.device) -> None:
    """One that says so (`force_upcast`) stays in float32, as far as diffusers' pipelines would cast it: all of it, or
    of bfloat16 the encoder.

    They would cast it to and fro in place, for each picture: while another one waits to be decoded. They give their
    latents in whatever type, so its methods cast them. `device`: where it will compute.
    """
    if not vae.config.get("force_upcast"):
        return
    plain = vae.dtype
    if plain == torch.float16:
        vae.to(torch.float32)
    elif plain == torch.bfloat16:
        for part in filter(None, (vae.encoder, getattr(vae, "quant_conv", None))):
            part.to(torch.float32)
    if plain in (torch.float16, torch.bfloat16):
        vae.encode = _casting(vae.encode, lambda: torch.float32)
        vae.decode = _casting(vae.decode, lambda: torch.float32 if plain == torch.float16 else plain)
        if device.type == "mps":  # there the pipelines cast any VAE of another type than their latents
            vae.to = lambda *_, **__: vae
    vae.register_to_config(force_upcast=False)


def mend_overflow(vae: Any) -> None:
    """One that does not say so: the first time that it decodes good latents to what are no numbers, it does so again
    in float32, and stays there."""
    plain = _casting(vae.decode, lambda: vae.dtype)

    @functools.wraps(vae.decode)
    def decode(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = plain(sample, *args, **kwargs)
        if vae.dtype != torch.float16 or _finite(output[0]) or not _finite(sample):
            return output
        log.warning("%s overflows in float16; it is kept in float32 from now on", type(vae).__name__)
        vae.to(torch.float32)
        return plain(sample, *args, **kwargs)

    vae.decode = decode
    vae.encode = _casting(vae.encode, lambda: vae.dtype)


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _casting(plain: Callable[..., Any], dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    """The same with its sample in the type that `dtype` says then."""

    @functools.wraps(plain)
    def cast(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(sample.to(dtype()), *args, **kwargs)

    return cast
