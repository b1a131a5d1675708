"""Pictures that strangers send: checked before they are decoded, and never decoded by a rare codec."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from hub.errors import InvalidRequest
from hub.imaging.geometry import visible_part
from hub.types import Size

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
MIN_SIDE, MAX_SIDE = 2, 16_384
MAX_CHUNKS, MAX_DATA_CHUNKS = 256, 50_000

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


class Decoded(NamedTuple):
    """An upright RGB picture, and whether its file had transparent parts, which are white now."""

    picture: Image.Image
    transparent: bool


def decode_image(data: bytes, param: str = "image") -> Decoded:
    """A PNG, JPEG or WebP file as an upright RGB picture.

    Raises InvalidRequest naming `param`. Size and pixel limits are checked on the header, before any pixel is
    decoded, so that a small file cannot fill the memory. The message never quotes Pillow's own words: they hold
    addresses. Only the first frame of an animation is read.
    """
    from PIL import Image, ImageOps

    if not data.startswith(_MAGIC):
        raise InvalidRequest("The image is not a PNG, JPEG or WebP file.", param=param, code="invalid_image")
    if data.startswith(_MAGIC[0]) and not _has_few_chunks(data):
        raise InvalidRequest("The image file has too many parts.", param=param, code="invalid_image")
    Image.MAX_IMAGE_PIXELS = None  # its warning; the limits here are stricter, and are errors
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_dimensions(picture, param)
            picture.load()
            transparent = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            return Decoded(_to_rgb(ImageOps.exif_transpose(picture)), transparent)
    except InvalidRequest:
        raise
    except Exception:  # every decoder fails in its own way; all of it means that the file is bad
        raise InvalidRequest(
            "The image file is damaged or cannot be read.", param=param, code="invalid_image"
        ) from None


def _has_few_chunks(data: bytes) -> bool:
    """Whether a PNG has a sane number of chunks; Pillow walks each in Python, holding the interpreter's lock."""
    position, other, chunks = 8, 0, 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        other += data[position + 4 : position + 8] != b"IDAT"
        chunks += 1
        if other > MAX_CHUNKS or chunks > MAX_DATA_CHUNKS:
            return False
        position += length + 12
    return True


def fit(picture: Image.Image, size: Size) -> Image.Image:
    """Scales and centre-crops a picture to exactly `size`, without distortion (Lanczos)."""
    from PIL import Image, ImageOps

    if picture.size == (size.width, size.height):
        return picture
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def place(picture: Image.Image, native: Size, output: Size) -> Image.Image:
    """A source picture on a canvas of the native shape, such that scaling and centre-cropping the canvas to `output`
    (which is what `fit` does with the finished picture) shows the source at its place and whole.

    Where the shapes differ, the margin that will be cropped away is filled with a stretched copy.
    """
    from PIL import Image

    visible = visible_part(native, output)
    inner = fit(picture, visible)
    if visible == native:
        return inner
    canvas = inner.resize((native.width, native.height), Image.Resampling.BILINEAR)
    canvas.paste(inner, ((native.width - visible.width) // 2, (native.height - visible.height) // 2))
    return canvas


def _check_dimensions(picture: Image.Image, param: str) -> None:
    width, height = picture.size
    if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
        raise InvalidRequest(
            f"The image is {width}x{height} pixels; each side must be {MIN_SIDE} to {MAX_SIDE}.",
            param=param,
            code="invalid_image",
        )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"The image has {width * height / 1e6:.0f} million pixels; at most {MAX_PIXELS // 1_000_000} are taken.",
            param=param,
            code="invalid_image",
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # 16-bit greyscale: Pillow's own conversion clips at 255 instead of scaling.
        import numpy as np

        grey = np.asarray(picture, dtype=np.float32) / 65535.0
        picture = Image.fromarray((grey.clip(0, 1) * 255).round().astype("uint8"), "L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")
