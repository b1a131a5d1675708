"""Several hubs on one cache, of which anybody deletes what he likes, at any time."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import http.client
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hub.files import ORPHAN_AGE, Files
from hub.store import Store
from tests.api.conftest import Answer, call
from tests.conftest import Server, run_server, wait_for, write_manifest

DELETER = """
import shutil, sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for path in sys.argv[2:]:
        shutil.rmtree(path, ignore_errors=True)
    time.sleep(0.02)
"""
ANSWERS = {200, 202}
"""Beside these a request may be answered with an error that is told in OpenAI's envelope, and is none of these:"""
FAULTS = {500, 501, 502, 504}
LEFT = (ConnectionError, http.client.HTTPException, urllib.error.URLError, TimeoutError)
"""What a client meets whose server was killed or restarted."""


@contextlib.contextmanager
def deleting(seconds: float, *paths: Path) -> Iterator[None]:
    """Another process deletes the folders every 20 ms."""
    command = [sys.executable, "-c", DELETER, str(seconds), *map(str, paths)]
    with subprocess.Popen(command) as deleter:
        try:
            yield
        finally:
            deleter.kill()


def picture(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 1, **more}
    return body


class Client:
    """Does this and that at random, with any of the hubs, and keeps what was not as it should be."""

    def __init__(self, servers: list[Server], seed: int) -> None:
        """`servers`: those that run now; one that is to be ended is taken out of the list before."""
        self.servers = servers
        self.random = random.Random(seed)
        self.wrong: list[str] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.jobs: list[str] = []
        self.slowest = 0.0

    def once(self) -> None:
        """One operation. A hub that is ended meanwhile may leave it unanswered, no other."""
        works = [self.wait, self.wait, self.link, self.edit, self.job, self.job, self.list, self.drop]
        work, start = self.random.choice(works), time.monotonic()
        try:
            work(self.random.choice(self.servers))
        except LEFT as error:
            self.seen["left by a hub that was ended"] += 1
            if self.asked in self.servers:
                self.wrong.append(f"{work.__name__}: {error!r} of a hub that runs")
        self.slowest = max(self.slowest, time.monotonic() - start)

    def ask(self, server: Server, path: str, body: Any = None, **how: Any) -> Answer:
        self.asked = server
        answer = call(server.url + path, body, **how)
        self.seen[f"{how.get('method') or ('GET' if body is None else 'POST')} {answer.status}"] += 1
        if answer.status not in ANSWERS:
            try:
                error = answer.json["error"]
                told = bool(error["message"] and error["type"] and error["code"])
            except (ValueError, KeyError, TypeError):
                told = False
            if not told or answer.status in FAULTS:
                self.wrong.append(f"{path}: {answer.status} {answer.body[:300]!r}")
        return answer

    def wait(self, server: Server) -> None:
        """In base64 a picture that was made is always answered."""
        answer = self.ask(server, "/v1/images/generations", picture(response_format="b64_json"))
        if answer.status == 200 and not base64.b64decode(answer.json["data"][0]["b64_json"]).startswith(b"\x89PNG"):
            self.wrong.append("no picture")

    def link(self, server: Server) -> None:
        answer = self.ask(server, "/v1/images/generations", picture(response_format="url", seed=self.seed()))
        if answer.status == 200:
            path = "/files/" + answer.json["data"][0]["url"].partition("/files/")[2]
            got = self.ask(server, path)
            if got.status not in (200, 404, 410):
                self.wrong.append(f"a link is answered with {got.status}")

    def edit(self, server: Server) -> None:
        source = base64.b64encode(SOURCE).decode()
        images = [{"image_url": f"data:image/png;base64,{source}"}]
        self.ask(server, "/v1/images/edits", picture(images=images, num_inference_steps=2))

    def job(self, server: Server) -> None:
        answer = self.ask(server, "/v1/images/generations?async=true", picture(seed=self.seed()))
        if answer.status != 202:
            return
        job_id = answer.json["id"]
        self.jobs.append(job_id)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            got = self.ask(self.random.choice(self.servers), f"/v1/images/jobs/{job_id}")
            if got.status == 404 or got.json["status"] not in ("queued", "in_progress"):
                return
            time.sleep(0.1)
        self.wrong.append(f"{job_id} does not end")

    def list(self, server: Server) -> None:
        self.ask(server, "/v1/images/jobs")

    def drop(self, server: Server) -> None:
        if self.jobs:
            self.ask(server, f"/v1/images/jobs/{self.jobs.pop()}", method="DELETE")

    def seed(self) -> int:
        """Few: some are answered with pictures that are stored."""
        return self.random.randrange(5)


SOURCE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR4nGP4z8BAEiJN9aiGUQ1DSgMAv+z+ArQe0o8AAAAASUVORK5CYII="
)

PIECES: list[Callable[[Path], list[Path]]] = [
    lambda cache: [cache],
    lambda cache: [cache / "files"],
    lambda cache: list(cache.glob("files/*.tmp")),
    lambda cache: list(cache.glob("files/*.png")),
    lambda cache: [cache / "hub.db"],
    lambda cache: [cache / "hub.db-wal", cache / "hub.db-shm"],
    lambda cache: [cache / "secret"],
    lambda cache: [cache / "weights.json", *cache.glob("saturation*.json"), cache / "compiled"],
    lambda cache: [cache / "instances"],
]


def delete(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def run_all(clients: list[Client], operations: int) -> list[threading.Thread]:
    def work(client: Client) -> None:
        for _ in range(operations // len(clients)):
            client.once()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    return threads


def assert_all_is_well(clients: list[Client], operations: int) -> None:
    seen = sum((client.seen for client in clients), collections.Counter())
    print(f"{dict(seen)}, slowest {max(client.slowest for client in clients):.1f} s")  # noqa: T201 - shown by pytest -s
    assert [fault for client in clients for fault in client.wrong] == []
    assert seen["POST 200"] + seen["POST 202"] > operations / 4, seen


class Fleet:
    """Two hubs on one cache. The second one is ended and started again beside what else is done."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.running: list[Server] = []
        self._folders = [folder / "one", folder / "other"]
        self._stacks = [contextlib.ExitStack(), contextlib.ExitStack()]
        self._starter = ThreadPoolExecutor(2)

    def __enter__(self) -> Fleet:
        for folder in self._folders:
            folder.mkdir()
        try:
            self.running += self._starter.map(self._start, (0, 1))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, index: int) -> Server:
        settings = {"HUB_CACHE_DIR": str(self.cache), "HUB_MAX_QUEUE": "100"}
        return self._stacks[index].enter_context(run_server(self._folders[index], **settings))

    def restart(self, *, kill: bool) -> Future[None]:
        """Takes the second hub away from the clients, ends it, in order or not, and gives them a new one."""
        server = self.running.pop()

        def restart() -> None:
            if kill:
                server.process.kill()
            self._stacks[1].close()
            self.running.append(self._start(1))

        return self._starter.submit(restart)

    def logs(self) -> str:
        return "\n".join((folder / "server.log").read_text() for folder in self._folders)

    def __exit__(self, *_: object) -> None:
        self._starter.shutdown()
        for stack in self._stacks:
            stack.close()


def mixed(tmp_path: Path, operations: int, every: float, restarts: int) -> None:
    """One hub is killed or restarted as long as there are `restarts`, and the cache is deleted `every` so many seconds,
    whole or in parts; now and then all of it every 20 ms."""
    began, rng, restarting, rounds = time.monotonic(), random.Random(7), None, 0
    with Fleet(tmp_path) as fleet:
        for server in fleet.running:
            assert call(f"{server.url}/v1/images/generations", picture()).status == 200
        first = fleet.running[0]
        before = descriptors(first)
        started = time.monotonic()
        clients = [Client(fleet.running, seed) for seed in range(4)]
        threads = run_all(clients, operations)
        while any(thread.is_alive() for thread in threads):
            rounds += 1
            delete(rng.choice(PIECES)(fleet.cache))
            if restarts and (restarting is None or restarting.done()) and rounds % 5 == 4:
                restarting = fleet.restart(kill=restarts % 2 == 0)
                restarts -= 1
            if rounds % 8 == 0:
                with deleting(1, fleet.cache):
                    time.sleep(1)
            time.sleep(every)
        if restarting is not None:
            restarting.result()
        took = f"{started - began:.1f} s to start, {time.monotonic() - started:.1f} s for all"
        print(f"{took}; {rounds} deletions")  # noqa: T201 - shown by pytest -s
        assert_all_is_well(clients, operations)
        for server in fleet.running:
            assert call(f"{server.url}/v1/images/generations", picture()).status == 200
        wait_for(lambda: descriptors(first) <= before + 3, timeout=20)
        fleet.running[1].process.kill()
    assert "Traceback" not in fleet.logs(), fleet.logs()[-6000:]
    assert_next_hub_finds_order(fleet.cache)


def assert_next_hub_finds_order(cache: Path) -> None:
    """It ends what a killed one has left; what is kept is sound, and what is half-done goes with its sweeps."""
    for path in cache.rglob("*.tmp"):
        os.utime(path, (time.time() - ORPHAN_AGE - 1,) * 2)

    async def start() -> None:
        async with Store(cache).running(b"{}"):
            Files(cache, 3600).sweep()

    asyncio.run(start())
    with contextlib.closing(sqlite3.connect(cache / "hub.db", timeout=10)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        going = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress')"
        assert database.execute(going).fetchone() == (0,)
    assert list(cache.rglob("*.tmp")) == []
    assert list(cache.glob("*.damaged*")) == []


@pytest.mark.slow
def test_two_hubs_answer_all_requests_while_their_cache_is_deleted_and_one_is_killed(tmp_path: Path) -> None:
    mixed(tmp_path, operations=200, every=0.2, restarts=1)


@pytest.mark.slow
def test_two_hubs_answer_all_of_many_requests_while_their_cache_is_deleted_and_one_is_killed(tmp_path: Path) -> None:
    mixed(tmp_path, operations=1500, every=0.5, restarts=10)


REVISION = "0123456789abcdef" * 2 + "01234567"
SOURCE_TABLE = f'source = {{ kind = "local", repo = "local/small", revision = "{REVISION}" }}'


def all_of(few: Any, many: Any) -> pytest.MarkDecorator:
    """Few rounds, and as slow tests many."""
    given = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("rounds", given)


@all_of((0, 0.1), (0, 0.02, 0.05, 0.1, 0.2))
@pytest.mark.slow
def test_weights_may_be_deleted_under_a_loaded_model_and_the_model_comes_back_with_them(
    tmp_path: Path, small_stable_diffusion: Path, rounds: tuple[float, ...]
) -> None:
    models = write_manifest(tmp_path / "models", Path("unused"), path=SOURCE_TABLE)
    weights = tmp_path / "cache" / "weights"
    snapshot = weights / "models--local--small" / "snapshots" / REVISION
    shutil.copytree(small_stable_diffusion, snapshot)
    with run_server(tmp_path, HUB_MODELS_DIR=str(models), HUB_DEFAULT_MODEL="small") as server:

        def ask(query: str = "", **more: Any) -> Answer:
            return call(f"{server.url}/v1/images/generations{query}", picture(**more))

        assert ask().status == 200
        job = ask("?async=true", num_inference_steps=400).json["id"]
        wait_for(lambda: call(f"{server.url}/v1/images/jobs/{job}").json["status"] == "in_progress", server=server)
        shutil.rmtree(weights)
        wait_for(lambda: call(f"{server.url}/v1/images/jobs/{job}").json["status"] != "in_progress", server=server)
        assert call(f"{server.url}/v1/images/jobs/{job}").json["status"] == "completed", "what is loaded goes on"
        call(f"{server.url}/v1/engine/unload", {"model": "small"})
        assert_unusable(ask())
        shutil.copytree(small_stable_diffusion, snapshot)
        wait_for(lambda: ask().status == 200, timeout=20, server=server)
        for pause in rounds:  # while it is loaded
            call(f"{server.url}/v1/engine/unload", {"model": "small"})
            with ThreadPoolExecutor(1) as caller:
                asked = caller.submit(ask)
                time.sleep(pause)
                shutil.rmtree(weights)
                answer = asked.result(60)
            if answer.status != 200:
                assert_unusable(answer)
            shutil.copytree(small_stable_diffusion, snapshot)
            wait_for(lambda: ask().status == 200, timeout=20, server=server)


def assert_unusable(answer: Answer) -> None:
    assert (answer.status, answer.json["error"]["code"]) == (503, "model_unusable"), answer.body
    assert "/" not in answer.json["error"]["message"]


@all_of(6, 20)
def test_a_hub_starts_while_its_cache_is_deleted_again_and_again(tmp_path: Path, rounds: int) -> None:
    with deleting(300, tmp_path / "cache"), run_server(tmp_path) as server:
        for number in range(rounds):
            answer = call(f"{server.url}/v1/images/generations", picture(seed=number, response_format="b64_json"))
            assert answer.status == 200, answer.body
            job = call(f"{server.url}/v1/images/generations?async=true", picture(seed=number))
            assert job.status == 202
    assert "Traceback" not in server.log.read_text()
    assert "shutdown" not in server.log.read_text()
