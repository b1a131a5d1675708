"""The clock: links end at a time of day, so a wrong clock ends them wrongly."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from hub.doctor.findings import Case, Finding, ok, problem
from hub.settings import PACKAGE

SLACK = 300.0
"""Seconds that clocks may differ."""
SET_IT = "Set the clock (`timedatectl set-ntp true`, or `date -s` where there is no network)"
WRONGLY = "links and jobs end at wrong times"


def check(case: Case) -> Iterator[Finding]:
    """Whether anything is from the future: the hub's own files, what it has stored, its database."""
    now = time.time()
    wrong = list(_from_the_future(case.settings.cache_dir, now))
    yield from wrong
    if not wrong:
        yield ok("clock", "clock", f"{_shown(now)}; nothing is from the future")


def _from_the_future(cache: Path, now: float) -> Iterator[Finding]:
    latest = now + SLACK
    newest, file = max(_times(PACKAGE, deep=True), default=(0.0, PACKAGE))
    if newest > latest:
        words = f"it says {_shown(now)}, and the hub's own {file.relative_to(PACKAGE.parent)} is of {_shown(newest)}"
        yield problem("clock", "clock", f"{words}: {WRONGLY}", f"{SET_IT}; where it is right, `touch` the file.")
    late = sorted((*_of_later(cache, latest), *_of_later(cache / "files", latest)))
    if late:
        newest, file = late[-1]
        words = f"{file} is of {_shown(newest)}, and it says {_shown(now)}"
        more = f", and so are {len(late) - 1} more files" if len(late) > 1 else ""
        remedy = f"{SET_IT}; where it is right now and was wrong then, delete or `touch` them."
        yield problem("clock", "cache_dir", f"{words}{more}: {WRONGLY}", remedy)
    newest = _newest_job(cache / "hub.db")
    if newest > latest:
        words = f"there are jobs of {_shown(newest)}, and it says {_shown(now)}: {WRONGLY}"
        remedy = f"{SET_IT}; where it is right now and was wrong then, they end by themselves, later than they should."
        yield problem("clock", "hub.db", words, remedy)


def _of_later(folder: Path, latest: float) -> list[tuple[float, Path]]:
    return [each for each in _times(folder) if each[0] > latest]


def _times(folder: Path, *, deep: bool = False) -> Iterator[tuple[float, Path]]:
    """When the files in a folder were written, and below it if `deep`."""
    for at, folders, names in os.walk(folder):
        if not deep:
            folders.clear()
        for name in names:
            file = Path(at, name)
            with contextlib.suppress(OSError):
                yield file.lstat().st_mtime, file


def _newest_job(database: Path) -> float:
    """When the newest job was made; 0 where that cannot be told. Nothing is written: without its log beside it the
    file is opened as one that nobody changes."""
    if not database.is_file():
        return 0.0
    mode = "mode=ro" if database.with_name("hub.db-wal").exists() else "immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?{mode}", uri=True, timeout=2)) as opened:
            return float(opened.execute("SELECT max(created_at) FROM jobs").fetchone()[0] or 0)
    except sqlite3.Error:  # the hub itself sets a damaged one aside and says so
        return 0.0


def _shown(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
