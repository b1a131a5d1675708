"""The weave: continuous batching for every diffusers pipeline, without rewriting any.

Each picture is the pipeline's own `__call__` in a greenlet (a `Run`) of the device thread. It runs until it calls a
shared module, where it waits; `tick` lets the policy choose which waiting calls share the next forward, runs it once
and resumes each with its part. Runs join and leave between forwards, are cancelled by an exception thrown into their
greenlet, and fail alone. Nothing here knows a pipeline, a family or a frame.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from hub.engine.devices import out_of_memory
from hub.engine.halting import Halt, Halted
from hub.engine.meeting import Budget, Call, Run
from hub.engine.meter import Meter, rows_of
from hub.engine.policy import Ledger, Waiting, choose
from hub.engine.residency import SMALL, Residency

log = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Thrown into a run: unwinds its pipeline at the meeting point where it waits."""


class Picture:
    """A run and what the weave knows of it. Where the run has no `done`, each call of a denoiser is a step. `kind` is
    what the meter calls a forward with the call that waits."""

    def __init__(
        self,
        number: int,
        body: Callable[[], Any],
        steps: Callable[[], int],
        done: Callable[[], int] | None,
        *,
        owner: str,
        budget: Budget | None,
    ) -> None:
        self.number = number
        self.run = Run(body, steps, done, budget)
        self.owner = owner
        self.done_steps = 0
        self.waited = 0
        self.call: Call | None = None
        self.kind = ""

    def need(self, call: Call) -> int:
        """Bytes that each of the call's rows will take beside the weights, as far as that is known."""
        return self.run.budget.needs.get((id(call.point.module), call.point.method), 0)

    def waiting(self, call: Call, cap: int) -> Waiting:
        """The policy's view of it and its call."""
        return Waiting(
            run=self.number,
            key=call.key,
            rows=call.layout.rows,
            denoising=call.point.denoising,
            remaining=max(0, self.run.steps() - self.done_steps),
            waited=self.waited,
            cap=cap,
            owner=self.owner,
            away=call.point.residency is not None and call.point.residency.away(call.point.module),
            same=call.known_as,
        )


OnStep = Callable[[int, int, int], None]
OnDone = Callable[[int, Any], None]


class Weave:
    """All runs of one device thread. Not thread-safe: that thread alone calls it."""

    def __init__(
        self,
        max_rows: int,
        on_step: OnStep,
        on_done: OnDone,
        *,
        meter: Meter | None = None,
        halt: Halt | None = None,
        residency: Residency | None = None,
    ) -> None:
        """max_rows: cap of a merged forward's batch. on_step(number, done, all) follows each denoising step of a
        run; on_done(number, outcome) its end, where outcome is the body's result or the exception it died of.
        Cancelled runs report nothing. meter: lowers the cap to what is worth it, and tells what forwards cost; without
        one a row is a row. halt: ends forwards that nobody waits for. residency: has the weights of all modules."""
        self._max_rows = max_rows
        self._on_step = on_step
        self._on_done = on_done
        self._meter = meter
        self._halt = halt
        self._residency = residency
        self._capacity: int | None = None
        self._ledger = Ledger()
        self._pictures: dict[int, Picture] = {}

    @property
    def busy(self) -> bool:
        """Whether any run waits for a forward."""
        return bool(self._pictures)

    def start(
        self,
        number: int,
        body: Callable[[], Any],
        steps: Callable[[], int],
        owner: str = "",
        done: Callable[[], int] | None = None,
        *,
        budget: Budget | None = None,
    ) -> None:
        """Starts a run; it goes on to its first meeting point at once. For `steps`, `done` and `budget` see Run;
        `owner` is whom its forwards count for."""
        picture = self._pictures[number] = Picture(number, body, steps, done, owner=owner, budget=budget)
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
        """Runs one forward for the most urgent waiting calls, and resumes each of them; not where it was halted: who
        cancelled them is about to say so."""
        self._capacity = None
        waiting = {number: (picture, picture.call) for number, picture in self._pictures.items() if picture.call}
        views = [picture.waiting(call, self._cap(picture, call)) for picture, call in waiting.values()]
        chosen = choose(views, self._ledger)
        group = [waiting[view.run] for view in chosen]
        cost = self._cost(group)
        self._ledger.note(views, chosen, cost)
        for picture, _ in waiting.values():
            picture.waited += 1
        begin = time.perf_counter()
        try:
            outcomes = self._forward(group)
        except Halted:
            return
        known = self._meter is not None and cost > 0
        _charge(group, cost if known else time.perf_counter() - begin)
        for (picture, call), outcome in zip(group, outcomes, strict=True):
            if self._pictures.get(picture.number) is not picture:
                continue  # the end of an earlier one in this group cancelled it
            picture.waited = 0
            if isinstance(outcome, BaseException):
                self._resume(picture, throw=outcome)
                continue
            if picture.run.done is None and call.point.denoising:
                self._stepped(picture, picture.done_steps + 1)
            self._resume(picture, outcome)
        if self._meter:
            self._meter.learn(idle=not self.busy)

    def _stepped(self, picture: Picture, done: int) -> None:
        if done > picture.done_steps:
            total = max(picture.run.steps(), 1)
            picture.done_steps = done
            self._on_step(picture.number, min(done, total), total)

    def _cap(self, picture: Picture, call: Call) -> int:
        cap = min(self._max_rows, self._meter.cap(picture.kind)) if self._meter else self._max_rows
        need = picture.need(call)
        if self._residency is None or need < SMALL:
            return cap
        if self._capacity is None:  # once for each choice: to ask the machine takes its time
            self._capacity = self._residency.capacity
        return min(cap, self._residency.rows(call.point.module, need, self._capacity))

    def _cost(self, group: list[tuple[Picture, Call]]) -> float:
        """What is expected, not what is measured: that may come later, and the first forward of a kind may compile,
        which is nobody's fault."""
        rows = rows_of([call for _, call in group])
        return self._meter.seconds(group[0][0].kind, rows) if self._meter else rows

    def _forward(self, group: list[tuple[Picture, Call]]) -> list[Any]:
        """Each call's output of a shared forward, or the exception that is its own.

        Where the shared forward fails, each call is tried alone, so that only the one at fault fails.
        """
        kinds, calls = [picture.kind for picture, _ in group], [call for _, call in group]
        fits = True
        try:
            fits = self._bring(group)
            if fits:
                with self._meter.time(kinds, calls) if self._meter else contextlib.nullcontext(), self._halting(group):
                    return calls[0].point.forward(calls)
            failed = "too little memory"
        except Exception as error:
            if len(calls) == 1 and not out_of_memory(error):
                return [error]
            failed = type(error).__name__
            if self._meter and len(calls) > 1 and out_of_memory(error):
                for kind in set(kinds):
                    self._meter.refuse(kind, rows_of(calls))
        if len(calls) == 1:  # after the except clause: its error keeps all that the failed forward had made
            return [self._sparing(*group[0], freeing=fits)]
        log.warning("a shared forward of %d calls failed (%s); trying each alone", len(calls), failed)
        return [self._alone(picture, call) for picture, call in group]

    def _alone(self, picture: Picture, call: Call) -> Any:
        fits = True
        try:
            fits = self._bring([(picture, call)])
            if fits:
                with self._halting([(picture, call)]):
                    return call.point.forward([call])[0]
        except Exception as error:
            if not out_of_memory(error):
                return error
        return self._sparing(picture, call, freeing=fits)

    def _sparing(self, picture: Picture, call: Call, *, freeing: bool) -> Any:
        """A forward for which the device has too little memory: a VAE's in tiles, any other module's block by block.
        `freeing`: it was tried, and failed; everything else is put out of its way before."""
        point = call.point
        if freeing:
            log.warning("%s: out of memory; trying once more with all of the device, and in parts", point.name)
        try:
            if self._residency is not None:
                if freeing:
                    self._residency.lighten(point.module)
                need = 0 if point.can_tile else picture.need(call) * call.layout.rows
                self._residency.bring(point.module, need, lean=freeing)
            with point.in_tiles(call), self._halting([(picture, call)]):
                output = point.forward([call])[0]
            picture.run.budget.tiled |= point.can_tile
            return output
        except Exception as error:
            return error

    def _bring(self, group: list[tuple[Picture, Call]]) -> bool:
        """Puts the module of a group's forward on the device; whether there is room for it and what it computes."""
        point = group[0][1].point
        if self._residency is None:
            return True
        return self._residency.bring(
            point.module, sum(picture.need(call) * call.layout.rows for picture, call in group)
        )

    def _halting(self, group: list[tuple[Picture, Call]]) -> contextlib.AbstractContextManager[None]:
        return self._halt.during([picture.number for picture, _ in group]) if self._halt else contextlib.nullcontext()

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
        if picture.run.done is not None:
            self._stepped(picture, picture.run.done())
            if self._pictures.get(picture.number) is not picture:
                return  # whoever heard of the step has cancelled it
        if isinstance(got, Call):
            picture.call = got
            picture.kind = self._meter.kind(got) if self._meter else ""
        else:
            del self._pictures[picture.number]
            self._on_done(picture.number, got)


def _charge(group: list[tuple[Picture, Call]], seconds: float) -> None:
    """Divides a forward's time by rows among the pictures that had it. Those of one input count alike, though one is
    computed for all."""
    rows = sum(call.layout.rows for _, call in group)
    for picture, call in group:
        picture.run.budget.seconds += seconds * call.layout.rows / max(rows, 1)
