"""The table `usage` of hub.db: one row for each use of a model. The statements alone; hub/ledger.py decides.

What each owner has spent in a month stands in `usage_spent`, which SQLite keeps by itself (triggers on `usage`): it is
asked before each use that costs, and there may be many. For their sake a row is never replaced, but changed.

Money is in micro-dollars and a device's time in microseconds, as integers, so that sums are exact.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

MICRO = 1_000_000
"""Micro-dollars in a dollar, and microseconds in a second."""
State = Literal["reserved", "settled", "estimated", "unknown"]
"""reserved: it goes on, or its hub died under it; the cost is the estimate, and counts. settled: the cost is what it
was. estimated: it ended, and nothing tells what was billed; the estimate counts. unknown: nothing tells a cost."""

Column = Literal["key", "model", "target", "day"]
COLUMNS: dict[Column, str] = {
    "key": "owner",
    "model": "asked",
    "target": "target",
    "day": "date(CAST(created_at AS INTEGER), 'unixepoch')",
}
"""By what uses can be summed up."""


class UsageRow(Struct, kw_only=True):
    """One use. `owner` is the key's name, "" on an open hub; `asked` the model as the client named it, `target` the one
    that served. `created_at`: unix seconds. `month`: to which the cost belongs, `2026-11`."""

    id: str
    hub: str
    owner: str
    asked: str
    target: str
    created_at: float
    month: str
    state: State
    images: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0
    device_us: int = 0
    cost: int = 0


class Sums(Struct, kw_only=True):
    """Several uses together. Columns by which they were not summed up are None."""

    key: str | None = None
    model: str | None = None
    target: str | None = None
    day: str | None = None
    requests: int
    images: int
    text_tokens: int
    image_tokens: int
    output_tokens: int
    device_us: int
    cost: int
    estimated: int
    """What of the cost is an estimate."""
    unknown: int
    """Requests of which nothing tells the cost."""


class Span(Struct, frozen=True):
    """Unix seconds, the second one excluded."""

    since: float
    until: float


# Put together of names that stand in this module alone; values are always bound.
FIELDS = UsageRow.__struct_fields__
INSERT = f"INSERT INTO usage ({', '.join(FIELDS)})"
VALUES = f":{', :'.join(FIELDS)}"
PUT = f"{INSERT} VALUES ({VALUES}) ON CONFLICT (id) DO UPDATE SET "
PUT += ", ".join(f"{name} = excluded.{name}" for name in FIELDS if name != "id")
SPENT = "SELECT spent FROM usage_spent WHERE owner = :owner AND month = :month"
WITHIN = f"{INSERT} SELECT {VALUES} WHERE coalesce(({SPENT}), 0) + :least <= :budget"
"""One statement, which has the right to write from its beginning: no other hub's row comes between."""
SUMS = (
    "count(*), sum(images), sum(text_tokens), sum(image_tokens), sum(output_tokens), sum(device_us), sum(cost),"
    " sum(CASE WHEN state IN ('reserved', 'estimated') THEN cost ELSE 0 END), sum(state = 'unknown')"
)


def put(raw: sqlite3.Connection, rows: Sequence[UsageRow]) -> None:
    """Writes rows, whether they were there or not."""
    values = [msgspec.structs.asdict(row) for row in rows]
    if len(values) == 1:
        raw.execute(PUT, values[0])
        return
    raw.execute("BEGIN IMMEDIATE")
    try:
        raw.executemany(PUT, values)
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise


def put_within(raw: sqlite3.Connection, row: UsageRow, budget: int) -> bool:
    """Writes a new row where its owner's month has room for it, and for a micro-dollar where nobody knows what it will
    cost; returns whether it had."""
    least = max(row.cost, 1) if row.state == "unknown" else row.cost
    values = msgspec.structs.asdict(row) | {"least": least, "budget": budget}
    return raw.execute(WITHIN, values).rowcount == 1


def remove(raw: sqlite3.Connection, row_id: str) -> None:
    """Deletes a row; one that is gone already is no error."""
    raw.execute("DELETE FROM usage WHERE id = ?", (row_id,))


def spent(raw: sqlite3.Connection, owner: str, month: str) -> int:
    """Micro-dollars that an owner has spent and reserved in a month."""
    found = raw.execute(SPENT, {"owner": owner, "month": month}).fetchall()
    return int(found[0][0]) if found else 0


def sums(
    raw: sqlite3.Connection, by: Sequence[Column], span: Span, owner: str | None = None, limit: int = -1
) -> list[Sums]:
    """Uses summed up, in the order of the columns; at most `limit`, below 0 all. `owner`: of this one alone."""
    wanted = [COLUMNS[each] for each in by]
    values: list[Any] = [span.since, span.until, *([] if owner is None else [owner]), limit]
    statement = f"SELECT {', '.join([*wanted, SUMS])} FROM usage WHERE created_at >= ? AND created_at < ?"  # noqa: S608
    statement += "" if owner is None else " AND owner = ?"
    if wanted:
        places = ", ".join(map(str, range(1, len(wanted) + 1)))
        statement += f" GROUP BY {places} ORDER BY {places}"
    names = [*by, *Sums.__struct_fields__[len(COLUMNS) :]]
    found = [dict(zip(names, row, strict=True)) for row in raw.execute(f"{statement} LIMIT ?", values).fetchall()]
    return [Sums(**each) for each in found if each["requests"]]  # without columns there is a row of nothing, too


def sweep(raw: sqlite3.Connection, before: float) -> int:
    """Deletes the rows of before; returns how many."""
    if not raw.execute("SELECT 1 FROM usage WHERE created_at < ? LIMIT 1", (before,)).fetchall():
        return 0  # without the lock that writing takes
    return raw.execute("DELETE FROM usage WHERE created_at < ?", (before,)).rowcount
