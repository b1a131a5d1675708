"""Who has used what, and may still spend how much: a row for each use, and budgets by key and calendar month (UTC).

    entry = await ledger.reserve(owner=…, asked=…, target=manifest, request=request)   # BudgetExceeded
    …
    await ledger.settle(entry, result, may_have_billed=False)

Before money may be spent its estimate is reserved, in the statement that looks whether there is room for it: requests
at the same time, of several hubs that share a cache, cannot spend the same dollar. A reservation whose hub dies stays
and counts. What costs nothing is written down afterwards, some uses together, so that no request waits for it. With the
cache, all that was spent is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from msgspec import Struct

from hub import accounts, prices, providers
from hub.accounts import MICRO, Column, Span, Sums, UsageRow
from hub.database import Database
from hub.errors import BudgetExceeded, ModelUnusable
from hub.manifest import ModelManifest, RemoteManifest, parse_size
from hub.prices import Budget, micro
from hub.remote.adapter import Adapter
from hub.remote.result import shares
from hub.remote.wish import intended
from hub.report import limit_of, look
from hub.routing import is_free, size_at
from hub.store import Store
from hub.types import ImageRequest, ImageResult
from hub.usage import count_usage

log = logging.getLogger(__name__)

DELAY = 0.5
"""Seconds for which uses that cost nothing are gathered, to be written together."""
KEPT = 400 * 24 * 3600.0
"""Seconds for which rows are kept."""
SWEEP_INTERVAL = 3600.0


class Entry(Struct, frozen=True):
    """A use that goes on. `booked`: whether its row is written already, as it is of all that may cost something."""

    row: UsageRow
    target: ModelManifest | RemoteManifest
    request: ImageRequest
    booked: bool


class Ledger:
    """All uses of this hub, and of those that share its cache. Used inside `running`."""

    def __init__(
        self, store: Store, budget_of: Callable[[str], float | None], now: Callable[[], float] = time.time
    ) -> None:
        """`budget_of`: a key's US dollars a month, None where nothing limits it. `now`: unix seconds, for tests."""
        self._store = store
        self._budget_of = budget_of
        self._now = now
        self._unwritten: list[UsageRow] = []
        self._flush: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="hub-usage")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweeps old rows, as long as the context; at its end all is written."""
        sweeper = asyncio.create_task(self._sweep_forever())
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
            await self._written()
            self._looking.shutdown(wait=False, cancel_futures=True)

    @property
    def month(self) -> Span:
        """The month that it is now."""
        return month_of(self._now())

    async def budget(self, owner: str) -> Budget | None:
        """How it is with a key's budget in this month; None where nothing limits it."""
        limit = limit_of(self._budget_of(owner))
        return None if limit is None else self._budget(limit, await self._spent(owner))

    def _budget(self, limit: int, spent: int) -> Budget:
        return Budget(limit=limit, spent=spent, ends_at=self.month.until)

    async def spent(self, owner: str) -> float:
        """US dollars that a key has spent in this month, with what is reserved."""
        return await self._spent(owner) / MICRO

    async def used(self, by: Sequence[Column], span: Span, owner: str | None = None, limit: int = -1) -> list[Sums]:
        """Uses summed up; see `report.look`. On a thread of its own: that of the store has more urgent things to do, as
        have those which read and write files, and sums of a year take a while."""
        await self._written()
        return await asyncio.get_running_loop().run_in_executor(
            self._looking, look, self._store.path, by, span, owner, limit
        )

    async def reserve(
        self, *, owner: str, asked: str, target: ModelManifest | RemoteManifest, request: ImageRequest
    ) -> Entry:
        """Begins a use. Raises BudgetExceeded where the key's budget does not allow what it would cost, or nothing says
        what a provider would take; and StorageFull where it cannot be written down."""
        expected, now = estimate(target, request), self._now()
        row = UsageRow(
            id=f"use_{secrets.token_hex(12)}",
            hub=self._store.id,
            owner=owner,
            asked=asked,
            target=target.id,
            created_at=now,
            month=_name_at(int(now // 3600)),
            state="unknown" if expected is None else "reserved",
            cost=0 if expected is None else micro(expected),
        )
        if is_free(target):
            return Entry(row, target, request, booked=False)
        limit = None if expected == 0 else limit_of(self._budget_of(owner))
        if limit is not None and expected is None and isinstance(target, RemoteManifest):
            raise BudgetExceeded(self._budget(limit, await self._spent(owner)).refused(owner, None))
        await self._book(row, limit)
        return Entry(row, target, request, booked=True)

    async def settle(self, entry: Entry, result: ImageResult | None, *, may_have_billed: bool) -> None:
        """Ends a use: with what it made, as its provider gave it; or, where it failed, with the estimate if it may
        have been billed, and else with nothing. Goes on where the caller is cancelled. Never raises: the reservation
        stays where its end cannot be written."""
        if result is None and not (may_have_billed and entry.booked):
            if entry.booked:
                await self._write(functools.partial(_remove, row_id=entry.row.id))
            return
        row = _settled(entry, result)
        if entry.booked:
            await self._write(functools.partial(_put, rows=[row]))
            return
        self._unwritten.append(row)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(DELAY, self._write_gathered)

    async def _book(self, row: UsageRow, limit: int | None) -> None:
        """Writes a reservation, where there is room for it; one whose caller leaves meanwhile is taken back."""
        again = False

        def book(database: Database) -> int | None:
            nonlocal again
            if again:
                accounts.remove(database.raw, row.id)
            again = True
            if limit is None:
                accounts.put(database.raw, [row])
                return None
            fits = accounts.put_within(database.raw, row, limit)
            return None if fits else accounts.spent(database.raw, row.owner, row.month)

        try:
            spent = await asyncio.shield(self._store.perform(book))
        except asyncio.CancelledError:
            self._begin(functools.partial(_remove, row_id=row.id))
            raise
        if spent is not None and limit is not None:
            cost = None if row.state == "unknown" else row.cost
            raise BudgetExceeded(self._budget(limit, spent).refused(row.owner, cost))

    async def _spent(self, owner: str) -> int:
        month = name_of(self.month)
        return await self._store.perform(lambda database: accounts.spent(database.raw, owner, month), make=False) or 0

    def _write_gathered(self) -> None:
        rows, self._unwritten, self._flush = self._unwritten, [], None
        self._begin(functools.partial(_put, rows=rows))

    async def _written(self) -> None:
        """Returns when all that was gathered is written."""
        if self._flush is not None:
            self._flush.cancel()
            self._write_gathered()
        if self._writing:
            await asyncio.wait(self._writing)  # who stops waiting stops none of them

    async def _write(self, work: Callable[[Database], None]) -> None:
        await asyncio.shield(self._begin(work))

    def _begin(self, work: Callable[[Database], None]) -> asyncio.Task[None]:
        async def write() -> None:
            try:
                await done
            except Exception as error:
                log.error("what was used could not be written down: %s", error)

        done = self._store.perform(work)  # here, since operations are done in the order of the calls
        task = asyncio.create_task(write())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _sweep_forever(self) -> None:
        while True:
            before = self._now() - KEPT
            try:
                await self._store.perform(lambda database: accounts.sweep(database.raw, before), make=False)  # noqa: B023
            except Exception as error:
                log.warning("old rows of usage could not be deleted (%s); trying again", error)
            await asyncio.sleep(SWEEP_INTERVAL)


def estimate(target: ModelManifest | RemoteManifest, request: ImageRequest) -> float | None:
    """US dollars that a target is expected to take for a request; see `prices.estimate`."""
    if isinstance(target, ModelManifest):
        keeps = request.images and not (request.size or request.default_size)  # the size of its source
        size = None if keeps else size_at(target, request)
        most = target.size.max_output**2
        return prices.estimate(target.prices, request, size, quality=request.effort, largest=most)
    try:
        adapter = providers.adapter(target.provider)
    except ModelUnusable:  # told by the attempt, in its own words
        honoured, most_pictures = Adapter.honours, target.remote.max_n
    else:
        honoured, most_pictures = adapter.honoured(target), adapter.most(target, request)
    size, quality = intended(target, honoured, request)
    return prices.estimate(
        target.prices,
        request,
        size,
        quality=quality,
        calls=len(shares(request.n, most_pictures)),
        largest=_largest(target),
    )


def _largest(target: RemoteManifest) -> int:
    """Pixels of the largest picture that a remote model draws, as far as its manifest tells."""
    shapes = target.remote.shapes
    sizes = [parse_size(each) for each in target.remote.sizes]
    if sizes or shapes is None:
        return max((each.width * each.height for each in sizes), default=prices.MEGAPIXEL)
    return min(shapes.max**2, shapes.max_pixels or shapes.max**2)


def month_of(now: float) -> Span:
    """The calendar month (UTC) of a time."""
    first = dt.datetime.fromtimestamp(now, dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    return Span(first.timestamp(), following.timestamp())


def name_of(month: Span) -> str:
    """`2026-11`."""
    return f"{dt.datetime.fromtimestamp(month.since, dt.UTC):%Y-%m}"


@functools.lru_cache(maxsize=4)
def _name_at(hour: int) -> str:
    """Of the month of an hour since 1970: no month ends within one, and every request asks."""
    return name_of(month_of(hour * 3600.0))


def _count(told: int) -> int:
    """A provider's number, in the bounds of reason and of a column."""
    return min(max(told, 0), MICRO**2)


def _settled(entry: Entry, result: ImageResult | None) -> UsageRow:
    """The row of a use that has ended, and may have cost."""
    row = entry.row
    if result is None:
        return msgspec.structs.replace(row, state=row.state if row.state == "unknown" else "estimated")
    made, billed = len(result.images), prices.cost(entry.target.prices, result)
    usage = result.usage or count_usage(entry.request.prompt, result.sources, result.size, made)
    changes: dict[str, Any] = {
        "images": made,
        "text_tokens": _count(usage.text_tokens),
        "image_tokens": _count(usage.image_tokens),
        "output_tokens": _count(usage.output_tokens),
        "device_us": round(result.device_seconds * MICRO),
    }
    if billed is not None or not entry.booked:
        changes |= {"state": "settled", "cost": round((billed or 0.0) * MICRO)}
    elif row.state != "unknown":
        changes["state"] = "estimated"
    return msgspec.structs.replace(row, **changes)


def _put(database: Database, rows: Sequence[UsageRow]) -> None:
    accounts.put(database.raw, rows)


def _remove(database: Database, row_id: str) -> None:
    accounts.remove(database.raw, row_id)
