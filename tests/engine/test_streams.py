from __future__ import annotations

import threading

import pytest
import torch

from hub.engine.streams import LEAST, Streams, streams_for


@pytest.fixture
def streams() -> Streams:
    return Streams(2)


def test_rows_are_shared_out_evenly_where_there_are_enough(streams: Streams) -> None:
    assert streams.shares(2 * LEAST - 1) == [2 * LEAST - 1]
    assert streams.shares(14) == [7, 7]
    assert streams.shares(15) == [8, 7]
    assert Streams(4).shares(15) == [4, 4, 4, 3]


def test_parts_run_at_the_same_time_on_one_core_each_and_without_gradients(streams: Streams) -> None:
    together = threading.Barrier(2, timeout=10)
    team = torch.get_num_threads()

    def part() -> tuple[int, bool, int]:
        together.wait()
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.get_ident()

    with torch.inference_mode():
        one, other = streams.run([part, part])
    assert one[:2] == other[:2] == (1, True)
    assert one[2] == threading.get_ident() != other[2]
    assert torch.get_num_threads() == team


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_raised_when_all_parts_have_ended(streams: Streams, failing: int) -> None:
    ended = []

    def part(index: int) -> None:
        if index == failing:
            raise torch.OutOfMemoryError("full")
        ended.append(index)

    team = torch.get_num_threads()
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        streams.run([lambda: part(0), lambda: part(1)])
    assert ended == [1 - failing]
    assert torch.get_num_threads() == team
    assert streams.run([lambda: 1, lambda: 2]) == [1, 2]


def test_only_a_cpu_with_several_cores_has_any() -> None:
    team = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert streams_for(torch.device("cpu")) is None
        torch.set_num_threads(2)
        assert streams_for(torch.device("cuda", 0)) is None
        found = streams_for(torch.device("cpu"))
        assert found is not None and found.shares(8) == [4, 4]
    finally:
        torch.set_num_threads(team)
