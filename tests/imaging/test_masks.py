from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hub.errors import InvalidRequest
from hub.imaging.decode import Decoded, decode_image
from hub.imaging.masks import mask_of_alpha, read_mask, without_white
from hub.types import Size

SIZE = Size(48, 32)
RANDOM = np.random.default_rng(0)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


LEFT = np.zeros((32, 48), bool)
LEFT[:, :24] = True
"""The part that each test's mask selects."""


def opaque(dtype: Any = np.uint8, white: int = 255) -> Image.Image:
    return Image.fromarray(np.where(LEFT, white, 0).astype(dtype))


def holed(colour: tuple[int, int, int] = (90, 140, 30)) -> Image.Image:
    """OpenAI's kind: any picture, transparent where it may change."""
    picture = Image.new("RGBA", (48, 32), (*colour, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 24, 32))
    return picture


def selected(data: bytes, size: Size = SIZE) -> np.ndarray:
    mask = read_mask(data, size)
    assert (mask.picture.mode, mask.picture.size) == ("L", (size.width, size.height))
    return np.asarray(mask.picture)


def refusal(data: bytes, size: Size = SIZE, code: str = "invalid_mask") -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_mask(data, size)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "mask", code)
    return error.message


def palette(transparency: Any = None) -> bytes:
    """Two colours by index: 0 on the left, 1 on the right."""
    picture = Image.fromarray(np.where(LEFT, 0, 1).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0] if transparency is None else [40, 90, 60, 120, 80, 200])
    return encoded(picture, **({} if transparency is None else {"transparency": transparency}))


EVERY_KIND = {
    "RGBA, transparent": encoded(holed()),
    "RGBA on black, transparent": encoded(holed((0, 0, 0))),
    "RGBA on white, transparent": encoded(holed((255, 255, 255))),
    "WebP, transparent": encoded(holed(), "WEBP", lossless=True),
    "WebP, lossy colours": encoded(holed(), "WEBP", quality=50),
    "LA, transparent": encoded(holed().convert("LA")),
    "palette, transparent": palette(transparency=0),
    "palette, alphas": palette(transparency=b"\x00\xff"),
    "L, one transparent level": encoded(opaque(), transparency=255),
    "16 bit, one transparent level": encoded(opaque(np.uint16, 1000), transparency=1000),
    "RGB, one transparent colour": encoded(opaque().convert("RGB"), transparency=(255, 255, 255)),
    "1 bit": encoded(opaque().convert("1")),
    "L": encoded(opaque()),
    "RGB": encoded(opaque().convert("RGB")),
    "RGBA, opaque": encoded(opaque().convert("RGBA")),
    "LA, opaque": encoded(opaque().convert("LA")),
    "palette": palette(),
    "16 bit": encoded(opaque(np.uint16, 65_535)),
    "WebP": encoded(opaque().convert("RGB"), "WEBP", lossless=True),
    "nearly white on nearly black": encoded(Image.fromarray(np.where(LEFT, 240, 14).astype(np.uint8))),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_way_to_draw_a_mask_gives_the_same_one(kind: str) -> None:
    assert np.array_equal(selected(EVERY_KIND[kind]), np.where(LEFT, 255, 0))
    assert read_mask(EVERY_KIND[kind], SIZE).remark is None


def test_a_jpeg_mask_is_clean_beside_its_edge() -> None:
    found = selected(encoded(opaque().convert("RGB"), "JPEG", quality=60))
    assert found[:, :16].min() == 255
    assert found[:, 32:].max() == 0


def test_half_transparent_parts_of_a_mask_blend() -> None:
    picture = holed()
    picture.paste((0, 0, 0, 200), (0, 0, 4, 4))
    assert selected(encoded(picture))[0, 0] == 55


def test_an_opaque_masks_greys_blend_and_rise_without_a_jump() -> None:
    mask = opaque()
    for column in range(8):
        mask.paste(column * 36, (24 + column, 0, 25 + column, 32))
    row = selected(encoded(mask))[0].astype(int)
    ramp = row[24:32]
    assert (np.diff(ramp) >= 0).all()
    assert np.diff(ramp).max() < 60
    assert ramp[0] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_camera_was_and_so_fits_an_image_that_was(orientation: int) -> None:
    """The image and its mask, made with one camera held the same way, both come upright."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    def stored(picture: Image.Image) -> bytes:
        turned = picture if undo is None else picture.transpose(Image.Transpose(undo))
        return encoded(turned, exif=exif)

    corner = Image.new("L", (48, 32))
    corner.paste(255, (0, 0, 12, 8))
    image = decode_image(stored(corner.convert("RGB")))
    assert image.size == SIZE
    assert np.array_equal(selected(stored(corner), image.size), np.asarray(corner))


@pytest.mark.parametrize("size", [Size(96, 64), Size(24, 16), Size(480, 320), Size(97, 64)])
def test_a_mask_of_another_size_and_the_same_shape_is_resampled_and_told(size: Size) -> None:
    mask = read_mask(EVERY_KIND["L"], size)
    assert mask.remark == f"it is 48x32 and was resampled to {size}, the size of the image"
    found = np.asarray(mask.picture)
    assert found[:, : size.width // 2 - 2 * size.width // 48 - 2].min() == 255
    assert found[:, size.width // 2 + 2 * size.width // 48 + 2 :].max() == 0


@pytest.mark.parametrize("size", [Size(32, 48), Size(48, 48), Size(50, 32), Size(1024, 1024)])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(size: Size) -> None:
    message = refusal(EVERY_KIND["L"], size)
    assert "48x32" in message
    assert str(size) in message


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (Image.new("L", (48, 32), 0), "all of it is black"),
        (Image.new("RGB", (48, 32), (20, 10, 25)), "all of it is black"),
        (Image.new("RGBA", (48, 32), (0, 0, 0, 255)), "all of it is black"),
        (Image.new("RGBA", (48, 32), (0, 0, 0, 250)), "no part of it is transparent"),
    ],
)
def test_a_mask_that_selects_nothing_is_refused_and_told_how_to_select(picture: Image.Image, why: str) -> None:
    message = refusal(encoded(picture))
    assert why in message
    assert "transparent, or white" in message


def test_a_mask_that_selects_everything_is_taken() -> None:
    for picture in (Image.new("L", (48, 32), 255), Image.new("RGBA", (48, 32), (9, 9, 9, 0))):
        assert selected(encoded(picture)).min() == 255


def photograph() -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (32, 48, 3), np.uint8))


@pytest.mark.parametrize(
    "picture",
    [
        photograph(),
        photograph().convert("L"),
        photograph().convert("RGBA"),
        Image.new("RGB", (48, 32), (0, 0, 255)),
        Image.new("RGB", (48, 32), (255, 255, 0)),
        Image.new("L", (48, 32), 128),
    ],
)
def test_a_picture_sent_as_a_mask_is_refused_with_both_ways_to_draw_one(picture: Image.Image) -> None:
    message = refusal(encoded(picture))
    assert "neither black nor white" in message
    assert "transparent" in message
    assert "white and the rest is black" in message


def test_a_mask_with_wide_soft_edges_is_still_a_mask() -> None:
    mask = Image.new("L", (400, 400))
    ImageDraw.Draw(mask).ellipse((100, 100, 300, 300), fill=255)
    soft = mask.resize((40, 40)).resize((400, 400), Image.Resampling.BICUBIC)
    assert selected(encoded(soft), Size(400, 400)).max() == 255


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 16_000, 16_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2001) * 16_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(opaque(), "GIF"),
        encoded(opaque(), "BMP"),
        EVERY_KIND["L"][:60],
        EVERY_KIND["RGBA, transparent"][:70],
        encoded(Image.new("L", (1, 1), 255)),
        encoded(Image.new("L", (1, 400), 255)),
        bomb(),
    ],
)
def test_what_no_image_may_be_no_mask_may_be_either(data: bytes) -> None:
    assert refusal(data, code="invalid_image").startswith("The mask ")


# A picture's own alpha


def test_holes_of_a_picture_are_its_mask_and_glass_is_not() -> None:
    assert mask_of_alpha(None) is None
    assert mask_of_alpha(Image.new("L", (4, 4), 255)) is None
    assert mask_of_alpha(Image.new("L", (4, 4), 1)) is None
    alpha = Image.fromarray(np.array([[0, 255], [100, 255]], np.uint8))
    mask = mask_of_alpha(alpha)
    assert mask is not None
    assert np.asarray(mask.picture).tolist() == [[255, 0], [155, 0]]


def test_colours_are_found_again_under_the_white_as_well_as_their_weight_needs() -> None:
    """Blended by alpha with any picture, the result is as if the colours had never been laid on white."""
    colours = RANDOM.integers(0, 256, (40, 40, 3), np.uint8)
    alpha = RANDOM.integers(0, 256, (40, 40), np.uint8)
    layer = Image.fromarray(np.dstack([colours, alpha]))
    decoded = decode_image(encoded(layer))
    assert decoded.alpha is not None
    straight = np.asarray(without_white(decoded.picture, decoded.alpha)).astype(float)
    share = alpha[..., None] / 255
    assert np.abs((straight - colours) * share).max() <= 1.5
    assert np.array_equal(straight[alpha == 255], colours[alpha == 255])


def test_a_decoded_picture_knows_its_size_and_its_alpha() -> None:
    found = decode_image(encoded(holed()))
    assert found.size == SIZE
    assert found.transparent
    assert found.alpha is not None
    assert np.array_equal(np.asarray(found.alpha) == 0, LEFT)
    assert not Decoded(Image.new("RGB", (2, 2))).transparent
    assert decode_image(encoded(opaque().convert("RGBA"))).alpha is None
