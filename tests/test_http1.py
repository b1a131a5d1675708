"""The HTTP client's own connections, against servers on loopback that say, byte by byte, what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hub.http1 import MAX_IDLE, AsyncioTransport
from hub.http1.connection import AHEAD, MAX_HEAD, MAX_WHOLE, SPAN

BODY = bytes(range(256)) * 4096  # 1 MiB
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A server. `asked`: the head and the body of each request. `opened`: how many connections."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.opened = 0
        self.asked: list[tuple[bytes, bytes]] = []
        self.serving: dict[Any, asyncio.StreamWriter] = {}

    async def hear(self, reader: asyncio.StreamReader) -> bool:
        """Reads one request; whether there was one."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            self.asked.append((head, await reader.readexactly(length)))
            return True
        return False

    async def end(self) -> None:
        """Of all connections."""
        for task, writer in self.serving.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self.serving, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.opened += 1
        self.serving[asyncio.current_task()] = writer
        with contextlib.suppress(ConnectionError):
            while await self.hear(reader):
                await self.say(reader, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        writer.close()


def saying(*pieces: bytes, pause: float = 0, close: bool = False) -> Say:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            writer.close()

    return say


def byte_by_byte(data: bytes) -> Say:
    return saying(*(data[k : k + 1] for k in range(len(data))))


def run(
    say: Say, test: Callable[[httpx2.AsyncClient, str, Site], Awaitable[Any]], tls: ssl.SSLContext | None = None
) -> Site:
    """The test, with a client of these connections and a site."""

    async def main() -> Site:
        async with asyncio.timeout(20), serving(say, tls) as (site, port):
            context = ssl.create_default_context(cafile=getattr(tls, "authority", None))
            async with httpx2.AsyncClient(transport=AsyncioTransport(context), trust_env=False, timeout=5) as client:
                await test(client, f"{'https' if tls else 'http'}://127.0.0.1:{port}", site)
        return site

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def serving(say: Say, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Site, int]]:
    site = Site(say)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield site, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await site.end()


WHOLE = {"whole": len(BODY)}
"""An extension of a request: a body of that length is had in one piece."""


def fails(say: Say, kind: type[Exception]) -> None:
    async def test(client: httpx2.AsyncClient, url: str, _: Site) -> None:
        for extensions in ({}, WHOLE):
            with pytest.raises(kind):
                await client.post(url, content=b"{}", extensions=extensions)

    run(say, test)


@pytest.mark.parametrize(
    "say",
    [
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:1], BODY[1:], pause=0.01),
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(b"%x\r\n%s\r\n" % (1 << 16, BODY[k : k + (1 << 16)]) for k in range(0, len(BODY), 1 << 16)),
            b"0\r\nX-Trailer: dropped\r\n\r\n",
        ),
        saying(b"HTTP/1.1 200 OK\r\n\r\n", BODY, close=True),
        saying(b"HTTP/1.0 200 OK\r\n\r\n", BODY, close=True),
        saying(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY),
            BODY,
        ),
    ],
    ids=["length", "in pieces", "chunked", "until the end", "HTTP/1.0", "after others"],
)
def test_a_body_is_read_whole_however_its_end_is_told(say: Say) -> None:
    async def test(client: httpx2.AsyncClient, url: str, _: Site) -> None:
        for extensions in ({}, WHOLE):
            answer = await client.post(url, json={"a": 1}, extensions=extensions)
            assert (answer.status_code, answer.content, "link" in answer.headers) == (200, BODY, False)
            assert "x-trailer" not in answer.headers

    run(say, test)


def test_a_body_of_known_length_comes_in_one_piece_where_that_is_asked_for() -> None:
    head = b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n"

    async def pieces(client: httpx2.AsyncClient, url: str, whole: int) -> int:
        async with client.stream("GET", url, extensions={"whole": whole}) as answer:
            found = [piece async for piece in answer.aiter_raw()]
        assert b"".join(found) == BODY
        return len(found)

    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        assert await pieces(client, url, len(BODY)) == await pieces(client, url, len(BODY) + 1) == 1
        assert site.opened == 1, "the connection is used again"
        assert await pieces(client, url, len(BODY) - 1) > 1, "never more than was asked for"
        site.say = saying(head % (500, len(BODY)), BODY)
        assert await pieces(client, url, len(BODY)) > 1, "of an error's body little is read"
        assert site.opened == 1

    run(saying(head % (200, len(BODY)), BODY), test)


@pytest.mark.parametrize("more", [OK, b"xx"])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("slowly", [False, True])
def test_what_follows_a_body_in_one_piece_is_no_answer(
    tls: ssl.SSLContext, more: bytes, secure: bool, slowly: bool
) -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        for _ in range(5):
            extensions = WHOLE | {"sni_hostname": "pictures.test"}
            async with client.stream("GET", url, extensions=extensions) as answer:
                await asyncio.sleep(0.05 if slowly else 0)
                assert await answer.aread() == BODY
            await asyncio.sleep(0 if slowly else 0.05)
        assert site.opened == 5, "a connection on which more came is not used again"

    say = saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY + more)
    run(say, test, tls if secure else None)


def test_a_body_in_one_piece_that_nobody_takes_is_not_kept() -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        async with client.stream("GET", url, extensions=WHOLE):
            await asyncio.sleep(0.1)
        assert (await client.get(url)).content == BODY
        assert site.opened == 2

    run(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY), test)


def test_no_room_is_made_for_a_body_on_its_headers_word_alone_where_that_is_much() -> None:
    async def test(client: httpx2.AsyncClient, url: str, _: Site) -> None:
        tracemalloc.start()
        try:
            async with client.stream("GET", url, extensions={"whole": 1 << 40}) as answer:
                pieces = answer.aiter_raw()
                assert await anext(pieces) == b"hi"
                await pieces.aclose()
            assert tracemalloc.get_traced_memory()[1] < MAX_WHOLE
        finally:
            tracemalloc.stop()

    run(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhi" % (MAX_WHOLE + 1)), test)


def test_an_answer_may_come_byte_by_byte() -> None:
    async def test(client: httpx2.AsyncClient, url: str, _: Site) -> None:
        answer = await client.get(url)
        assert (answer.status_code, answer.headers["x-a"], answer.content) == (201, "b", b"hello")

    chunked = (
        b"HTTP/1.1 201 Created\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"
    )
    run(byte_by_byte(chunked), test)


def test_an_answer_without_a_body_is_whole() -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        assert [(await client.delete(url)).status_code for _ in range(2)] == [204, 204]
        assert site.opened == 1

    run(saying(b"HTTP/1.1 204 No Content\r\n\r\n"), test)


def test_what_is_sent_is_one_request_with_its_length() -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        large = b"x" * (3 * SPAN)
        await client.post(url + "/a b?c=d", content=b"{}", headers={"X-Key": "v"})
        await client.post(url, content=large)
        await client.post(url, files={"image": ("a.png", large, "image/png")})
        await client.get(url)
        first, second, third, last = site.asked
        assert first[0].startswith(b"POST /a%20b?c=d HTTP/1.1\r\n")
        assert b"X-Key: v\r\n" in first[0] and b"Content-Length: 2\r\n" in first[0] and first[1] == b"{}"
        assert second[1] == large
        assert large in third[1] and b"transfer-encoding" not in third[0].lower()
        assert b"content-length" not in last[0].lower()
        assert site.opened == 1

    run(saying(OK), test)


def test_a_connection_serves_one_request_after_another_and_several_serve_them_at_once() -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        for _ in range(3):
            await client.get(url)
        assert site.opened == 1
        await asyncio.gather(*(client.get(url) for _ in range(4)))
        assert site.opened == 4

    run(saying(OK, pause=0.05), test)


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (saying(OK, close=True), "it ended"),
        (saying(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"), "it was to end"),
        (saying(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), "more than was asked for"),
        (saying(OK, b"x"), "something unasked later"),
    ],
)
def test_a_connection_is_not_used_again_where_that_is_not_safe(say: Say, why: str) -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        for number in (1, 2, 3):
            assert (await client.post(url, content=b"{}")).content == b"hi", why
            assert site.opened == number, why
            await asyncio.sleep(0.05)

    run(say, test)


def test_an_end_that_the_loop_has_not_seen_yet_is_seen() -> None:
    """The server ends the connection while this process is busy: the next request must not be lost on it."""

    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        import socket
        import threading
        import time

        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(1 << 16)
                connection.sendall(OK)
                time.sleep(0.05)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        own = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert (await client.post(own, content=b"{}")).content == b"hi"
        time.sleep(0.2)  # the loop stands still
        assert (await client.post(own, content=b"{}")).content == b"hi"
        await asyncio.to_thread(thread.join)
        listener.close()

    run(saying(OK), test)


def test_a_body_that_is_left_ends_its_connection() -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        async with client.stream("GET", url) as answer:
            assert answer.status_code == 200
        await client.get(url + "/again")
        assert site.opened == 2

    run(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY), test)


def test_who_reads_slowly_makes_the_server_wait() -> None:
    sent = 0

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 1 << 30:
            writer.write(BODY)
            await writer.drain()
            sent += len(BODY)

    async def test(client: httpx2.AsyncClient, url: str, _: Site) -> None:
        async with client.stream("GET", url) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            await asyncio.sleep(0.3)
            assert sent < AHEAD + (32 << 20), "what the kernel holds, and AHEAD"
            before = sent
            for _ in range(200):
                await anext(pieces)
            assert sent > before, "and then it goes on"
            await pieces.aclose()

    run(endless, test)


@pytest.mark.parametrize(
    "say",
    [
        saying(close=True),
        saying(b"HTTP/1.1 200", close=True),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", close=True),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi", close=True),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"),
        saying(b"SSH-2.0-OpenSSH_9.7\r\n"),
        saying(b"\x16\x03\x01\x00\x05hello"),
        saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx"),
        saying(b"HTTP/1.1 200 OK\r\nX: ", *[b"a" * 8192] * (MAX_HEAD // 8192 + 40)),
        saying(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"a" * 8000 + b"\r\n"] * (MAX_HEAD // 8000 + 40)),
        saying(*[b"HTTP/1.1 100 Continue\r\n\r\n" * 400] * (MAX_HEAD // 10_000 + 40)),
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ",
            *[b"a" * 8192] * (MAX_HEAD // 8192 + 40),
        ),
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
            *[b"a" * 8192] * (MAX_HEAD // 8192 + 40),
        ),
    ],
    ids=[
        *("nothing", "half a line", "short body", "short chunk", "no chunk", "both lengths", "two lengths", "SSH"),
        *("TLS", "upgrade", "endless header", "endless headers", "endless others", "endless trailer"),
        "endless extension",
    ],
)
def test_what_is_no_whole_answer_is_an_error_of_the_transport(say: Say) -> None:
    fails(say, httpx2.TransportError)


def test_where_nobody_listens_no_connection_is_made() -> None:
    async def test(client: httpx2.AsyncClient, _: str, site: Site) -> None:
        for bad in ("http://127.0.0.1:1", "http://a..b/"):
            with pytest.raises(httpx2.ConnectError):
                await client.get(bad)
        assert site.opened == 0

    run(saying(OK), test)


@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", {"X": "a\r\nEvil: 1"}), ("GET", {"X\r\nEvil": "1"}), ("G ET", {}), ("HEAD", {}), ("CONNECT", {})],
)
def test_nothing_is_sent_that_a_server_could_read_as_something_else(method: str, headers: dict[str, str]) -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        with pytest.raises(httpx2.LocalProtocolError):
            await client.request(method, url, headers=headers)
        assert not site.asked

    run(saying(OK), test)


def test_a_request_that_is_given_up_frees_its_place_and_its_connection() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving(saying(OK, pause=0.2), None) as (site, port):
            transport = AsyncioTransport(ssl.create_default_context(), connections=1)
            async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
                tasks = [asyncio.create_task(client.get(f"http://127.0.0.1:{port}")) for _ in range(3)]
                await asyncio.sleep(0.05)
                assert site.opened == 1, "the others wait for a place"
                for task in tasks[:2]:
                    task.cancel()
                assert (await tasks[2]).content == b"hi"
                assert (await client.get(f"http://127.0.0.1:{port}")).content == b"hi"

    asyncio.run(main())


def test_only_some_connections_are_kept_and_none_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        await asyncio.gather(*(client.get(url) for _ in range(MAX_IDLE + 5)))
        assert site.opened == MAX_IDLE + 5
        await asyncio.gather(*(client.get(url) for _ in range(MAX_IDLE + 5)))
        assert site.opened == MAX_IDLE + 10
        monkeypatch.setattr("hub.http1.IDLE", 0.0)
        await client.get(url)
        assert site.opened == MAX_IDLE + 11

    run(saying(OK, pause=0.1), test)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's, for the name `pictures.test` and for 127.0.0.1; `authority`: whom a client has to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.test"), x509.DNSName("two.test")]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.authority = str(file)  # type: ignore[attr-defined]
    return context


def test_tls_is_checked_against_the_name_and_a_connection_serves_that_name_alone(tls: ssl.SSLContext) -> None:
    async def test(client: httpx2.AsyncClient, url: str, site: Site) -> None:
        with pytest.raises(httpx2.ConnectError):
            await client.get(url)  # 127.0.0.1 is not in the certificate
        before = site.opened
        for name, opened in (("pictures.test", 1), ("pictures.test", 1), ("two.test", 2), ("pictures.test", 2)):
            answer = await client.get(url, extensions={"sni_hostname": name} | (WHOLE if opened == 2 else {}))
            assert (answer.content, site.opened - before) == (BODY, opened), name
        with pytest.raises(httpx2.ConnectError):
            await client.get(url, extensions={"sni_hostname": "other.test"})

    run(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY), test, tls)


def test_tls_of_a_stranger_is_refused(tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving(saying(OK), tls) as (site, port):
            transport = AsyncioTransport(ssl.create_default_context())
            async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
                with pytest.raises(httpx2.ConnectError):
                    await client.get(f"https://127.0.0.1:{port}", extensions={"sni_hostname": "pictures.test"})
            assert not site.asked

    asyncio.run(main())
