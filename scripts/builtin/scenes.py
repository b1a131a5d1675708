"""Scenes that the built-in model learns from: what is in them, and how they look.

Everything is drawn from a seeded ``numpy.random.Generator``: one to four things (`builtin.things`) or shapes
(`builtin.shapes`), on a plain colour or in a simple landscape, in one of a few styles. Some combinations of one object,
ground and style are *held out*: training never draws them and ``eval_builtin.py`` asks for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from builtin.landscapes import PLACES, SIDE, TIMES, landscape
from builtin.shapes import COLOURS, LUMA, NATURAL_KEEP, PALETTE, SHAPES, colour_rgb, shape_cover

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
STYLES = ("vivid", "natural", "black and white", "oil painting", "pixel art")
POSITIONS = ("centre", "left", "right", "top", "bottom")
SIZES = ("large", "small")
LAYOUTS = ("single", "beside", "above", "row", "grid", "sky", "none")
TINTS = tuple(colour for colour in COLOURS if colour not in ("white", "black", "gray"))
_SHAPE = 0.36
"""A shape's radius, as a share of its square."""
_DIRECTION = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


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


def is_held_out(what: int | str, ground: str, style: str) -> bool:
    """Whether training never draws this thing (or coloured shape) alone on this ground in this style: one in ten, by a
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
    shade = (colours @ LUMA)[..., None] / 255
    tint = np.asarray(PALETTE[name], dtype=np.float32)
    return np.where(shade < 0.55, tint * shade / 0.55, tint + (255 - tint) * (shade - 0.55) / 0.45 * 0.8)


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
    keep = NATURAL_KEEP if style == "natural" else 0.0
    return np.rint(keep * picture + (1 - keep) * grey).astype(np.uint8)
