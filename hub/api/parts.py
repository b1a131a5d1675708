"""A response whose body is in parts already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from litestar import Response
from litestar.types import Receive, Scope, Send

PIECE = 1 << 21
"""Bytes that are handed to the socket at once. Of more than it takes, asyncio copies the rest."""
SMALL = 1 << 12
"""Bytes up to which parts are joined rather than handed to the socket by themselves."""


class InParts(Response[bytes]):
    """JSON, sent as it lies there: neither joined nor copied as a whole."""

    def __init__(self, parts: list[bytes | memoryview]) -> None:
        super().__init__(b"", media_type="application/json")
        self._parts = parts

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Litestar's hook: the ASGI application that answers."""
        return self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        length = sum(map(len, self._parts))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces(self._parts):
            # A server hands on whatever the socket takes, bytes or a view of some.
            body = cast(bytes, piece)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """What several parts hold, in pieces of at most PIECE bytes: small parts together, views of the large ones."""
    small = b""
    for part in parts:
        if len(small) + len(part) <= SMALL:
            small += part
            continue
        if small:
            yield small
            small = b""
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]
    if small:
        yield small
