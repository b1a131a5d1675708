"""An order in a process of its own: it ends with whoever began it, and what it has done stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from hub.library.library import Library
from hub.library.orders import Import, Order, Verify
from hub.library.places import Places
from hub.library.process import Call
from hub.library.progress import Note, Progress, silent
from hub.manifest import SourceSection
from tests.conftest import ROOT
from tests.library.bundling import COMMIT, FILES, good
from tests.library.shelves import places_in

SOURCE = {"kind": "huggingface", "repo": "org/small", "revision": COMMIT}
SLOW = """
import sys, time
def hook(event, arguments):
    if event == "os.rename":
        time.sleep(0.3)
sys.addaudithook(hook)
"""
"""A disk on which a file needs a while to get its name."""
PARENT = """
import asyncio, sys, msgspec
from hub.library.process import Call
from hub.library.tasks import Task
call = msgspec.json.decode(sys.argv[1], type=Call)
async def end(result):
    pass
async def main():
    task = Task(call.order)
    task.begin(call.places, {}, end)
    while not task.ended:
        await task.changed.wait()
        print(msgspec.json.encode(task.state).decode(), flush=True)
asyncio.run(main())
"""
"""The hub, as far as it begins orders."""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "b").write_bytes(good(source=SOURCE))
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    return places_in(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    begun: list[subprocess.Popen[bytes]] = []

    def call(*command: str, slow: bool = False) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join([str(ROOT), *([str(tmp_path / "slow")] if slow else [])])
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": paths},
            )
        begun.append(process)
        return process

    yield call
    for process in begun:
        process.kill()
        process.communicate()


def line_of(places: Places, order: Order) -> bytes:
    return msgspec.json.encode(Call(places=places, order=order))


def blobs(places: Places) -> set[Path]:
    found = places.weights.repo("org/small").glob("blobs/*")
    return {blob for blob in found if not blob.name.endswith(".incomplete")}


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def child_of(parent: subprocess.Popen[bytes]) -> psutil.Process:
    (child,) = psutil.Process(parent.pid).children()
    return child


def goes_on(places: Places, order: Order, there: set[Path]) -> None:
    """What had come is read, and not copied again."""
    told: list[Progress | Note] = []
    Library(places).perform(order, told.append)
    sizes = {event.action: event.all_total for event in told if isinstance(event, Progress)}
    assert sizes["verify"] >= sum(blob.stat().st_size for blob in there) > 0
    assert sizes["verify"] + sizes["copy"] == sum(map(len, FILES.values()))
    assert (places.weights.snapshot(SourceSection(repo="org/small", revision=COMMIT)) / "model_index.json").is_file()


def test_an_import_ends_with_its_parent_and_goes_on_where_it_was(
    places: Places, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    order = Import(bundle=str(tmp_path / "b"))
    parent = start("-c", PARENT, line_of(places, order).decode(), slow=True)
    until(lambda: len(blobs(places)) >= 2)
    child, before = child_of(parent), blobs(places)
    parent.kill()
    until(lambda: has_ended(child), 10)
    assert before <= blobs(places) and not list(Path(places.owned).iterdir())
    goes_on(places, order, before)


def test_an_import_that_waits_for_another_process_ends_with_its_parent(
    places: Places, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with places.weights.changing("org/small", silent):
        parent = start("-c", PARENT, line_of(places, Import(bundle=str(tmp_path / "b"))).decode())
        assert parent.stdout is not None and b"waiting for it" in parent.stdout.readline()
        child = child_of(parent)
        parent.kill()
        until(lambda: has_ended(child), 10)
    assert not list(Path(places.owned).iterdir())


def test_an_import_to_which_nobody_listens_ends_and_undoes_nothing(
    places: Places, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    order = Import(bundle=str(tmp_path / "b"))
    process = start("-m", "hub.library.process", slow=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line_of(places, order) + b"\n")
    process.stdin.flush()
    for _ in range(3):
        assert b'"action":"copy"' in process.stdout.readline()
    before = blobs(places)
    process.stdout.close()
    assert process.wait(10) == 1 and len(before) >= 2
    process.stdout = None
    assert before <= blobs(places) and "Traceback" not in (tmp_path / "log").read_text()
    goes_on(places, order, before)


def test_an_order_that_is_done_is_told_while_standard_input_is_open(
    places: Places, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start("-m", "hub.library.process")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line_of(places, Verify(models=["builtin"])) + b"\n")
    process.stdin.flush()
    assert b'"type":"completed"' in process.stdout.read().splitlines()[-1]
    assert process.wait(10) == 0


def test_a_process_without_an_order_ends(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = start("-m", "hub.library.process")
    assert process.communicate(b"", timeout=20)[0] == b"" and process.returncode == 1
