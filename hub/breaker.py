"""A target that fails again and again is left alone for a while. Pure, with a clock that is handed in.

closed     requests go through; FAILURES in a row open it
open       nothing goes through, for PAUSE seconds at first
half open  after that, one request at a time tries: if it is served, the breaker closes; if it fails, it is open again,
           for twice as long, up to LONGEST

What counts is the provider's failing: its errors, its silence, its not being there. That it is busy, refuses a key or
a request, makes nothing of one, does not know the model, or that nobody wanted the answer any more, says nothing: else
one key could close a target for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from hub.errors import HubError, NothingMade, ProviderFailed, ProviderTimeout, ProviderUnavailable

FAILURES = 5
PAUSE = 30.0
LONGEST = 300.0
PROBED = 1.0
"""Seconds after which to ask again while a request tries."""
UNREACHABLE = "provider_unreachable"


class Open(Exception):
    """It lets nothing through; `wait`: for so many seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


class Breaker:
    """Of one target."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures = 0
        self._pause = 0.0
        """Of the last opening; 0 while it is closed."""
        self._until = 0.0
        self._probing = False

    @property
    def wait(self) -> float:
        """Seconds until something may go through; 0 where it may now."""
        if not self._pause:
            return 0.0
        return PROBED if self._probing else max(0.0, self._until - self._now())

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one request; learns from how it ends. Raises Open where it must not go through."""
        if wait := self.wait:
            raise Open(wait)
        probe = self._probing = bool(self._pause)
        try:
            yield
        except BaseException as error:
            if is_failure(error):
                self._failed(probe=probe)
            raise
        else:
            self._failures, self._pause = 0, 0.0
        finally:
            if probe:
                self._probing = False

    def _failed(self, *, probe: bool) -> None:
        if self._pause and not probe:  # it began before the others had failed
            return
        self._failures += 1
        if probe or self._failures >= FAILURES:
            self._pause = min(LONGEST, 2 * self._pause or PAUSE)
            self._until = self._now() + self._pause


def is_failure(error: BaseException) -> bool:
    """Whether an error is the provider's failing."""
    if isinstance(error, ProviderUnavailable):
        return error.code == UNREACHABLE
    return isinstance(error, ProviderFailed | ProviderTimeout) and not isinstance(error, NothingMade)


class Breakers:
    """Of all targets, by their ids."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._by_id: dict[str, Breaker] = {}

    def of(self, target: str) -> Breaker:
        """Of this one."""
        return self._by_id.setdefault(target, Breaker(self._now))

    def refusal(self, target: str, wait: float) -> HubError:
        """What is told where a request came to nothing for it."""
        seconds = max(1, round(wait))
        words = f"{target} failed again and again, and is left alone for now. Ask again in {seconds} seconds."
        return ProviderUnavailable(words, retry_after=seconds)
