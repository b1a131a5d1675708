"""GET /docs: the OpenAPI document as a page, drawn by swagger-ui from files in the package, without the network.

Public, as the document is: a browser sends no key when it opens a page, and neither holds anything of the owner's
(docs/decisions/0010-public-documentation.md). Each file has a route of its own; no path of a client is ever joined to
a folder's.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from litestar import HttpMethod, Request, Response, route
from litestar.handlers import HTTPRouteHandler

from hub.api.wire import etag_matches

FOLDER = Path(__file__).resolve().parent.parent / "web" / "docs"

POLICY = (
    "default-src 'self'; "
    "img-src 'self' data: blob:; "  # swagger-ui's icons are data:, the pictures that it shows are blob:
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load and do. Nothing from another origin, no script or style but the files below."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # kept, but asked about each time: a new hub shows its own page at once
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

_FILES = {
    "/docs": ("index.html", "text/html"),
    "/docs/docs.js": ("docs.js", "text/javascript"),
    "/docs/docs.css": ("docs.css", "text/css"),
    "/docs/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
}


@functools.cache
def _read(name: str) -> tuple[bytes, str]:
    """A file of the page and its entity tag; read once."""
    data = (FOLDER / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _serve(path: str, name: str, media_type: str) -> HTTPRouteHandler:
    @route(
        path,
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        opt={"public": True},
        status_code=200,
        media_type=media_type,
        include_in_schema=False,
        sync_to_thread=False,
    )
    def serve(request: Request[Any, Any, Any]) -> Response[bytes]:
        data, etag = _read(name)
        headers = {**_HEADERS, "ETag": etag}
        if etag_matches(request.headers.get("if-none-match"), etag):
            return Response(b"", status_code=304, headers=headers, media_type=media_type)
        return Response(data, headers=headers, media_type=media_type)

    return serve


handlers = [_serve(path, name, media_type) for path, (name, media_type) in _FILES.items()]
