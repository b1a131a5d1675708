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
    """An upright RGB picture, in which what was transparent is white now; and its alpha ("L", of the same size), None
    where every pixel is opaque, whatever the file declares."""

    picture: Image.Image
    alpha: Image.Image | None = None

    @property
    def size(self) -> Size:
        """In pixels, upright."""
        return Size(*self.picture.size)

    @property
    def transparent(self) -> bool:
        """Whether any pixel was."""
        return self.alpha is not None


def decode_image(data: bytes, param: str = "image") -> Decoded:
    """A PNG, JPEG or WebP file as an upright RGB picture.

    Raises InvalidRequest naming `param`, which is image or mask. Size and pixel limits are checked on the header,
    before any pixel is decoded, so that a small file cannot fill the memory. The message never quotes Pillow's own
    words: they hold addresses. Only the first frame of an animation is read.
    """
    from PIL import Image, ImageOps

    if not data.startswith(_MAGIC):
        raise InvalidRequest(f"The {param} is not a PNG, JPEG or WebP file.", param=param, code="invalid_image")
    if data.startswith(_MAGIC[0]) and not _has_few_chunks(data):
        raise InvalidRequest(f"The {param} file has too many parts.", param=param, code="invalid_image")
    Image.MAX_IMAGE_PIXELS = None  # its warning; the limits here are stricter, and are errors
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_dimensions(picture, param)
            picture.load()
            return _on_white(ImageOps.exif_transpose(picture))
    except InvalidRequest:
        raise
    except Exception:  # every decoder fails in its own way; all of it means that the file is bad
        raise InvalidRequest(
            f"The {param} file is damaged or cannot be read.", param=param, code="invalid_image"
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


def fit(picture: Image.Image, size: Size, *, is_mask: bool = False) -> Image.Image:
    """Scales and centre-crops a picture to exactly `size`, without distortion: by Lanczos, and a mask linearly, since
    Lanczos rings and would touch what the mask protects."""
    from PIL import Image, ImageOps

    if picture.size == (size.width, size.height):
        return picture
    filtering = Image.Resampling.BILINEAR if is_mask else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, (size.width, size.height), filtering)


def place(picture: Image.Image, native: Size, output: Size, *, is_mask: bool = False) -> Image.Image:
    """A source picture on a canvas of the native shape, such that scaling and centre-cropping the canvas to `output`
    (which is what `fit` does with the finished picture) shows the source at its place and whole.

    Where the shapes differ, the margin that will be cropped away is filled with a stretched copy.
    """
    from PIL import Image

    visible = visible_part(native, output)
    inner = fit(picture, visible, is_mask=is_mask)
    if visible == native:
        return inner
    canvas = inner.resize((native.width, native.height), Image.Resampling.BILINEAR)
    canvas.paste(inner, ((native.width - visible.width) // 2, (native.height - visible.height) // 2))
    return canvas


def _check_dimensions(picture: Image.Image, param: str) -> None:
    width, height = picture.size
    if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
        raise InvalidRequest(
            f"The {param} is {width}x{height} pixels; each side must be {MIN_SIDE} to {MAX_SIDE}.",
            param=param,
            code="invalid_image",
        )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"The {param} has {width * height / 1e6:.0f} million pixels; at most {MAX_PIXELS // 1_000_000} are taken.",
            param=param,
            code="invalid_image",
        )


def _on_white(picture: Image.Image) -> Decoded:
    """Any mode that the three formats have, as RGB on white and alpha."""
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _sixteen_bit(picture)
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return Decoded(picture.convert("RGB"))
    layer = picture.convert("RGBA")
    alpha = layer.getchannel("A")
    colours = layer.convert("RGB")
    if alpha.getextrema() == (255, 255):
        return Decoded(colours)
    white = Image.new("RGB", layer.size, (255, 255, 255))
    white.paste(colours, mask=alpha)
    return Decoded(white, alpha)


def _sixteen_bit(picture: Image.Image) -> Decoded:
    """16-bit greyscale, in which one value may mean transparent: Pillow's own conversion clips at 255 instead of
    scaling, and forgets that value."""
    import numpy as np
    from PIL import Image

    levels = np.asarray(picture, dtype=np.float32)
    grey = ((levels / 65535.0).clip(0, 1) * 255).round().astype("uint8")
    clear = picture.info.get("transparency")
    hidden = levels == clear if isinstance(clear, int) else np.zeros((1, 1), bool)
    if not hidden.any():
        return Decoded(Image.fromarray(grey, "L").convert("RGB"))
    grey[hidden] = 255
    return Decoded(Image.fromarray(grey, "L").convert("RGB"), Image.fromarray(np.uint8(255) * ~hidden, "L"))
