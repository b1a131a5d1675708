"""VAEs that work through a picture in tiles, which takes the memory of one tile, and leaves faint seams.

diffusers' own switch, set for one forward. Its usual tile is the size that a model was trained at, which is what does
not fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

LEAST, MOST = 64, 512
"""Sides of a tile in pixels: smaller ones show, larger ones save little."""


def can_tile(vae: Any) -> bool:
    """Whether diffusers can do it with this one."""
    return hasattr(vae, "use_tiling") and (
        hasattr(vae, "tile_sample_min_size") or hasattr(vae, "tile_sample_min_width")
    )


def tile_side(longer: int) -> int:
    """For a picture whose longer side has so many pixels: a power of two, and at most half of it."""
    side = MOST
    while side > LEAST and side > longer // 2:
        side //= 2
    return side


@contextlib.contextmanager
def in_tiles(vae: Any, method: str, sample: Any) -> Iterator[None]:
    """Within the context its `method` works through the sample in tiles. It must be one that can."""
    scale = _scale(vae)
    side = tile_side(round(max(sample.shape[-2:]) * (1 if method == "encode" else scale)))
    saved = {name: value for name, value in vars(vae).items() if name == "use_tiling" or name.startswith("tile_")}
    vae.use_tiling = True
    if "tile_sample_min_size" in saved:
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, max(1, round(side / scale))
    else:
        for axis in ("height", "width"):
            setattr(vae, f"tile_sample_min_{axis}", side)
            if f"tile_sample_stride_{axis}" in saved:
                setattr(vae, f"tile_sample_stride_{axis}", side * 3 // 4)
            if f"tile_latent_min_{axis}" in saved:
                setattr(vae, f"tile_latent_min_{axis}", max(1, round(side / scale)))
    try:
        yield
    finally:
        vars(vae).update(saved)


def _scale(vae: Any) -> float:
    """Pixels per latent, along one side."""
    if hasattr(vae, "tile_latent_min_size"):
        return float(vae.tile_sample_min_size / vae.tile_latent_min_size)
    return float(getattr(vae, "spatial_compression_ratio", 8))
