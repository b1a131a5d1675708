"""What was used, as it is told: in the API's answers and by `hub usage`."""

from __future__ import annotations

import calendar
import csv
import datetime as dt
import io
import itertools
import math
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from hub import accounts
from hub.accounts import MICRO, Column, Span, Sums
from hub.database import is_mendable, looking_into

T = TypeVar("T")

BY: tuple[Column, ...] = ("key", "model")
"""By what uses are summed up where nobody says."""
DAY = 24 * 3600.0
ATTEMPTS = 10
"""How often a database is tried that cannot be read."""
BY_PATTERN = "^(key|model|target|day)(,(key|model|target|day)){0,3}$"


class UsageBucket(Struct, kw_only=True):
    """Uses of one key, model, target and day (UTC), as far as they are summed up by these. `key` is "" on a hub without
    keys; `model` is the id that was asked for, and `target` the one that served. `estimated_usd` is the part of
    `cost_usd` that nobody has confirmed; of `unpriced_requests` nothing tells the cost."""

    object: Literal["usage.bucket"] = "usage.bucket"
    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    target: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    requests: int
    images: int
    text_tokens: int
    image_tokens: int
    output_tokens: int
    device_seconds: float
    cost_usd: float
    estimated_usd: float
    unpriced_requests: int


COLUMNS: tuple[Column, ...] = get_args(Column)
NUMBERS = tuple(name for name in UsageBucket.__struct_fields__ if name not in ("object", *COLUMNS))


def look(path: Path, by: Sequence[Column], span: Span, owner: str | None = None, limit: int = -1) -> list[Sums]:
    """Uses summed up, of a database that a hub may be using; see `accounts.sums`. Makes none where there is none.
    Raises sqlite3.Error, OSError and ConfigurationError where it cannot be read, also not a moment later: somebody may
    just delete it."""
    return _looked(path, lambda raw: accounts.sums(raw, by, span, owner, limit)) or []


def spent(path: Path, owner: str, month: str) -> int:
    """Micro-dollars that an owner has spent and reserved in a month; raises as `look`."""
    return _looked(path, lambda raw: accounts.spent(raw, owner, month)) or 0


def limit_of(budget: float | None) -> int | None:
    """A budget in micro-dollars; None where nothing limits it. What is no number allows nothing."""
    if budget is None or budget == math.inf:
        return None
    return round(budget * MICRO) if budget > 0 else 0


def left_of(budget: float | None, spent: int) -> float | None:
    """US dollars that are left of a budget, of which so many micro-dollars are spent; None where nothing limits it."""
    limit = limit_of(budget)
    return None if limit is None else max(0, limit - spent) / MICRO


def _looked(path: Path, work: Callable[[sqlite3.Connection], T]) -> T | None:
    for attempt in itertools.count(1):
        try:
            with looking_into(path) as raw:
                return None if raw is None else work(raw)
        except (sqlite3.Error, OSError) as error:
            if not is_mendable(error) or attempt == ATTEMPTS:
                raise
        time.sleep(0.02)
    raise AssertionError


def bucket_of(sums: Sums) -> UsageBucket:
    """In seconds and US dollars."""
    return UsageBucket(
        **{name: value for name in COLUMNS if (value := getattr(sums, name)) is not None},
        requests=sums.requests,
        images=sums.images,
        text_tokens=sums.text_tokens,
        image_tokens=sums.image_tokens,
        output_tokens=sums.output_tokens,
        device_seconds=sums.device_us / MICRO,
        cost_usd=sums.cost / MICRO,
        estimated_usd=sums.estimated / MICRO,
        unpriced_requests=sums.unknown,
    )


def as_csv(buckets: Sequence[UsageBucket], by: Sequence[Column]) -> str:
    """A line for each, below one of names. A text that a spreadsheet would take for a formula begins with `'`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*by, *NUMBERS])
    for bucket in buckets:
        texts = [_harmless(str(getattr(bucket, name))) for name in by]
        writer.writerow([*texts, *(_number(getattr(bucket, name)) for name in NUMBERS)])
    return file.getvalue()


def columns_of(text: str) -> list[Column]:
    """`key,day` as columns, each once; raises ValueError."""
    if not re.fullmatch(BY_PATTERN, text):
        raise ValueError(text)
    return msgspec.convert(list(dict.fromkeys(text.split(","))), list[Column])


def day_of(text: str) -> dt.date:
    """A day as `YYYY-MM-DD`; raises ValueError."""
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError(text)
    return dt.date.fromisoformat(text)


def span_of(first: dt.date, last: dt.date) -> Span:
    """From the first day to the last one, both included (UTC)."""
    begin, end = (dt.datetime.combine(day, dt.time(), dt.UTC).timestamp() for day in (first, last))
    return Span(begin, end + DAY)


def month_of(first: dt.date) -> Span:
    """The calendar month of its first day."""
    return span_of(first, first.replace(day=calendar.monthrange(first.year, first.month)[1]))


def days_of(span: Span) -> tuple[dt.date, dt.date]:
    """The first and the last day of a span."""
    first, last = (dt.datetime.fromtimestamp(each, dt.UTC).date() for each in (span.since, span.until - DAY))
    return first, last


def _harmless(text: str) -> str:
    flat = re.sub(r"\s", " ", text)
    return f"'{flat}" if flat.lstrip().startswith(("=", "+", "-", "@")) else flat


def _number(value: float) -> str:
    """Without an exponent, which some programs take for text."""
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0").rstrip(".")
