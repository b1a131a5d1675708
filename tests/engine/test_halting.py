from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hub.engine.halting import Halt, Halted, blocks_of
from hub.engine.meeting import MeetingPoint
from hub.engine.streams import Streams
from hub.engine.weave import Weave


class Block(torch.nn.Module):
    """Counts its calls, and does something in the second block."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.parts = torch.nn.ModuleList([torch.nn.Identity()])
        self.calls = 0
        self.then: Callable[[], None] = lambda: None

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.index == 1:
            self.then()
        return sample + 1


class Denoiser(torch.nn.Module):
    """Four blocks, two of them further down."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(0), Block(1)])
        self.inner = torch.nn.Module()
        self.inner.blocks = torch.nn.ModuleList([Block(2), Block(3)])

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        for block in (*self.blocks, *self.inner.blocks):
            sample = block(sample)
        return (sample,)


class Scene:
    """A weave with pictures of the requests 10, 11, … that each call the denoiser twice."""

    def __init__(self, requests: int, streams: Streams | None = None) -> None:
        self.module = Denoiser()
        self.halt = Halt(lambda picture: picture + 10)
        self.halt.watch(self.module)
        MeetingPoint(self.module, "forward", denoising=True, streams=streams)
        self.outcomes: dict[int, object] = {}
        self.weave = Weave(16, lambda *_: None, self.outcomes.__setitem__, halt=self.halt)
        for number in range(requests):
            self.weave.start(number, self._draw, lambda: 2)

    def _draw(self) -> float:
        for _ in range(2):
            (made,) = self.module(torch.zeros(1, 1))
        return float(made)

    @property
    def calls(self) -> list[int]:
        return [block.calls for block in blocks_of(self.module)]  # type: ignore[misc]


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    assert [block.index for block in blocks_of(Denoiser())] == [0, 1, 2, 3]


@pytest.mark.parametrize("streams", [None, Streams(2, least=1)], ids=["whole", "in parts"])
def test_a_forward_for_cancelled_requests_alone_is_not_finished(streams: Streams | None) -> None:
    scene = Scene(2, streams)
    scene.module.blocks[1].then = lambda: [scene.halt.cancel(request) for request in (10, 11)] and None
    scene.weave.tick()
    assert scene.calls[0] >= 1 and scene.calls[3] == 0
    assert scene.weave.busy and not scene.outcomes  # until it hears of it
    for number in range(2):
        scene.weave.cancel(number)
        scene.halt.forget(number + 10)
    assert not scene.weave.busy and not scene.outcomes


def test_a_forward_that_somebody_waits_for_is_finished(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(2)
    scene.module.blocks[1].then = lambda: scene.halt.cancel(10)
    scene.weave.tick()
    assert scene.calls == [1, 1, 1, 1]
    scene.weave.cancel(0)
    scene.halt.forget(10)
    scene.module.blocks[1].then = lambda: None
    scene.weave.tick()
    assert scene.outcomes == {1: 4.0}
    assert not caplog.records


def test_what_runs_outside_of_forwards_is_never_halted() -> None:
    scene = Scene(0)
    scene.halt.cancel(10)
    assert float(scene.module(torch.zeros(1, 1))[0]) == 4


def test_a_cancelled_request_halts_nobody_when_it_is_forgotten() -> None:
    scene = Scene(1)
    scene.halt.cancel(10)
    with pytest.raises(Halted), scene.halt.during([0]):
        scene.halt.check()
    scene.halt.forget(10)
    scene.weave.tick()
    assert scene.calls == [1, 1, 1, 1]
