"""Calls to a real server, with and without the official client."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
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
