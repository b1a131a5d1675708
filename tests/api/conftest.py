"""Calls to a real server, with and without the official client."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from tests.conftest import Server, run_server

KEYS = "alice:sk-alice-1234567890,bob:sk-bob-1234567890"


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
    """One request; `body` is sent as JSON unless it is bytes. Header names are written with underscores."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        named.setdefault("content-type", "application/json")
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def generate(server: Server, path: str = "/v1/images/generations", **body: Any) -> Answer:
    return call(server.url + path, body)


Part = tuple[str, bytes | str] | tuple[str, bytes | str, str | None] | tuple[str, bytes | str, str | None, str | None]
"""Name and content, then file name and content type if it has them."""

BOUNDARY = "----boundary7MA4YWxk"


def multipart(*parts: Part, boundary: str = BOUNDARY) -> bytes:
    """A form as programs send it; nothing is escaped, so that tests can be malicious."""
    pieces = []
    for name, content, *more in parts:
        filename, kind = (*more, None, None)[:2]
        head = f'Content-Disposition: form-data; name="{name}"'
        head += f'; filename="{filename}"' if filename is not None else ""
        head += f"\r\nContent-Type: {kind}" if kind is not None else ""
        data = content.encode() if isinstance(content, str) else content
        pieces.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n")
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def upload(name: str, content: bytes) -> Part:
    """A file as OpenAI's client sends raw bytes."""
    return name, content, "upload", "application/octet-stream"


def send_form(server: Server, *parts: Part, path: str = "/v1/images/edits", **headers: str) -> Answer:
    """One form; a picture of few steps unless the parts say otherwise."""
    headers = {"content_type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
    return call(server.url + path, multipart(*parts), **headers)


def as_file(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass
class Event:
    """A server-sent event, and when it came (seconds after the request was sent)."""

    name: str
    data: Any
    at: float


@dataclass
class Stream:
    """An answer whose body is read as it comes."""

    status: int
    headers: Any
    at: float
    connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse
    start: float

    def __iter__(self) -> Iterator[Event]:
        """The events; comments are left out, and anything else that is no event fails."""
        name = None
        for line in iter(self.answer.readline, b""):
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text[7:]
            elif text.startswith("data: "):
                assert name is not None
                yield Event(name, json.loads(text[6:]), time.monotonic() - self.start)
                name = None
            else:
                assert text == "" or text.startswith(":"), text

    def close(self) -> None:
        """Leaves, whether the answer has ended or not."""
        self.answer.close()
        self.connection.close()


@contextmanager
def stream(
    server: Server, body: Any = None, path: str = "/v1/images/generations", method: str = "POST", **headers: str
) -> Iterator[Stream]:
    """A request whose answer is a stream; `body` is sent as JSON unless it is bytes."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    start = time.monotonic()
    connection.request(method, path, data, named)
    answer = connection.getresponse()
    opened = Stream(answer.status, answer.headers, time.monotonic() - start, connection, answer, start)
    try:
        yield opened
    finally:
        opened.close()


def picture(png: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(png))
    opened.load()
    return opened


def from_base64(text: str) -> Image.Image:
    return picture(base64.b64decode(text, validate=True))


@pytest.fixture(scope="session")
def client(server: Server) -> OpenAI:
    """OpenAI's own client against the open hub."""
    return OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub with two keys; its engine is not waited for."""
    with run_server(tmp_path_factory.mktemp("keyed"), ready=False, HUB_API_KEYS=KEYS) as running:
        yield running
