"""Simple landscapes, which scenes have behind them: a place at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

SIDE = 128
"""Pixels on a side of a square picture."""
PLACES = ("sea", "mountains", "city", "field", "forest", "desert", "snow", "space")
TIMES = ("day", "sunset", "night")
_SKY = {
    "day": ((96, 178, 240), (205, 234, 250)),
    "sunset": ((88, 52, 120), (252, 146, 66)),
    "night": ((10, 14, 40), (44, 52, 104)),
}
_GROUND = {
    "sea": ((24, 98, 170), (120, 70, 110), (10, 32, 78)),
    "mountains": ((104, 124, 140), (92, 62, 96), (34, 40, 66)),
    "city": ((92, 104, 124), (66, 44, 84), (20, 24, 48)),
    "field": ((96, 178, 72), (120, 124, 60), (22, 60, 42)),
    "forest": ((40, 118, 62), (70, 78, 52), (12, 42, 36)),
    "desert": ((232, 200, 128), (214, 140, 84), (84, 72, 84)),
    "snow": ((240, 246, 252), (226, 190, 200), (120, 134, 176)),
    "space": ((10, 10, 30), (10, 10, 30), (10, 10, 30)),
}
"""By time: day, sunset, night."""


class _Canvas:
    """A picture under way: [height, width, 3] floats, 0..255, with `x` and `y` from 0 to 1."""

    def __init__(self, time: str, pixels: np.ndarray, rng: Generator) -> None:
        height, width = pixels.shape[:2]
        x, y = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in (width, height))
        self.x, self.y = np.broadcast_arrays(x[None, :], y[:, None])
        self.wide, self.high = width / min(width, height), height / min(width, height)
        self.time, self.pixels, self.rng = time, pixels, rng

    def fill(self, inside: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
        """`inside`: how many pixels deep inside of a shape each one lies."""
        cover = np.clip(inside + 0.5, 0, 1)[..., None]
        self.pixels += cover * (np.asarray(colour, dtype=np.float32) - self.pixels)

    def disc(self, cx: float, cy: float, radius: float, colour: Sequence[float] | np.ndarray) -> None:
        """A filled circle; `radius`: a share of the shorter side."""
        away = np.hypot((self.x - cx) * self.wide, (self.y - cy) * self.high)
        self.fill((radius - away) * SIDE, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: np.ndarray) -> None:
        """A filled rectangle."""
        sides = self.x - left, right - self.x, self.y - top, bottom - self.y
        self.fill(np.minimum.reduce(sides) * SIDE, colour)


def _sea(canvas: _Canvas, ground: np.ndarray) -> None:
    for row in range(4):
        line = 0.69 + 0.085 * row + 0.012 * np.sin(canvas.x * 28 + row * 2)
        canvas.fill((0.7 - np.abs(canvas.y - line) * SIDE) * 0.6, ground + 40)


def _mountains(canvas: _Canvas, ground: np.ndarray) -> None:
    snow = np.float32([236, 240, 246]) * (0.62 if canvas.time == "night" else 1.0)
    for cx, top, slope, shade in ((0.24, 0.36, 1.25, 0), (0.72, 0.3, 1.15, -14), (0.5, 0.5, 1.2, 16)):
        edge = (canvas.y - top - np.abs(canvas.x - cx) * slope) * SIDE
        canvas.fill(edge, ground + shade)
        canvas.fill(np.minimum(edge, (top + 0.1 - canvas.y + 0.02 * np.sin(canvas.x * 60)) * SIDE), snow)


def _city(canvas: _Canvas, ground: np.ndarray) -> None:
    for at, height in enumerate(canvas.rng.uniform(0.22, 0.56, 9)):
        left, top = at / 9 + 0.004, _HORIZON["city"] - height
        canvas.box(left, top, (at + 1) / 9 - 0.006, 1.0, ground + canvas.rng.uniform(-16, 16))
        for x in (left + 0.022, left + 0.062):
            for y in np.arange(top + 0.04, _HORIZON["city"] - 0.03, 0.07):
                lit = canvas.rng.random() < 0.65 and canvas.time != "day"
                canvas.box(x, y, x + 0.024, y + 0.034, np.float32([255, 222, 120]) if lit else ground + 46)


def _forest(canvas: _Canvas, ground: np.ndarray) -> None:
    for cx, top in zip(np.linspace(0.04, 0.96, 9), canvas.rng.uniform(0.3, 0.44, 9), strict=True):
        tree = np.minimum(canvas.y - top - np.abs(canvas.x - cx) * 3.2, 0.72 - canvas.y)
        canvas.fill(tree * SIDE, ground * 0.8)


def _hills(canvas: _Canvas, ground: np.ndarray) -> None:
    canvas.fill((canvas.y - 0.72 - 0.045 * np.sin(canvas.x * 5 + 1)) * SIDE, ground * 0.9)


_HORIZON = {"mountains": 0.78, "city": 0.86, "space": 2.0}
_DETAILS = {"sea": _sea, "mountains": _mountains, "city": _city, "forest": _forest, "field": _hills, "desert": _hills,
            "snow": _hills}  # fmt: skip


@functools.cache
def landscape(where: str, time: str, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A place at a time, always the same one: [height, width, 3] floats, 0..255."""
    width, height = shape
    rng = np.random.default_rng((PLACES.index(where), TIMES.index(time)))
    horizon = _HORIZON.get(where, 0.62)
    high, low = (np.float32(colour) for colour in (_SKY[time] if where != "space" else ((8, 8, 26), (26, 16, 58))))
    fall = np.clip((np.arange(height, dtype=np.float32) + 0.5) / height / min(horizon, 1.0), 0, 1)[:, None, None]
    canvas = _Canvas(time, np.broadcast_to(high + fall * (low - high), (height, width, 3)).copy(), rng)
    if time == "night" or where == "space":
        for cx, cy in rng.uniform(0.02, 0.98, (22, 2)):
            canvas.disc(cx, cy * min(horizon, 1.0), 0.008, (250, 250, 225))
    if where == "space":
        return canvas.pixels
    if time == "day":
        canvas.disc(0.84, 0.16, 0.075, (255, 226, 90))
    elif time == "sunset":
        canvas.disc(0.5, 0.5 if where in ("city", "forest") else horizon - 0.06, 0.13, (255, 214, 110))
    else:
        canvas.disc(0.82, 0.17, 0.07, (240, 240, 214))
        canvas.disc(0.85, 0.15, 0.06, canvas.pixels[round(0.05 * height), round(0.95 * width)].copy())
    ground = np.float32(_GROUND[where][TIMES.index(time)])
    canvas.fill((canvas.y - horizon) * SIDE, ground)
    _DETAILS[where](canvas, ground)
    return canvas.pixels
