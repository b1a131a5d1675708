"""Captions and pictures that the built-in model learns from, made on the fly.

Everything is drawn from a seeded ``numpy.random.Generator``: one flat shape in one of twelve
colours on a plain background.  No file is read and nothing third-party is used, so the weights
trained on it are free of anybody else's rights.  Roughly a tenth of the
(shape, colour, background, position) combinations is *held out*: training never draws them and
``eval_builtin.py`` asks for nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
POSITIONS = ("centre", "left", "right", "top", "bottom")
SIZES = ("medium", "small", "large")
STYLES = ("vivid", "natural")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 225, 40),
    "green": (35, 155, 60),
    "blue": (30, 70, 215),
    "purple": (125, 45, 170),
    "pink": (250, 140, 190),
    "brown": (120, 70, 35),
    "black": (12, 12, 12),
    "white": (253, 253, 253),
    "gray": (132, 132, 132),
    "cyan": (60, 205, 225),
}
COLOURS = tuple(PALETTE)

# "natural" keeps this share of the plain colour; the rest is the colour's own grey.
NATURAL_KEEP = 0.65
# Centre of the shape as a fraction of the side; large shapes move less so that they stay inside.
_SHIFT = {"small": 0.23, "medium": 0.23, "large": 0.18}
_RADIUS = {"small": (0.115, 0.145), "medium": (0.185, 0.215), "large": (0.265, 0.295)}
_DIRECTION = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
_JITTER = 0.015


@dataclass(frozen=True)
class Spec:
    """What one picture shows; ``cx``, ``cy`` and ``radius`` are fractions of the picture's side."""

    shape: str
    colour: str
    background: str
    position: str = "centre"
    size: str = "medium"
    style: str = "vivid"
    cx: float = 0.5
    cy: float = 0.5
    radius: float = 0.2


def is_held_out(shape: str, colour: str, background: str, position: str) -> bool:
    """Whether training must never draw this combination; a hash decides, so it never drifts."""
    digest = hashlib.sha256(f"{shape}/{colour}/{background}/{position}".encode()).digest()
    return digest[0] * 256 + digest[1] < 6554  # 10 % of 65,536


def place(spec: Spec, rng: Generator) -> Spec:
    """Give the spec a radius and a centre that suit its size and position, with a little jitter."""
    dx, dy = _DIRECTION[spec.position]
    shift = _SHIFT[spec.size]
    jitter = rng.uniform(-_JITTER, _JITTER, 2)
    return replace(
        spec,
        cx=0.5 + dx * shift + float(jitter[0]),
        cy=0.5 + dy * shift + float(jitter[1]),
        radius=float(rng.uniform(*_RADIUS[spec.size])),
    )


def draw_spec(rng: Generator, held_out: bool = False) -> Spec:
    """Draw what a picture shows, from the training combinations or from the held-out ones only.

    Shapes and colours are balanced.  In training, white backgrounds and the centre come up more often
    because a caption that leaves them out means them; the held-out ones are drawn evenly.
    """
    white, centre = (0.0, 0.0) if held_out else (0.25, 0.2)
    while True:
        colour = COLOURS[rng.integers(len(COLOURS))]
        background = "white" if rng.random() < white else COLOURS[rng.integers(len(COLOURS))]
        position = "centre" if rng.random() < centre else POSITIONS[rng.integers(len(POSITIONS))]
        shape = SHAPES[rng.integers(len(SHAPES))]
        if colour == background or is_held_out(shape, colour, background, position) != held_out:
            continue
        size = "medium" if rng.random() < 0.25 else SIZES[rng.integers(len(SIZES))]
        style = "natural" if rng.random() < 0.2 else "vivid"
        return place(Spec(shape, colour, background, position, size, style), rng)


def colour_rgb(name: str, style: str = "vivid") -> np.ndarray:
    """The colour as three floats 0..255; "natural" is blended towards its own grey."""
    rgb = np.asarray(PALETTE[name], dtype=np.float32)
    if style == "natural":
        luma = float(rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
        rgb = NATURAL_KEEP * rgb + (1 - NATURAL_KEEP) * luma
    return rgb


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a five-pointed star: fold the plane into one half-point, measure its one edge."""
    sector = np.pi / 5
    angle = np.mod(np.arctan2(u, -v), 2 * sector)
    angle = np.minimum(angle, 2 * sector - angle)
    length = np.hypot(u, v)
    x, y = length * np.cos(angle), length * np.sin(angle)
    tip, notch = np.array([1.15, 0.0]), 0.48 * np.array([np.cos(sector), np.sin(sector)])
    edge = (notch - tip) / np.hypot(*(notch - tip))
    return (y - tip[1]) * -edge[0] + (x - tip[0]) * edge[1]


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a heart made of a rotated square with two half discs on it."""
    scale = 0.58
    x, y = np.abs(u) * scale, -v * scale + 0.565
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    half = 0.5 * np.maximum(x + y, 0)
    body = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - half) ** 2 + (y - half) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, body) / scale


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to a shape of radius 1 at the origin; y points down."""
    if shape == "circle":
        return np.hypot(u, v) - 1.0
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.78) - 0.27
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88
    if shape == "triangle":
        return np.maximum(v - 0.6, (np.abs(u) * np.sqrt(3) - v) / 2 - 0.6)
    if shape == "star":
        return _star(u, v)
    if shape == "heart":
        return _heart(u, v)
    if shape == "cross":
        bar, post = (
            np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.33),
            np.maximum(np.abs(u) - 0.33, np.abs(v) - 1.0),
        )
        return np.minimum(bar, post)
    raise ValueError(f"unknown shape {shape!r}")


def coverage(spec: Spec, side: int) -> np.ndarray:
    """How much of each pixel the shape covers: [side, side], 0..1, antialiased over one pixel."""
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    u = (grid[None, :] - spec.cx) / spec.radius
    v = (grid[:, None] - spec.cy) / spec.radius
    u, v = np.broadcast_arrays(u, v)
    distance = shape_distance(spec.shape, u, v) * (spec.radius * side)
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def render(
    spec: Spec,
    side: int = 128,
    colours: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Draw the picture: [side, side, 3] uint8.  ``colours`` (shape, background) overrides the names."""
    front, back = colours or (colour_rgb(spec.colour, spec.style), colour_rgb(spec.background, spec.style))
    alpha = coverage(spec, side)[..., None]
    return np.rint(back + alpha * (front - back)).astype(np.uint8)
