"""The learner against made-up devices; no clock, no torch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.engine.saturation import GAIN, MAX_CURVES, RETRY, SAVE_EVERY, Memory, Saturation

Cost = Callable[[int], float]


def linear(rows: int) -> float:
    return 0.1 * rows


def constant(rows: int) -> float:
    return 0.1


def until_8(rows: int) -> float:
    return 0.1 * max(rows, 8) / 8


def in_tiles_of_4(rows: int) -> float:
    return 0.1 * -(-rows // 4)


def with_overhead(rows: int) -> float:
    return 0.1 * (2 + rows)


def drive(
    cost: Cost,
    *,
    saturation: Saturation | None = None,
    load: int = 100,
    rows_of_a_call: int = 1,
    forwards: int = 60,
    noise: Callable[[], float] = lambda: 1.0,
) -> list[int]:
    """The caps after each forward of a device that is never idle. load: rows that wait."""
    learner, caps = saturation or Saturation(16), []
    for _ in range(forwards):
        rows = max(rows_of_a_call, min(learner.cap("kind"), load) // rows_of_a_call * rows_of_a_call)
        learner.observe("kind", rows, cost(rows) * noise())
        caps.append(learner.cap("kind"))
    return caps


@pytest.mark.parametrize(
    ("cost", "cap"), [(linear, 1), (constant, 16), (until_8, 8), (in_tiles_of_4, 4), (with_overhead, 16)]
)
def test_the_cap_is_the_smallest_batch_that_pays(cost: Cost, cap: int) -> None:
    assert drive(cost)[-1] == cap


@pytest.mark.parametrize(("cost", "cap"), [(linear, 1), (constant, 16), (until_8, 8), (in_tiles_of_4, 4)])
def test_the_same_for_guided_pictures_of_two_rows(cost: Cost, cap: int) -> None:
    assert drive(cost, rows_of_a_call=2)[-1] == cap


def test_calls_of_three_rows_that_never_fill_the_limit_settle_too() -> None:
    assert drive(until_8, rows_of_a_call=3)[-1] == 12


def test_the_search_starts_small_and_doubles() -> None:
    caps = drive(constant)
    assert [cap for cap, before in zip(caps, [0, *caps], strict=False) if cap != before][:5] == [1, 2, 4, 8, 16]
    assert caps.index(16) < 20, "a single picture's steps are enough"
    assert set(caps[30:]) == {16}


def test_the_limit_is_never_exceeded() -> None:
    assert max(drive(constant, saturation=Saturation(6))) == 6
    assert max(drive(constant, saturation=Saturation(1))) == 1


def test_a_kind_that_is_unknown_starts_small() -> None:
    assert Saturation(16).cap("kind") == 1


def test_kinds_do_not_teach_one_another() -> None:
    saturation = Saturation(16)
    drive(constant, saturation=saturation)
    assert saturation.cap("another") == 1


def test_the_first_forward_of_a_size_does_not_count() -> None:
    """It compiled, or picked its kernels."""
    seen: set[int] = set()

    def compiles(rows: int) -> float:
        first = rows not in seen
        seen.add(rows)
        return until_8(rows) + (60 if first else 0)

    assert drive(compiles)[-1] == 8


def test_a_hiccup_now_and_then_does_not_count() -> None:
    """One forward in seven takes twenty times as long."""
    chance = random.Random(1)
    ends = [drive(until_8, noise=lambda: 20 if chance.random() < 1 / 7 else 1)[-1] for _ in range(50)]
    assert ends.count(8) >= 48


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("cost", "low", "high"), [(linear, 1, 2), (until_8, 8, 16), (constant, 16, 16)])
def test_noise_of_a_tenth_costs_little(cost: Cost, low: int, high: int, seed: int) -> None:
    """What the caps cost on the whole, for they may be wrong now and then."""
    chance = random.Random(seed)
    caps = drive(cost, noise=lambda: max(0.5, chance.gauss(1, 0.1)), forwards=400)[50:]
    assert sum(low <= cap <= high for cap in caps) / len(caps) > 0.8


@given(st.integers(0, 2**32), st.sampled_from([linear, constant, until_8, in_tiles_of_4, with_overhead]))
def test_whatever_load_there_was_no_doubling_that_pays_is_missed(seed: int, cost: Cost) -> None:
    """Batches of all sizes, as callers come and go; then a full queue."""
    chance, saturation = random.Random(seed), Saturation(16)
    for _ in range(100):
        drive(cost, saturation=saturation, load=chance.randint(1, 16), forwards=1)
    cap = drive(cost, saturation=saturation)[-1]
    best = min(cost(rows) / rows for rows in range(1, 17))
    assert cost(cap) / cap * (1 - GAIN) ** 2 <= best


def test_a_size_that_became_slow_is_given_up() -> None:
    saturation = Saturation(16)
    assert drive(constant, saturation=saturation)[-1] == 16
    assert drive(linear, saturation=saturation, forwards=100)[-1] <= 2


def test_a_size_that_became_worth_it_is_found_in_time() -> None:
    """What was learned while another program had the device is not right for ever."""
    saturation = Saturation(16)
    assert drive(linear, saturation=saturation)[-1] == 1
    assert drive(constant, saturation=saturation, forwards=RETRY + 60)[-1] == 16


def test_trying_again_takes_few_forwards_and_changes_nothing_where_nothing_changed() -> None:
    caps = drive(until_8, forwards=4 * RETRY)[60:]
    assert caps.count(8) / len(caps) > 0.97
    assert caps[-1] == 8


def test_what_does_not_fit_into_memory_is_not_tried_again() -> None:
    saturation = Saturation(16)
    assert drive(constant, saturation=saturation)[-1] == 16
    saturation.refuse("kind", 16)
    assert max(drive(constant, saturation=saturation, forwards=2 * RETRY)) == 8
    saturation.refuse("never run", 2)
    assert saturation.cap("never run") == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_not_taken(seconds: float) -> None:
    saturation = Saturation(16)
    for _ in range(9):
        saturation.observe("kind", 1, seconds)
    assert not saturation.changed
    assert saturation.cap("kind") == 1


def test_costs_are_the_known_ones_or_those_of_the_nearest_size_or_of_rows_in_general() -> None:
    saturation = Saturation(16)
    assert saturation.seconds("kind", 4) == 0.0
    drive(constant, saturation=saturation)
    assert saturation.seconds("kind", 16) == pytest.approx(0.1)
    assert saturation.seconds("kind", 17) == pytest.approx(0.1 * 17 / 16)
    assert 0.1 / 16 < saturation.seconds("another", 1) < 0.1


# Remembering


def test_another_process_goes_on_where_this_one_ended() -> None:
    saturation = Saturation(16)
    drive(until_8, saturation=saturation)
    again = Saturation.from_json(saturation.to_json(), 16)
    assert again.cap("kind") == 8
    assert again.seconds("kind", 8) == saturation.seconds("kind", 8)
    assert not again.changed
    assert set(drive(until_8, saturation=again)) == {8}


def test_a_remembered_cap_keeps_a_new_limit() -> None:
    saturation = Saturation(16)
    drive(constant, saturation=saturation)
    assert Saturation.from_json(saturation.to_json(), 4).cap("kind") == 4
    assert Saturation.from_json(saturation.to_json(), 64).cap("kind") == 32, "there may be more to gain"


def test_only_so_many_kinds_are_remembered_and_the_latest_are() -> None:
    saturation = Saturation(16)
    for kind in range(MAX_CURVES + 10):
        for _ in range(4):
            saturation.observe(str(kind), 1, 0.1)
    kept = msgspec.json.decode(saturation.to_json())["curves"]
    assert list(kept) == [str(kind) for kind in range(10, MAX_CURVES + 10)]


def learned(limit: int = 16) -> Saturation:
    saturation = Saturation(limit)
    drive(until_8, saturation=saturation)
    assert saturation.changed
    return saturation


def test_the_file_is_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "saturation.json"
    Memory(path).save(learned(), idle=True)
    assert Memory(path).load(16).cap("kind") == 8
    assert [each.name for each in path.parent.iterdir()] == ["saturation.json"]


def test_a_busy_device_writes_now_and_then_an_idle_one_at_once(tmp_path: Path) -> None:
    path, now = tmp_path / "saturation.json", [0.0]
    memory, saturation = Memory(path, lambda: now[0]), learned()
    memory.save(saturation)
    assert not path.exists()
    now[0] = SAVE_EVERY
    memory.save(saturation)
    assert path.exists()
    path.unlink()
    memory.save(saturation, idle=True)
    assert not path.exists(), "nothing is new"
    saturation.changed = True
    memory.save(saturation, idle=True)
    assert path.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version":1}',
        b'{"version":2,"curves":{}}',
        b'{"version":1,"curves":{"k":{"0":1.0}}}',
        b'{"version":1,"curves":{"k":{"1":-1.0}}}',
        b'{"version":1,"curves":{"k":{"1":1e999}}}',
        b'{"version":1,"curves":{"k":{"one":1.0}}}',
        b'{"version":1,"curves":{"\xff":{"1":1.0}}}',
        b'{"version":1,"curves":' + b'{"k":' * 100_000,
    ],
)
def test_a_damaged_file_is_ignored_and_logged(tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "saturation.json"
    path.write_bytes(raw)
    assert Memory(path).load(16).cap("k") == 1
    assert "learned again" in caplog.text


def test_a_missing_file_is_nothing_to_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Memory(tmp_path / "none.json").load(16).cap("kind") == 1
    assert not caplog.text


def test_a_folder_that_cannot_be_written_is_logged_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    memory, saturation = Memory(tmp_path / "file" / "saturation.json"), learned()
    for _ in range(3):
        saturation.changed = True
        memory.save(saturation, idle=True)
    assert caplog.text.count("cannot be written") == 1


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_what_load_catches(raw: bytes) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        Saturation.from_json(raw, 16)
