"""GET /files/{signature}/{name}: generated pictures, by signed link, without a key."""

from __future__ import annotations

import re
from typing import Any

from litestar import HttpMethod, Request, Response, route
from litestar.params import FromPath

from hub.api.described import answer, as_pictures, errors, header, operation, path
from hub.api.wire import etag_matches
from hub.errors import RangeNotSatisfiable
from hub.files import MEDIA_TYPES
from hub.hub import Hub

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)


_ANSWERED = {
    "ETag": "Names the file, whose bytes never change.",
    "Accept-Ranges": "Always `bytes`.",
    "Cache-Control": "Good for as long as the link is.",
    "Content-Disposition": "`inline`, with the file's name.",
}
_PARTIAL = {"Content-Range": "Which bytes, and of how many."}


@route(
    "/files/{signature:str}/{name:str}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    media_type="image/png",
    operation_class=operation(
        answers={
            200: answer(*as_pictures(), description="The picture.", headers=_ANSWERED),
            206: answer(*as_pictures(), description="The bytes asked for.", headers={**_ANSWERED, **_PARTIAL}),
            304: answer(description="The client has the picture.", headers=_ANSWERED),
        },
        parameters=[
            path("signature", "Key id, end and signature of the link, as the hub made it."),
            path("name", "The file's name, as the hub made it."),
            header("Range", "`bytes=FIRST-LAST`; several ranges are answered with the whole."),
            header("If-Range", "An entity tag: the range counts only while the file is that one."),
            header("If-None-Match", "Entity tags: a file that is one of them is not sent again."),
        ],
    ),
    responses=errors(403, 404, 410, 416),
    summary="Download a generated picture",
)
async def download(request: Request[Any, Any, Any], signature: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    """The picture behind a link: 403 for an altered link, 410 for an expired one, 404 for a deleted file.

    Litestar's own file response knows neither Range nor If-None-Match and follows symbolic links.
    """
    hub: Hub = request.app.state.hub
    data = await hub.files.read(signature, name)
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    etag = f'"{name}"'  # a name is never used again and its file never changes
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={hub.files.seconds_left(signature)}, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers=headers, media_type=media_type)
    span = None
    if request.headers.get("if-range") in (None, etag):
        span = requested_range(request.headers.get("range"), len(data))
    if span is None:
        return Response(data, headers=headers, media_type=media_type)
    if not span:
        raise RangeNotSatisfiable(len(data))
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(data)}"
    return Response(data[span.start : span.stop], status_code=206, headers=headers, media_type=media_type)


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
