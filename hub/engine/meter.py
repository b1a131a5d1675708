"""Times the weave's forwards, and tells from what they took how large they should be and what they cost."""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from hub.engine.meeting import Call
from hub.engine.saturation import Memory, Saturation

log = logging.getLogger("hub.worker")

MAX_PENDING = 64


class Forward(NamedTuple):
    """What is timed: a kind of forward and its rows."""

    kind: str
    rows: int


class Timer(Protocol):
    """How long forwards take on the device. A seam: a GPU works on when the call that started it has returned."""

    def time(self, forward: Forward) -> AbstractContextManager[None]:
        """Times its body. One that raises is not timed."""

    def read(self) -> Iterator[tuple[Forward, float]]:
        """The forwards that have ended since the last read, with their seconds. Waits for none."""


class WallTimer:
    """For devices that have computed when a call returns: the CPU."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ended: deque[tuple[Forward, float]] = deque()

    @contextlib.contextmanager
    def time(self, forward: Forward) -> Iterator[None]:
        """See `Timer`."""
        begin = self._clock()
        yield
        self._ended.append((forward, self._clock() - begin))

    def read(self) -> Iterator[tuple[Forward, float]]:
        """See `Timer`."""
        while self._ended:
            yield self._ended.popleft()


class EventTimer:
    """For devices that compute behind the program: two marks in the device's own queue, read when it has come by.

    Nothing here makes the program wait for the device: to synchronize at each forward would leave the device idle
    while Python prepares the next one.
    """

    def __init__(self, new_event: Callable[[], Any], stream: Callable[[], Any]) -> None:
        """new_event: makes one with `record(stream)`, `query()` and `elapsed_time(end)` in milliseconds, as
        torch.cuda.Event has them. stream: the one that forwards run on now."""
        self._new_event = new_event
        self._stream = stream
        self._pending: deque[tuple[Forward, Any, Any]] = deque()

    @contextlib.contextmanager
    def time(self, forward: Forward) -> Iterator[None]:
        """See `Timer`."""
        if len(self._pending) >= MAX_PENDING:  # nobody reads, or the device is far behind
            yield
            return
        begin, end = self._new_event(), self._new_event()
        begin.record(self._stream())
        yield
        end.record(self._stream())
        self._pending.append((forward, begin, end))

    def read(self) -> Iterator[tuple[Forward, float]]:
        """See `Timer`. A device that is broken says so at the next forward, not here."""
        try:
            while self._pending and self._pending[0][2].query():
                forward, begin, end = self._pending.popleft()
                yield forward, begin.elapsed_time(end) / 1000
        except RuntimeError as error:
            log.warning("a forward could not be timed: %s", error)
            self._pending.clear()


def timer_for(device: torch.device) -> Timer | None:
    """None for a device whose forwards cannot be timed without waiting for them, or where that is untried (mps)."""
    if device.type == "cpu":
        return WallTimer()
    if device.type == "cuda":
        # The stream is named: an event would otherwise be recorded on the default device, which may be another one.
        return EventTimer(_cuda_event, lambda: torch.cuda.current_stream(device))
    return None


def _cuda_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Meter:
    """What the weave asks: how many rows a call's forward should have, and what it costs."""

    def __init__(self, saturation: Saturation, timer: Timer, where: str = "", memory: Memory | None = None) -> None:
        """where: names the device in the file, which may move to another machine."""
        self._saturation = saturation
        self._timer = timer
        self._where = where
        self._memory = memory

    def kind(self, call: Call) -> str:
        """What decides how long a forward with this call takes, rows aside, in words that the file can keep."""
        return f"{self._where} {call.point.name} {shape_of(call)}{' with LoRAs' if call.worn else ''}"

    def cap(self, kind: str) -> int:
        """See `Saturation`."""
        return self._saturation.cap(kind)

    def seconds(self, kind: str, rows: int) -> float:
        """See `Saturation`."""
        return self._saturation.seconds(kind, rows)

    def refuse(self, kind: str, rows: int) -> None:
        """See `Saturation`."""
        self._saturation.refuse(kind, rows)

    def time(self, kinds: Sequence[str], calls: Sequence[Call]) -> AbstractContextManager[None]:
        """Times its body, a forward of these calls; not where they are of several kinds, which would tell of none."""
        if len(set(kinds)) > 1:
            return contextlib.nullcontext()
        return self._timer.time(Forward(kinds[0], rows_of(calls)))

    def learn(self, *, idle: bool) -> None:
        """Takes in what has been timed, and keeps it. idle: the device has nothing to do."""
        for forward, seconds in self._timer.read():
            self._saturation.observe(*forward, seconds)
        if self._memory is not None:
            self._memory.save(self._saturation, idle=idle)


def meter_for(device: torch.device, limit: int, path: Path) -> Meter | None:
    """One that remembers in the file `path`; None where the device cannot be timed."""
    timer = timer_for(device)
    if timer is None:
        return None
    memory = Memory(path)
    return Meter(memory.load(limit), timer, where_of(device), memory)


def where_of(device: torch.device) -> str:
    """The device by its hardware, and torch, which a new version may speed up."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{device.type} {platform.machine()} {torch.get_num_threads()} threads"
    return f"{hardware}, torch {torch.__version__}:"


def shape_of(call: Call) -> str:
    """Type and shape of a row of the sample, as `bfloat16 4x64x64`.

    Not the call's key: that holds ids of objects, and values of tensors, and would be another one in each process.
    The sample alone tells what a row costs; the rest of a key (lengths of prompts, flags, position ids) would split
    what is known into many kinds, each of which has to be learned. Calls that join lists of unlike samples have one
    key and several shapes, so each has its own cap.
    """
    for value in call.arguments.values():
        rows = list(value) if isinstance(value, list) else value
        if isinstance(rows, list) and rows and torch.is_tensor(rows[0]):
            return _told(rows[0].dtype, rows[0].shape)
        if torch.is_tensor(rows) and rows.dim() > 0:
            return _told(rows.dtype, rows.shape[1:])
    return "nothing"


def _told(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape)) or '1'}"


def rows_of(calls: Sequence[Call]) -> int:
    """How many rows are computed: of calls that are known to have equal inputs, one runs for all."""
    return sum({call.known_as or index: call.layout.rows for index, call in enumerate(calls)}.values())
