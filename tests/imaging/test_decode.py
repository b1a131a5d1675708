from __future__ import annotations

import io
import re
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hub.errors import InvalidRequest
from hub.imaging.decode import MAX_PIXELS, decode_image, fit, place
from hub.types import Size

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (24, 40, 3), np.uint8)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    picture = decode_image(data).picture
    assert picture.mode == "RGB"
    return np.asarray(picture)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank_png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel, a few kilobytes however large it is."""
    rows = bytes((width + 7) // 8 + 1) * height
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def refusal(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_image(data, "mask")
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "mask", "invalid_image")
    assert not re.search(r"0x[0-9a-f]{4,}|[/\\<>]|\.py|Error|PIL|BytesIO", error.message), error.message
    assert error.__cause__ is None
    return error


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_picture_is_decoded_exactly(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(pixels(encoded(Image.fromarray(PIXELS), kind, **options)), PIXELS)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_decoded(progressive: bool) -> None:
    flat = Image.new("RGB", (40, 24), (200, 100, 50))
    found = pixels(encoded(flat, "JPEG", quality=95, progressive=progressive))
    assert found.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})])
def test_a_camera_held_in_any_way_gives_an_upright_picture(
    kind: str, options: dict[str, Any], orientation: int
) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = RED, GREEN, BLUE
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation]))
    found = pixels(encoded(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 5


def test_a_palette_is_resolved() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    found = pixels(encoded(palette))
    assert tuple(found[0, 0]) == RED
    assert tuple(found[0, 1]) == BLUE


def test_a_palette_with_transparency_lies_on_white() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        data = encoded(palette, transparency=transparency)
        found = pixels(data)
        assert tuple(found[0, 0]) == WHITE
        assert tuple(found[0, 1]) == BLUE
        assert decode_image(data).transparent


@pytest.mark.parametrize("value", [0, 255, 256, 32_768, 65_535])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(value: int) -> None:
    grey = Image.fromarray(np.full((4, 6), value, np.uint16))
    assert np.array_equal(pixels(encoded(grey)), np.full((4, 6, 3), round(value / 257)))


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 77), ("LA", (77, 255))])
def test_grey_becomes_three_equal_channels(mode: str, colour: Any) -> None:
    found = pixels(encoded(Image.new(mode, (4, 3), colour)))
    assert np.array_equal(found, np.full((3, 4, 3), 255 if mode == "1" else 77))


def test_a_jpeg_for_print_has_the_right_colours() -> None:
    found = pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(found.astype(int) - RED).max() <= 3


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_transparent_parts_become_white_and_half_transparent_ones_lighter(kind: str, options: dict[str, Any]) -> None:
    picture = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    data = encoded(picture, kind, **options)
    found = pixels(data)
    assert [tuple(found[0, column]) for column in range(3)] == [WHITE, RED, (127, 127, 127)]
    assert decode_image(data).transparent


def test_a_transparent_colour_lies_on_white() -> None:
    picture = Image.new("RGB", (3, 2), GREEN)
    picture.putpixel((1, 1), BLUE)
    found = pixels(encoded(picture, transparency=GREEN))
    assert tuple(found[0, 0]) == WHITE
    assert tuple(found[1, 1]) == BLUE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_opaque_file_declares_no_transparency(kind: str) -> None:
    assert not decode_image(encoded(Image.fromarray(PIXELS), kind)).transparent


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_frame_is_read(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
    assert np.array_equal(pixels(data), np.full((8, 8, 3), RED))


def test_of_a_phones_double_picture_the_first_is_read() -> None:
    """MPO, a JPEG with a second one behind it, is what many phones send as .jpg."""
    data = encoded(Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert np.abs(pixels(data).astype(int) - RED).max() <= 3


def peak_rss() -> int:
    """Bytes, the highest since the last reset."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def rise_of_peak_rss(data: bytes) -> int:
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_rss()
    refusal(data)
    return peak_rss() - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of the peak")
def test_a_small_file_with_very_many_pixels_is_refused_before_it_fills_the_memory() -> None:
    bomb = blank_png(13_000, 13_000)
    assert len(bomb) < 50_000
    assert rise_of_peak_rss(bomb) < 20 << 20


def test_the_limit_of_pixels_is_exact() -> None:
    side = 5000
    assert decode_image(blank_png(side, MAX_PIXELS // side)).picture.size == (side, 10_000)
    assert "50 million" in refusal(blank_png(side, MAX_PIXELS // side + 1)).message


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (16_385, 2), (2, 16_385), (1, 20_000)])
def test_sides_out_of_range_are_refused_with_the_range(size: tuple[int, int]) -> None:
    assert "each side must be 2 to 16384" in refusal(blank_png(*size)).message


@pytest.mark.parametrize("size", [(2, 2), (16_384, 2), (2, 16_384)])
def test_sides_at_the_limits_are_taken(size: tuple[int, int]) -> None:
    assert decode_image(blank_png(*size)).picture.size == size


def test_a_header_that_promises_billions_of_pixels_is_refused() -> None:
    for width, height in ((2**31 - 1, 2**31 - 1), (2**32 - 1, 2), (0, 4), (0, 0)):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        refusal(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_a_compressed_text_beside_the_pixels_cannot_fill_the_memory() -> None:
    good = encoded(Image.fromarray(PIXELS))
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    assert rise_of_peak_rss(good[:33] + bomb + good[33:]) < 20 << 20


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PDF", "EPS"])
def test_other_formats_are_refused_whatever_pillow_could_read(kind: str) -> None:
    assert "not a PNG, JPEG or WebP" in refusal(encoded(Image.fromarray(PIXELS), kind)).message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"8BPS\x00\x01" + bytes(100),
        b"<!DOCTYPE html><html><body>not found</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"SIMPLE  =                    T" + bytes(2850),
        b"#!/bin/sh\n",
        b"\x00" + encoded(Image.fromarray(PIXELS)),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert "not a PNG, JPEG or WebP" in refusal(data).message


PNG, JPEG, WEBP = (encoded(Image.fromarray(PIXELS), kind) for kind in ("PNG", "JPEG", "WEBP"))


@pytest.mark.parametrize(
    "data",
    [
        *(data[:length] for data in (PNG, JPEG, WEBP) for length in (12, 40, len(data) // 2)),
        PNG[:8] + b"8BPS\x00\x01" + bytes(100),
        b"\xff\xd8\xff<html></html>",
        b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(28),
        b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(28),
        PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
        PNG[:-30] + bytes(30),
    ],
)
def test_a_damaged_file_is_refused_without_the_decoders_words(data: bytes) -> None:
    assert refusal(data).message == "The mask file is damaged or cannot be read."


@given(st.sampled_from([PNG, JPEG, WEBP]), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_a_file_with_any_bytes_changed_is_a_picture_or_a_refusal(data: bytes, at: int, change: bytes) -> None:
    at %= len(data)
    changed = data[:at] + change + data[at + len(change) :]
    try:
        picture = decode_image(changed).picture
    except InvalidRequest:
        refusal(changed)
    else:
        assert picture.mode == "RGB"


def test_a_png_of_a_hundred_thousand_empty_chunks_is_refused_at_once() -> None:
    """Pillow walks them in Python, holding the interpreter's lock: a second for a few megabytes."""
    empty = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    head = PNG[:33]  # signature and IHDR
    start = time.monotonic()
    with pytest.raises(InvalidRequest, match="too many parts"):
        decode_image(head + empty * 100_000 + PNG[33:])
    assert time.monotonic() - start < 0.1


@pytest.mark.parametrize("output", [Size(1792, 1024), Size(1024, 1792), Size(128, 128), Size(100, 99)])
def test_a_source_keeps_its_geometry_through_a_canvas_of_another_shape(output: Size) -> None:
    """A square that is drawn on a canvas of 128x128 and cropped to the output is where it was, and a square."""
    source = Image.new("RGB", (output.width, output.height), "white")
    box = (output.width // 8, output.height // 4, output.width // 8 + output.height // 2, output.height * 3 // 4)
    source.paste((255, 0, 0), box)
    canvas = place(source, Size(128, 128), output)
    assert canvas.size == (128, 128)
    back = np.asarray(fit(canvas, output), np.int16)
    red = np.argwhere((back[..., 0] > 128) & (back[..., 1] < 128))
    top, left = red.min(0)
    bottom, right = red.max(0) + 1
    slack = 2 + max(output.width, output.height) / 64
    assert np.abs(np.array([left, top, right, bottom]) - box).max() <= slack


def test_a_picture_is_scaled_and_cropped_about_its_centre_without_distortion() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = RED
    fitted = np.asarray(fit(Image.fromarray(wide), Size(50, 50)))
    assert fitted.shape == (50, 50, 3)
    assert np.array_equal(fitted[10:40, 10:40], np.full((30, 30, 3), RED))


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    picture = Image.fromarray(PIXELS)
    assert fit(picture, Size(40, 24)) is picture
