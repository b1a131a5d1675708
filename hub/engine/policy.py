"""Which waiting calls share the next forward. Pure: what waits in, a choice out; no torch, no clock, no sleep.

Two rules. Calls outside the denoising loop (text encoders, VAE) go first: they are short, they let newcomers join
the running batch, and they let finished pictures out. Among denoiser calls the one with the least left to do goes
first, with ageing: every tick that a call waits counts like AGEING steps less to do, so nobody starves.
Everything that can share the chosen call's forward comes along, up to the cap.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from msgspec import Struct

AGEING = 1.0


class Waiting(Struct, frozen=True):
    """A call that waits at a meeting point.

    run: whose call it is. key: calls with equal keys can share a forward. rows: its batch size. denoising: whether
    it is a step of the denoising loop. remaining: denoising steps that its run still has to do. waited: forwards of
    others that it has sat through.
    """

    run: int
    key: Hashable
    rows: int
    denoising: bool
    remaining: int
    waited: int


def choose(waiting: Sequence[Waiting], max_rows: int) -> list[int]:
    """The runs whose calls go together next, most urgent first; never more than `max_rows` rows, but at least one.

    `waiting` must not be empty.
    """
    ordered = sorted(waiting, key=_urgency)
    first = ordered[0]
    chosen, rows = [first.run], first.rows
    for call in ordered[1:]:
        if call.key == first.key and rows + call.rows <= max_rows:
            chosen.append(call.run)
            rows += call.rows
    return chosen


def _urgency(call: Waiting) -> tuple[bool, float, int]:
    return call.denoising, call.remaining - AGEING * call.waited, call.run
