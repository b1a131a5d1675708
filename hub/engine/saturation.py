"""How many rows are worth a forward: learned while the hub runs, per kind of forward, and remembered. No torch.

More rows in a forward cost the run with the least left to do time, since it waits for the others' rows. So they must
pay: the useful size is the one where another doubling would make a row less than GAIN cheaper. Of sizes r with a
typical time t(r) that is the one with the least t(r) / r ** WORTH, whatever the shape of t. Where batching gains
nothing (large transformers at 1024 x 1024, most CPUs) that is the smallest; where a forward takes as long with 16
rows as with one it is the largest.

The search starts with one row and tries twice the best size known so far, and when that was no better half of it.
It is taken up again from time to time: what disturbed the clock, or an old file, was not right for ever. A first
forward of a size may compile or pick kernels, so it does not count. The typical time is the lower quartile of the
last ones: other programs make forwards slower, never faster.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

log = logging.getLogger("hub.worker")

GAIN = 0.05
WORTH = 1 + math.log2(1 - GAIN)
START = 1
KNOWN, SURE, WINDOW = 3, 5, 9
"""Forwards of one size: to count as known; to prove that a size is no better; the last ones, which are kept. A gain
is usually plain, so the search goes up boldly; to give a size up takes more."""
RETRY = 512
"""Forwards after which all but the best size is forgotten."""
MAX_CURVES = 1000
SAVE_EVERY = 30.0

Rows = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Curve:
    """What is known of one kind of forward: the typical time of each size, and what follows."""

    def __init__(self, limit: int, known: Mapping[int, float] | None = None) -> None:
        self.typical: dict[int, float] = dict(known or {})
        self._limit = limit
        self._recent = {rows: deque([seconds] * SURE, WINDOW) for rows, seconds in self.typical.items()}
        self._begun: set[int] = set()
        self._age = 0
        self.cap = self._decide()

    def observe(self, rows: int, seconds: float) -> bool:
        """Takes a forward into account; whether something became known that is worth keeping."""
        if rows not in self._begun:
            self._begun.add(rows)
            return False
        before = self.cap, len(self.typical)
        self._age += 1
        if self._age >= RETRY and self.typical:
            self._forget_all_but(self._best())
        recent = self._recent.setdefault(rows, deque(maxlen=WINDOW))
        recent.append(seconds)
        if len(recent) >= KNOWN:
            self.typical[rows] = sorted(recent)[len(recent) // 4]
        self.cap = self._decide()
        return before != (self.cap, len(self.typical))

    def refuse(self, rows: int) -> None:
        """So many do not fit into memory: they are not tried again, as long as this process lives."""
        self._limit = max(1, min(self._limit, rows // 2))
        self.cap = self._decide()

    def seconds(self, rows: int) -> float | None:
        """What a forward of so many rows takes, going by the nearest known size."""
        if not self.typical:
            return None
        near = min(self.typical, key=lambda known: abs(math.log(known / rows)))
        return self.typical[near] * rows / near

    def _decide(self) -> int:
        if not self.typical:
            return min(START, self._limit)
        best = self._best()
        # Sizes just beside the best prove little: kernels work in tiles, and nine rows may cost as much as sixteen.
        # Near the limit they must do: calls of three rows never make sixteen.
        if not self._proved(min(1.5 * best, max(best + 1, 0.75 * self._limit)), math.inf):
            return min(2 * best, self._limit)
        return min(best if self._proved(best / 4, best / 1.5) else max(best // 2, 1), self._limit)

    def _proved(self, low: float, high: float) -> bool:
        """Whether a size in between was run often enough to say that it is no better."""
        if low > self._limit or high < 1:
            return True
        return any(low <= rows <= high and len(self._recent[rows]) >= SURE for rows in self.typical)

    def _best(self) -> int:
        allowed = [rows for rows in self.typical if rows <= self._limit] or self.typical
        return min(allowed, key=lambda rows: (self.typical[rows] / rows**WORTH, rows))

    def _forget_all_but(self, best: int) -> None:
        self._age = 0
        self.typical = {best: self.typical[best]}
        self._recent = {best: self._recent[best]}


class _Kept(Struct, forbid_unknown_fields=True):
    """The file."""

    version: Literal[1]
    curves: dict[str, dict[Rows, Seconds]]


class Saturation:
    """The curves of all kinds of forwards. A kind is a text that means the same in every process (see meter.py)."""

    def __init__(self, limit: int, known: Mapping[str, Mapping[int, float]] | None = None) -> None:
        """limit: rows that no cap exceeds."""
        self._limit = limit
        self._curves = {kind: Curve(limit, curve) for kind, curve in (known or {}).items()}
        self._per_row = 0.0
        self.changed = False
        """Whether something has been learned since this was last set to False."""

    def cap(self, kind: str) -> int:
        """The most rows that a forward of this kind should have now."""
        curve = self._curves.get(kind)
        return curve.cap if curve else min(START, self._limit)

    def observe(self, kind: str, rows: int, seconds: float) -> None:
        """A forward of so many rows took so long."""
        if rows < 1 or not 0 < seconds < math.inf:
            return
        curve = self._curves[kind] = self._curves.pop(kind) if kind in self._curves else Curve(self._limit)
        if len(self._curves) > MAX_CURVES:
            del self._curves[next(iter(self._curves))]  # the one that was observed longest ago
        self.changed = curve.observe(rows, seconds) or self.changed
        typical = curve.seconds(rows)
        if typical is not None:
            self._per_row += (typical / rows - self._per_row) * (0.1 if self._per_row else 1)

    def refuse(self, kind: str, rows: int) -> None:
        """A forward of so many rows ran out of memory."""
        self._curves.setdefault(kind, Curve(self._limit)).refuse(rows)

    def seconds(self, kind: str, rows: int) -> float:
        """What a forward of so many rows is expected to take: where its kind is unknown what rows cost in general, and
        0 where nothing is known."""
        curve = self._curves.get(kind)
        known = curve.seconds(rows) if curve else None
        return self._per_row * rows if known is None else known

    def to_json(self) -> bytes:
        """The typical times. What was tried and refused is not among them: the next process has other neighbours."""
        curves = {kind: curve.typical for kind, curve in self._curves.items() if curve.typical}
        return msgspec.json.encode(_Kept(1, curves))

    @classmethod
    def from_json(cls, raw: bytes, limit: int) -> Saturation:
        """Raises msgspec.MsgspecError for anything that `to_json` did not write."""
        return cls(limit, msgspec.json.decode(raw, type=_Kept).curves)


class Memory:
    """The file of a Saturation. It may be deleted at any time and lost in a crash: it is learned again."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._saved = clock()
        self._failed = False

    def load(self, limit: int) -> Saturation:
        """What the last process has learned; nothing, where the file is missing or damaged."""
        try:
            return Saturation.from_json(self._path.read_bytes(), limit)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            log.warning("%s cannot be read (%s); batch sizes are learned again", self._path, error)
        return Saturation(limit)

    def save(self, saturation: Saturation, *, idle: bool = False) -> None:
        """Writes what is new: at once where the device has nothing else to do, otherwise now and then."""
        now = self._clock()
        if not saturation.changed or not (idle or now - self._saved >= SAVE_EVERY):
            return
        self._saved, saturation.changed = now, False
        part = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}.tmp")  # of one killed, Files sweeps it
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(saturation.to_json())
            part.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if not self._failed:
                log.warning("%s cannot be written (%s); batch sizes are learned again each time", self._path, error)
            self._failed = True
