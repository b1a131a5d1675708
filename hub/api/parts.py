"""A response whose body is in parts already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from litestar import Response
from litestar.types import Receive, Scope, Send

PIECE = 1 << 18
"""Bytes that are handed to the socket at once. Of more than it takes, asyncio copies the rest, again and again."""


class InParts(Response[bytes]):
    """JSON, sent as it lies there: neither joined nor copied as a whole."""

    def __init__(self, parts: list[bytes]) -> None:
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
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """What several parts hold, in pieces of at most PIECE bytes, as few as that makes."""
    rest = b""
    for part in parts:
        start = PIECE - len(rest)
        rest += part[:start]
        while len(rest) == PIECE:
            yield rest
            rest = part[start : start + PIECE]
            start += PIECE
    if rest:
        yield rest
