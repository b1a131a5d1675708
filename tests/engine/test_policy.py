from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hub.engine.policy import Waiting, choose


def call(run: int, key: str = "unet", *, rows: int = 2, denoising: bool = True, remaining: int = 5, waited: int = 0):
    return Waiting(run=run, key=key, rows=rows, denoising=denoising, remaining=remaining, waited=waited)


def test_calls_of_one_key_go_together() -> None:
    assert set(choose([call(1), call(2), call(3, "other")], 16)) == {1, 2}


def test_the_run_with_the_least_left_to_do_chooses_the_key() -> None:
    assert choose([call(1, "a", remaining=9), call(2, "b", remaining=2)], 16) == [2]


def test_text_encoders_and_decoders_go_before_denoising() -> None:
    assert choose([call(1, remaining=1), call(2, "text", denoising=False, remaining=30)], 16) == [2]


def test_a_call_that_waits_long_is_not_starved_by_short_ones() -> None:
    assert choose([call(1, "a", remaining=50, waited=60), call(2, "b", remaining=2)], 16) == [1]


def test_a_call_larger_than_the_cap_still_runs() -> None:
    assert choose([call(1, rows=40)], 16) == [1]


@given(
    st.lists(
        st.builds(
            Waiting,
            run=st.integers(0, 10**6),
            key=st.sampled_from("abc"),
            rows=st.integers(1, 8),
            denoising=st.booleans(),
            remaining=st.integers(0, 50),
            waited=st.integers(0, 50),
        ),
        min_size=1,
        max_size=30,
        unique_by=lambda waiting: waiting.run,
    ),
    st.integers(1, 20),
)
def test_a_choice_is_never_empty_mixes_no_keys_and_keeps_the_cap(waiting: list[Waiting], cap: int) -> None:
    by_run = {each.run: each for each in waiting}
    chosen = [by_run[run] for run in choose(waiting, cap)]
    assert chosen
    assert len({each.key for each in chosen}) == 1
    assert len(chosen) == 1 or sum(each.rows for each in chosen) <= cap


def test_every_call_is_served_within_a_bound_while_newcomers_keep_coming() -> None:
    """A long run against an endless stream of one-step runs of another key: ageing must let it through."""
    long, waited, forwards = 20, 0, 0
    for newcomer in range(1000):
        if long == 0:
            break
        short = call(1000 + newcomer, "short", remaining=1)
        forwards += 1
        if choose([call(1, "long", remaining=long, waited=waited), short], 16) == [1]:
            long, waited = long - 1, 0
        else:
            waited += 1
    assert long == 0
    assert forwards <= sum(range(1, 21)) + 20
