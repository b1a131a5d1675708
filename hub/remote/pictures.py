"""The pictures of a provider's answer: had, looked at, and kept byte for byte."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Awaitable, Callable

import pybase64
from msgspec import Struct

from hub.errors import ProviderFailed
from hub.imaging.verify import NotAnImage, may_be_transparent, verify_image
from hub.remote.adapter import Base64, File, Link, Picture
from hub.types import OutputFormat, Size

LARGE = 1 << 22
"""Bytes from which on base64 is decoded beside the event loop."""

LONGEST_HEAD = 200
"""Characters of a data URL before its base64; what is longer is none, and no regular expression looks at it."""

Download = Callable[[str], Awaitable[bytes]]


class Had(Struct, frozen=True):
    """A whole picture. `encoded` is its base64, where it came so; `opaque`: its file tells of no transparency."""

    data: bytes
    format: OutputFormat
    size: Size
    encoded: bytes | memoryview | None = None
    opaque: bool = False


async def have(picture: Picture, download: Download) -> Had:
    """The picture's bytes, looked at. Raises ProviderFailed where they cannot be had, or are no picture."""
    match picture:
        case Link(url) if url[:5].lower() != "data:":
            return await _looked_at(await download(url), None)
        case Link(url):
            head, comma, text = url.partition(",")
            if not comma or len(head) > LONGEST_HEAD or not head.lower().endswith(";base64"):
                raise _no_picture()
            return await _decoded(text.encode("ascii", "replace"))
        case Base64(text):
            return await _decoded(text)
        case File(data):
            return await _looked_at(data, None)


async def _decoded(text: bytes | memoryview) -> Had:
    if len(text) < LARGE:
        return _verified(_bytes_of(text), text)
    data = await asyncio.to_thread(_bytes_of, text)
    return await _looked_at(data, text)


async def _looked_at(data: bytes, text: bytes | memoryview | None) -> Had:
    return _verified(data, text) if len(data) < LARGE else await asyncio.to_thread(_verified, data, text)


def _bytes_of(text: bytes | memoryview) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _no_picture() from None


def _verified(data: bytes, text: bytes | memoryview | None) -> Had:
    try:
        found, size = verify_image(data)
    except NotAnImage:
        raise _no_picture() from None
    return Had(data, found, size, text, opaque=not may_be_transparent(data))


def _no_picture() -> ProviderFailed:
    return ProviderFailed("What the provider sent is no whole picture.", may_have_billed=True)
