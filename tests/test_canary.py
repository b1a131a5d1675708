"""A provider's key is found nowhere but where it belongs: in the owner's file, and in a header at the provider.

A hub with the keys of all providers, in its environment and in its file, asks upstreams that fail in every way and
throw the key back; then everything that came out of the hub is searched for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import pytest

from hub import providers
from hub.manifest import RemoteManifest
from tests.api.conftest import Answer, call
from tests.conftest import ROOT, Server, run_server, wait_for
from tests.providers import hubs
from tests.providers.protocols import protocol
from tests.providers.upstream import KEY, Fault, Reply, Upstream, answers, cut, elsewhere, raw, serving, slow

ECHO = f'secret words {KEY} "{KEY}"'
PLACE = f"http://10.11.12.13/{KEY}"
"""An address, so that nobody is asked for a name; nobody dials it either."""


def thrown_back(status: int) -> Fault:
    """In headers as well, those that are read among them."""
    headers = {"X-Echo": KEY, "Retry-After": KEY, "Www-Authenticate": f"Bearer {KEY}", "Set-Cookie": f"key={KEY}"}
    return lambda handler, _: bool(handler.send(Reply(ECHO.encode(), status, headers))) or True


FAULTS: dict[str, Fault] = {
    **{str(status): answers(status) for status in (400, 401, 402, 403, 404, 413, 422, 429, 500, 502, 503, 504, 529)},
    "headers-200": thrown_back(200),
    "headers-400": thrown_back(400),
    "headers-429": thrown_back(429),
    "headers-500": thrown_back(500),
    "html": raw(f"<html>{ECHO}</html>".encode()),
    "text": raw(json.dumps(ECHO).encode()),
    "redirect": elsewhere(PLACE),
    "cut": cut(300),
    "links": raw(
        json.dumps(
            {
                "data": [{"url": PLACE}],
                "images": [{"url": PLACE}],
                "output": [PLACE],
                "status": "succeeded",
                "result": {"sample": PLACE},
            }
        ).encode()
    ),
    "questions": raw(
        json.dumps(
            {
                "status": "IN_QUEUE",
                "status_url": PLACE,
                "polling_url": PLACE,
                "cancel_url": PLACE,
                "urls": {"get": PLACE, "cancel": PLACE},
                "data": [{"b64_json": ECHO}],
            }
        ).encode()
    ),
    "stream": raw(f"event: error\ndata: {json.dumps({'error': ECHO})}\n\n".encode(), content_type="text/event-stream"),
}
BROKEN = f"""
import hub.providers.google, hub.providers.together, hub.providers.xai

def headers(self, key):
    raise ValueError(f"no key: {{key}}")

def read(self, wish, answer):
    raise KeyError(answer.body, {KEY!r})

def call(self, wish, n, first):
    raise RuntimeError("broken")

hub.providers.together.Together.headers = headers
hub.providers.xai.XAI.read = read
hub.providers.google.Google.call = call
"""
"""Adapters that raise what they know; loaded by every Python of the second hub."""


@dataclass
class Told:
    """Everything that came out."""

    server: Server
    upstreams: dict[str, Upstream]
    folder: Path
    environ: dict[str, str]
    answers: list[Answer] = field(default_factory=list)

    def ask(self, path: str, body: object = None, method: str | None = None) -> Answer:
        answer = call(f"{self.server.url}{path}", body, method=method)
        self.answers.append(answer)
        return answer


def model_of(provider: str, fault: str) -> str:
    return f"{provider.replace('_', '-')}-{fault}"


def keyed(manifest: RemoteManifest, name: str) -> RemoteManifest:
    """With keys of its own: one that was refused is not used again so soon."""
    return msgspec.structs.replace(manifest, remote=msgspec.structs.replace(manifest.remote, credentials=name))


@contextlib.contextmanager
def running(folder: Path, names: list[str], **environ: str) -> Iterator[Told]:
    """A hub with every provider; of each, a model for each fault, with keys from the file, and one from the
    environment."""
    with contextlib.ExitStack() as stack:
        upstreams = {name: stack.enter_context(serving(protocol(name))) for name in names}
        manifests = {}
        for name, upstream in upstreams.items():
            plain = upstream.protocol.manifest(upstream, timeout=10)
            for fault in (*FAULTS, "good", "slow"):
                manifests[model_of(name, fault)] = keyed(plain, model_of(name, fault))
            if providers.adapter(name).key_variable:
                manifests[model_of(name, "environment")] = keyed(plain, name)
        keys = hubs.credentials(folder, **{name: KEY for name in manifests if not name.endswith("-environment")})
        given = {
            "HUB_MODELS_DIR": str(hubs.write(folder / "models", manifests)),
            "HUB_CREDENTIALS": str(keys),
            "HUB_REMOTE_KEYS": "*",
            "HUB_LOG_LEVEL": "debug",
            "PYTHONFAULTHANDLER": "1",
            **dict.fromkeys(providers.key_variables().values(), KEY),
            **environ,
        }
        server = stack.enter_context(run_server(folder, **given))
        yield Told(server, upstreams, folder, {**given, "HUB_CACHE_DIR": str(server.cache)})


def drive(told: Told, provider: str) -> None:
    """Every fault of a provider, and a good request with each kind of key."""
    upstream = told.upstreams[provider]
    for number, (name, fault) in enumerate(FAULTS.items()):
        upstream.forget()
        upstream.faults.extend([fault] * 3)
        body = {"prompt": "a fox", "model": model_of(provider, name)}
        if number % 3 == 2:
            told.ask("/v1/images/generations", body | {"stream": True, "partial_images": 1})
        else:
            told.ask("/v1/images/generations" + ("?async=true" if number % 3 == 1 else ""), body)
    upstream.forget()
    for kind in ("good", "environment"):
        if kind == "good" or providers.adapter(provider).key_variable:
            assert (
                told.ask("/v1/images/generations", {"prompt": "a fox", "model": model_of(provider, kind)}).status == 200
            )
    assert any(KEY in str(asked.headers) for asked in upstream.asked), "the key has not come to the provider"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with running(tmp_path_factory.mktemp("canary"), list(providers.names())) as found:
        asking = [threading.Thread(target=drive, args=(found, name)) for name in providers.names()]
        failures: list[object] = []
        before, threading.excepthook = threading.excepthook, failures.append
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        threading.excepthook = before
        assert failures == []
        wait_for(lambda: not any(each["status"] in ("queued", "in_progress") for each in jobs(found)), timeout=60)
        for path in ("/v1/models", "/health", "/ready", "/v1/engine", "/v1/usage", "/openapi.json", "/api/nothing"):
            found.ask(path)
        for each in jobs(found):
            found.ask(f"/v1/images/jobs/{each['id']}")
        for name in providers.names():
            found.ask(f"/v1/models/{model_of(name, 'good')}")
        yield found


def jobs(found: Told) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = found.ask("/v1/images/jobs?limit=100").json["data"]
    return listed


def holding(folder: Path) -> list[str]:
    """Files below a folder with the key in them."""
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink() and KEY.encode() in file.read_bytes()
    ]


def test_the_key_is_in_the_owners_file_alone(told: Told) -> None:
    """All files: the log, the database, pictures, manifests."""
    assert holding(told.folder) == ["credentials.toml"]
    log = told.server.log.read_text()
    assert "DEBUG" in log
    assert "does not take the key openai-401/1" in log
    assert (told.server.cache / "hub.db").stat().st_size


def test_no_answer_holds_the_key_or_the_providers_words(told: Told) -> None:
    assert len(told.answers) > 300
    for answer in told.answers:
        words = f"{answer.status} {answer.headers}".encode() + answer.body
        assert KEY.encode() not in words
        assert b"secret words" not in words
    assert {answer.status for answer in told.answers} >= {200, 202, 400, 404, 502, 503}
    assert not [answer.body for answer in told.answers if answer.status == 500]


def test_no_other_process_inherits_the_key(told: Told) -> None:
    children = psutil.Process(told.server.process.pid).children(recursive=True)
    assert any("worker" in " ".join(child.cmdline()) for child in children)
    for child in children:
        assert KEY not in str(child.environ())
        assert KEY not in str(child.cmdline())
    assert KEY in str(psutil.Process(told.server.process.pid).environ()), "it was given there, and a start is for ever"


@pytest.mark.parametrize(
    "command",
    [
        ["doctor", "--json"],
        ["models", "list"],
        ["models", "show", "openai-good"],
        ["route", "openai-good"],
        ["route", "fal-401"],
        ["usage"],
        ["engine", "status"],
        ["generate", "a fox", "--model", "openai-500"],
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_no_command_shows_the_key(told: Told, command: list[str]) -> None:
    environ = {**os.environ, **told.environ, "PYTHONPATH": str(ROOT)}
    told.upstreams["openai"].forget()
    told.upstreams["openai"].faults.extend([answers(500)] * 3)
    ran = subprocess.run(
        [sys.executable, "-m", "hub", *command], env=environ, cwd=told.folder, capture_output=True, timeout=120
    )
    assert ran.stdout + ran.stderr
    assert KEY.encode() not in ran.stdout + ran.stderr
    assert b"Traceback" not in ran.stderr


def test_the_search_would_find_it(told: Told, tmp_path: Path) -> None:
    (tmp_path / "planted").write_bytes(b"\0" * 1000 + KEY.encode())
    assert holding(tmp_path) == ["planted"]


def test_neither_a_broken_adapter_nor_a_crash_shows_the_key(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN.replace(repr(KEY), "'canary-key' + '-5f3a9c'"))
    path = f"{tmp_path / 'broken'}:{ROOT}"
    with running(tmp_path, ["google", "together", "xai", "openai"], PYTHONPATH=path) as told:
        statuses = [
            told.ask("/v1/images/generations", {"prompt": "a fox", "model": model_of(name, "good")}).status
            for name in ("google", "together", "xai", "openai")
        ]
        assert statuses == [500, 503, 502, 200]
        told.upstreams["openai"].faults.append(slow(60))
        body = {"prompt": "a fox", "model": model_of("openai", "slow")}
        told.ask("/v1/images/generations?async=true", body)
        wait_for(lambda: len(told.upstreams["openai"].work) == 2, timeout=20)
        told.server.process.send_signal(signal.SIGABRT)
        told.server.process.wait(20)
        log = told.server.log.read_text()
        assert "RuntimeError: broken" in log
        assert "ValueError, sitecustomize.py" in log
        assert "KeyError, sitecustomize.py" in log
        assert "Fatal Python error: Aborted" in log
        assert holding(tmp_path) == ["credentials.toml"]
        for answer in told.answers:
            assert KEY.encode() not in f"{answer.headers}".encode() + answer.body
