from __future__ import annotations

import asyncio
import base64
import time

import pytest

from hub.errors import ProviderFailed
from hub.remote.adapter import Base64, File, Link, Picture
from hub.remote.pictures import LARGE, Had, have
from hub.types import Size
from tests.remote.fake import png

WHOLE = png()
TEXT = base64.b64encode(WHOLE)
BIG = WHOLE[:-12] + len(b"x" * LARGE).to_bytes(4, "big") + b"teSt" + b"x" * LARGE


def had(picture: Picture, served: bytes = b"") -> Had:
    asked: list[str] = []

    async def download(url: str) -> bytes:
        asked.append(url)
        return served

    found = asyncio.run(have(picture, download))
    assert len(asked) == (isinstance(picture, Link) and picture.url.startswith("http"))
    return found


def test_base64_is_kept_as_it_came_beside_its_bytes() -> None:
    found = had(Base64(TEXT))
    assert (found.data, found.encoded, found.format, found.size) == (WHOLE, TEXT, "png", Size(64, 64))


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", "DATA:image/x;charset=a;BASE64,"])
def test_a_data_url_is_a_picture_in_base64(head: str) -> None:
    found = had(Link(head + TEXT.decode()))
    assert (found.data, found.encoded) == (WHOLE, TEXT)


def test_a_file_and_a_link_have_no_base64() -> None:
    assert had(File(WHOLE)).encoded is None
    assert had(Link("https://example.org/1.png"), WHOLE) == Had(WHOLE, "png", Size(64, 64), opaque=True)


def test_a_large_picture_is_looked_at_beside_the_event_loop() -> None:
    import zlib

    whole = BIG + zlib.crc32(b"teSt" + b"x" * LARGE).to_bytes(4, "big") + WHOLE[-12:]
    assert had(Base64(base64.b64encode(whole))).data == whole
    assert had(File(whole)).data == whole
    with pytest.raises(ProviderFailed):
        had(File(whole[:-1]))


@pytest.mark.parametrize(
    "picture",
    [
        Base64(b""),
        Base64(b"!" + TEXT),
        Base64(TEXT + b"\n"),
        Base64(TEXT + b'"'),
        Base64(TEXT[:-1]),
        Base64(TEXT[:80]),
        Base64("é".encode()),
        File(b""),
        File(b"<html>"),
        File(WHOLE[:-1]),
        Link("data:image/png," + TEXT.decode()),
        Link("data:image/png;base64" + TEXT.decode()),
        Link("data:" + "x" * 300 + ";base64," + TEXT.decode()),
        Link("data:image/png;base64,é"),
    ],
)
def test_what_is_no_whole_picture_is_refused_and_may_have_cost_something(picture: Picture) -> None:
    with pytest.raises(ProviderFailed) as caught:
        had(picture)
    assert caught.value.may_have_billed


@pytest.mark.parametrize("text", ["data:" + "A" * 5_000_000, "data:" + ";a=a" * 1_000_000, "data:a/" * 1_000_000])
def test_no_data_url_takes_long_to_be_refused(text: str) -> None:
    start = time.monotonic()
    with pytest.raises(ProviderFailed):
        had(Link(text))
    assert time.monotonic() - start < 1
