"""Which shape a model draws so that a picture of the asked size can be made from it. Pure arithmetic."""

from __future__ import annotations

import math

from msgspec import Struct

from hub.types import Size

CROP_NOTED = 0.97
"""Cropping that leaves less than this part of a picture is told."""


class NativeShapes(Struct, frozen=True, kw_only=True):
    """What a model can draw itself: sides from `min` to `max` pixels that are multiples of `multiple`.

    `native` is the shape that it was trained on; its area is what other aspect ratios aim at.
    """

    native: Size
    multiple: int
    min: int
    max: int

    def holds(self, size: Size) -> bool:
        """Whether the model draws exactly this size."""
        return all(side % self.multiple == 0 and self.min <= side <= self.max for side in (size.width, size.height))


def nearest_shape(asked: Size, shapes: NativeShapes) -> Size:
    """The asked size where the model can draw it, else the shape of nearest aspect ratio about the native area.

    Among all shapes it minimises the distance of aspect ratio (in log) and, less weighted, of area (in log), so
    that what resampling has to crop or enlarge is least.
    """
    if shapes.holds(asked):
        return asked
    sides = range(_up(shapes.min, shapes.multiple), shapes.max + 1, shapes.multiple)
    aspect = math.log(asked.width / asked.height)
    area = math.log(shapes.native.width * shapes.native.height)

    def distance(shape: tuple[int, int]) -> float:
        width, height = shape
        return 2 * abs(math.log(width / height) - aspect) + abs(math.log(width * height) - area)

    # For each width the distance falls towards the height of the wanted aspect ratio (its weight is the larger one)
    # and rises beyond it: only the two heights about it can win.
    candidates = {(width, height) for width in sides for height in _around(width / math.exp(aspect), sides)}
    return Size(*min(candidates, key=distance))


def visible_part(native: Size, output: Size) -> Size:
    """The centred part of a picture of `native` size that is left when it is scaled to cover `output` and cropped."""
    scale = max(output.width / native.width, output.height / native.height)
    return Size(max(1, round(output.width / scale)), max(1, round(output.height / scale)))


def cropped_to(picture: Size, output: Size) -> Size | None:
    """That part, where making `output` of a picture costs more of it than rounding does; else None."""
    left = visible_part(picture, output)
    return left if left.width * left.height < CROP_NOTED * picture.width * picture.height else None


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _around(value: float, sides: range) -> tuple[int, int]:
    below = math.floor((value - sides.start) / sides.step)
    last = len(sides) - 1
    return sides[max(0, min(below, last))], sides[max(0, min(below + 1, last))]
