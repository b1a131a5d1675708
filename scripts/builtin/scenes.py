"""Scenes that the built-in model learns from: what is in them, and how they look.

Everything is drawn from a seeded ``numpy.random.Generator``: one to four things (`builtin.things`) or shapes
(`builtin.shapes`), on a plain colour or in a simple landscape, in one of a few styles. Some combinations are *held
out*: training never draws them and ``eval_builtin.py`` asks for them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from builtin.shapes import COLOURS, PALETTE, SHAPES, colour_rgb, shape_cover

SIDE = 128
SQUARE = (SIDE, SIDE)
CELL = 8
"""Pixels: what one place of the denoiser's level shows at which attention looks at the parts of things."""
ACROSS = 6
"""Parts of a thing on each side of its picture."""
LARGE, SMALL = 2 * ACROSS * CELL, ACROSS * CELL
"""Sides of objects: a part is as large as two cells, or one. They lie on a grid as wide as their parts; so what the
denoiser has to make of a part is the same in every place."""
SIZES_DRAWN = {
    SQUARE: 0.6, (160, 112): 0.09, (112, 160): 0.09, (192, 112): 0.08, (112, 192): 0.08, (112, 112): 0.03,
    (144, 144): 0.03,
}  # fmt: skip
"""(width, height) of pictures, and how often each is learned."""
PLACES = ("sea", "mountains", "city", "field", "forest", "desert", "snow", "space")
TIMES = ("day", "sunset", "night")
STYLES = ("vivid", "natural", "black and white", "oil painting", "pixel art")
POSITIONS = ("centre", "left", "right", "top", "bottom")
SIZES = ("large", "small")
LAYOUTS = ("single", "beside", "above", "row", "grid", "sky", "none")
TINTS = tuple(colour for colour in COLOURS if colour not in ("white", "black", "gray"))
_SHAPE = 0.36
"""A shape's radius, as a share of its square."""
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
    with; `left`, `top` and `side` of its square in pixels, some of which may lie outside of the picture."""

    what: int | str
    colour: str | None
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """What one picture shows. `ground`: a colour's name, or (place, time). `layout`, `position`, `extent`: how
    `objects` were placed, in words that a caption may say; `count`: of equal ones; `shape`: width and height in
    pixels."""

    objects: tuple[Placed, ...]
    ground: str | tuple[str, str]
    layout: str = "single"
    position: str = "centre"
    extent: str = "large"
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
        scene = _draw(rng, things, held_out, shape)
        if len(scene.objects) != 1 or is_held_out(*combination(scene)) == (held_out is not None):
            return scene


def _draw(rng: Generator, things: int, only: Literal["thing", "shape"] | None, size: tuple[int, int]) -> Scene:
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
        return Scene((), ground, layout, style=style, shape=size)
    kinds = {"single": 1, "grid": 1, "sky": 2 if rng.random() < 0.5 else 1, "row": 3}.get(layout, 2)
    whats = [_what(rng, things, ground, shape=shape) for _ in range(kinds)]
    if layout == "grid":
        return place(whats, ground, style, layout, count=int(rng.integers(2, 5)), shape=size)
    if layout != "single" or only == "thing":
        return place(whats, ground, style, layout, shape=size)
    position = "centre" if not only and rng.random() < 0.4 else str(rng.choice(POSITIONS))
    extent = "large" if rng.random() < 0.4 else str(rng.choice(SIZES))
    return place(whats, ground, style, layout, position=position, extent=extent, shape=size)


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
    layout: str = "single",
    *,
    position: str = "centre",
    extent: str = "large",
    count: int = 1,
    shape: tuple[int, int] = SQUARE,
) -> Scene:
    """Puts objects where the words for it say: always in the same place, for a small denoiser that has to find out
    which of three places was meant blurs large objects."""
    width, height = shape
    stands = not isinstance(ground, str) and ground[0] != "space"
    side, plain = SMALL, isinstance(whats[0][0], str)
    if (
        (layout == "single" and extent == "large")
        or (layout == "beside" and width >= 2 * LARGE)
        or (layout == "above" and height >= 2 * LARGE)
    ):
        side = LARGE
    step = side // ACROSS
    if layout == "single":
        dx, dy = _DIRECTION[position]
        inset = step if side == SMALL else -step if plain else 0
        spots = [(_along(width, side, inset, dx), _along(height, side, inset, dy) + (step if stands and not dy else 0))]
    elif side == LARGE:
        across, down = width - side, height - side
        spots = [(0, down // 2 + step), (across, down // 2 + step)] if layout == "beside" else [
            (across // 2, 0), (across // 2, down)
        ]  # fmt: skip
    else:
        spots = _spots(layout, count if layout == "grid" else len(whats), shape, 2 * CELL if stands else 0)
    if layout in ("grid", "sky") and len(whats) == 1:
        whats = [whats[0]] * len(spots)
    objects = []
    for (what, colour), spot in zip(whats, spots, strict=True):
        left, top = (
            at // step * step if layout == "single" and plain else min(max(at // step * step, 0), length - side)
            for at, length in zip(spot, shape, strict=True)
        )
        objects.append(Placed(what, colour, left, top, side))
    return Scene(tuple(objects), ground, layout, position, extent, count, style, shape)


def _along(length: int, side: int, inset: int, direction: int) -> int:
    """Where an object begins: in the middle, or at one end."""
    return {0: (length - side) // 2, -1: inset, 1: length - side - inset}[direction]


def _spots(layout: str, count: int, shape: tuple[int, int], low: int) -> list[tuple[int, int]]:
    """Left and top of several small objects; `count`: of them, or of kinds."""
    x, y = ([round(length * share) - SMALL // 2 for share in (0.25, 0.5, 0.75)] for length in shape)
    if layout == "row":
        return [((shape[0] - SMALL) * at // 2, y[1] + low) for at in range(3)]
    if layout == "above":
        return [(x[1], y[0]), (x[1], y[2])]
    if layout == "sky":
        return [(x[2], 0), (x[0] + 2 * CELL, y[2] - CELL)] if count == 2 else [(x[0], 0), (x[2], CELL)]
    if count == 2:
        return [(x[0], y[1] + low), (x[2], y[1] + low)]
    below = [(x[0], y[2]), (x[2], y[2])]
    return [(x[1], y[0]), *below] if count == 3 else [(x[0], y[0]), (x[2], y[0]), *below]


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
    middle = each.left + each.side / 2, each.top + each.side / 2
    cover = shape_cover(str(each.what), *middle, each.side * _SHAPE, (width, height))[..., None]
    canvas += cover * (colour_rgb(each.colour or "black") - canvas)


def _paste(canvas: np.ndarray, picture: np.ndarray, each: Placed) -> None:
    """Lays a thing over the canvas, resized; what lies outside is cut off."""
    height, width = canvas.shape[:2]
    left, top, side = each.left, each.top, each.side
    scaled = Image.fromarray(np.asarray(picture)).resize((side, side), Image.Resampling.BOX)
    scaled = np.asarray(scaled, dtype=np.float32)
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
