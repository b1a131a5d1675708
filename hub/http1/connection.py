"""One connection, as asyncio's protocol and as llhttp's: it sends a request whole, and hands on its answer's bytes."""

from __future__ import annotations

import asyncio
import select
from typing import Any, cast

import httptools
import httpx2

SPAN = 1 << 18
"""Bytes that are read at once."""
AHEAD = 1 << 20
"""Bytes that may wait for who reads; then the sender has to."""
MAX_HEAD = 1 << 17
"""Bytes of headers, of trailers, and of whatever else is not the body."""
MAX_WHOLE = 1 << 24
"""Bytes of a body that there is room made for before it comes, on the word of its header alone."""

_NONE = memoryview(b"")


class Connection(asyncio.BufferedProtocol):
    """One exchange at a time."""

    def __init__(self, span: memoryview) -> None:
        self._span = span
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = None
        self._lost: Exception | bool = False
        self._on_lost: Any = None
        self._begin()

    def _begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._status = 0
        """Of the answer; 0 until its headers are whole."""
        self._framed = False
        """Whether something tells where the body ends; else the connection's end does."""
        self._complete = False
        self._keep = False
        self._failure: Exception | None = None
        self._pieces: list[bytes] = []
        self._whole = 0
        """The largest body that is had in one piece."""
        self._body: bytearray | None = None
        """One that is, since its length is known: the kernel writes into it."""
        self._length = 0
        """Its length, until there is room for it."""
        self._rest = _NONE
        """What of it is still to come."""
        self._ahead = self._noise = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    async def ask(self, head: bytes, body: bytes, whole: int = 0) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Sends a request; the status and the headers of its answer. `whole`: a good answer's body of up to so many
        bytes, and of MAX_WHOLE, comes as one piece, uncopied. Raises httpx2.TransportError."""
        if self._lost:
            raise httpx2.WriteError("the connection was lost")
        self._begin()
        self._whole = min(whole, MAX_WHOLE)
        self._on_lost = None
        self._parser = httptools.HttpResponseParser(self)
        if len(body) < SPAN:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        while not self._status:
            await self._more()
        return self._status, self._headers

    async def piece(self) -> bytes | bytearray:
        """The next bytes of the body; none at its end. Raises httpx2.TransportError."""
        while not self._pieces and not self._complete:
            await self._more()
        if self._body is not None:
            body, self._body = self._body, None
            return body
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._ahead = [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._complete and self._keep and not self._pieces and self._body is None and not self._lost

    @property
    def stale(self) -> bool:
        """Whether the server has ended it while it rested, or says something unasked."""
        if self._lost or self._transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def rest(self, on_lost: Any) -> None:
        """Nothing is expected. `on_lost` is called where it ends meanwhile."""
        self._parser, self._on_lost = None, on_lost

    def abort(self) -> None:
        """Ends it at once."""
        self._on_lost = None
        self._transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._complete and self._failure is None:
            self._failure = error
            self._wake()
        self._keep = False
        self._transport.abort()

    # asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        del sizehint
        return self._rest or self._span

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        if self._rest:
            self._rest = self._rest[nbytes:]
            if not self._rest:
                self._rest = _NONE  # which holds no body
                self._end()
                self._parser = None  # it has not seen the end, and would take what follows for more of the body
            return
        if self._parser is None:  # while it rests
            self._fail(httpx2.RemoteProtocolError("unasked"))
            return
        self._noise += nbytes
        try:
            self._parser.feed_data(self._span[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(httpx2.RemoteProtocolError("not HTTP/1.1"))
            return
        if self._noise > MAX_HEAD:
            self._fail(httpx2.RemoteProtocolError("endless headers"))
        elif self._length and not self._complete:
            self._take_whole()
        elif self._ahead > AHEAD and not self._paused and not self._complete:
            self._paused = True
            self._transport.pause_reading()

    def _take_whole(self) -> None:
        """Makes room for the body, whose first bytes the parser had: of the others it has nothing to say."""
        self._body = bytearray(self._length)
        begun = b"".join(self._pieces)
        self._body[: len(begun)] = begun
        self._rest = memoryview(self._body)[len(begun) :]
        self._pieces, self._length = [], 0

    def _end(self) -> None:
        """The answer is whole."""
        if self._parser is not None:
            self._complete, self._keep = True, self._parser.should_keep_alive()
            self._wake()

    def eof_received(self) -> None:
        """The server sends no more; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, whoever ended it."""
        self._lost = exc or True
        if self._on_lost is not None:
            self._on_lost()
        if self._status and not self._framed and exc is None:
            self._complete = True
            self._wake()
        elif exc is not None:
            self._fail(httpx2.ReadError("the connection was lost"))
        else:
            self._fail(httpx2.RemoteProtocolError("the connection ended before the answer did"))

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """An answer begins; nobody asked for a second one."""
        if self._complete:
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is not kept."""
        if not self._status:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """All of them."""
        if self._parser is None or self._status:
            return
        status = self._parser.get_status_code()
        if status < 200:  # the answer is still to come
            self._headers = []
            return
        told = {name.lower(): value for name, value in self._headers}
        chunked, length = b"transfer-encoding" in told, told.get(b"content-length")
        self._framed = chunked or length is not None
        self._noise = 0
        self._status = status
        if 200 <= status < 300 and length is not None and not chunked and int(length) <= self._whole:
            self._length = int(length)
        self._wake()

    def on_body(self, body: bytes) -> None:
        """Some bytes of it."""
        if not self._complete:
            self._pieces.append(body)
            self._ahead += len(body)
            self._noise = 0
            self._wake()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._status and not self._complete:
            self._end()
