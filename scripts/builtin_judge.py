"""Judges a picture of one flat shape on a plain background by its pixels alone.

Nothing here knows the prompt, the latents or the model: each pixel gets the nearest palette
colour, the border's majority is the background, what differs clearly from it is the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from builtin_data import COLOURS, SHAPES, STYLES, Spec, colour_rgb, coverage

# A pixel belongs to the shape when it is at least this far (RGB, 0..255) from the background.
_APART = 40.0
# How far from the middle (fraction of the side) a centroid may lie and still count as central.
_CENTRAL = 0.115
_SMALLEST_SHARE = 0.008
# One row per (colour, style): a muted red is still red, so both versions stand for the name.
_REFERENCES = [(name, colour_rgb(name, style)) for style in STYLES for name in COLOURS]
_REFERENCE_RGB = np.stack([rgb for _, rgb in _REFERENCES])


@dataclass(frozen=True)
class Verdict:
    """What the pixels show; "none" where there is no shape to speak of."""

    colour: str
    background: str
    position: str
    shape: str


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """[n, 3] RGB -> [n] index of the nearest palette colour, vivid or muted."""
    distance = ((pixels[:, None, :].astype(np.float32) - _REFERENCE_RGB[None]) ** 2).sum(-1)
    return distance.argmin(1) % len(COLOURS)


def _majority(indices: np.ndarray) -> str:
    """The colour that more than half of the pixels have, else "none"."""
    votes = np.bincount(indices, minlength=len(COLOURS))
    return COLOURS[int(votes.argmax())] if votes.max() > len(indices) / 2 else "none"


def _position(mask: np.ndarray) -> str:
    """Where the centroid of the mask lies: the centre, or the side it is furthest towards."""
    ys, xs = np.nonzero(mask)
    dy, dx = (ys.mean() + 0.5) / len(mask) - 0.5, (xs.mean() + 0.5) / len(mask) - 0.5
    if max(abs(dx), abs(dy)) < _CENTRAL:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _shape(mask: np.ndarray) -> str:
    """The shape whose drawing, with the mask's centroid and area, overlaps it best (IoU)."""
    side = len(mask)
    ys, xs = np.nonzero(mask)
    centre = (np.array([xs.mean(), ys.mean()]) + 0.5) / side
    best, winner = -1.0, "none"
    for shape in SHAPES:
        ys, xs = np.nonzero(coverage(Spec(shape, "", "", radius=0.25), side) > 0.5)
        scale = np.sqrt(mask.sum() / len(ys))
        offset = (np.array([xs.mean(), ys.mean()]) + 0.5) / side - 0.5
        cx, cy = centre - offset * scale
        drawn = coverage(Spec(shape, "", "", cx=cx, cy=cy, radius=0.25 * scale), side) > 0.5
        overlap = (drawn & mask).sum() / max(1, (drawn | mask).sum())
        if overlap > best:
            best, winner = float(overlap), shape
    return winner if best > 0.6 else "none"


def judge(picture: np.ndarray) -> Verdict:
    """Look at a picture ([side, side, 3] uint8) and say what it shows."""
    side = len(picture)
    edge = max(1, side // 32)
    frame = np.ones((side, side), dtype=bool)
    frame[edge:-edge, edge:-edge] = False
    border = _nearest(picture[frame])
    background = _majority(border)
    if background == "none":
        return Verdict("none", "none", "none", "none")
    back_rgb = np.median(picture[frame][border == COLOURS.index(background)].astype(np.float32), axis=0)
    from_back = np.linalg.norm(picture.astype(np.float32) - back_rgb, axis=-1)
    mask = from_back > _APART
    if mask.mean() >= _SMALLEST_SHARE:  # keep what is closer to the shape's colour: drops rims and specks
        front_rgb = np.median(picture[mask].astype(np.float32), axis=0)
        mask &= np.linalg.norm(picture.astype(np.float32) - front_rgb, axis=-1) < from_back
    if mask.mean() < _SMALLEST_SHARE:
        return Verdict("none", background, "none", "none")
    return Verdict(_majority(_nearest(picture[mask])), background, _position(mask), _shape(mask))


def score(spec: Spec, verdict: Verdict) -> dict[str, bool]:
    """Which of the four things the picture got right."""
    return {key: getattr(verdict, key) == getattr(spec, key) for key in ("colour", "background", "position", "shape")}
