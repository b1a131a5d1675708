"""Loopback servers that speak the protocols of remote providers, and everything that can go wrong with one.

A `Protocol` (tests/providers/protocols/NAME.py, one for each file of hub/providers) answers as the provider documents
it, and refuses what it would refuse. An `Upstream` serves one, and makes the faults: those are the same for all.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

from multipart import MultipartSegment, PushMultipartParser, parse_options_header
from PIL import Image

from hub.manifest import RemoteManifest, RemoteSection

KEY = "canary-key-5f3a9c"
"""What every test gives a provider as its key; it must be found nowhere else."""


@dataclass
class Part:
    """One part of a form."""

    name: str
    data: bytes
    filename: str | None
    content_type: str | None


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def parts(self) -> list[Part]:
        """Of a form."""
        kind, options = parse_options_header(self.headers["content-type"])
        assert kind == "multipart/form-data", kind
        found: list[Part] = []
        with PushMultipartParser(options["boundary"], content_length=len(self.body), strict=True) as parser:
            for event in parser.parse(self.body):
                if isinstance(event, MultipartSegment):
                    found.append(Part(event.name or "", b"", event.filename, event.content_type))
                elif event:
                    found[-1].data += event
        return found

    @property
    def pictures(self) -> list[bytes]:
        """All pictures in it: parts of a form, strings of a JSON body in base64 or as data URLs, or the whole body."""
        kind = self.headers.get("content-type", "").partition(";")[0]
        if kind == "multipart/form-data":
            found = [part.data for part in self.parts]
        elif kind == "application/json":
            found = [_decoded(text) for text in _strings(json.loads(self.body))]
        else:
            found = [self.body]
        return [data for data in found if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"))]

    @property
    def fields(self) -> dict[str, str]:
        """The text fields of a form."""
        return {part.name: part.data.decode() for part in self.parts if part.filename is None}


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError:
        return b""


@dataclass
class Reply:
    """What a protocol answers: a body (JSON unless it is bytes), or events as (name, JSON)."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, Any]] | None = None


class Refused(Exception):
    """The provider would not take this request."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self.reply = reply


class Protocol:
    """How one provider talks."""

    provider: ClassVar[str]
    remote: ClassVar[dict[str, Any]] = {"model": "painter"}
    """The manifest's `remote` section, without base_url and credentials."""
    tasks: ClassVar[list[str]] = ["text-to-image"]
    streams: ClassVar[bool] = False
    links: ClassVar[bool] = False
    """Whether its pictures are behind URLs."""
    polls: ClassVar[bool] = False
    """Whether an answer has to be asked for again."""
    size: ClassVar[str | None] = "1024x1024"
    """One that the model draws; None where sizes cannot be asked for."""
    mask: ClassVar[Literal["transparent", "white", "black"]] = "white"
    """How a mask says what may change."""

    def check_key(self, asked: Asked) -> bool:
        """Whether the key came as it should."""
        return asked.headers.get("authorization") == f"Bearer {KEY}"

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        """What a good request gets. Raises Refused for one that the provider would refuse."""
        raise NotImplementedError

    def error(self, status: int) -> Reply:
        """The provider's own body of an error, with words that must not reach a client."""
        return Reply({"error": {"message": f"secret words {KEY}", "code": "x", "type": "x", "param": None}}, status)

    def manifest(self, upstream: Upstream, **changes: Any) -> RemoteManifest:
        """A model of this provider, at a loopback address."""
        remote = {**self.remote, "base_url": upstream.url, "credentials": "test", "timeout": 20, **changes}
        return RemoteManifest(
            id=f"{self.provider}/painter",
            name="Painter",
            description="",
            provider=self.provider,
            tasks=list(self.tasks),
            remote=RemoteSection(**remote),
        )


Fault = Callable[["_Handler", Asked], bool]
"""Does something to a request; whether that was all of the answer."""


class Upstream(ThreadingHTTPServer):
    """A provider on loopback. `asked`: every request, in order. `faults`: for the next requests that are no download,
    one each; `picture_faults`: for downloads."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        self.picture_faults: deque[Fault] = deque()
        self.pictures: dict[str, bytes] = {}
        self.made: list[bytes] = []
        """Every picture, as it was sent."""
        self.encoded: list[str] = []
        """Those that were sent in base64."""
        self.spoil: Callable[[bytes], bytes] = bytes
        """What is done to each picture before it is sent."""
        self.garble: Callable[[str], str] | None = None
        """The same for its base64, when the answer is sent."""
        self.pictures_at = ""
        """Where links lead to, if not here: an origin."""
        self.failures: list[str] = []
        """What was wrong with requests that no provider would understand; a test wants none."""
        self.jobs: dict[str, Any] = {}
        """For protocols that poll: whatever they keep."""
        self.over = threading.Event()
        """Set at the end, so that nothing sleeps on."""
        self.written = 0
        """Mebibytes of answers without end that went out: into the hub, or the buffers of the two sockets."""
        self._count = 0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is expected."""

    @property
    def work(self) -> list[Asked]:
        """What would be billed: every POST but those that stop what another one has begun."""
        return [each for each in self.asked if each.method == "POST" and not each.path.endswith("/cancel")]

    def picture(self, width: int = 1024, height: int = 1024, image_format: str = "PNG") -> bytes:
        """A new picture, unlike all before; small in bytes whatever its size."""
        with self._lock:
            self._count += 1
            count = self._count
        data = _named(_drawn(width, height, image_format), f"number {count}".encode())
        self.made.append(self.spoil(data))
        return self.made[-1]

    def base64(self, *size: int, image_format: str = "PNG") -> str:
        """A new picture in base64."""
        text = base64.b64encode(self.picture(*size, image_format=image_format)).decode()
        self.encoded.append(text)
        return text

    def link(self, *size: int, image_format: str = "PNG") -> str:
        """A new picture's URL, here."""
        data = self.picture(*size, image_format=image_format)
        name = f"/pictures/{len(self.pictures)}.{image_format.lower()}"
        self.pictures[name] = data
        return (self.pictures_at or self.url) + name

    def forget(self) -> None:
        """As if nothing had been asked yet; pictures can still be fetched."""
        for each in (self.asked, self.faults, self.picture_faults, self.made, self.encoded, self.failures):
            each.clear()
        self.spoil, self.garble, self.pictures_at, self.written = bytes, None, "", 0


@functools.cache
def _drawn(width: int, height: int, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 80, 20)).save(buffer, image_format)
    return buffer.getvalue()


def _named(data: bytes, name: bytes) -> bytes:
    """The same pixels with a remark in the file: drawing takes a hundred times as long."""
    if data.startswith(b"\x89PNG"):
        chunk = b"tEXtComment\0" + name
        end = len(data) - 12  # before IEND
        return (
            data[:end] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end:]
        )
    if data.startswith(b"RIFF"):
        chunk = b"name" + struct.pack("<I", len(name)) + name + b"\0" * (len(name) % 2)
        return b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:] + chunk
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(name) + 2) + name + data[2:]


class _Handler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = (
            self.rfile.read(int(headers.get("content-length") or 0))
            if "chunked" not in headers.get("transfer-encoding", "")
            else self._chunks()
        )
        asked = Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
        upstream = self.server
        upstream.asked.append(asked)
        is_picture = parts.path in upstream.pictures or parts.path.startswith("/pictures/")
        faults = upstream.picture_faults if is_picture else upstream.faults
        if faults and faults.popleft()(self, asked):
            return
        if is_picture:
            data = upstream.pictures.get(parts.path)
            if "authorization" in headers or KEY in str(headers):
                self.send(Reply(b"a key was sent", 400))
            else:
                self.send(Reply(b"gone", 404) if data is None else Reply(data, headers={"Content-Type": "image/png"}))
            return
        if not upstream.protocol.check_key(asked):
            self.send(upstream.protocol.error(401))
            return
        try:
            self.send(upstream.protocol.answer(asked, upstream))
        except Refused as refused:
            self.send(refused.reply)
        except Exception as error:  # a request that no provider would understand
            upstream.failures.append(f"{type(error).__name__}: {error}")
            self.send(upstream.protocol.error(400))

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, reply: Reply) -> None:
        """The whole reply."""
        if reply.events is not None:
            lines = [
                (f"event: {name}\n" if name else "")
                + f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
                for name, data in reply.events
            ]
            body, kind = "".join(lines).encode(), "text/event-stream"
        elif isinstance(reply.body, bytes):
            body, kind = reply.body, "application/octet-stream"
        else:
            body, kind = json.dumps(reply.body).encode(), "application/json"
        if (garble := self.server.garble) is not None:
            for text in self.server.encoded:
                body = body.replace(text.encode(), json.dumps(garble(text))[1:-1].encode())
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, **reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def serving(protocol: Protocol) -> Iterator[Upstream]:
    """An upstream, for as long as the context."""
    upstream = Upstream(protocol)
    thread = threading.Thread(target=upstream.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield upstream
    finally:
        upstream.over.set()
        upstream.shutdown()
        thread.join()
        upstream.server_close()


def answers(status: int, **headers: str) -> Fault:
    """The provider's own error."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        reply = handler.server.protocol.error(status)
        reply.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send(reply)
        return True

    return fault


def raw(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> Fault:
    """These bytes."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send(Reply(body, status, {"Content-Type": content_type, **headers}))
        return True

    return fault


def slow(seconds: float) -> Fault:
    """No header before so long."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.server.over.wait(seconds)
        return False

    return fault


def dripping(seconds: float) -> Fault:
    """Headers at once, then a byte now and then, for so long."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not handler.server.over.is_set():
            handler.wfile.write(b" ")
            handler.wfile.flush()
            handler.server.over.wait(0.05)
        handler.close_connection = True
        return True

    return fault


def cut(after: int) -> Fault:
    """So many bytes of a longer body, then the connection ends."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(after + 1000))
        handler.end_headers()
        handler.wfile.write(b'{"data": "'.ljust(after, b"A")[:after])
        handler.close_connection = True
        return True

    return fault


def huge(mebibytes: int) -> Fault:
    """A body that does not end, so to say."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(mebibytes << 20))
        handler.end_headers()
        for _ in range(mebibytes):
            handler.wfile.write(b"A" * (1 << 20))
            handler.server.written += 1
        return True

    return fault


def endless(mebibytes: int) -> Fault:
    """A body of unknown length that goes on until the other side has had enough, or for so long."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(mebibytes):
            handler.wfile.write(b"100000\r\n" + b"A" * (1 << 20) + b"\r\n")
            handler.server.written += 1
        handler.close_connection = True
        return True

    return fault


def nothing() -> Fault:
    """This one is answered as always."""
    return lambda handler, asked: False


def elsewhere(url: str, status: int = 307) -> Fault:
    """A redirect."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.send(Reply(b"", status, {"Location": url}))
        return True

    return fault


def dropped() -> Fault:
    """The connection ends without an answer."""

    def fault(handler: _Handler, asked: Asked) -> bool:
        handler.close_connection = True
        handler.connection.close()
        return True

    return fault
