"""What long work on models tells while it goes on: how far it is, and what its owner should know.

One vocabulary for the command line's bars, for `--json`, and for the events of the admin API.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

Action = Literal["download", "verify", "copy"]

INTERVAL = 0.2
"""Seconds between two tellings of one file."""
WINDOW = 10.0
"""Seconds over which a speed is measured."""


class Progress(Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """How far it is with a `file` (a name within its model), and with all of them. Bytes; `speed` is bytes a second
    and `seconds_left` what remains at that speed, both null until they are known."""

    action: Action
    file: str
    done: int
    total: int
    all_done: int
    all_total: int
    speed: float | None
    seconds_left: float | None


class Note(Struct, frozen=True, kw_only=True, tag_field="type", tag="note"):
    """Something that the owner should know, in a sentence; public words."""

    message: str


Report = Callable[[Progress | Note], None]


def silent(_: Progress | Note) -> None:
    """For callers who do not listen."""


class Meter:
    """Counts bytes of several files, from any thread, and tells of them now and then."""

    def __init__(self, action: Action, total: int, report: Report, now: Callable[[], float] = time.monotonic) -> None:
        """`total`: bytes of all files."""
        self._action, self._all_total, self._report, self._now = action, total, report, now
        self._lock = threading.Lock()
        self._all_done = 0
        self._done: dict[str, int] = {}
        self._told: dict[str, float] = {}
        self._finished: set[str] = set()
        self._samples: deque[tuple[float, int]] = deque([(now(), 0)])
        self._moved = 0

    def add(self, file: str, total: int, count: int, *, moved: bool = True) -> None:
        """`count` more bytes of a file of `total` are done (or fewer, where it is negative: work was lost). `moved`:
        they were worked on just now, and count for the speed. `file`: another name for each file; of several models,
        with the model's. The end of a file, and of all, is told at once, and once; the rest every INTERVAL at most,
        also where somebody counts more than there is."""
        with self._lock:
            done = self._done[file] = self._done.get(file, 0) + count
            self._all_done += count
            now = self._now()
            if moved and count > 0:
                self._moved += count
                self._samples.append((now, self._moved))
                while len(self._samples) > 2 and self._samples[0][0] < now - WINDOW:
                    self._samples.popleft()
            ends = self._ends(file, done >= total) | self._ends("", self._all_done >= self._all_total)
            if not ends and now - self._told.get(file, -INTERVAL) < INTERVAL:
                return
            self._told[file] = now
            told = self._progress(file, min(done, total), total, now)
        self._report(told)

    def _ends(self, name: str, finished: bool) -> bool:
        """Whether it is finished now and was not before; what lost work is unfinished again."""
        was = name in self._finished
        (self._finished.add if finished else self._finished.discard)(name)
        return finished and not was

    def _progress(self, file: str, done: int, total: int, now: float) -> Progress:
        since, before = self._samples[0]
        speed = (self._moved - before) / (now - since) if now - since > INTERVAL and self._moved > before else None
        left = max(0, self._all_total - self._all_done)
        return Progress(
            action=self._action,
            file=file,
            done=done,
            total=total,
            all_done=min(self._all_done, self._all_total),
            all_total=self._all_total,
            speed=speed,
            seconds_left=left / speed if speed else None,
        )


def as_bytes(count: int) -> str:
    """A size for people."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
