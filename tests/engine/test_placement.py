"""The choice of a worker, on machines that nobody here has."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.engine.placement import QUEUE, ROOM, Wanted, WorkerState, candidates, choose, crowded, empty

GB = 1 << 30


def gpu(index: int = 0, free: int = 80, **about: Any) -> WorkerState:
    """A ready worker on `cuda:index`; memory in GB."""
    total = about.pop("total", 80)
    held = frozenset(about.pop("held", ()))
    return WorkerState(device=f"cuda:{index}", free=free * GB, total=total * GB, held=held, **about)


def cpu(free: int = 500, **about: Any) -> WorkerState:
    return WorkerState(device="cpu", free=free * GB, total=512 * GB, held=frozenset(about.pop("held", ())), **about)


def starting(index: int = 0) -> WorkerState:
    return WorkerState(device=f"cuda:{index}", ready=False, starting=True)


def failed(index: int = 0) -> WorkerState:
    return WorkerState(device=f"cuda:{index}", ready=False)


FLUX = Wanted("flux", 24 * GB)


@pytest.mark.parametrize(
    ("devices", "pin", "may"),
    [
        (["cpu"], None, [0]),
        (["cpu", "cpu"], None, [0, 1]),
        (["cuda:0", "cuda:1"], None, [0, 1]),
        (["cpu", "cuda:0", "cuda:1"], None, [1, 2]),
        (["cpu", "mps"], None, [1]),
        (["auto"], None, [0]),
        (["cuda:0", "cuda:1"], "cuda:1", [1]),
        (["cpu", "cuda:0"], "cpu", [0]),
        (["cpu", "cpu"], "cpu", [0, 1]),
        (["auto"], "cuda:3", [0]),
        (["cuda:0", "cuda:1"], "cuda:2", []),
        (["cuda:0"], "cpu", []),
        (["cuda:1", "cuda:10"], "cuda:1", [0]),
        ([], None, []),
        ([], "cpu", []),
    ],
)
def test_a_pin_decides_and_a_cpu_beside_gpus_is_left_alone(devices: list[str], pin: str | None, may: list[int]) -> None:
    assert candidates(devices, pin) == may


@pytest.mark.parametrize(
    ("workers", "chosen"),
    [
        pytest.param([gpu(0, 40), gpu(1, 70)], 1, id="the most free memory"),
        pytest.param([gpu(0, 70), gpu(1, 70)], 0, id="the first of equal ones"),
        pytest.param([gpu(0, 70, busy={"sd": 1}), gpu(1, 70)], 1, id="the less busy of equally free ones"),
        pytest.param([gpu(0, 70, busy={"sd": 9}), gpu(1, 40)], 0, id="memory before business"),
        pytest.param([cpu(held=["sd"]), cpu()], 1, id="workers on the CPU share memory: the one with fewer models"),
        pytest.param([cpu(400), cpu(500, held=["sd"])], 0, id="and an old report of more free memory is no advantage"),
        pytest.param([cpu(loading={"sd": GB}), cpu()], 1, id="nor is a load that has not happened"),
        pytest.param([gpu(0, 75, held=["sd"]), gpu(1, 60)], 0, id="what else is held does not matter where it fits"),
    ],
)
def test_a_model_that_nobody_holds_goes_where_the_most_memory_is_free(workers: list[WorkerState], chosen: int) -> None:
    assert choose(workers, FLUX) == chosen


def test_what_is_still_to_be_loaded_is_not_free_any_more() -> None:
    workers = [gpu(0, 80, loading={"qwen": 58 * GB}), gpu(1, 40, held=["sd"])]
    assert choose(workers, FLUX) == 1
    assert choose([gpu(0, 80), gpu(1, 40)], FLUX) == 0


@pytest.mark.parametrize(
    ("workers", "chosen"),
    [
        pytest.param([gpu(0, 3, held=["flux"]), gpu(1, 80)], 0, id="however full it is"),
        pytest.param([gpu(0, 3, loading={"flux": 24 * GB}), gpu(1, 80)], 0, id="or still loading"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": QUEUE - 1}), gpu(1)], 0, id="while its queue is short"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": QUEUE}), gpu(1)], 1, id="else an idle one loads it too"),
        pytest.param([gpu(0, held=["flux"], busy={"sd": QUEUE}), gpu(1)], 1, id="whatever it is that queues"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": 99}), gpu(1, busy={"sd": 1})], 0, id="idle means idle"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": 99}), gpu(1, 28)], 0, id="with room for the weights"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": 99}), cpu()], 0, id="and not on the CPU"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": 99}), starting(1)], 0, id="nor on one that starts"),
        pytest.param([gpu(0, held=["flux"], busy={"flux": 99}), gpu(1, 60), gpu(2, 70)], 2, id="the roomiest idle"),
        pytest.param(
            [gpu(0, held=["flux"], busy={"flux": 5}), gpu(1, held=["flux"], busy={"flux": 3})], 1, id="the less busy"
        ),
        pytest.param(
            [gpu(0, held=["flux"], busy={"flux": 5}), gpu(1, loading={"flux": 0}, busy={"flux": 1})],
            0,
            id="a load is as long as a queue",
        ),
        pytest.param(
            [gpu(0, held=["flux"], busy={"flux": 9}), gpu(1, loading={"flux": 0}, busy={"flux": 1})], 1, id="no longer"
        ),
        pytest.param([failed(0), gpu(1, held=["flux"], busy={"flux": 99})], 1, id="a dead one helps nobody"),
    ],
)
def test_a_model_that_somebody_holds_goes_there_unless_many_wait_and_another_is_idle(
    workers: list[WorkerState], chosen: int
) -> None:
    assert choose(workers, FLUX) == chosen


@pytest.mark.parametrize(
    ("workers", "chosen"),
    [
        pytest.param([gpu(0, 9, busy={"sd": 2}), gpu(1, 8, busy={"sd": 1})], 1, id="the least busy"),
        pytest.param([gpu(0, 8), gpu(1, 9)], 1, id="of equal ones the roomiest"),
        pytest.param([gpu(0, 28, busy={"sd": 1}), gpu(1, 26)], 1, id="24 GB want 28.8"),
        pytest.param([gpu(0, 9, total=16), gpu(1, 8, busy={"sd": 99})], 1, id="not one that is too small when empty"),
        pytest.param([gpu(0, 9, total=16), gpu(1, 8, total=16)], 0, id="unless all are"),
        pytest.param([gpu(0, 0, total=0, busy={"a": 1}), gpu(1, 0, total=0)], 1, id="nothing is known of the memory"),
    ],
)
def test_a_model_that_fits_nowhere_goes_to_the_least_busy_worker_that_could_ever_hold_it(
    workers: list[WorkerState], chosen: int
) -> None:
    assert choose(workers, FLUX) == chosen


@pytest.mark.parametrize(
    ("workers", "chosen"),
    [
        pytest.param([], None, id="none"),
        pytest.param([starting()], None, id="one that starts"),
        pytest.param([failed()], None, id="one that failed, and is tried again"),
        pytest.param([gpu(0), starting(1)], 0, id="an empty worker is as good as the one that starts"),
        pytest.param([gpu(0, 60, held=["sd"]), starting(1)], None, id="a second model waits for the second worker"),
        pytest.param([gpu(0, 60, loading={"sd": 0}), starting(1)], None, id="and so while the first one loads"),
        pytest.param([gpu(0, 60, held=["flux"]), starting(1)], 0, id="a request for what is loaded does not"),
        pytest.param([gpu(0, 20, total=24), starting(1)], None, id="nor goes where it does not fit"),
        pytest.param([gpu(0, 60, held=["sd"]), failed(1)], 0, id="nobody waits for one that could not start"),
        pytest.param([cpu(), starting(0)], None, id="nor runs on the CPU because the GPU is not up yet"),
        pytest.param([cpu(), failed(0)], None, id="or fails"),
    ],
)
def test_workers_that_start_are_waited_for_where_the_ready_ones_are_taken(
    workers: list[WorkerState], chosen: int | None
) -> None:
    assert choose(workers, FLUX) == chosen


def test_patience_ends_and_not_without_a_worker() -> None:
    assert choose([gpu(0, 60, held=["sd"]), starting(1)], FLUX, patient=False) == 0
    assert choose([starting(1)], FLUX, patient=False) is None


def test_a_pinned_model_goes_to_its_device_and_nowhere_else() -> None:
    pinned = Wanted("flux", 24 * GB, "cuda:1")
    assert choose([gpu(0, 80), gpu(1, 3, total=16, busy={"sd": 50})], pinned) == 1
    assert choose([gpu(0, 80, held=["flux"]), gpu(1, 40)], pinned) == 1
    assert choose([gpu(0, 80), gpu(1, held=["flux"], busy={"flux": 99})], pinned) == 1
    assert choose([gpu(0), failed(1)], pinned) is None
    assert choose([gpu(0)], pinned) is None
    assert choose([cpu(), gpu(0)], Wanted("flux", GB, "cpu")) == 0
    assert choose([cpu(held=["flux"], busy={"flux": 2}), cpu(busy={"sd": 1})], Wanted("flux", GB, "cpu")) == 0
    assert choose([starting(0), starting(1)], pinned) is None


def test_models_spread_over_equal_gpus_until_they_are_full_and_share_them_then() -> None:
    """As requests for one model after the other come in, and nothing has been loaded yet."""
    workers = [gpu(index, 40, total=40) for index in range(3)]
    placed = []
    for number in range(7):
        chosen = choose(workers, Wanted(f"model {number}", 15 * GB))
        assert chosen is not None
        placed.append(chosen)
        before = workers[chosen]
        loading = {**before.loading, f"model {number}": 15 * GB}
        busy = {**before.busy, f"model {number}": 1}
        workers[chosen] = gpu(chosen, 40, total=40, loading=loading, busy=busy)
    assert placed == [0, 1, 2, 0, 1, 2, 0]


def test_one_worker_gets_everything_whatever_is_known_of_it() -> None:
    for ready, pin, held, size in itertools.product([True, False], [None, "cpu"], [(), ("a", "b")], [0, 10**15]):
        state = WorkerState(device="cpu", ready=ready, free=1, held=frozenset(held), busy={"a": 99})
        assert choose([state], Wanted("a", size, pin)) == (0 if ready else None)


DEVICES = ["cpu", "cuda:0", "cuda:1", "cuda:2", "mps"]
MODELS = ["a", "b", "c"]
STATES = st.builds(
    WorkerState,
    device=st.sampled_from(DEVICES),
    ready=st.booleans(),
    starting=st.booleans(),
    total=st.integers(0, 100),
    free=st.integers(0, 100),
    held=st.frozensets(st.sampled_from(MODELS)),
    loading=st.dictionaries(st.sampled_from(MODELS), st.integers(0, 50)),
    busy=st.dictionaries(st.sampled_from(MODELS), st.integers(0, 9)),
)
WANTED = st.builds(Wanted, st.sampled_from(MODELS), st.integers(0, 120), st.none() | st.sampled_from(DEVICES))


@given(st.lists(STATES, max_size=5), WANTED, st.booleans())
def test_the_choice_is_ready_allowed_and_there_wherever_it_can_be(
    workers: list[WorkerState], wanted: Wanted, patient: bool
) -> None:
    may = candidates([worker.device for worker in workers], wanted.pin)
    ready = [index for index in may if workers[index].ready]
    chosen = choose(workers, wanted, patient=patient)
    if chosen is None:
        assert not ready or (patient and any(workers[index].starting for index in may))
        return
    assert chosen in ready
    holders = [index for index in ready if workers[index].has(wanted.model)]
    if holders and chosen not in holders:
        assert workers[chosen].queue == 0
        assert all(workers[index].queue >= QUEUE or workers[index].loading for index in holders)
        assert workers[chosen].free >= wanted.size * ROOM


def test_a_load_is_crowded_where_less_is_free_than_it_wants() -> None:
    wanted = Wanted("m", 10 * GB)
    assert not crowded([gpu(free=12)], 0, wanted)
    assert crowded([gpu(free=11)], 0, wanted)
    assert crowded([gpu(free=20, loading={"other": 9 * GB})], 0, wanted), "what is promised is not free"
    assert not crowded([gpu(free=1, held={"m"})], 0, wanted), "it is there"
    assert not crowded([gpu(free=1, loading={"m": 10 * GB})], 0, wanted), "it is on its way"
    assert not crowded([gpu(free=0, total=0)], 0, wanted), "nobody has told"
    assert crowded([cpu(free=1)], 0, wanted)
    assert not crowded([gpu(), cpu(free=1)], 1, wanted), "a CPU beside GPUs"


def test_a_device_that_holds_or_loads_a_model_is_not_empty_and_a_cpu_beside_gpus_does_not_count() -> None:
    assert empty([]) and empty([gpu(), gpu(1)]) and empty([starting()])
    assert not empty([gpu(), gpu(1, held={"m"})])
    assert not empty([gpu(loading={"m": 1})])
    assert not empty([cpu(held={"m"})])
    assert empty([gpu(), cpu(held={"m"})])
