"""Which size, shape or tier that a remote model draws is nearest to the one that was asked for. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from hub.manifest import ShapesSection
from hub.types import Size


def nearest_size(asked: Size, sizes: Sequence[Size], shapes: ShapesSection | None) -> Size:
    """The size that the model draws and that is nearest: of the sizes, first the shape, then the area; else within the
    bounds; as asked where there are neither."""
    if sizes:
        return min(sizes, key=lambda each: (abs(_shape(each) - _shape(asked)) > 0.02, _distance(each, asked)))
    return asked if shapes is None else _within(asked, shapes)


def _shape(size: Size) -> float:
    return math.log(size.width / size.height)


def _distance(one: Size, other: Size) -> float:
    area = math.log((one.width * one.height) / (other.width * other.height))
    return 4 * abs(_shape(one) - _shape(other)) + abs(area)


def _within(asked: Size, shapes: ShapesSection) -> Size:
    width, height = float(asked.width), float(asked.height)
    if shapes.max_ratio is not None:
        width, height = max(width, height / shapes.max_ratio), max(height, width / shapes.max_ratio)
        width, height = min(width, height * shapes.max_ratio), min(height, width * shapes.max_ratio)
    grow = max(1.0, shapes.min / min(width, height))
    grow = max(grow, math.sqrt((shapes.min_pixels or 1) / (width * height)))
    shrink = min(1.0, shapes.max / (max(width, height) * grow))
    if shapes.max_pixels is not None:
        shrink = min(shrink, math.sqrt(shapes.max_pixels / (width * height * grow * grow)))
    scale = grow * shrink
    width, height = width * scale, height * scale
    near = [Size(wide, high) for wide in _steps(width, shapes) for high in _steps(height, shapes)]
    fitting = [each for each in near if _fits(each, shapes)]
    return min(fitting or near, key=lambda each: (each.width - width) ** 2 + (each.height - height) ** 2)


def _steps(side: float, shapes: ShapesSection) -> list[int]:
    """The lengths around a side's that are possible; rounding both sides alone would break other bounds."""
    step = shapes.multiple
    low, high = -(-shapes.min // step) * step, shapes.max // step * step
    first = int(side // step) * step
    return sorted({min(high, max(low, first + more * step)) for more in (-1, 0, 1, 2)})


def _fits(size: Size, shapes: ShapesSection) -> bool:
    pixels, sides = size.width * size.height, sorted((size.width, size.height))
    return (
        (shapes.min_pixels or 1) <= pixels <= (shapes.max_pixels or pixels)
        and shapes.min <= sides[0]
        and sides[1] <= min(shapes.max, sides[0] * (shapes.max_ratio or math.inf))
    )


def nearest_ratio(asked: Size, ratios: Sequence[str]) -> str:
    """The aspect ratio, as `W:H`, that is nearest to a size's."""
    return min(ratios, key=lambda ratio: abs(math.log(ratio_of(ratio)) - _shape(asked)))


def tier(size: Size) -> Literal[1, 2, 4]:
    """Which of the usual 1K, 2K and 4K a size is, by its area: that of a square of so many thousand pixels a side."""
    side = math.sqrt(size.width * size.height)
    return 1 if side < 1448 else 2 if side < 2896 else 4


def ratio_of(ratio: str) -> float:
    """What `W:H` is as a number."""
    width, _, height = ratio.partition(":")
    return int(width) / int(height)
