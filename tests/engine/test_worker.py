"""What the worker says at its start, while it works and at its end. It ends by os._exit, which is caught here."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hub.engine.compiling import Compiler
from hub.engine.jobs import Job
from hub.engine.protocol import EngineModel, Ping, Pong, Stepped, from_worker, pack, receive_frame
from hub.engine.streams import Streams
from hub.engine.worker import Worker, _read_forever
from hub.pipelines.auto import SharedMethod


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The API process's end and the worker's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have ended."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr("hub.engine.worker.os._exit", leave)
    return codes


def test_pings_are_answered_while_the_device_is_busy(
    pair: tuple[socket.socket, socket.socket], exits: list[int]
) -> None:
    ours, theirs = pair
    worker = Worker(theirs, torch.device("cpu"), 1)  # whose device thread does nothing at all

    def read() -> None:
        with contextlib.suppress(SystemExit):
            _read_forever(theirs, worker)

    reader = threading.Thread(target=read)
    reader.start()
    ours.sendall(pack(Ping()))
    frame = receive_frame(ours)
    assert frame is not None
    assert isinstance(from_worker.decode(frame), Pong)
    ours.close()
    reader.join(20)
    assert exits == [0]


def test_an_end_with_something_unread_is_quiet(
    pair: tuple[socket.socket, socket.socket], exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    worker = Worker(theirs, torch.device("cpu"), 1)
    worker.send(Stepped(1, 1, 2))
    ours.close()  # with a frame that nobody has read, which resets the connection
    with pytest.raises(SystemExit):
        _read_forever(theirs, worker)
    assert exits == [0]
    assert caplog.get_records("call") == []


def test_what_is_sent_after_the_end_ends_the_worker_without_a_word(
    pair: tuple[socket.socket, socket.socket], exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    worker = Worker(theirs, torch.device("cpu"), 1)
    ours.close()
    with pytest.raises(SystemExit):
        worker.send(Stepped(1, 1, 2))
    assert exits == [0]
    assert caplog.get_records("call") == []


def test_a_frame_that_makes_no_sense_is_told(
    pair: tuple[socket.socket, socket.socket], exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    ours.sendall(b"\0\0\0\1?")
    with pytest.raises(SystemExit):
        _read_forever(theirs, Worker(theirs, torch.device("cpu"), 1))
    assert [record.levelno for record in caplog.get_records("call")] == [logging.ERROR]


class Ending:
    """As much of a job as is needed to fail it."""

    def __init__(self) -> None:
        self.request = type("Request", (), {"label": "", "id": 1})()
        self.failed: list[BaseException] = []

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)


def test_a_device_that_is_broken_for_the_process_ends_it_after_the_answer_and_one_that_works_does_not(
    pair: tuple[socket.socket, socket.socket], exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, job = Worker(pair[1], torch.device("cpu"), 1), Ending()
    launch = torch.AcceleratorError("CUDA error: unspecified launch failure")
    worker._pictures._fail(cast(Job, job), launch)
    monkeypatch.setattr("hub.engine.pictures.works", lambda device: False)
    worker._pictures._fail(cast(Job, job), torch.OutOfMemoryError("CUDA out of memory"))
    assert exits == []
    with pytest.raises(SystemExit):
        worker._pictures._fail(cast(Job, job), launch)
    assert exits == [1]
    assert len(job.failed) == 3


@pytest.mark.parametrize(
    ("changes", "denoiser"),
    [
        ({}, {"streams": True, "skipper": False, "compiler": False, "variant": ""}),
        ({"skip": 0.1}, {"streams": True, "skipper": True, "compiler": False, "variant": ""}),
        ({"compile": True}, {"streams": False, "skipper": False, "compiler": True, "variant": " compiled"}),
        (
            {"storage_dtype": "float8_e5m2"},
            {"streams": False, "skipper": False, "compiler": False, "variant": " in float8_e5m2"},
        ),
        (
            {"quantization": "bitsandbytes:int8"},
            {"streams": False, "skipper": False, "compiler": False, "variant": " in bitsandbytes:int8"},
        ),
    ],
)
def test_a_models_settings_hold_for_its_denoiser_alone(
    pair: tuple[socket.socket, socket.socket],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    denoiser: dict[str, Any],
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("hub.engine.worker.MeetingPoint", lambda module, method, **options: made.append(options))
    device = torch.device("cpu")
    worker = Worker(pair[1], device, 16, compiler=Compiler(tmp_path, device, "here"))
    worker._streams = Streams(2)
    model = EngineModel("small", "", "float32", **changes)
    for denoising, reading in ((True, False), (False, True), (False, False)):
        worker._install(SharedMethod(torch.nn.Identity(), "forward", denoising=denoising, reading=reading), model)
    seen = [
        {name: options[name] if name == "variant" else options[name] is not None for name in denoiser}
        for options in made
    ]
    nothing = {"streams": False, "skipper": False, "compiler": False, "variant": ""}
    assert seen == [denoiser, nothing, nothing]
    assert [options["memo"] is not None for options in made] == [False, True, False]
