"""From a model's pixels to the file that was asked for: resampled, laid over the original, encoded."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from hub.imaging.decode import fit
from hub.imaging.png import encode_png
from hub.types import OutputFormat, Size

FINE_COLOUR = 90
"""JPEG quality from which colour is stored at full resolution."""
EXIF_TAGS = {"Software": 0x0131, "Model": 0x0110}
EXIF_DESCRIPTION = 0x010E


class Finisher:
    """How the pictures of one request are finished. Its `encode` may run on several threads at once."""

    def __init__(
        self,
        output: Size,
        output_format: OutputFormat = "png",
        compression: int = 100,
        *,
        original: bytes | None = None,
        mask: bytes | None = None,
    ) -> None:
        """`compression`: quality of jpeg and webp. `original` (raw RGB) and `mask` (one byte per pixel, 255 = new),
        both of `output` size: where the mask is 0 the finished picture is the original, exactly."""
        size = (output.width, output.height)
        self._output = output
        self._format = output_format
        self._compression = compression
        self._original = Image.frombytes("RGB", size, original) if original is not None else None
        self._mask = Image.frombytes("L", size, mask) if mask is not None else None

    def encode(self, pixels: np.ndarray, text: Mapping[str, str]) -> bytes:
        """The file of a picture (uint8, height x width x 3, of any size with about the output's shape)."""
        picture = fit(Image.fromarray(pixels), self._output)
        if self._original is not None and self._mask is not None:
            picture = Image.composite(picture, self._original, self._mask)
        if self._format == "png":
            return encode_png(np.asarray(picture), text)
        return encode_lossy(picture, self._format, self._compression, text)


def encode_lossy(picture: Image.Image, output_format: OutputFormat, quality: int, text: Mapping[str, str]) -> bytes:
    """A JPEG or WebP file, by Pillow. `text` becomes EXIF, where what has no tag of its own is the description."""
    exif = Image.Exif()
    for keyword, tag in EXIF_TAGS.items():
        if keyword in text:
            exif[tag] = text[keyword]
    rest = [f"{keyword}: {words}" for keyword, words in text.items() if keyword not in EXIF_TAGS]
    if rest:
        exif[EXIF_DESCRIPTION] = "\n".join(rest)
    buffer = io.BytesIO()
    if output_format == "jpeg":
        subsampling = "4:4:4" if quality >= FINE_COLOUR else "4:2:0"
        picture.save(buffer, "JPEG", quality=max(1, quality), subsampling=subsampling, exif=exif)
    else:
        picture.save(buffer, "WEBP", quality=quality, exif=exif)
    return buffer.getvalue()
