"""The weave: continuous batching for every diffusers pipeline, without rewriting any.

Each picture is the pipeline's own `__call__` in a greenlet (a `Run`) of the device thread. It runs until it calls a
shared module, where it waits; `tick` lets the policy choose which waiting calls share the next forward, runs it once
and resumes each with its part. Runs join and leave between forwards, are cancelled by an exception thrown into their
greenlet, and fail alone. Nothing here knows a pipeline, a family or a frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from hub.engine.meeting import Call, Run
from hub.engine.policy import Waiting, choose

log = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Thrown into a run: unwinds its pipeline at the meeting point where it waits."""


class Picture:
    """A run and what the weave knows of it. `steps()` tells how many denoising steps it has in all."""

    def __init__(self, number: int, body: Callable[[], Any], steps: Callable[[], int]) -> None:
        self.number = number
        self.run = Run(body)
        self.steps = steps
        self.done_steps = 0
        self.waited = 0
        self.call: Call | None = None

    def waiting(self, call: Call) -> Waiting:
        """The policy's view of it and its call."""
        return Waiting(
            run=self.number,
            key=call.key,
            rows=call.layout.rows,
            denoising=call.point.denoising,
            remaining=max(0, self.steps() - self.done_steps),
            waited=self.waited,
        )


OnStep = Callable[[int, int, int], None]
OnDone = Callable[[int, Any], None]


class Weave:
    """All runs of one device thread. Not thread-safe: that thread alone calls it."""

    def __init__(self, max_rows: int, on_step: OnStep, on_done: OnDone) -> None:
        """max_rows: cap of a merged forward's batch. on_step(number, done, all) follows each denoising step of a
        run; on_done(number, outcome) its end, where outcome is the body's result or the exception it died of.
        Cancelled runs report nothing."""
        self._max_rows = max_rows
        self._on_step = on_step
        self._on_done = on_done
        self._pictures: dict[int, Picture] = {}

    @property
    def busy(self) -> bool:
        """Whether any run waits for a forward."""
        return bool(self._pictures)

    def start(self, number: int, body: Callable[[], Any], steps: Callable[[], int]) -> None:
        """Starts a run; it goes on to its first meeting point at once."""
        picture = self._pictures[number] = Picture(number, body, steps)
        self._resume(picture)

    def cancel(self, number: int) -> None:
        """Ends a run where it waits. Unknown numbers are ignored: it may just have ended by itself."""
        picture = self._pictures.pop(number, None)
        if picture is None:
            return
        try:
            picture.run.throw(Cancelled())
        except Cancelled:
            return
        except BaseException:
            log.warning("a cancelled run ended with an error of its own", exc_info=True)
            return
        if not picture.run.dead:  # a pipeline swallowed the exception and called the next module
            log.warning("a cancelled run did not end; it is dropped where it stands")

    def tick(self) -> None:
        """Runs one forward for the most urgent waiting calls, and resumes each of them."""
        waiting = {number: (picture, picture.call) for number, picture in self._pictures.items() if picture.call}
        chosen = choose([picture.waiting(call) for picture, call in waiting.values()], self._max_rows)
        for picture, _ in waiting.values():
            picture.waited += 1
        group = [waiting[number] for number in chosen]
        for (picture, call), outcome in zip(group, _forward([call for _, call in group]), strict=True):
            if self._pictures.get(picture.number) is not picture:
                continue  # the end of an earlier one in this group cancelled it
            picture.waited = 0
            if isinstance(outcome, BaseException):
                self._resume(picture, throw=outcome)
                continue
            if call.point.denoising:
                picture.done_steps += 1
                total = max(picture.steps(), 1)
                self._on_step(picture.number, min(picture.done_steps, total), total)
            self._resume(picture, outcome)

    def _resume(self, picture: Picture, value: Any = None, throw: BaseException | None = None) -> None:
        fresh = picture.call is None
        picture.call = None
        try:
            if throw is not None:
                got = picture.run.throw(throw)
            else:
                got = picture.run.switch() if fresh else picture.run.switch(value)
        except Exception as error:  # one run's failure is its own
            got = error
        if isinstance(got, Call):
            picture.call = got
        else:
            del self._pictures[picture.number]
            self._on_done(picture.number, got)


def _forward(calls: list[Call]) -> list[Any]:
    """Each call's output of a shared forward, or the exception that is its own.

    Where the shared forward fails, each call is tried alone, so that only the one at fault fails.
    """
    try:
        return calls[0].point.forward(calls)
    except Exception as error:
        if len(calls) == 1:
            return [error]
        log.warning("a shared forward of %d calls failed (%s); trying each alone", len(calls), type(error).__name__)
    outcomes: list[Any] = []
    for call in calls:
        try:
            outcomes.extend(call.point.forward([call]))
        except Exception as error:
            outcomes.append(error)
    return outcomes
