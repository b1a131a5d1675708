"""Scenes that the built-in model learns from: what is in them, and how they look.

Everything is drawn from a seeded ``numpy.random.Generator``: one to four things (`builtin.things`) or shapes
(`builtin.shapes`), on a plain colour or in a simple landscape, in one of a few styles. Some combinations are *held
out*: training never draws them and ``eval_builtin.py`` asks for them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from builtin.shapes import COLOURS, PALETTE, SHAPES, colour_rgb, shape_cover

SIDE = 128
SQUARE = (SIDE, SIDE)
SIZES_DRAWN = {
    SQUARE: 0.58, (144, 96): 0.09, (96, 144): 0.09, (176, 96): 0.09, (96, 176): 0.09, (112, 112): 0.03,
    (160, 160): 0.03,
}  # fmt: skip
"""(width, height) of pictures, and how often each is learned."""
PLACES = ("sea", "mountains", "city", "field", "forest", "desert", "snow", "space")
TIMES = ("day", "sunset", "night")
STYLES = ("vivid", "natural", "black and white", "oil painting", "pixel art")
POSITIONS = ("centre", "left", "right", "top", "bottom")
SIZES = ("medium", "small", "large")
LAYOUTS = ("single", "beside", "above", "row", "grid", "sky", "none")
TINTS = tuple(colour for colour in COLOURS if colour not in ("white", "black", "gray"))
_SHAPE = 0.36
"""A shape's radius, as a share of its square."""
_SCALE = {"small": 0.34, "medium": 0.6, "large": 0.86}
_DIRECTION = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
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


@dataclass(frozen=True)
class Placed:
    """One object. `what`: the number of a thing, or a shape's name; `colour`: a shape's, or what a thing is tinted
    with; `cx` and `cy` are shares of the picture's sides, `size` (of its square) of the shorter one."""

    what: int | str
    colour: str | None
    cx: float
    cy: float
    size: float


@dataclass(frozen=True)
class Scene:
    """What one picture shows. `ground`: a colour's name, or (place, time). `layout`, `position`, `extent`: how
    `objects` were placed, in words that a caption may say; `count`: of equal ones; `shape`: width and height in
    pixels."""

    objects: tuple[Placed, ...]
    ground: str | tuple[str, str]
    layout: str = "single"
    position: str = "centre"
    extent: str = "medium"
    count: int = 1
    style: str = "vivid"
    shape: tuple[int, int] = SQUARE

    @property
    def kinds(self) -> tuple[int | str, ...]:
        """What it shows, each once, in order."""
        return tuple(dict.fromkeys(each.what for each in self.objects))


def is_held_out(what: int | str, ground: str, style: str) -> bool:
    """Whether training never draws this thing (or coloured shape) on this ground in this style: one in ten, by a
    hash."""
    digest = hashlib.sha256(f"{what}/{ground}/{style}".encode()).digest()
    return digest[0] * 256 + digest[1] < 6554


def combination(scene: Scene) -> tuple[int | str, str, str]:
    """What `is_held_out` decides on, of a scene with one object."""
    first = scene.objects[0]
    what = f"{first.colour} {first.what}" if isinstance(first.what, str) else first.what
    ground = scene.ground if isinstance(scene.ground, str) else " ".join(scene.ground)
    return what, f"{ground} {scene.position}" if isinstance(first.what, str) else ground, scene.style


def draw_scene(
    rng: Generator,
    things: int,
    held_out: Literal["thing", "shape"] | None = None,
    shape: tuple[int, int] = SQUARE,
) -> Scene:
    """What one picture shows. `things`: how many there are to choose from; `held_out`: one thing, or one shape, of a
    combination that training never draws; `shape`: width and height."""
    while True:
        scene = _draw(rng, things, held_out)
        if len(scene.objects) != 1 or is_held_out(*combination(scene)) == (held_out is not None):
            return replace(scene, shape=shape)


def _draw(rng: Generator, things: int, only: Literal["thing", "shape"] | None) -> Scene:
    layout = "single" if only else str(rng.choice(LAYOUTS, p=(0.53, 0.19, 0.06, 0.05, 0.09, 0.05, 0.03)))
    shape = only == "shape" or (only is None and rng.random() < (0.32 if layout == "single" else 0.1))
    landscape = layout in ("sky", "none") or (only is None and rng.random() < (0.05 if shape else 0.3))
    ground: str | tuple[str, str]
    if landscape:
        ground = (str(rng.choice(PLACES)), str(rng.choice(TIMES)))
    else:
        ground = "white" if only is None and rng.random() < 0.3 else str(rng.choice(COLOURS))
    styles = STYLES[:2] if shape else STYLES
    style = (
        str(rng.choice(STYLES))
        if only == "thing"
        else "vivid"
        if rng.random() < (0.8 if shape else 0.65)
        else str(rng.choice(styles))
    )
    if layout == "none":
        return Scene((), ground, layout, style=style)
    kinds = {"single": 1, "grid": 1, "sky": 2 if rng.random() < 0.5 else 1, "row": 3}.get(layout, 2)
    whats = [_what(rng, things, ground, shape=shape) for _ in range(kinds)]
    if layout == "grid":
        return place(whats, ground, style, rng, layout, count=int(rng.integers(2, 5)))
    if layout != "single" or only == "thing":
        return place(whats, ground, style, rng, layout)
    position = "centre" if not only and rng.random() < 0.4 else str(rng.choice(POSITIONS))
    extent = "medium" if rng.random() < 0.4 else str(rng.choice(SIZES))
    return place(whats, ground, style, rng, layout, position=position, extent=extent)


def _what(rng: Generator, things: int, ground: str | tuple[str, str], *, shape: bool) -> tuple[int | str, str | None]:
    """A thing or a shape, with its colour."""
    if shape:
        while (colour := str(rng.choice(COLOURS))) == ground:
            pass
        return str(rng.choice(SHAPES)), colour
    return int(rng.integers(things)), str(rng.choice(TINTS)) if rng.random() < 0.08 else None


def place(
    whats: Sequence[tuple[int | str, str | None]],
    ground: str | tuple[str, str],
    style: str,
    rng: Generator,
    layout: str = "single",
    *,
    position: str = "centre",
    extent: str = "medium",
    count: int = 1,
) -> Scene:
    """Puts objects where the words for it say, with a little jitter."""
    low = 0.07 if not isinstance(ground, str) and ground[0] != "space" else 0.0  # in a landscape things stand
    if layout == "single":
        size = _SCALE[extent]
        reach = 0.23 if extent != "large" else 0.18 if isinstance(whats[0][0], str) else 0.1
        dx, dy = _DIRECTION[position]
        spots = [(0.5 + dx * reach, 0.5 + dy * reach + (low if not dy else 0.0), size)]
    elif layout == "beside":
        spots = [(0.27, 0.5 + 1.5 * low, 0.47), (0.73, 0.5 + 1.5 * low, 0.47)]
    elif layout == "above":
        spots = [(0.5, 0.27, 0.44), (0.5, 0.74, 0.44)]
    elif layout == "row":
        spots = [(0.19 + 0.31 * at, 0.5 + 2 * low, 0.33) for at in range(3)]
    elif layout == "sky":
        spots = [(0.68, 0.2, 0.3), (0.36, 0.66, 0.46)] if len(whats) > 1 else [(0.32, 0.2, 0.28), (0.7, 0.3, 0.28)]
        whats = whats if len(whats) > 1 else [*whats, *whats]
    else:
        spots = {
            2: [(0.27, 0.5 + low, 0.44), (0.73, 0.5 + low, 0.44)],
            3: [(0.5, 0.27, 0.42), (0.26, 0.73, 0.42), (0.74, 0.73, 0.42)],
            4: [(0.27, 0.27, 0.42), (0.73, 0.27, 0.42), (0.27, 0.73, 0.42), (0.73, 0.73, 0.42)],
        }[count]
        whats = [whats[0]] * count
    objects = []
    for (what, colour), (cx, cy, size) in zip(whats, spots, strict=True):
        jx, jy, js = rng.uniform(-1, 1, 3)
        objects.append(
            Placed(what, colour, cx + 0.02 * float(jx), cy + 0.02 * float(jy), size * (1 + 0.06 * float(js)))
        )
    return Scene(tuple(objects), ground, layout, position, extent, count, style)


def render(scene: Scene, pictures: np.ndarray) -> np.ndarray:
    """The picture: [height, width, 3] uint8. `pictures`: of the things, [n, side, side, 4]."""
    if isinstance(scene.ground, str):
        canvas = np.broadcast_to(colour_rgb(scene.ground), (*scene.shape[::-1], 3)).astype(np.float32)
    else:
        canvas = landscape(*scene.ground, scene.shape)
    canvas = canvas.copy()
    for each in scene.objects:
        if isinstance(each.what, str):
            _draw_shape(canvas, each)
        else:
            _paste(canvas, pictures[each.what], each)
    return stylised(np.rint(np.clip(canvas, 0, 255)).astype(np.uint8), scene.style)


def shape_picture(name: str, side: int) -> np.ndarray:
    """A white shape as a thing's picture: [side, side, 4] uint8."""
    cover = shape_cover(name, side / 2, side / 2, side * _SHAPE, (side, side))
    return np.dstack([np.full((side, side, 3), 255, np.uint8), np.rint(cover * 255).astype(np.uint8)])


def _draw_shape(canvas: np.ndarray, each: Placed) -> None:
    height, width = canvas.shape[:2]
    radius = each.size * min(width, height) * _SHAPE
    cover = shape_cover(str(each.what), each.cx * width, each.cy * height, radius, (width, height))[..., None]
    canvas += cover * (colour_rgb(each.colour or "black") - canvas)


def _paste(canvas: np.ndarray, picture: np.ndarray, each: Placed) -> None:
    """Lays a thing over the canvas, resized; what lies outside is cut off."""
    height, width = canvas.shape[:2]
    side = max(4, round(each.size * min(width, height)))
    left, top = round(each.cx * width - side / 2), round(each.cy * height - side / 2)
    how = Image.Resampling.BOX if side < 100 else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(np.asarray(picture)).resize((side, side), how), dtype=np.float32)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 >= x1 or y0 >= y1:
        return
    part = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha, colours = part[..., 3:] / 255, part[..., :3]
    if each.colour is not None:
        colours = tinted(colours, each.colour)
    canvas[y0:y1, x0:x1] += alpha * (colours - canvas[y0:y1, x0:x1])


def tinted(colours: np.ndarray, name: str) -> np.ndarray:
    """The picture in shades of one colour: [..., 3] floats, 0..255."""
    shade = (colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None] / 255
    tint = np.asarray(PALETTE[name], dtype=np.float32)
    return np.where(shade < 0.55, tint * shade / 0.55, tint + (255 - tint) * (shade - 0.55) / 0.45 * 0.8)


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
def landscape(where: str, time: str, shape: tuple[int, int] = SQUARE) -> np.ndarray:
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


def stylised(picture: np.ndarray, style: str) -> np.ndarray:
    """The picture in a style: [height, width, 3] uint8."""
    if style == "vivid":
        return picture
    image = Image.fromarray(picture)
    if style == "oil painting":
        return np.asarray(image.filter(ImageFilter.ModeFilter(7)).filter(ImageFilter.SMOOTH))
    if style == "pixel art":
        small = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.NEAREST))
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    keep = 0.65 if style == "natural" else 0.0
    return np.rint(keep * picture + (1 - keep) * grey).astype(np.uint8)
