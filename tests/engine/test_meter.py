"""Timing with clocks and events that are made up."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hub.engine.meeting import Call
from hub.engine.merge import layout_of
from hub.engine.meter import MAX_PENDING, EventTimer, Forward, Meter, WallTimer, rows_of, shape_of, timer_for, where_of
from hub.engine.saturation import Saturation

ONE = Forward("kind", 1)


def call(*, known_as: bytes | None = None, **arguments: Any) -> Call:
    point = SimpleNamespace(name="UNet-abc.forward", denoising=True)
    made = Call(point, arguments, known_as)  # type: ignore[arg-type]
    assert made.layout == layout_of(arguments)
    return made


class Queue:
    """A device: a clock of its own that moves when it works, and events that are reached in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.todo: deque[Any] = deque()

    def work(self, milliseconds: float) -> None:
        self.todo.append(milliseconds)

    def advance(self, count: int = 1000) -> None:
        for _ in range(min(count, len(self.todo))):
            entry = self.todo.popleft()
            if isinstance(entry, Event):
                entry.at = self.now
            else:
                self.now += entry


class Event:
    at: float | None = None

    def record(self, stream: Queue) -> None:
        stream.todo.append(self)

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None, "read before the device came by: torch raises"
        return end.at - self.at


def test_a_wall_timer_takes_the_time_of_its_body() -> None:
    ticks = iter([1.0, 3.5, 10.0, 11.0])
    timer = WallTimer(lambda: next(ticks))
    with timer.time(ONE):
        pass
    with timer.time(Forward("kind", 2)):
        pass
    assert list(timer.read()) == [(ONE, 2.5), (Forward("kind", 2), 1.0)]
    assert list(timer.read()) == []


def test_a_forward_that_fails_is_not_timed() -> None:
    queue = Queue()
    for timer in (WallTimer(), EventTimer(Event, lambda: queue)):
        with pytest.raises(ZeroDivisionError), timer.time(ONE):
            raise ZeroDivisionError
        queue.advance()
        assert list(timer.read()) == []


def test_events_are_read_when_the_device_has_come_by_and_never_waited_for() -> None:
    queue = Queue()
    timer = EventTimer(Event, lambda: queue)
    queue.work(1000)  # what is before it in the queue does not count
    for milliseconds in (200, 300):
        with timer.time(ONE):
            queue.work(milliseconds)
    assert list(timer.read()) == []
    queue.advance(4)
    assert list(timer.read()) == [(ONE, 0.2)]
    queue.advance()
    assert list(timer.read()) == [(ONE, 0.3)]


def test_events_that_nobody_reads_do_not_pile_up() -> None:
    queue = Queue()
    timer = EventTimer(Event, lambda: queue)
    for _ in range(MAX_PENDING + 10):
        with timer.time(ONE):
            queue.work(1)
    queue.advance()
    assert len(list(timer.read())) == MAX_PENDING


def test_a_broken_device_is_left_for_the_next_forward_to_find() -> None:
    class Broken(Event):
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    timer = EventTimer(Broken, Queue)
    with timer.time(ONE):
        pass
    assert list(timer.read()) == []
    assert list(timer.read()) == []


def test_each_device_has_a_timer_that_does_not_make_it_wait() -> None:
    assert isinstance(timer_for(torch.device("cpu")), WallTimer)
    assert isinstance(timer_for(torch.device("cuda", 1)), EventTimer)
    assert timer_for(torch.device("mps")) is None


def test_a_kind_names_device_module_type_and_shape_and_nothing_that_differs_between_processes() -> None:
    meter = Meter(Saturation(16), WallTimer(), "some GPU:")
    told = call(sample=torch.zeros(2, 4, 64, 64, dtype=torch.bfloat16), other=object(), text=torch.zeros(2, 77, 8))
    assert meter.kind(told) == "some GPU: UNet-abc.forward bfloat16 4x64x64"
    assert where_of(torch.device("cpu")).startswith("cpu ")


def test_the_shape_is_that_of_the_sample_alone() -> None:
    sample = torch.zeros(2, 4, 8, 8)
    assert shape_of(call(sample=sample, text=torch.zeros(2, 77, 8))) == "float32 4x8x8"
    assert shape_of(call(sample=sample, text=torch.zeros(2, 154, 8))) == "float32 4x8x8"
    assert shape_of(call(t=torch.tensor(3.0), sample=sample)) == "float32 4x8x8", "a number is no sample"
    assert shape_of(call(x=[torch.zeros(4, 1, 6, 8), torch.zeros(4, 1, 6, 8)])) == "float32 4x1x6x8"
    assert shape_of(call(ids=torch.zeros(3, dtype=torch.int64))) == "int64 1"
    assert shape_of(call(flag=True)) == "nothing"


def test_rows_of_equal_inputs_are_counted_once() -> None:
    one, two = torch.zeros(1, 77), torch.zeros(2, 77)
    assert rows_of([call(ids=one), call(ids=one), call(ids=two)]) == 4
    assert rows_of([call(ids=one, known_as=b"a"), call(ids=one, known_as=b"a"), call(ids=two, known_as=b"b")]) == 3


def test_a_forward_of_unlike_samples_teaches_nothing() -> None:
    saturation = Saturation(16)
    meter = Meter(saturation, WallTimer())
    small, large = call(x=[torch.zeros(4, 1, 4, 4)]), call(x=[torch.zeros(4, 1, 8, 8)])
    for calls in ([small, large], [small, small]):
        kinds = [meter.kind(each) for each in calls]
        for _ in range(5):
            with meter.time(kinds, calls):
                pass
            meter.learn(idle=True)
    assert saturation.seconds(meter.kind(small), 2) > 0
    assert set(saturation._curves) == {meter.kind(small)}
