from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hub.imaging.png import encode_png

RANDOM = np.random.default_rng(0)


def decoded(png: bytes) -> Image.Image:
    """Decoded by Pillow, which checks every chunk's CRC."""
    with Image.open(io.BytesIO(png)) as check:
        check.verify()
    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (17, 31), (64, 64), (255, 257), (3, 5000)])
@pytest.mark.parametrize("kind", ["random", "flat", "gradient"])
def test_the_pixels_come_back_exactly(shape: tuple[int, int], kind: str) -> None:
    pixels = {
        "random": lambda: RANDOM.integers(0, 256, (*shape, 3), np.uint8),
        "flat": lambda: np.full((*shape, 3), (0, 128, 255), np.uint8),
        "gradient": lambda: np.arange(shape[0] * shape[1] * 3).reshape(*shape, 3).astype(np.uint8),
    }[kind]()
    picture = decoded(encode_png(pixels))
    assert (picture.mode, picture.size) == ("RGB", (shape[1], shape[0]))
    assert np.array_equal(np.asarray(picture), pixels)


def test_a_view_into_a_larger_array_is_written_as_it_looks_and_is_not_changed() -> None:
    whole = RANDOM.integers(0, 256, (40, 60, 4), np.uint8)
    before = whole.copy()
    for view in (whole[::2, 5:30, :3], whole[::-1, ::-1, 2::-1], whole[..., 1:].transpose(1, 0, 2)):
        assert np.array_equal(np.asarray(decoded(encode_png(view))), view)
    assert np.array_equal(whole, before)


def test_a_flat_picture_is_small_and_a_random_one_hardly_larger_than_its_pixels() -> None:
    assert len(encode_png(np.zeros((512, 512, 3), np.uint8))) < 20_000
    assert len(encode_png(RANDOM.integers(0, 256, (512, 512, 3), np.uint8))) < 512 * 512 * 3 * 1.01


def test_text_is_readable_by_pillow_in_any_script() -> None:
    text = {"Software": "hub", "Model": "модель 画 🎨", "Seed": "9223372036854775807", "Empty": "", "Lines": "a\nb"}
    picture = decoded(encode_png(np.zeros((4, 4, 3), np.uint8), text))
    assert dict(picture.info) == text
    assert decoded(encode_png(np.zeros((4, 4, 3), np.uint8), {})).info == {}


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_another_type_or_shape_is_an_error_and_never_a_wrong_picture(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        encode_png(pixels)
