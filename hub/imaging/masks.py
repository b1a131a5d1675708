"""Masks: which part of a picture may change. Two ways to draw one come in, one way goes out (docs/masks.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from hub.errors import InvalidRequest
from hub.imaging.decode import decode_image
from hub.types import Size

if TYPE_CHECKING:
    from PIL import Image

BLACK, WHITE = 32, 223
"""In an opaque mask what is darker than BLACK in every channel is black, and what is lighter than WHITE in every
channel is white: a JPEG's black is not quite 0."""
MAX_MIDDLE = 0.25
"""An opaque mask of which more than this part is neither black nor white is a picture, sent by mistake."""
SHAPE_SLACK = 0.02
"""Two sizes whose aspect ratios differ by less are taken for the same shape, rounded."""
FAINTEST = 16
"""A mask that selects nothing more strongly than this (of 255) selects nothing."""


class Mask(NamedTuple):
    """A mask of the picture's size ("L"; 255 = may change, 0 = must stay, between = a blend of both), and what was
    done to it, in words, if anything."""

    picture: Image.Image
    remark: str | None = None


def read_mask(data: bytes, size: Size) -> Mask:
    """A mask file for a picture of `size`, in either convention.

    OpenAI's: what is transparent may change. diffusers': an opaque picture, in which white may change. The file is
    checked like any source picture before it is decoded. Raises InvalidRequest naming `mask`.
    """
    decoded = decode_image(data, "mask")
    words = None
    if decoded.size != size:
        if not _same_shape(decoded.size, size):
            raise _invalid(
                f"The mask is {decoded.size} and the first image is {size}: they must have the same size, or at least "
                "the same shape."
            )
        words = f"it is {decoded.size} and was resampled to {size}, the size of the image"
    change = _opposite(decoded.alpha) if decoded.alpha is not None else _white_part(decoded.picture)
    _check_selects(change, "no part of it is transparent" if decoded.alpha is not None else "all of it is black")
    if words:
        from PIL import Image

        change = change.resize((size.width, size.height), Image.Resampling.BILINEAR)
    return Mask(change, words)


def mask_of_alpha(alpha: Image.Image | None) -> Mask | None:
    """A picture's own alpha as its mask: where parts of it are fully transparent, these are what may change."""
    if alpha is None or _extrema(alpha)[0] > 0:
        return None
    return Mask(_opposite(alpha))


def without_white(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """The colours of a picture before it was laid on white.

    A half-transparent edge is blended with the new picture by its alpha; with the white still in it, it would keep a
    pale seam.
    """
    import numpy as np
    from PIL import Image

    colours, shares = np.array(picture), np.asarray(alpha)
    for row in range(len(colours)):  # by rows, since floats of a whole picture are several of it
        soft = shares[row] < 255
        share = np.maximum(shares[row, soft, None].astype(np.float32), 1) / 255
        straight = 255 - (255 - colours[row, soft]) / share
        colours[row, soft] = straight.clip(0, 255).round()
    return Image.fromarray(colours)


def _white_part(picture: Image.Image) -> Image.Image:
    """An opaque mask's whiteness. Raises InvalidRequest for a picture that is no mask."""
    from PIL import ImageChops

    red, green, blue = picture.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue).histogram()
    lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()
    total = picture.width * picture.height
    middle = 1 - (sum(darkest[WHITE + 1 :]) + sum(lightest[:BLACK])) / total
    if middle > MAX_MIDDLE:
        raise _invalid(
            "The mask is no mask: it has no transparent part, and "
            f"{middle:.0%} of it is neither black nor white. Send a PNG in which the part that may change is fully "
            "transparent, or an opaque picture in which that part is white and the rest is black."
        )
    span = WHITE - BLACK
    levels = [max(0, min(255, round((level - BLACK) * 255 / span))) for level in range(256)]
    return picture.convert("L").point(levels)


def _check_selects(change: Image.Image, why: str) -> None:
    if _extrema(change)[1] < FAINTEST:
        raise _invalid(
            f"The mask selects nothing ({why}). Make the part that may change fully transparent, or white in an "
            "opaque black picture."
        )


def _opposite(alpha: Image.Image) -> Image.Image:
    from PIL import ImageChops

    return ImageChops.invert(alpha)


def _extrema(grey: Image.Image) -> tuple[int, int]:
    lowest, highest = grey.getextrema()
    return int(lowest), int(highest)  # type: ignore[arg-type]  # pairs only for pictures of several channels


def _same_shape(one: Size, other: Size) -> bool:
    return abs(math.log(one.width / one.height) - math.log(other.width / other.height)) <= SHAPE_SLACK


def _invalid(words: str) -> InvalidRequest:
    return InvalidRequest(words, param="mask", code="invalid_mask")
