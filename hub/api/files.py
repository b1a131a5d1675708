"""GET /files/{signature}/{name}: generated pictures, by signed link, without a key."""

from __future__ import annotations

import re
from typing import Any

from litestar import HttpMethod, Request, Response, route
from litestar.params import FromPath

from hub.errors import RangeNotSatisfiable
from hub.hub import Hub

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)


@route(
    "/files/{signature:str}/{name:str}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    media_type="image/png",
    summary="Download a generated picture",
)
async def download(request: Request[Any, Any, Any], signature: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    """The picture behind a link: 403 for an altered link, 410 for an expired one, 404 for a deleted file.

    Litestar's own file response knows neither Range nor If-None-Match and follows symbolic links.
    """
    hub: Hub = request.app.state.hub
    data = await hub.files.read(signature, name)
    etag = f'"{name}"'  # a name is never used again and its file never changes
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={hub.files.seconds_left(name)}, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers=headers, media_type="image/png")
    span = None
    if request.headers.get("if-range") in (None, etag):
        span = requested_range(request.headers.get("range"), len(data))
    if span is None:
        return Response(data, headers=headers, media_type="image/png")
    if not span:
        raise RangeNotSatisfiable(len(data))
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(data)}"
    return Response(data[span.start : span.stop], status_code=206, headers=headers, media_type="image/png")


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(",", 64))


def requested_range(header: str | None, size: int) -> range | None:
    """The bytes asked for; None for the whole file, an empty range for one outside it (RFC 9110, section 14).

    A header that is malformed or asks for several ranges is ignored, as the standard allows.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        return range(max(0, size - int(match["last"])), size)
    first = int(match["first"])
    last = min(int(match["last"] or size), size - 1)
    if match["last"] and int(match["last"]) < first:
        return None
    return range(first, last + 1) if first < size else range(0)
