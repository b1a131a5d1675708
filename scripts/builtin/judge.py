"""Judges of a picture's ground and style, by its pixels alone; of a shape, see `builtin_judge`."""

from __future__ import annotations

import numpy as np
from builtin_data import COLOURS, colour_rgb


def _border(picture: np.ndarray) -> np.ndarray:
    """The pixels of the outermost rim: [n, 3] floats."""
    edge = max(1, len(picture) // 32)
    frame = np.ones(picture.shape[:2], dtype=bool)
    frame[edge:-edge, edge:-edge] = False
    return picture[frame].astype(np.float32)


def grounds_of(picture: np.ndarray, style: str) -> list[str]:
    """The palette's colours that look, in the style, like most of the rim: in black and white several do."""
    rim = np.median(_border(picture), axis=0)
    named = {name: _styled(name, style) for name in COLOURS}
    nearest = min(named.values(), key=lambda colour: float(((colour - rim) ** 2).sum()))
    return [name for name, colour in named.items() if float(np.abs(colour - nearest).max()) < 24]


def _styled(name: str, style: str) -> np.ndarray:
    colour = colour_rgb(name, "natural" if style == "natural" else "vivid")
    return np.full(3, colour @ np.array([0.299, 0.587, 0.114])) if style == "black and white" else colour


def style_of(picture: np.ndarray, ground: str) -> tuple[str, ...]:
    """The styles that a picture on a plain ground may be in, by its pixels."""
    pixels = picture.astype(np.float32)
    if float((pixels.max(-1) - pixels.min(-1)).mean()) < 10 and ground not in ("white", "black", "gray"):
        return ("black and white",)
    if float(np.quantile(pixels.max(-1) - pixels.min(-1), 0.98)) < 24:
        return ("black and white", "natural", "vivid", "oil painting")
    steps = np.abs(np.diff(pixels, axis=1)).sum(-1).mean(0)
    if steps[3::4].sum() > 0.55 * steps.sum():  # at every fourth pixel
        return ("pixel art",)
    rim = np.median(_border(picture), axis=0)
    off = {style: float(((_styled(ground, style) - rim) ** 2).sum()) for style in ("vivid", "natural")}
    if ground in ("white", "black", "gray"):
        return ("vivid", "natural", "oil painting")
    return ("natural",) if off["natural"] < off["vivid"] else ("vivid", "oil painting")
