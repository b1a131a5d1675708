from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hub.imaging.encode import Finisher
from hub.types import OutputFormat, Size

RANDOM = np.random.RandomState(0)
TEXT = {"Software": "hub", "Model": "some/model", "Seed": "9223372036854775807"}
FORMATS: list[OutputFormat] = ["png", "jpeg", "webp"]


def smooth(width: int = 96, height: int = 64) -> np.ndarray:
    """A picture with colour everywhere and no hard edge."""
    knots = Image.fromarray(RANDOM.randint(0, 256, (4, 6, 3), np.uint8))
    return np.asarray(knots.resize((width, height), Image.Resampling.BICUBIC))


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("output", [Size(96, 64), Size(100, 60), Size(640, 320), Size(1, 1)])
def test_a_file_has_the_format_and_exactly_the_size_that_was_asked_for(kind: OutputFormat, output: Size) -> None:
    picture = opened(Finisher(output, kind).encode(smooth(), TEXT))
    assert picture.format == kind.upper()
    assert picture.size == (output.width, output.height)
    assert picture.mode == "RGB"


def test_a_png_is_exact() -> None:
    pixels = RANDOM.randint(0, 256, (64, 96, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(opened(Finisher(Size(96, 64)).encode(pixels, TEXT))), pixels)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_compression_is_the_quality_and_trades_bytes_for_likeness(kind: OutputFormat) -> None:
    pixels = np.asarray(Image.fromarray(RANDOM.randint(0, 256, (40, 60, 3), np.uint8)).resize((240, 160)))
    files = [Finisher(Size(240, 160), kind, quality).encode(pixels, {}) for quality in (0, 20, 50, 80, 100)]
    errors = [np.abs(np.asarray(opened(data)).astype(int) - pixels).mean() for data in files]
    assert [len(data) for data in files] == sorted(len(data) for data in files)
    assert errors == sorted(errors, reverse=True)
    assert len(files[0]) < len(files[-1]) / 3
    assert errors[-1] < errors[0] / 2


def test_a_jpeg_keeps_fine_colour_where_the_quality_is_high() -> None:
    """A red line on blue, one pixel wide, is washed out where colour is stored at half the resolution."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[:, ::4] = (200, 0, 0)
    error = {
        quality: np.abs(
            np.asarray(opened(Finisher(Size(32, 32), "jpeg", quality).encode(pixels, {}))).astype(int) - pixels
        ).mean()
        for quality in (89, 90, 100)
    }
    assert error[90] < error[89] / 2
    assert error[100] < 2


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_file_tells_what_made_it(kind: OutputFormat) -> None:
    exif = opened(Finisher(Size(96, 64), kind).encode(smooth(), TEXT)).getexif()
    assert (exif[0x0131], exif[0x0110], exif[0x010E]) == ("hub", "some/model", f"Seed: {TEXT['Seed']}")
    assert not opened(Finisher(Size(96, 64), kind).encode(smooth(), {})).getexif()


def test_a_png_tells_what_made_it() -> None:
    assert opened(Finisher(Size(96, 64)).encode(smooth(), TEXT)).info == TEXT


# The original around what a mask selects


@pytest.mark.parametrize("native", [(64, 96), (32, 48), (128, 192)])
def test_outside_of_the_mask_the_original_stays_to_the_last_bit_and_inside_is_the_new_one(
    native: tuple[int, int],
) -> None:
    original = RANDOM.randint(0, 256, (64, 96, 3)).astype(np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 30:60] = 255
    new = np.full((*native, 3), (10, 200, 90), np.uint8)
    finisher = Finisher(Size(96, 64), original=original.tobytes(), mask=mask.tobytes())
    found = np.asarray(opened(finisher.encode(new, {})))
    assert np.array_equal(found[mask == 0], original[mask == 0])
    assert (found[mask == 255] == (10, 200, 90)).all()


def test_soft_parts_of_a_mask_blend_linearly() -> None:
    mask = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    original, new = np.full((4, 256, 3), 40, np.uint8), np.full((4, 256, 3), 240, np.uint8)
    finisher = Finisher(Size(256, 4), original=original.tobytes(), mask=mask.tobytes())
    found = np.asarray(opened(finisher.encode(new, {}))).astype(float)
    expected = 40 + 200 * (mask[..., None] / 255)
    assert np.abs(found - expected).max() <= 1
