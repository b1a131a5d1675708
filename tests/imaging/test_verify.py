from __future__ import annotations

import contextlib
import io
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from hub.imaging.verify import NotAnImage, may_be_transparent, verify_image
from hub.types import Size


def drawn(image_format: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options: object) -> bytes:
    picture = Image.effect_noise(size, 80).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


KINDS = {
    "png": drawn("PNG"),
    "png with alpha": drawn("PNG", mode="RGBA"),
    "grey png": drawn("PNG", mode="L"),
    "animated png": drawn("PNG", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
    "jpeg": drawn("JPEG"),
    "progressive jpeg": drawn("JPEG", progressive=True),
    "grey jpeg": drawn("JPEG", mode="L"),
    "cmyk jpeg": drawn("JPEG", mode="CMYK"),
    "jpeg with a comment": drawn("JPEG", comment="\xff\xd9" * 9),
    "jpeg with exif": drawn("JPEG", exif=Image.Exif().tobytes()),
    "webp": drawn("WEBP"),
    "lossless webp": drawn("WEBP", lossless=True),
    "webp with alpha": drawn("WEBP", mode="RGBA"),
    "webp with exif": drawn("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    "animated webp": drawn("WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_tells_its_format_and_its_size(kind: str) -> None:
    image_format, size = verify_image(KINDS[kind])
    assert image_format in kind
    assert size == Size(60, 40)


def seen_through(image_format: str, mode: str = "RGBA", **options: object) -> bytes:
    picture = Image.new("RGBA", (60, 40), (200, 80, 20, 0))
    picture.paste((10, 80, 20, 255), (0, 0, 30, 40))
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


TRANSPARENT = {
    "png": seen_through("PNG"),
    "grey png": seen_through("PNG", "LA"),
    "png with a palette": seen_through("PNG", "P", transparency=0),
    "webp": seen_through("WEBP"),
    "lossless webp": seen_through("WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_file_with_transparency_is_told_from_one_without(kind: str) -> None:
    assert may_be_transparent(TRANSPARENT[kind])
    assert not may_be_transparent(KINDS[kind.replace(" with a palette", "")])
    assert not may_be_transparent(KINDS["jpeg"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_anywhere_is_none(kind: str) -> None:
    data = KINDS[kind]
    for length in range(0, len(data) - 1, max(1, len(data) // 300)):
        with pytest.raises(NotAnImage):
            verify_image(data[:length])


def test_a_flipped_bit_anywhere_in_a_png_is_found() -> None:
    data = KINDS["png"]
    for position in range(0, len(data), max(1, len(data) // 500)):
        with pytest.raises(NotAnImage):
            verify_image(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])


def test_metadata_and_what_follows_the_end_is_left_to_the_provider() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"caBX", b"C2PA" * 1000)
    assert verify_image(drawn("PNG", pnginfo=info))[1] == Size(60, 40)
    for kind in ("png", "jpeg", "webp"):
        assert verify_image(KINDS[kind] + b"more")[1] == Size(60, 40)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"RIFF",
        b"RIFF\x04\x00\x00\x00WEBP",
        b"GIF89a",
        b"<html></html>",
        b"BM" + b"\0" * 100,
        b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + b"\0" * 10,
    ],
)
def test_what_is_no_picture_of_the_three_formats_is_none(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        verify_image(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_a_side_of_nothing_or_of_too_much_is_refused() -> None:
    for width, height in ((0, 5), (5, 0), (32_769, 5), (2**31, 2**31)):
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        with pytest.raises(NotAnImage):
            verify_image(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * (16 << 20),
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * (4 << 20),
        KINDS["png"][:33] + chunk(b"teSt", b"") * (1 << 20),
        b"RIFF" + (16 << 20).to_bytes(4, "little") + b"WEBP" + b"JUNK\0\0\0\0" * (2 << 20),
    ],
    ids=["fill bytes", "segments", "chunks", "RIFF chunks"],
)
def test_a_file_of_countless_parts_takes_no_time(data: bytes) -> None:
    start = time.monotonic()
    with pytest.raises(NotAnImage):
        verify_image(data)
    assert time.monotonic() - start < 1


@given(st.sampled_from(sorted(KINDS)), st.integers(0), st.binary(max_size=40))
def test_no_damage_raises_anything_else(kind: str, at: int, junk: bytes) -> None:
    data = bytearray(KINDS[kind])
    at %= len(data)
    data[at : at + len(junk)] = junk
    with contextlib.suppress(NotAnImage):
        verify_image(bytes(data))
