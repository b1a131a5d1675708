"""Servers on loopback that speak Ollama's and vLLM's protocols, well and badly; no packet leaves the interface."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from hub.neighbours import KINDS, Neighbours
from hub.settings import Settings
from tests.api.conftest import generate
from tests.conftest import run_server, wait_for, write_manifest

Odd = Callable[[BaseHTTPRequestHandler], None]


class Outside(ThreadingHTTPServer):
    """A server that remembers what it was asked. `odd`: answers in its stead."""

    daemon_threads = True
    block_on_close = False
    kind = ""

    def __init__(self, odd: Odd | None = None) -> None:
        self.odd = odd
        self.asked: list[str] = []
        outside = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                told = f" {json.dumps(body)}" if body is not None else ""
                outside.asked.append(f"{self.command} {self.path}{told}")
                if outside.odd:
                    self.close_connection = True
                    outside.odd(self)
                else:
                    status, answer = outside.answer(self.command, self.path, body)
                    reply(status, json.dumps(answer) if answer is not None else "")(self)

            do_POST = do_GET
            do_CONNECT = do_GET

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        return 404, {"detail": "Not Found"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def setting(self) -> str:
        return f"{self.kind}:{self.url}"

    def count(self, start: str) -> int:
        return sum(each.startswith(start) for each in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up early is expected."""

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class OllamaServer(Outside):
    """Answers at once that a model is unloaded, and lists it until it is: `slowness` seconds later."""

    kind = "ollama"

    def __init__(self, *models: str, slowness: float = 0.0, stuck: str = "") -> None:
        self.until = dict.fromkeys(models, float("inf"))
        self.slowness, self.stuck = slowness, stuck
        super().__init__()

    @property
    def loaded(self) -> list[str]:
        return [model for model, end in self.until.items() if time.monotonic() < end]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if (method, path) == ("GET", "/api/ps"):
            listed = [{"name": each, "model": each, "size": 5, "size_vram": 5, "details": {}} for each in self.loaded]
            return 200, {"models": listed}
        if (method, path) == ("POST", "/api/generate"):
            assert body["keep_alive"] == 0 and not body.get("prompt")
            if body["model"] == self.stuck:
                return 500, {"error": "no"}
            self.until[body["model"]] = time.monotonic() + self.slowness
            return 200, {"model": body["model"], "response": "", "done": True, "done_reason": "unload"}
        return 404, "404 page not found"


class VLLMServer(Outside):
    """Sleeps after `slowness` seconds, in which it answers what it has begun. `fails`: so many calls of /wake_up."""

    kind = "vllm"

    def __init__(self, *, dev: bool = True, able: bool = True, slowness: float = 0.0, fails: int = 0) -> None:
        self.sleeping = False
        self.dev, self.able, self.slowness, self.fails = dev, able, slowness, fails
        super().__init__()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if not self.dev:
            return 404, {"detail": "Not Found"}
        if (method, path) == ("GET", "/is_sleeping"):
            return 200, {"is_sleeping": self.sleeping}
        if (method, path) == ("POST", "/sleep?level=1&mode=wait"):
            time.sleep(self.slowness)
            self.sleeping = self.able
            return 200 if self.able else 500, None
        if (method, path) == ("POST", "/wake_up"):
            self.fails -= 1
            if self.fails >= 0:
                return 500, None
            self.sleeping = False
            return 200, None
        return 404, {"detail": "Not Found"}


def reply(status: int, body: str, kind: str = "application/json", **headers: str) -> Odd:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(body.encode("latin-1"))

    return answer


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, seconds in {"POLL": 0.02, "WAKE_TRIES": (0.0, 0.05, 0.1)}.items():
        monkeypatch.setattr(f"hub.neighbours.{name}", seconds)
    caplog.set_level(logging.INFO, "hub.neighbours")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_every_kind_can_be_set() -> None:
    named = [f"{kind}:http://127.0.0.1:1" for kind in KINDS]
    assert Settings(neighbours=named).neighbours == named


def test_ollama_unloads_all_its_models_and_is_waited_for(servers: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    ollama = servers.enter_context(OllamaServer("llama3.2:3b", "nomic-embed-text:latest", slowness=0.5))

    async def test() -> None:
        start = time.monotonic()
        await Neighbours([ollama.setting]).make_room()
        assert ollama.loaded == [] and time.monotonic() - start > 0.5
        assert ollama.asked[:3] == [
            "GET /api/ps",
            'POST /api/generate {"model": "llama3.2:3b", "keep_alive": 0}',
            'POST /api/generate {"model": "nomic-embed-text:latest", "keep_alive": 0}',
        ]
        assert set(ollama.asked[3:]) == {"GET /api/ps"}
        assert warnings(caplog) == []
        assert f"ollama at {ollama.url} has unloaded ['llama3.2:3b', 'nomic-embed-text:latest']" in caplog.text

    run(test)


def test_an_ollama_with_nothing_loaded_is_asked_one_question(servers: ExitStack) -> None:
    ollama = servers.enter_context(OllamaServer())
    run(Neighbours([ollama.setting]).make_room)
    assert ollama.asked == ["GET /api/ps"]


def test_a_model_that_stays_does_not_keep_the_others_nor_the_request(
    servers: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.neighbours.UNLOAD", 0.3)
    stuck = servers.enter_context(OllamaServer("a", "b", stuck="a"))
    busy = servers.enter_context(OllamaServer("c", slowness=60))
    run(Neighbours([stuck.setting, busy.setting]).make_room)
    assert (stuck.loaded, busy.loaded) == (["a"], ["c"])
    assert sorted(warnings(caplog)) == sorted(
        [
            f"ollama at {stuck.url} answered POST /api/generate with 500",
            f"ollama at {busy.url} still held ['c'] after 0 s",
        ]
    )


def test_vllm_sleeps_after_what_it_has_begun_and_is_woken_when_the_hub_holds_nothing(
    servers: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    vllm = servers.enter_context(VLLMServer(slowness=0.3))

    async def test() -> None:
        neighbours = Neighbours([vllm.setting])
        neighbours.let_back()
        assert vllm.asked == [], "nobody has put it to sleep"
        await neighbours.make_room()
        assert vllm.sleeping
        await neighbours.make_room()
        assert vllm.count("POST /sleep") == 1, "it sleeps"
        neighbours.let_back()
        await until(lambda: not vllm.sleeping)
        await until(lambda: "is awake" in caplog.text)
        neighbours.let_back()
        await asyncio.sleep(0.1)
        assert vllm.count("POST /wake_up") == 1
        assert warnings(caplog) == []

    run(test)


def test_a_vllm_that_somebody_else_put_to_sleep_is_left_to_them(servers: ExitStack) -> None:
    vllm = servers.enter_context(VLLMServer())
    vllm.sleeping = True

    async def test() -> None:
        neighbours = Neighbours([vllm.setting])
        async with neighbours.running():
            await neighbours.make_room()
        assert vllm.asked == ["GET /is_sleeping"]

    run(test)


@pytest.mark.parametrize(
    ("able", "words"),
    [
        ({"dev": False}, "cannot be asked to sleep: start it with VLLM_SERVER_DEV_MODE=1 in its environment"),
        ({"able": False}, "answered POST /sleep with 500; it has to be started with --enable-sleep-mode"),
    ],
)
def test_a_vllm_that_was_not_started_for_sleeping_is_told_once_with_what_to_do(
    servers: ExitStack, caplog: pytest.LogCaptureFixture, able: dict[str, bool], words: str
) -> None:
    vllm = servers.enter_context(VLLMServer(**able))

    async def test() -> None:
        neighbours = Neighbours([vllm.setting])
        async with neighbours.running():
            await neighbours.make_room()
            await neighbours.make_room()
        (told,) = warnings(caplog)
        assert told.startswith(f"vllm at {vllm.url} {words}")

    run(test)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.02)


def flood(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 16))


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def gibberish(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00SSH-2.0-nonsense\r\n\r\n")


ODD: dict[str, tuple[Odd, str]] = {
    "silent": (lambda _: time.sleep(2), "did not answer GET PATH within 0 s"),
    "drips": (drip, "did not answer GET PATH within 0 s"),
    "500": (reply(500, "{}"), "answered GET PATH with 500"),
    "HTML": (reply(200, "<html>hello</html>", "text/html"), "answered GET PATH with something else than it should"),
    "other JSON": (reply(200, "[1]"), "answered GET PATH with something else than it should"),
    "not UTF-8": (reply(200, '"\xff"'), "answered GET PATH with something else than it should"),
    "no such field": (reply(200, '{"error": "x"}'), "answered GET PATH with something else than it should"),
    "floods": (flood, "answered GET PATH with more than 1 MB"),
    "hangs up": (hang_up, "cannot be reached (RemoteProtocolError)"),
    "gibberish": (gibberish, "cannot be reached (RemoteProtocolError)"),
}


@pytest.mark.parametrize("kind", ["ollama", "vllm"])
@pytest.mark.parametrize("name", ODD)
def test_a_server_that_is_not_what_it_should_be_is_told_once_and_harms_nobody(
    servers: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.setattr("hub.neighbours.ANSWER", 0.5)
    odd, words = ODD[name]
    outside = servers.enter_context(Outside(odd))
    good = servers.enter_context(OllamaServer("a"))

    async def test() -> None:
        neighbours = Neighbours([f"{kind}:{outside.url}", good.setting])
        for _ in range(2):
            await neighbours.make_room()
        path = "/api/ps" if kind == "ollama" else "/is_sleeping"
        assert warnings(caplog) == [f"{kind} at {outside.url} {words.replace('PATH', path)}"]
        assert good.loaded == []
        assert outside.asked == [f"GET {path}"] * 2

    run(test)


def test_a_server_that_is_not_there_is_told_again_only_after_it_was_there(
    servers: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    ollama = servers.enter_context(OllamaServer())
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}"

    async def test() -> None:
        neighbours = Neighbours([f"ollama:{down}", ollama.setting])
        for odd in (None, reply(500, ""), None, reply(500, "")):
            ollama.odd = odd
            await neighbours.make_room()
        words = f"ollama at {ollama.url} answered GET /api/ps with 500"
        assert warnings(caplog) == [f"ollama at {down} cannot be reached (ConnectError)", words, words]

    run(test)


def test_neither_a_redirect_nor_a_proxy_leads_elsewhere(
    servers: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = servers.enter_context(OllamaServer("a"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    moved = servers.enter_context(Outside(reply(307, "", Location=f"{elsewhere.url}/api/ps")))
    run(Neighbours([f"ollama:{moved.url}"]).make_room)
    assert warnings(caplog) == [f"ollama at {moved.url} answered GET /api/ps with 307"]
    assert (len(moved.asked), elsewhere.asked) == (1, [])


def test_an_ollama_that_lists_no_end_of_models_is_not_asked_about_each(
    servers: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    ollama = servers.enter_context(OllamaServer(*map(str, range(500))))
    run(Neighbours([ollama.setting]).make_room)
    assert ollama.asked == ["GET /api/ps"]
    assert warnings(caplog) == [f"ollama at {ollama.url} says that it has loaded 500 models"]


def test_big_jobs_that_come_together_ask_once_and_one_that_is_cancelled_takes_nobody_with_it(
    servers: ExitStack,
) -> None:
    ollama = servers.enter_context(OllamaServer("a", slowness=0.3))
    vllm = servers.enter_context(VLLMServer(slowness=0.3))

    async def test() -> None:
        neighbours = Neighbours([ollama.setting, vllm.setting])
        jobs = [asyncio.create_task(neighbours.make_room()) for _ in range(5)]
        await asyncio.sleep(0.1)
        jobs[0].cancel()
        await asyncio.wait(jobs)
        assert (ollama.loaded, vllm.sleeping) == ([], True)
        assert (ollama.count("POST"), vllm.count("POST")) == (1, 1)

    run(test)


def test_a_request_does_not_wait_for_ever_and_who_falls_asleep_later_is_woken_all_the_same(
    servers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.neighbours.PATIENCE", 0.1)
    vllm = servers.enter_context(VLLMServer(slowness=1.5))

    async def test() -> None:
        neighbours = Neighbours([vllm.setting])
        start = time.monotonic()
        await neighbours.make_room()
        assert time.monotonic() - start < 1.2
        assert not vllm.sleeping
        neighbours.let_back()
        await until(lambda: vllm.count("POST /wake_up") == 1)
        assert not vllm.sleeping and vllm.count("POST /sleep") == 1

    run(test)


# A connection that is given up while it is made: anyio says so, at any later time.
@pytest.mark.filterwarnings("ignore:coroutine 'connect_tcp:RuntimeWarning")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <coroutine object connect_tcp:pytest.PytestUnraisableExceptionWarning"
)
def test_who_is_needed_again_at_once_is_not_woken(servers: ExitStack) -> None:
    vllm = servers.enter_context(VLLMServer())

    async def test() -> None:
        neighbours = Neighbours([vllm.setting])
        async with neighbours.running():
            await neighbours.make_room()
            neighbours.let_back()
            await neighbours.make_room()
            await asyncio.sleep(0.3)
            assert vllm.sleeping and vllm.count("POST /wake_up") == 0
        assert not vllm.sleeping, "with the hub's end"

    run(test)


def test_waking_is_tried_several_times_and_then_the_owner_is_told_how(
    servers: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    better = servers.enter_context(VLLMServer(fails=2))
    worse = servers.enter_context(VLLMServer(fails=1000))

    async def test() -> None:
        neighbours = Neighbours([better.setting, worse.setting])
        async with neighbours.running():
            await neighbours.make_room()
        assert (better.sleeping, worse.sleeping) == (False, True)
        assert warnings(caplog)[-1] == (
            f"vllm at {worse.url} sleeps and could not be woken; to do so: curl -X POST {worse.url}/wake_up"
        )

    run(test)


def test_a_vllm_that_has_ended_or_was_started_anew_without_the_endpoints_is_not_woken_again_and_again(
    servers: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    anew = servers.enter_context(VLLMServer())
    ended = servers.enter_context(VLLMServer())

    async def test() -> None:
        neighbours = Neighbours([anew.setting, ended.setting])
        async with neighbours.running():
            await neighbours.make_room()
            anew.dev = False
            await asyncio.to_thread(ended.stop)
        assert warnings(caplog) == []
        assert (anew.count("POST /wake_up"), ended.count("POST /wake_up")) == (1, 0)

    run(test)


def test_the_hubs_end_waits_a_while_for_those_that_do_not_wake(
    servers: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.neighbours.CLOSE", 0.3)
    monkeypatch.setattr("hub.neighbours.PATIENCE", 0.1)
    vllm = servers.enter_context(VLLMServer(slowness=3))

    async def test() -> None:
        start = time.monotonic()
        neighbours = Neighbours([vllm.setting])
        async with neighbours.running():
            await neighbours.make_room()
        assert time.monotonic() - start < 2
        assert "sleeps and could not be woken" in warnings(caplog)[-1]

    run(test)


@pytest.mark.slow
def test_a_server_gives_way_to_a_model_that_needs_its_memory_and_not_to_one_that_is_there(
    servers: ExitStack, tmp_path: Path, small_stable_diffusion: Path
) -> None:
    """The whole hub on the CPU. The weights are so large that they just fit into this machine's memory, and what is
    computed with them does not, by a file that no part loads; its hash is noted already, or the hub would read it."""
    ollama = servers.enter_context(OllamaServer("llama3.2:3b", slowness=0.2))
    vllm = servers.enter_context(VLLMServer())
    large = tmp_path / "large"
    shutil.copytree(small_stable_diffusion, large)
    (large / "spare").mkdir()
    spare = large / "spare" / "model.safetensors"
    with spare.open("wb") as file:
        file.truncate(round(psutil.virtual_memory().available / 1.1))  # a hole
    (tmp_path / "cache").mkdir()
    status = spare.stat()
    noted = f"{spare.resolve()} {status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    (tmp_path / "cache" / "weights.json").write_text(json.dumps({noted: "0" * 64}))
    models = write_manifest(tmp_path / "models", large, id='id = "large"')
    (models / "small.toml").rename(models / "large.toml")
    write_manifest(models, small_stable_diffusion)
    named = {"HUB_MODELS_DIR": str(models), "HUB_NEIGHBOURS": f"{ollama.setting},{vllm.setting}"}
    with run_server(tmp_path, HUB_DEVICE="cpu", **named) as server:
        body = {"prompt": "a", "size": "64x64", "num_inference_steps": 2}
        assert generate(server, model="small", **body).status == 200
        assert ollama.asked == vllm.asked == []
        assert generate(server, model="large", **body).status == 200
        assert (ollama.loaded, vllm.sleeping) == ([], True)
        asked = len(ollama.asked), len(vllm.asked)
        assert generate(server, model="large", **body).status == 200
        assert (len(ollama.asked), len(vllm.asked)) == asked, "it is loaded"
        assert vllm.count("POST /wake_up") == 0
        worker = next(each for each in psutil.Process(server.process.pid).children() if "worker" in str(each.cmdline()))
        worker.kill()
        wait_for(lambda: not vllm.sleeping, 10)
        assert generate(server, model="large", **body).status == 200
        assert vllm.sleeping
    assert not vllm.sleeping, "the hub has ended"
