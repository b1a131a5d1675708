"""Pictures that strangers send: checked before they are decoded, and never decoded by a rare codec."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from hub.errors import InvalidRequest
from hub.types import Size

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
MIN_SIDE, MAX_SIDE = 2, 16_384

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


def decode_image(data: bytes, param: str = "image") -> Image.Image:
    """A PNG, JPEG or WebP file as an upright RGB picture; transparent parts become white.

    Raises InvalidRequest naming `param`. Size and pixel limits are checked on the header, before any pixel is
    decoded, so that a small file cannot fill the memory. The message never quotes Pillow's own words: they hold
    addresses. Only the first frame of an animation is read.
    """
    from PIL import Image, ImageOps

    if not data.startswith(_MAGIC):
        raise InvalidRequest("The image is not a PNG, JPEG or WebP file.", param=param, code="invalid_image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: the limits here are stricter and are errors
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _check_dimensions(picture, param)
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                return _to_rgb(upright)
    except InvalidRequest:
        raise
    except Exception:  # every decoder fails in its own way; all of it means that the file is bad
        raise InvalidRequest(
            "The image file is damaged or cannot be read.", param=param, code="invalid_image"
        ) from None


def has_transparency(data: bytes) -> bool:
    """Whether the file declares an alpha channel or a transparent colour (read from its header)."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def fit(picture: Image.Image, size: Size) -> Image.Image:
    """Scales and centre-crops a picture to exactly `size`, without distortion (Lanczos)."""
    from PIL import Image, ImageOps

    if picture.size == (size.width, size.height):
        return picture
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


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
