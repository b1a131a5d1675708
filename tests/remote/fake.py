"""A provider of the tests' own, and a server that does as it is told, for what no real protocol would show."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from PIL import Image

from hub.manifest import RemoteManifest, RemoteSection
from hub.remote.adapter import Adapter, Answer, Base64, Call, Link, Made, Partial, Pending, Picture, raw_base64
from hub.remote.wish import Wish

SECRET = "canary-key-5f3a9c"


def png(colour: int = 0, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 80, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def body_of(*pictures: bytes, **more: Any) -> bytes:
    """An answer of the fake's."""
    return json.dumps({"pictures": [base64.b64encode(each).decode() for each in pictures], **more}).encode()


class Item(msgspec.Struct):
    pictures: list[msgspec.Raw] = []
    links: list[str] = []
    job: str | None = None
    cancel: str | None = None
    partial: msgspec.Raw = msgspec.Raw(b"null")
    cost: float | None = None


class Fake(Adapter):
    """Base64, links, jobs and streams, as its answers say."""

    name = "fake"
    title = "Fake"
    base_url = None
    key_variable = "FAKE_API_KEY"
    honours = frozenset({"size", "seed", "partial_images"})
    sites = frozenset({"fake.example"})
    documentation = "https://fake.example"

    def call(self, wish: Wish, n: int, first: int) -> Call:
        body = wish.with_options({"prompt": wish.prompt, "n": n, "first": first})
        return Call("/work", json=body, stream=wish.request.partial_images > 0)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        found = answer.read(Item)
        if found.job is not None:
            cancel = Call(found.cancel, method="DELETE") if found.cancel is not None else None
            return Pending(Call(found.job, method="GET"), after=0.01, progress=900, cancel=cancel)
        pictures: list[Picture] = [Base64(raw_base64(each) or b"") for each in found.pictures]
        return Made([*pictures, *map(Link, found.links)], cost=found.cost)

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        found = msgspec.json.decode(data, type=Item)
        if name == "error":
            raise self.refusal(Answer(429, {}, data))
        if (preview := raw_base64(found.partial)) is not None:
            return Partial(0, 0, Base64(preview))
        return Made([Base64(raw_base64(each) or b"") for each in found.pictures])


FAKE = Fake()


def manifest(base_url: str | None, **remote: Any) -> RemoteManifest:
    section = {"model": "painter", "base_url": base_url, "credentials": "test", "timeout": 20, **remote}
    return RemoteManifest(
        id="fake/painter",
        name="Painter",
        description="",
        provider="fake",
        tasks=["text-to-image", "image-to-image", "inpainting"],
        remote=RemoteSection(**section),
    )


class Heard:
    """A request as it came."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Reaction = Callable[[Heard, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """On loopback, in the tests' event loop. `reactions`: for the next requests; the last one, for all that follow."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.reactions: list[Reaction] = []
        self.connections = 0
        """Those that are open."""
        self.url = ""

    @property
    def posts(self) -> list[Heard]:
        return [each for each in self.heard if each.method == "POST"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                line, *rest = head.strip().split("\r\n")
                method, path, _ = line.split(" ")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.heard.append(Heard(method, path, headers, body))
                reaction = self.reactions.pop(0) if len(self.reactions) > 1 else self.reactions[0]
                await reaction(self.heard[-1], reader, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()


@asynccontextmanager
async def serving(*reactions: Reaction) -> AsyncIterator[Server]:
    server = Server()
    server.reactions = list(reactions)
    tasks: set[asyncio.Task[None]] = set()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(server.serve(reader, writer)))

    listening = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


def http(body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """A whole answer."""
    told = {"Content-Type": kind, "Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def says(body: bytes, status: int = 200, **more: str) -> Reaction:
    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(body, status, **more))

    return react


def streams(*events: tuple[str, bytes], end: bytes = b"", pause: float = 0) -> Reaction:
    """Server-sent events, then the connection ends."""

    async def react(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for name, data in events:
            writer.write(f"event: {name}\r\n".encode() + b"data: " + data + b"\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(end)
        await writer.drain()
        writer.close()

    return react


async def hangs(_: Heard, __: asyncio.StreamReader, ___: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drops(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
