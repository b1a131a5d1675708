from __future__ import annotations

import pytest
import torch

from hub.engine.meeting import MeetingPoint, Run
from hub.engine.skipping import Skipper
from hub.engine.weave import Weave


class Clock:
    """A run of so many steps, where the test says which one it is at."""

    def __init__(self, steps: int) -> None:
        self.at = 0
        self.all = steps

    def steps(self) -> int:
        return self.all

    def done(self) -> int:
        return self.at


def ask(skipper: Skipper, run: Clock, outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """One call for each step; what was expected, None where it had to be computed."""
    expected = []
    for run.at, output in enumerate(outputs):
        expected.append(skipper.expect(run))
        if expected[-1] is None:
            skipper.note(run, (output,))
    return [None if each is None else each[0] for each in expected]


def straight(steps: int, pace: float) -> list[torch.Tensor]:
    """Outputs of size one that drift by `pace` a step."""
    return [torch.ones(1, 4, 2, 2) + pace * step for step in range(steps)]


def test_what_drifts_slowly_in_a_straight_line_is_foreseen() -> None:
    outputs = straight(12, 0.01)
    expected = ask(Skipper(0.05), Clock(12), outputs)
    computed = [step for step, each in enumerate(expected) if each is None]
    assert computed[:2] == [0, 1] and computed[-1] == 11
    assert 4 <= len(computed) <= 6
    for output, each in zip(outputs, expected, strict=True):
        if each is not None:
            assert torch.allclose(output, each)


def test_what_changes_fast_is_computed_at_each_step() -> None:
    assert ask(Skipper(0.05), Clock(8), straight(8, 0.5)) == [None] * 8


def test_a_higher_threshold_skips_more() -> None:
    counts = [
        sum(each is not None for each in ask(Skipper(limit), Clock(30), straight(30, 0.01)))
        for limit in (0.01, 0.05, 0.2)
    ]
    assert counts == sorted(counts) and counts[0] < counts[2]


def test_two_calls_a_step_are_remembered_apart() -> None:
    skipper, run = Skipper(1.0), Clock(6)
    for run.at in range(2):
        for sign in (1, -1):
            assert skipper.expect(run) is None
            skipper.note(run, (torch.full((1, 4), sign * (1 + run.at / 100)),))
    run.at = 2
    assert skipper.expect(run)[0].mean() > 1
    assert skipper.expect(run)[0].mean() < -1


def test_runs_do_not_mix() -> None:
    skipper, one, other = Skipper(0.5), Clock(9), Clock(9)
    for step in range(2):
        for run, value in ((one, 1.0), (other, 5.0)):
            run.at = step
            assert skipper.expect(run) is None
            skipper.note(run, (torch.full((1, 2), value),))
    one.at = other.at = 2
    assert skipper.expect(one)[0].tolist() == [[1.0, 1.0]]
    assert skipper.expect(other)[0].tolist() == [[5.0, 5.0]]


def test_outputs_of_a_kind_that_cannot_be_drawn_out_are_always_computed() -> None:
    skipper, run = Skipper(1.0), Clock(5)
    for run.at in range(5):
        assert skipper.expect(run) is None
        skipper.note(run, {1, 2})


def test_a_pipeline_that_does_not_tell_its_steps_skips_none() -> None:
    skipper = Skipper(1.0)
    run = Run(lambda: None, lambda: 5, None)
    for _ in range(5):
        assert skipper.expect(run) is None
        skipper.note(run, torch.ones(1, 2))


@pytest.mark.parametrize("company", [0, 3])
def test_a_meeting_point_computes_fewer_forwards_whatever_the_company(company: int) -> None:
    class Drifting(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            calls.extend(timestep.reshape(-1).tolist())
            return (sample + timestep.reshape(-1, 1) / 100,)

    calls: list[float] = []
    module = Drifting()
    MeetingPoint(module, "forward", denoising=True, skipper=Skipper(0.03))
    outcomes: dict[int, object] = {}
    weave = Weave(16, lambda *_: None, outcomes.__setitem__)

    def start(number: int) -> None:
        at = [0]

        def body() -> list[float]:
            values = []
            for step in range(10):
                at[0] = step
                values.append(float(module(torch.ones(1, 1), torch.tensor(step))[0]))
            return values

        weave.start(number, body, lambda: 10, done=lambda: at[0])

    for number in range(1 + company):
        start(number)
    while weave.busy:
        weave.tick()
    assert len(calls) < 8 * (1 + company)
    for values in outcomes.values():
        assert values == pytest.approx([1 + step / 100 for step in range(10)])


def test_a_call_of_another_form_is_computed() -> None:
    """Z-Image stops guiding on the way (`cfg_truncation`), and then asks for half of the rows."""
    skipper, run = Skipper(1.0), Clock(9)
    for run.at in range(3):
        if skipper.expect(run, "two rows") is None:
            skipper.note(run, (torch.ones(2, 2),))
    run.at = 3
    assert skipper.expect(run, "one row") is None
