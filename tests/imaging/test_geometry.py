from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hub.imaging.geometry import NativeShapes, nearest_shape
from hub.types import Size

SDXL = NativeShapes(native=Size(1024, 1024), multiple=64, min=512, max=2048)

sizes = st.builds(Size, st.integers(1, 16_384), st.integers(1, 16_384))


@st.composite
def native_shapes(draw: st.DrawFn) -> NativeShapes:
    """Limits that hold at least the native shape, and need not be multiples themselves."""
    multiple = draw(st.sampled_from([1, 7, 8, 16, 64, 256]))
    sides = st.integers(1, 24).map(lambda count: count * multiple)
    native = Size(draw(sides), draw(sides))
    low = draw(st.integers(max(1, min(native.width, native.height) - 100), min(native.width, native.height)))
    high = draw(st.integers(max(native.width, native.height), max(native.width, native.height) + 300))
    return NativeShapes(native=native, multiple=multiple, min=low, max=min(high, low + 40 * multiple + 300))


def makeable(shapes: NativeShapes) -> list[Size]:
    sides = [side for side in range(shapes.min, shapes.max + 1) if side % shapes.multiple == 0]
    step = max(1, len(sides) // 40)  # enough for a counterexample, and quick
    return [Size(width, height) for width in sides[::step] for height in sides]


def distance(shape: Size, asked: Size, native: Size) -> float:
    aspect = math.log(shape.width / shape.height) - math.log(asked.width / asked.height)
    area = math.log(shape.width * shape.height) - math.log(native.width * native.height)
    return 2 * abs(aspect) + abs(area)


@given(sizes, native_shapes())
def test_the_result_can_always_be_made(asked: Size, shapes: NativeShapes) -> None:
    assume(shapes.holds(shapes.native))
    assert shapes.holds(nearest_shape(asked, shapes))


@given(st.data(), native_shapes())
def test_a_size_that_can_be_made_is_made(data: st.DataObject, shapes: NativeShapes) -> None:
    assume(shapes.holds(shapes.native))
    asked = data.draw(st.sampled_from(makeable(shapes)))
    assert nearest_shape(asked, shapes) == asked


@given(sizes, native_shapes())
def test_no_other_shape_is_nearer_in_aspect_ratio_and_area(asked: Size, shapes: NativeShapes) -> None:
    assume(shapes.holds(shapes.native) and not shapes.holds(asked))
    found = distance(nearest_shape(asked, shapes), asked, shapes.native)
    assert all(distance(other, asked, shapes.native) >= found - 1e-9 for other in makeable(shapes))


@given(sizes)
def test_a_picture_and_the_same_on_its_side_are_drawn_alike(asked: Size) -> None:
    upright, lying = nearest_shape(asked, SDXL), nearest_shape(Size(asked.height, asked.width), SDXL)
    here = distance(upright, asked, SDXL.native)
    assert distance(Size(lying.height, lying.width), asked, SDXL.native) == pytest.approx(here)


@given(sizes)
def test_a_model_with_one_shape_draws_that_one(asked: Size) -> None:
    only = NativeShapes(native=Size(128, 128), multiple=8, min=128, max=128)
    assert nearest_shape(asked, only) == Size(128, 128)


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        (Size(4096, 4096), Size(1024, 1024)),
        (Size(100, 100), Size(1024, 1024)),
        (Size(1792, 1024), Size(1792, 1024)),
        (Size(1000, 1000), Size(1024, 1024)),
        (Size(4000, 2000), Size(1408, 704)),
        (Size(100, 10_000), Size(512, 2048)),
        (Size(10_000, 100), Size(2048, 512)),
    ],
)
def test_examples_for_a_model_of_1024_pixels(asked: Size, drawn: Size) -> None:
    assert nearest_shape(asked, SDXL) == drawn


@pytest.mark.parametrize("size", [Size(1024, 1000), Size(448, 1024), Size(1024, 2112), Size(0, 1024)])
def test_one_wrong_side_is_enough_not_to_hold(size: Size) -> None:
    assert not SDXL.holds(size)
    assert not SDXL.holds(Size(size.height, size.width))
