"""HTTP/1.1 under httpx2, on asyncio's own sockets: an answer of megabytes is read in a few steps.

httpx2's usual transport reads 64 KiB at a time, through nine layers and as many copies, and asks the kernel about every
idle connection before each request: 2 ms for a picture in base64, where this takes 0.4 (docs/decisions/0024-relay.md).
llhttp parses, strictly. What differs from the usual transport: HTTP/2, proxies, HEAD and CONNECT are not spoken; of the
timeouts `connect` alone is kept, since whoever asks limits the whole; a request's body is sent whole; and a connection
over TLS is used again only for the very host name that its certificate was checked against.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from hub.http1.connection import SPAN, Connection

MAX_IDLE = 20
IDLE = 30.0
"""Seconds for which a connection that nobody uses is kept."""

RACE = 0.25
"""Seconds after which the next address of a name is tried beside the one before."""

_ADDRESS = re.compile(r"[0-9.]+|.*:.*")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[!-~]+")
_FORBIDDEN = re.compile(rb"[\0\r\n]")
Origin = tuple[str, str, int, str]


class AsyncioTransport(httpx2.AsyncBaseTransport):
    """Used in one event loop, by itself or under an `httpx2.AsyncClient`."""

    def __init__(self, certificates: ssl.SSLContext, connections: int = 200) -> None:
        """`connections`: how many may be in use at once; further requests wait."""
        self.span = memoryview(bytearray(SPAN))
        """Where the bytes of all connections arrive: what is there is parsed before anything else comes."""
        self._certificates = certificates
        self._places = asyncio.Semaphore(connections)
        self._idle: deque[tuple[Origin, float, Connection]] = deque()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2. The event of the `trace` extension is `http11.send_request_body.started`. The extension `whole`
        is ours: the bytes up to which a good answer's body may come as one piece, a bytearray that nothing was copied
        into."""
        body = await request.aread()
        head = _head_of(request, len(body))
        await self._places.acquire()
        connection = None
        try:
            origin = _origin_of(request)
            connection = self._kept(origin) or await self._connected(origin, request)
            if trace := request.extensions.get("trace"):
                await trace("http11.send_request_body.started", {})
            status, headers = await connection.ask(head, body, request.extensions.get("whole", 0))
        except BaseException:
            self._places.release()
            if connection is not None:
                connection.abort()
            raise
        stream = _Body(self, origin, connection)
        return httpx2.Response(status, headers=headers, stream=stream, extensions={"http_version": b"HTTP/1.1"})

    async def aclose(self) -> None:
        """Ends the connections that nobody uses."""
        while self._idle:
            self._idle.pop()[2].abort()

    def done(self, origin: Origin, connection: Connection) -> None:
        """Nobody reads on: the connection is kept, where it can be used again."""
        self._places.release()
        if not connection.reusable:
            connection.abort()
            return
        connection.rest(lambda: self._forget(connection))
        self._idle.append((origin, asyncio.get_running_loop().time(), connection))
        self._let_go()

    def _forget(self, connection: Connection) -> None:
        self._idle = deque(each for each in self._idle if each[2] is not connection)

    def _let_go(self) -> None:
        before = asyncio.get_running_loop().time() - IDLE
        while self._idle and (len(self._idle) > MAX_IDLE or self._idle[0][1] < before):
            self._idle.popleft()[2].abort()

    def _kept(self, origin: Origin) -> Connection | None:
        self._let_go()
        for kept in reversed(self._idle):
            if kept[0] == origin:
                self._idle.remove(kept)
                if not kept[2].stale:
                    return kept[2]
                kept[2].abort()
                return self._kept(origin)
        return None

    async def _connected(self, origin: Origin, request: httpx2.Request) -> Connection:
        scheme, host, port, name = origin
        given: dict[str, Any] = {"ssl": self._certificates, "server_hostname": name} if scheme == "https" else {}
        if not _ADDRESS.fullmatch(host):
            given["happy_eyeballs_delay"] = RACE
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("connect")):
                _, connection = await loop.create_connection(lambda: Connection(self.span), host, port, **given)
        except TimeoutError:
            raise httpx2.ConnectTimeout("", request=request) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no resolver takes
            raise httpx2.ConnectError(str(error), request=request) from None
        return connection


class _Body(httpx2.AsyncByteStream):
    """What follows the headers."""

    def __init__(self, transport: AsyncioTransport, origin: Origin, connection: Connection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (piece := await self._connection.piece()):
            yield piece  # type: ignore[misc]  # a bytearray, perhaps

    async def aclose(self) -> None:
        """Nobody reads on."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._transport.done(self._origin, connection)


def _origin_of(request: httpx2.Request) -> Origin:
    url = request.url
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise httpx2.UnsupportedProtocol("neither http nor https", request=request)
    host = url.raw_host.decode("ascii")
    name = str(request.extensions.get("sni_hostname") or host)
    return url.scheme, host, url.port or (443 if url.scheme == "https" else 80), name


def _head_of(request: httpx2.Request, length: int) -> bytes:
    """The request line and the headers; raises httpx2.LocalProtocolError for what would be read as something else."""
    method, target = request.method.encode("ascii", "replace"), request.url.raw_path
    if request.method in ("HEAD", "CONNECT") or not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise httpx2.LocalProtocolError("not a request that is sent", request=request)
    lines = [b"%s %s HTTP/1.1" % (method, target)]
    for name, value in request.headers.raw:
        if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value):
            raise httpx2.LocalProtocolError("not a header", request=request)
        if name.lower() not in (b"content-length", b"transfer-encoding"):
            lines.append(b"%s: %s" % (name, value.strip()))
    if length or request.method not in ("GET", "DELETE"):
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join([*lines, b"", b""])
