"""Judges of a picture's shape, ground and style, by its pixels alone.

Of a shape they know nothing of what was asked for. Of a thing's picture they tell all grounds that it may be on, given
the style, and all styles that it may be in, given the ground: red and brown look alike in black and white, an oil
painting of a flat picture like the picture, and muted colours like plain ones where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builtin.shapes import COLOURS, LUMA, SHAPES, colour_rgb, shape_cover

_APART = 40.0
"""A pixel belongs to a shape when it is at least this far (RGB, 0..255) from the background."""
_CENTRAL = 0.115
"""How far from the middle (share of the side) a centroid may lie and still count as central."""
_SMALLEST_SHARE = 0.008
_REFERENCES = np.stack([colour_rgb(name, style) for style in ("vivid", "natural") for name in COLOURS])
"""A muted red is still red, so both stand for the name."""


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
    return np.full(3, colour @ LUMA) if style == "black and white" else colour


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


@dataclass(frozen=True)
class ShapeSeen:
    """What the pixels show; "none" where there is no shape to speak of."""

    colour: str
    background: str
    position: str
    shape: str


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """[n, 3] RGB -> [n] index of the nearest palette colour, vivid or muted."""
    distance = ((pixels[:, None, :].astype(np.float32) - _REFERENCES[None]) ** 2).sum(-1)
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
        ys, xs = np.nonzero(shape_cover(shape, side / 2, side / 2, side / 4, (side, side)) > 0.5)
        scale = np.sqrt(mask.sum() / len(ys))
        offset = (np.array([xs.mean(), ys.mean()]) + 0.5) / side - 0.5
        cx, cy = centre - offset * scale
        drawn = shape_cover(shape, cx * side, cy * side, side / 4 * scale, (side, side)) > 0.5
        overlap = (drawn & mask).sum() / max(1, (drawn | mask).sum())
        if overlap > best:
            best, winner = float(overlap), shape
    return winner if best > 0.6 else "none"


def shape_in(picture: np.ndarray) -> ShapeSeen:
    """What a picture ([side, side, 3] uint8) of one flat shape on a plain colour shows: each pixel gets the nearest
    palette colour, the rim's majority is the background, what differs clearly from it is the shape."""
    border = _border(picture)
    nearest = _nearest(border)
    background = _majority(nearest)
    if background == "none":
        return ShapeSeen("none", "none", "none", "none")
    back_rgb = np.median(border[nearest == COLOURS.index(background)], axis=0)
    from_back = np.linalg.norm(picture.astype(np.float32) - back_rgb, axis=-1)
    mask = from_back > _APART
    if mask.mean() >= _SMALLEST_SHARE:  # keep what is closer to the shape's colour: drops rims and specks
        front_rgb = np.median(picture[mask].astype(np.float32), axis=0)
        mask &= np.linalg.norm(picture.astype(np.float32) - front_rgb, axis=-1) < from_back
    if mask.mean() < _SMALLEST_SHARE:
        return ShapeSeen("none", background, "none", "none")
    return ShapeSeen(_majority(_nearest(picture[mask])), background, _position(mask), _shape(mask))
