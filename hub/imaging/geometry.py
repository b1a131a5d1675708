"""Which shape a model draws so that a picture of the asked size can be made from it. Pure arithmetic."""

from __future__ import annotations

import math

from msgspec import Struct

from hub.types import Size


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

    # For each width only the heights next to the wanted aspect ratio and next to the native area can win.
    candidates = {
        (width, _nearest(height, sides))
        for width in sides
        for height in (width / math.exp(aspect), math.exp(area) / width)
    }
    return Size(*min(candidates, key=distance))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _nearest(value: float, sides: range) -> int:
    index = round((value - sides.start) / sides.step)
    return sides[max(0, min(index, len(sides) - 1))]
