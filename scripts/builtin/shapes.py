"""Shapes and colours, and how they are drawn: what scenes have beside things, and what judges look for."""

from __future__ import annotations

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
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

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""How bright red, green and blue are."""
NATURAL_KEEP = 0.65
"""Share of the plain colour that "natural" keeps; the rest is the colour's own grey."""


def colour_rgb(name: str, style: str = "vivid") -> np.ndarray:
    """The colour as three floats 0..255; "natural" is blended towards its own grey."""
    rgb = np.asarray(PALETTE[name], dtype=np.float32)
    if style == "natural":
        rgb = NATURAL_KEEP * rgb + (1 - NATURAL_KEEP) * float(rgb @ LUMA)
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


def shape_cover(shape: str, cx: float, cy: float, radius: float, size: tuple[int, int]) -> np.ndarray:
    """How much of each pixel a shape covers: [height, width], 0..1, antialiased over one pixel. In pixels: `cx`, `cy`,
    `radius`, and `size`, which is (width, height)."""
    x, y = (np.arange(side, dtype=np.float32) + 0.5 for side in size)
    u, v = np.broadcast_arrays((x[None, :] - cx) / radius, (y[:, None] - cy) / radius)
    return np.clip(0.5 - shape_distance(shape, u, v) * radius, 0, 1).astype(np.float32)


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
