"""Which waiting calls share the next forward. Pure: what waits and a ledger in, a choice out; no torch, no clock.

The first call of a forward is found in this order:

1. While calls wait at modules that are on the device, those whose module would push another one out wait, so that
   all who need it share one upload: until they are twice as many, or have sat through PATIENCE forwards.
2. Calls outside the denoising loop (text encoders, VAE) go first: they are short, they let newcomers join the running
   batch, and they let finished pictures out. After BURST of them in a row a denoiser call that waits gets its turn.
3. The owner (API key) that has been served least goes first, whoever asks for how much. See `Ledger`.
4. Of an owner's calls, the one of the run with the least left to do goes first, with ageing: every forward that a
   call sits through counts like AGEING steps less to do, so nobody starves.

Everything that can share its forward comes along, one call of each owner after the other, up to the smallest cap
among them: ten pictures of one request leave room for the one of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from msgspec import Struct, field

AGEING = 1.0
BURST = 8
PATIENCE = 64
"""Forwards. Two pictures' steps: an upload that takes as long as four of them is a small part of that."""
LEAD = 16
"""Forwards. An owner whose calls ride along where another one leads may get ahead of it without bound, and would
later wait as long; what it has had beyond this is forgotten."""


class Waiting(Struct, frozen=True):
    """A call that waits at a meeting point.

    run: whose call it is. key: calls with equal keys can share a forward. rows: its batch size. denoising: whether
    it is a step of the denoising loop. remaining: denoising steps that its run still has to do. waited: forwards of
    others that it has sat through. cap: the most rows that a forward with this call should have. owner: the API key
    that asked, "" for none. away: its module is not on the device, and another one would have to leave for it. same:
    of calls in which it is equal and not None one runs for all, so the others come along for nothing.
    """

    run: int
    key: Hashable
    rows: int
    denoising: bool
    remaining: int
    waited: int
    cap: int
    owner: str = ""
    away: bool = False
    same: Hashable = None


class Ledger(Struct):
    """What the choices so far have left: who has been served.

    Fairness is start-time fair queueing. An owner's `service` is a virtual time that grows with the cost (seconds on
    the device) of the rows it got. `now` is that of the least served owner who waits; whoever comes later starts
    there: neither with credit for the time when it asked for nothing, nor behind those who were alone until then.
    """

    outside: int = 0
    now: float = 0.0
    service: dict[str, float] = field(default_factory=dict)

    def served(self, owner: str) -> float:
        """Its virtual time."""
        return max(self.service.get(owner, 0.0), self.now)

    def note(self, waiting: Sequence[Waiting], chosen: Sequence[Waiting], cost: float) -> None:
        """After a choice: `chosen` of `waiting` ran in a forward that cost so much."""
        first, rows = chosen[0], sum(call.rows for call in chosen)
        self.outside = 0 if first.denoising else self.outside + 1
        self.now = max(self.now, min(self.served(call.owner) for call in waiting))
        for call in chosen:
            before = self.served(call.owner)
            after = min(before + cost * call.rows / max(rows, 1), self.now + LEAD * cost)
            self.service[call.owner] = max(before, after)
        self.service = {owner: service for owner, service in self.service.items() if service > self.now}


def choose(waiting: Sequence[Waiting], ledger: Ledger) -> list[Waiting]:
    """The calls that go together next, the one that decided first. Their rows keep the cap of each, unless a single
    call is larger than its own.

    `waiting` must not be empty. The ledger is read only; `Ledger.note` writes it.
    """
    first = min(_candidates(waiting, ledger), key=lambda call: (ledger.served(call.owner), _urgency(call)))
    chosen, rows, cap, known = [first], first.rows, first.cap, {first.same}
    for call in _companions(first, waiting, ledger):
        if call.same is not None and call.same in known:
            chosen.append(call)
        elif rows + call.rows <= min(cap, call.cap):
            chosen.append(call)
            rows, cap = rows + call.rows, min(cap, call.cap)
            known.add(call.same)
    return chosen


def _candidates(waiting: Sequence[Waiting], ledger: Ledger) -> Sequence[Waiting]:
    waiting = _worth_it(waiting)
    outside = [call for call in waiting if not call.denoising]
    denoising = [call for call in waiting if call.denoising]
    return outside if outside and not (denoising and ledger.outside >= BURST) else denoising


def _worth_it(waiting: Sequence[Waiting]) -> Sequence[Waiting]:
    """Those for which no module has to leave that others wait for, unless it is time."""
    here = [call for call in waiting if not call.away]
    away = [call for call in waiting if call.away]
    if not here or not away:
        return waiting
    if len(away) >= 2 * len(here):
        return away
    return [call for call in away if call.waited >= PATIENCE] or here


def _companions(first: Waiting, waiting: Sequence[Waiting], ledger: Ledger) -> list[Waiting]:
    """Calls that can share its forward, the owners taking turns; `first` was the first turn of its own."""
    turns = Counter({first.owner: 1})
    ordered: list[tuple[int, float, tuple[float, int], Waiting]] = []
    for call in sorted(waiting, key=_urgency):
        if call.key == first.key and call.run != first.run:
            ordered.append((turns[call.owner], ledger.served(call.owner), _urgency(call), call))
            turns[call.owner] += 1
    return [call for *_, call in sorted(ordered, key=lambda entry: entry[:3])]


def _urgency(call: Waiting) -> tuple[float, int]:
    return call.remaining - AGEING * call.waited, call.run
