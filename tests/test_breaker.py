from __future__ import annotations

import asyncio

import pytest

from hub.breaker import FAILURES, LONGEST, PAUSE, Breaker, Breakers, Open
from hub.errors import (
    HubError,
    InvalidRequest,
    NothingMade,
    ProviderBusy,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
    ProviderUnavailable,
)
from hub.remote.adapter import JobFailed

FAILING = ProviderFailed("no")


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def ends(breaker: Breaker, error: BaseException | None = None) -> None:
    """A request that ends so."""
    try:
        with breaker.attempt():
            if error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise


def opened(breaker: Breaker) -> Breaker:
    for _ in range(FAILURES):
        ends(breaker, FAILING)
    return breaker


def test_it_opens_after_some_failures_in_a_row(breaker: Breaker) -> None:
    for _ in range(FAILURES - 1):
        ends(breaker, FAILING)
    assert breaker.wait == 0
    ends(breaker, FAILING)
    assert breaker.wait == PAUSE
    with pytest.raises(Open) as found, breaker.attempt():
        pytest.fail("nothing goes through")
    assert found.value.wait == PAUSE


def test_one_that_is_served_between_them_counts_from_the_beginning(breaker: Breaker) -> None:
    for _ in range(3):
        for _ in range(FAILURES - 1):
            ends(breaker, FAILING)
        ends(breaker)
    assert breaker.wait == 0


@pytest.mark.parametrize(
    "error", [FAILING, ProviderTimeout("late"), ProviderUnavailable("gone", code="provider_unreachable")]
)
def test_the_providers_failing_counts(breaker: Breaker, error: HubError) -> None:
    for _ in range(FAILURES):
        ends(breaker, error)
    assert breaker.wait


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no", code="provider_refused"),
        NothingMade("of this request"),
        JobFailed("of this request"),
        ProviderBusy("later"),
        ProviderKeyRefused("who"),
        ProviderUnavailable("no key"),
        asyncio.CancelledError(),
        ValueError("ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nothing_else_does(breaker: Breaker, error: BaseException) -> None:
    for _ in range(3 * FAILURES):
        ends(breaker, error)
    assert breaker.wait == 0


def test_after_the_pause_one_request_tries_and_closes_it(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.time += PAUSE
    assert breaker.wait == 0
    with breaker.attempt():
        assert breaker.wait > 0
        with pytest.raises(Open), breaker.attempt():
            pytest.fail("one at a time")
    assert breaker.wait == 0
    for _ in range(FAILURES - 1):
        ends(breaker, FAILING)
    assert breaker.wait == 0, "it counts from the beginning"


def test_each_try_that_fails_doubles_the_pause_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    pauses = []
    for _ in range(6):
        clock.time += breaker.wait
        ends(breaker, FAILING)
        pauses.append(breaker.wait)
    assert pauses == [60, 120, 240, LONGEST, LONGEST, LONGEST]
    clock.time += breaker.wait
    ends(breaker)
    opened(breaker)
    assert breaker.wait == PAUSE, "of the next time the first pause is short again"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), InvalidRequest("no"), ProviderBusy("later")])
def test_a_try_that_says_nothing_lets_the_next_one_try(breaker: Breaker, clock: Clock, error: BaseException) -> None:
    opened(breaker)
    clock.time += PAUSE
    ends(breaker, error)
    assert breaker.wait == 0
    ends(breaker)
    assert breaker.wait == 0


def test_requests_of_before_do_not_prolong_the_pause(breaker: Breaker) -> None:
    early = [breaker.attempt() for _ in range(3)]
    for each in early:
        each.__enter__()
    opened(breaker)
    for each in early:
        each.__exit__(ProviderFailed, FAILING, None)
    assert breaker.wait == PAUSE


def test_one_of_before_that_is_served_closes_it(breaker: Breaker) -> None:
    with breaker.attempt():
        opened(breaker)
    assert breaker.wait == 0


def test_each_target_has_its_own(clock: Clock) -> None:
    breakers = Breakers(clock)
    opened(breakers.of("one"))
    assert breakers.of("one").wait == PAUSE
    assert breakers.of("other").wait == 0
    refused = breakers.refusal("one", 29.6)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "30")
