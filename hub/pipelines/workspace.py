"""How much memory a forward takes beside the weights, before it is tried.

From the module's configuration alone. The factors were found by counting, operation by operation, what is alive at
once in diffusers' own modules at full size (a test does it again): they are upper bounds, up to twice what it takes.
"""

from __future__ import annotations

from typing import Any

DECODE, ENCODE = 6, 5
"""Feature maps of the picture's size and the VAE's narrowest width that live at once."""
WIDE = 26
"""The same for denoisers (at a latent's or token's size) and text encoders: attention's heads, feed-forward's middle,
and what a U-Net keeps for its way up."""
TEXT = 512
"""Tokens of a prompt, at most, of most models."""


def decode_bytes(vae: Any, width: int, height: int, method: str = "decode") -> int:
    """Of one row's `decode` or `encode` at so many pixels."""
    widths = _config(vae, "block_out_channels", "decoder_block_out_channels", "base_dim", "dim") or 128
    narrow = min(widths) if isinstance(widths, (list, tuple)) else int(widths)
    return (DECODE if method == "decode" else ENCODE) * width * height * narrow * _size(vae)


def forward_bytes(module: Any, positions: int) -> int:
    """Of one row's forward, for a module that works on so many latents or tokens."""
    return WIDE * positions * _width(module) * _size(module)


def _width(module: Any) -> int:
    blocks = _config(module, "block_out_channels")
    if isinstance(blocks, (list, tuple)):
        return int(blocks[0])
    heads, size = _config(module, "num_attention_heads", "n_heads"), _config(module, "attention_head_dim")
    if isinstance(heads, int) and isinstance(size, int):
        return heads * size
    width = _config(module, "hidden_size", "d_model", "dim", "inner_dim") or 1024
    return int(width) if isinstance(width, int) else 1024


def _config(module: Any, *names: str) -> Any:
    """The first of these that its configuration has; of what reads text and pictures, the text's."""
    config = getattr(module, "config", {})
    config = getattr(config, "text_config", None) or config
    for name in names:
        value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if value:
            return value
    return None


def _size(module: Any) -> int:
    dtype = getattr(module, "dtype", None)
    return int(dtype.itemsize) if dtype is not None and dtype.itemsize > 1 else 2
