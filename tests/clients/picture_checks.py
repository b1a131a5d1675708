"""What the Python client programs share: checks that report as JSON lines, and pictures to send and to look at.

Needs Pillow and the standard library alone, since it runs in each client's own environment.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import json
import os
import re
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageStat

URL = os.environ["CONFORMANCE_URL"]
"""The hub's origin."""
KEY = os.environ["CONFORMANCE_KEY"]
SECOND_KEY = os.environ["CONFORMANCE_SECOND_KEY"]
WRONG_KEY = "sk-conformance-of-another-hub-0123456789"

SIDE = 256
SMALL = f"{SIDE}x{SIDE}"
PROMPT = "a red circle on a white background"
EDIT_PROMPT = "a green square on a white background"

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Checks:
    """The checks of a program, in order."""

    def __init__(self) -> None:
        self._checks: list[tuple[str, Callable[[], Any]]] = []

    def __call__(self, name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """A decorator that adds a check, plain or async. It fails by raising; what it returns is told as detail."""

        def add(function: Callable[[], Any]) -> Callable[[], Any]:
            self._checks.append((name, function))
            return function

        return add

    def run(self) -> None:
        """Runs all and reports each; ends the program with status 0, since the report tells what failed."""
        only = os.environ.get("CONFORMANCE_ONLY", "")
        chosen = [(name, function) for name, function in self._checks if only in name]
        out = sys.stdout
        sys.stdout = sys.stderr  # whatever a client prints is noise
        _tell(out, {"plan": [name for name, _ in chosen]})
        with asyncio.Runner() as runner:  # one loop, as async clients keep connections
            for name, function in chosen:
                try:
                    made = function()
                    detail = runner.run(made) if inspect.iscoroutine(made) else made
                    _tell(out, {"check": name, "ok": True, "detail": detail or ""})
                except Exception as error:
                    traceback.print_exc()
                    _tell(out, {"check": name, "ok": False, "detail": _words(error)})
        sys.stderr.flush()
        os._exit(0)  # without waiting for what clients leave running


def _tell(out: Any, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _words(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if "/tests/clients/" in frame.filename and frame.filename != __file__]
    where = f" at line {here[-1].lineno}: {here[-1].line}" if here else ""
    return f"{type(error).__name__}: {str(error)[:500]}{where}"


def expect(condition: object, words: object) -> None:
    """Fails the check, with words that tell what was there instead."""
    if not condition:
        raise AssertionError(words)


def raises(kind: type[Exception], function: Callable[[], Any]) -> Any:
    """The error that the call raises; fails where it raises another or none."""
    try:
        made = function()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{kind.__name__} expected, got {type(error).__name__}: {str(error)[:300]}") from error
    raise AssertionError(f"{kind.__name__} expected, got an answer: {str(made)[:300]}")


async def araises(kind: type[Exception], work: Any) -> Any:
    """The same of a coroutine."""
    try:
        made = await work
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{kind.__name__} expected, got {type(error).__name__}: {str(error)[:300]}") from error
    raise AssertionError(f"{kind.__name__} expected, got an answer: {str(made)[:300]}")


# Pictures


def source_picture(side: int = SIDE, kind: str = "PNG", colour: str = "yellow") -> bytes:
    """A triangle on a blue ground with noise-free but uneven pixels, so that a changed pixel shows."""
    ramp = Image.linear_gradient("L").resize((side, side))
    picture = Image.merge("RGB", (ramp.point(lambda v: v // 8), ramp.rotate(90).point(lambda v: v // 4), ramp))
    ImageDraw.Draw(picture).polygon([(side // 2, side // 5), (side // 5, side * 4 // 5), (side * 4 // 5,) * 2], colour)
    return encoded(picture, kind)


def mask_picture(side: int = SIDE) -> bytes:
    """Opaque, but for a transparent square in the middle: the part to edit."""
    mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), hole(side))
    return encoded(mask, "PNG")


def hole(side: int) -> tuple[int, int, int, int]:
    """The transparent part of `mask_picture`."""
    return (side // 4, side // 4, side * 3 // 4, side * 3 // 4)


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind, quality=95)
    return file.getvalue()


def opened(data: bytes | str, *, size: str | None = SMALL, kind: str = "PNG") -> Image.Image:
    """The picture in a file or in base64, wholly decoded; fails where it is of another format or size, or blank."""
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    picture = Image.open(io.BytesIO(raw))
    expect(picture.format == kind, f"the picture is {picture.format}, not {kind}")
    picture.load()
    if size is not None:
        expect(f"{picture.width}x{picture.height}" == size, f"the picture is {picture.size}, not {size}")
    spread = max(ImageStat.Stat(picture.convert("RGB")).stddev)
    expect(spread > 5, f"the picture is blank: its pixels spread by {spread:.1f}")
    return picture


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in 255ths."""
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean) / 3


def expect_red_circle(picture: Image.Image) -> None:
    """Whether the picture shows what PROMPT asks for: red in the middle or somewhere, on white."""
    small = picture.convert("RGB").resize((64, 64))
    pixels = [small.getpixel((x, y)) for x in range(64) for y in range(64)]
    red = sum(r > 150 and g < 110 and b < 110 for r, g, b in pixels) / len(pixels)
    white = sum(min(each) > 200 for each in pixels) / len(pixels)
    expect(0.02 < red < 0.9, f"{red:.0%} of the pixels are red")
    expect(white > 0.1, f"{white:.0%} of the pixels are white")


def expect_edit(picture: Image.Image, source: bytes, least: float = 1.0) -> None:
    """Whether an edit changed the source."""
    changed = difference(picture, Image.open(io.BytesIO(source)).resize(picture.size))
    expect(changed > least, f"the edit is the source: they differ by {changed:.2f}/255 on average")


def expect_masked_edit(picture: Image.Image, source: bytes) -> None:
    """Whether the picture is the source outside the hole of `mask_picture`, and something else inside."""
    original = Image.open(io.BytesIO(source)).convert("RGB")
    changes = ImageChops.difference(picture.convert("RGB"), original)
    inside = changes.crop(hole(picture.width))
    changes.paste((0, 0, 0), hole(picture.width))
    worst = max(high for _, high in changes.getextrema())
    expect(worst <= 2, f"a pixel outside the mask changed by {worst}/255")
    mean = sum(ImageStat.Stat(inside).mean) / 3
    expect(mean > 3, f"inside the mask nothing changed: {mean:.2f}/255 on average")


def expect_nearing(partials: list[Image.Image], final: Image.Image) -> None:
    """Whether previews come nearer to the final picture, one after the other."""
    distances = [difference(one, final) for one in partials]
    expect(distances == sorted(distances, reverse=True), f"previews do not near the final picture: {distances}")
    if len(distances) > 1:
        expect(distances[-1] < distances[0], f"all previews are alike: {distances}")


# Links


def fetch(url: str, key: str | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of a GET."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with _opener.open(request, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def linked(url: str | None, *, size: str = SMALL, kind: str = "PNG") -> Image.Image:
    """The picture behind a link; checks what clients need of links: no key, no query, extension and content type."""
    expect(url, "there is no url")
    assert url is not None
    expect(url.startswith(URL + "/"), f"the link leads to another origin: {url}")
    expect("?" not in url and "#" not in url, f"the link is not whole in its path: {url}")
    endings = {"PNG": "png", "JPEG": "jpe?g", "WEBP": "webp"}[kind]
    expect(re.search(rf"\.{endings}$", url), f"the link's path does not end in an extension of {kind}: {url}")
    status, headers, body = fetch(url)
    expect(status == 200, f"the link answers {status} without a key: {body[:200]!r}")
    expect(headers.get("content-type") == f"image/{kind.lower()}", f"content type {headers.get('content-type')}")
    return opened(body, size=size, kind=kind)


def post(path: str, body: Any, key: str | None = KEY) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a plain POST, for what a client's API cannot say."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    try:
        with _opener.open(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
