from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hub.errors import ProviderError, ProviderFailed, ProviderTimeout, ProviderUnavailable
from hub.remote import transport
from hub.remote.adapter import Answer, Call, Form
from hub.remote.transport import Transport
from tests.remote.fake import Heard, Reaction, Server, drops, hangs, http, says, serving

ASK = Call("/x", json={"prompt": "é"})


def run(test: Callable[[Transport, Server], Coroutine[Any, Any, None]], *reactions: Reaction) -> None:
    async def main() -> None:
        through = Transport()
        async with asyncio.timeout(20), serving(*reactions) as server, through.running():
            await test(through, server)
            await asyncio.sleep(0)
            left = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
            assert left <= {"run.<locals>.main", "Server.serve"}

    asyncio.run(main())


def writes(data: bytes, *, stop: bool = True) -> Reaction:
    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if stop:
            writer.close()

    return react


def test_json_forms_and_headers_arrive_as_they_were_meant() -> None:
    async def test(through: Transport, server: Server) -> None:
        await through.send(ASK, f"{server.url}/x", {"x-key": "k"})
        form = Form(fields=[("prompt", "é\r\n--x"), ("n", "2")], files=[("image[]", 'a"b.png', b"\x89", "image/png")])
        await through.send(Call("/x", form=form, headers={"x-more": "1"}), f"{server.url}/x", {})
        await through.send(Call("/x", method="GET"), f"{server.url}/x", {})
        first, second, third = server.heard
        assert first.json == {"prompt": "é"}
        assert first.headers["content-type"] == "application/json"
        assert first.headers["accept-encoding"] == "identity"
        assert first.headers["x-key"] == "k"
        assert b'name="prompt"\r\n\r\n\xc3\xa9\r\n--x\r\n' in second.body
        assert b'name="image[]"; filename="a%22b.png"\r\nContent-Type: image/png\r\n\r\n\x89\r\n' in second.body
        assert second.headers["x-more"] == "1"
        assert (third.method, third.body) == ("GET", b"")

    run(test, says(b"{}"))


def test_no_cookie_is_kept() -> None:
    async def test(through: Transport, server: Server) -> None:
        for _ in range(2):
            await through.send(ASK, f"{server.url}/x", {})
        assert "cookie" not in server.heard[1].headers

    run(test, says(b"{}", Set_Cookie="session=1; Path=/"))


def test_neither_proxies_nor_certificates_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def test(through: Transport, server: Server) -> None:
        assert (await through.send(ASK, f"{server.url}/x", {})).status == 200

    run(test, says(b"{}"))


def test_of_an_error_only_the_beginning_is_read_and_a_cut_one_still_has_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "BRIEFLY", 0.2)
    head = b"HTTP/1.1 429 No\r\nRetry-After: 3\r\nContent-Length: 99999999\r\n\r\n"

    async def test(through: Transport, server: Server) -> None:
        for _ in range(3):
            answer = await through.send(ASK, f"{server.url}/x", {})
            assert (answer.status, answer.headers["retry-after"]) == (429, "3")
            assert len(answer.body) <= transport.MAX_ERROR

    run(test, writes(head + b"x" * 200_000), writes(head + b"x"), writes(head + b"x", stop=False))


def failing(reaction: Reaction, call: Call = ASK) -> ProviderError:
    found: list[ProviderError] = []

    async def test(through: Transport, server: Server) -> None:
        sent: list[bool] = []
        with pytest.raises(ProviderError) as caught:
            await through.send(call, f"{server.url}/x", {}, lambda: sent.append(True))
        assert sent == [True]
        found.append(caught.value)

    run(test, reaction)
    return found[0]


@pytest.mark.parametrize(
    "reaction",
    [
        drops,
        writes(b""),
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"),
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        writes(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"),
        writes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        writes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n123"),
        writes(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx"),
        writes(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\nx"),
        writes(b"HTTP/1.1 200 " + b"x" * 200_000),
        writes(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000),
        writes(b"\0" * 5000),
    ],
)
def test_whatever_is_no_answer_is_a_failure_that_may_have_cost_something(reaction: Reaction) -> None:
    error = failing(reaction)
    assert type(error) is ProviderFailed
    assert error.may_have_billed
    assert error.__cause__ is None


def test_nonsense_never_raises_anything_but_what_is_told() -> None:
    noise = random.Random(7)
    good = http(b'{"data": []}')

    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = bytearray(good)
        for _ in range(noise.randrange(1, 8)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        writer.write(bytes(data))
        writer.close()

    async def test(through: Transport, server: Server) -> None:
        for _ in range(400):
            try:
                async with asyncio.timeout(1):
                    await through.send(ASK, f"{server.url}/x", {})
            except (ProviderError, TimeoutError):
                pass

    run(test, react)


def test_where_nobody_listens_nothing_was_sent() -> None:
    async def main() -> None:
        through = Transport()
        async with through.running():
            with pytest.raises(ProviderUnavailable) as caught:
                await through.send(ASK, "http://127.0.0.1:1/x", {})
            assert not caught.value.may_have_billed

    asyncio.run(main())


def test_an_address_that_is_none_was_sent_nothing() -> None:
    async def main() -> None:
        through = Transport()
        async with through.running():
            for url in ("http://[::1", "http://a\nb/", "x" * 70_000):
                with pytest.raises(ProviderError) as caught:
                    await through.send(ASK, url, {})
                assert not caught.value.may_have_billed

    asyncio.run(main())


def events_of(data: bytes, pieces: int = 1) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []

    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n")
        for at in range(0, len(data), pieces):
            writer.write(data[at : at + pieces])
            await writer.drain()
        writer.close()

    async def test(through: Transport, server: Server) -> None:
        async with through.events(ASK, f"{server.url}/x", {}) as events:
            assert not isinstance(events, Answer)
            async for event in events:
                found.append(event)  # noqa: PERF401

    run(test, react)
    return found


@pytest.mark.parametrize("pieces", [1, 3, 10_000])
def test_events_are_read_however_they_are_cut(pieces: int) -> None:
    text = (
        b": hello\n\nevent: a\ndata: 1\ndata:2\n\nevent: b\r\ndata: {}\r\n\r\nid: 3\n\ndata\n\ndata: last\n\ndata: half"
    )
    assert events_of(text, pieces) == [("a", b"1\n2"), ("b", b"{}"), ("", b"last"), ("", b"half")]


def test_a_stream_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER", 1 << 18)
    for data in (b"data: " + b"x" * (1 << 20), b"data: x\n\n" * (1 << 16), b": x\n" * (1 << 18)):
        with pytest.raises(ProviderFailed, match="too large"):
            events_of(data, 1 << 16)


def test_leaving_a_stream_in_its_middle_leaves_nothing_behind() -> None:
    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: 2\n\n")
        await writer.drain()
        await asyncio.sleep(30)

    async def test(through: Transport, server: Server) -> None:
        with pytest.raises(KeyError):
            async with through.events(ASK, f"{server.url}/x", {}) as events:
                async for _ in events:  # type: ignore[union-attr]
                    raise KeyError

    run(test, react)


def test_what_nobody_waits_for_is_sent_before_the_end_and_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BRIEFLY", 0.2)

    async def main() -> int:
        through = Transport()
        async with serving(hangs) as server:
            async with through.running():
                through.notify(ASK, f"{server.url}/x", {})
                through.notify(ASK, "http://127.0.0.1:1/", {})
            return len(server.heard)

    assert asyncio.run(main()) == 1


def test_a_picture_that_drips_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(through: Transport, server: Server) -> None:
        from hub import fetching

        async def brief(*args: Any, **given: Any) -> bytes:
            return await fetching.fetch(*args, **{**given, "patience": 0.1})

        monkeypatch.setattr(transport, "fetch", brief)
        with pytest.raises(ProviderTimeout) as caught:
            await through.download(f"{server.url}/1.png", server.url.removeprefix("http://"))
        assert caught.value.may_have_billed

    run(test, hangs)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("http://127.0.0.1:1/secret?signature=secret", "127.0.0.1:1 lies in a private network"),
        ("file:///etc/secret", "its address is none that is asked (file:)"),
        ("SERVER/secret?signature=secret", "SERVER answered 404"),
    ],
)
def test_the_log_says_why_a_pictures_link_was_not_fetched(
    link: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(through: Transport, server: Server) -> None:
        own = server.url.removeprefix("http://")
        with caplog.at_level("WARNING"), pytest.raises(ProviderFailed) as caught:
            await through.download(link.replace("SERVER", server.url), own)
        assert f"a picture of {own} was not fetched: {told.replace('SERVER', own)}" in caplog.text
        assert "secret" not in caplog.text
        assert own not in caught.value.message

    run(test, says(b"", 404))


def test_a_body_that_comes_byte_by_byte_does_not_hold_up_others() -> None:
    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            writer.write(b"1\r\nA\r\n" * 10_000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def test(through: Transport, server: Server) -> None:
        longest = 0.0

        async def others() -> None:
            nonlocal longest
            while True:
                start = time.thread_time()  # what others on the machine take does not count
                await asyncio.sleep(0)
                longest = max(longest, time.thread_time() - start)

        beside = asyncio.create_task(others())
        answer = await through.send(ASK, f"{server.url}/x", {})
        beside.cancel()
        await asyncio.wait({beside})
        assert len(answer.body) == 100_000
        assert longest < 0.25

    run(test, react)


MEMORY = textwrap.dedent(
    """
    import asyncio, resource, sys
    from hub.errors import ProviderFailed
    from hub.remote import transport
    from hub.remote.adapter import Call
    from tests.remote.fake import serving

    kind = sys.argv[1]
    ONE = b"1\\r\\nA\\r\\n" * 10_000
    MANY = b"100000\\r\\n" + b"A" * (1 << 20) + b"\\r\\n"

    async def endless(heard, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
        for _ in range(400):
            writer.write(ONE if kind == "bytes" else MANY)
            await writer.drain()

    async def main():
        through = transport.Transport()
        transport.MAX_ANSWER = 20_000 if kind == "bytes" else 32 << 20
        async with through.running(), serving(endless) as server:
            peaks = []
            for _ in range(6):
                try:
                    await through.send(Call("/x", json={}), server.url + "/x", {})
                except ProviderFailed:
                    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            print(*peaks)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize(("kind", "most"), [("mebibytes", 120), ("bytes", 20)])
def test_a_body_without_end_takes_little_more_memory_than_its_limit_however_often_it_comes(
    kind: str, most: int
) -> None:
    """`most`: MiB beyond what a Python with these modules takes."""
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    baseline = "import hub.remote.transport, tests.remote.fake, httpx2, resource; hub.remote.transport.certificates();"
    baseline += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    plain = subprocess.run([sys.executable, "-c", baseline], env=environ, capture_output=True, check=True, text=True)
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, kind], env=environ, capture_output=True, check=True, text=True, timeout=60
    )
    peaks = [int(each) - int(plain.stdout) for each in ran.stdout.split()]
    assert len(peaks) == 6
    assert max(peaks) < most, peaks
    assert peaks[-1] - peaks[1] < 20, peaks
