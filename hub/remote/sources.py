"""Source pictures and masks as providers are sent them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pybase64
from msgspec import Struct

from hub.imaging.decode import FORMATS, decode_image
from hub.imaging.verify import NotAnImage, verify_image
from hub.types import OutputFormat, Size

if TYPE_CHECKING:
    from PIL import Image

MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held."""


class Source(Struct, frozen=True):
    """A source picture as it came, PNG, JPEG or WebP; one that a camera says to turn is turned."""

    data: bytes
    format: OutputFormat
    size: Size

    @property
    def media_type(self) -> str:
        """Such as image/png."""
        return MEDIA_TYPES[self.format]

    @property
    def file_name(self) -> str:
        """For forms."""
        return f"image.{EXTENSIONS[self.format]}"

    @property
    def base64(self) -> str:
        """For JSON."""
        return pybase64.b64encode(self.data).decode()

    @property
    def data_url(self) -> str:
        """For JSON that wants a URL."""
        return data_url(self.media_type, self.data)


class Mask(Struct, frozen=True):
    """Which part of the first picture may change, whatever kind of mask was sent (docs/masks.md): mode L, of the
    picture's size, 255 where it may."""

    picture: Image.Image

    @property
    def white_changes(self) -> bytes:
        """A grey PNG: white may change, black stays."""
        return _png(self.picture)

    @property
    def data_url(self) -> str:
        """The same for JSON that wants a URL, for models by which white may change."""
        return data_url("image/png", self.white_changes)

    @property
    def black_changes(self) -> bytes:
        """A grey PNG: black may change, white stays."""
        return _png(self.picture.point([255 - value for value in range(256)]))

    @property
    def transparent_changes(self) -> bytes:
        """A PNG with alpha, as OpenAI has it: transparent may change. What may change is white as well, for servers
        that take the OpenAI-like form and look at the colours alone."""
        from PIL import Image

        stays = self.picture.point([255 - value for value in range(256)])
        return _png(Image.merge("LA", (self.picture, stays)).convert("RGBA"))


def read_source(data: bytes) -> Source:
    """Decoded, so that none is sent unchecked, and sent as it came; unless it has to be turned (the mask is for the
    upright picture, and providers differ in whether they heed EXIF), or is only nearly whole."""
    upright = decode_image(data).size
    try:
        if not _is_turned(data):
            return Source(data, *verify_image(data))
    except NotAnImage:  # such as a PNG without its end, which decoders forgive
        pass
    return Source(_upright(data), "png", upright)


def _is_turned(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture.getexif().get(ORIENTATION, 1) not in (0, 1)


def _upright(data: bytes) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        turned = ImageOps.exif_transpose(picture)
        return _png(turned if turned.mode in ("L", "LA", "P", "RGB", "RGBA") else turned.convert("RGB"))


def data_url(media_type: str, data: bytes) -> str:
    """A file in a URL."""
    return f"data:{media_type};base64,{pybase64.b64encode(data).decode()}"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
