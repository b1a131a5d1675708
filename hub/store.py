"""The hub's SQLite database, `cache_dir/hub.db`: jobs that outlive the process that took them.

One connection on one thread. An idle hub pays nothing for it: the file is made when the first row is, and SQLAlchemy
(0.2 s, 13 MiB) is imported for the first statement. Before that, opening and housekeeping speak through the DBAPI.

The cache may be deleted at any time, and several hubs may share one:

- before each operation four `stat` calls notice files that are gone or were replaced; then all is opened anew;
- opening, migrating and setting a damaged file aside happen under a lock between processes;
- each running hub holds a lock on `instances/<id>.lock`, and its rows bear the id. Where the lock can be taken, the
  hub is dead, and what it had not finished has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from hub.database import Database, Lock, is_full, is_mendable, living, open_database
from hub.errors import ConfigurationError, StorageFull

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5

MUTABLE = ("status", "expires_at", "started_at", "completed_at", "step", "steps", "result", "error")
UNFINISHED = ("queued", "in_progress")


class JobRow(Struct, kw_only=True):
    """One row of `jobs`. Times are unix seconds."""

    id: str
    owner: str | None
    """Name of the API key; None on an open hub."""
    kind: str
    """image_generation, image_edit or image_variation."""
    model: str
    """As the client named it."""
    status: str
    """queued, in_progress, completed, failed or cancelled."""
    created_at: float
    expires_at: float
    """From then on the row, and its files, may be deleted."""
    started_at: float | None = None
    completed_at: float | None = None
    step: int = 0
    steps: int = 0
    fingerprint: str | None = None
    recipe: str | None = None
    """What its pictures follow from; jobs of one recipe have the same ones."""
    idempotency_key: str | None = None
    rendering: bytes
    """JSON, opaque here as are `result` and `error`: how the answer is rendered."""
    result: bytes | None = None
    error: bytes | None = None


@functools.cache
def jobs_table() -> Table:
    """The table for SQLAlchemy; a function, because the import is slow."""
    from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text, text

    return Table(
        "jobs",
        MetaData(),
        Column("id", Text, primary_key=True),
        Column("hub", Text, nullable=False),
        Column("owner", Text),
        Column("kind", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("created_at", Float, nullable=False),
        Column("expires_at", Float, nullable=False),
        Column("started_at", Float),
        Column("completed_at", Float),
        Column("step", Integer, nullable=False),
        Column("steps", Integer, nullable=False),
        Column("fingerprint", Text),
        Column("recipe", Text),
        Column("idempotency_key", Text),
        Column("rendering", LargeBinary, nullable=False),
        Column("result", LargeBinary),
        Column("error", LargeBinary),
        Index("jobs_by_expiry", "expires_at"),
        Index("jobs_by_owner", "owner", "created_at"),
        Index(
            "jobs_by_idempotency_key",
            "idempotency_key",
            "owner",
            "created_at",
            sqlite_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("jobs_by_recipe", "recipe", "owner", "created_at", sqlite_where=text("recipe IS NOT NULL")),
        Index("jobs_unfinished", "hub", sqlite_where=text("status IN ('queued', 'in_progress')")),
    )


class Store:
    """Keeps jobs. Used from one event loop, inside `running`. Every method may raise StorageFull."""

    def __init__(self, cache_dir: Path, now: Callable[[], float] = time.time) -> None:
        """Opens nothing. `now`: unix seconds, for tests."""
        self._path = cache_dir / "hub.db"
        self._instances = cache_dir / "instances"
        self._now = now
        self._id = ""
        self._executor: ThreadPoolExecutor | None = None
        self._lock: Lock | None = None
        self._database: Database | None = None

    @contextlib.asynccontextmanager
    async def running(self, orphan_error: bytes) -> AsyncIterator[None]:
        """The store can be used, as long as the context. Jobs of hubs that died fail with `orphan_error`.

        Raises ConfigurationError where the folder cannot be used or a newer hub has made the database.
        """
        self._id = secrets.token_hex(8)
        self._executor = executor = ThreadPoolExecutor(1, thread_name_prefix="hub-store")
        try:
            await self._on_thread(self._start, orphan_error)
            yield
        finally:
            ended = self._on_thread(self._end)
            self._executor = None
            executor.shutdown(wait=False)  # what was asked for before is still done
            await ended

    async def add(self, job: JobRow) -> None:
        """Stores a new job, as one that this process works on."""

        def insert(database: Database) -> None:
            values = {**msgspec.structs.asdict(job), "hub": self._id}
            database.core.execute(jobs_table().insert(), values)

        await self._do(insert)

    async def save(self, job: JobRow) -> None:
        """Stores what may change of a job (`MUTABLE`). One that was deleted meanwhile stays deleted."""

        def update(database: Database) -> None:
            table = jobs_table()
            values = {name: getattr(job, name) for name in MUTABLE}
            database.core.execute(table.update().where(table.c.id == job.id), values)

        await self._do(update)

    async def start(self, job_id: str, started_at: float, steps: int) -> None:
        """Notes that a job runs, so that it is known of one that is interrupted. One that has ended stays so."""

        def update(database: Database) -> None:
            table = jobs_table()
            waits = (table.c.id == job_id, table.c.status == "queued")
            values = {"status": "in_progress", "started_at": started_at, "steps": steps}
            database.core.execute(table.update().where(*waits), values)

        await self._do(update)

    async def get(self, job_id: str) -> JobRow | None:
        """The job, as long as it was not deleted; it may be expired."""

        def select(database: Database) -> JobRow | None:
            return next(iter(_newest(database.core, jobs_table().c.id == job_id)), None)

        return await self._do(select)

    async def with_idempotency_key(self, owner: str | None, key: str) -> JobRow | None:
        """The owner's newest job with this key that has not expired."""

        def select(database: Database) -> JobRow | None:
            c = jobs_table().c
            same_owner = c.owner.is_not_distinct_from(owner)  # NULL, the owner on an open hub, equals nothing
            found = _newest(database.core, c.idempotency_key == key, same_owner, c.expires_at > self._now())
            return next(iter(found), None)

        return await self._do(select)

    async def with_recipe(self, owner: str | None, recipe: str) -> JobRow | None:
        """The owner's newest completed job with this recipe that has not expired. Makes no database."""

        def select(database: Database) -> JobRow | None:
            c = jobs_table().c
            completed = (c.recipe == recipe, c.owner.is_not_distinct_from(owner), c.status == "completed")
            return next(iter(_newest(database.core, *completed, c.expires_at > self._now())), None)

        return await self._do(select, make=False)

    async def newest(self, owner: str | None, limit: int) -> list[JobRow]:
        """The owner's jobs that have not expired, the newest first."""

        def select(database: Database) -> list[JobRow]:
            c = jobs_table().c
            own = c.owner.is_not_distinct_from(owner)
            return _newest(database.core, own, c.expires_at > self._now(), limit=limit)

        return await self._do(select, make=False) or []

    async def delete(self, job_id: str) -> None:
        """Deletes a job; one that is gone already is no error."""

        def delete(database: Database) -> None:
            table = jobs_table()
            database.core.execute(table.delete().where(table.c.id == job_id))

        await self._do(delete, make=False)

    async def delete_expired(self) -> list[str]:
        """Deletes ended jobs whose time is over; returns their ids. Makes no database where there is none."""

        def delete(database: Database) -> list[str]:
            now = self._now()
            if not database.raw.execute("SELECT 1 FROM jobs WHERE expires_at <= ? LIMIT 1", (now,)).fetchall():
                return []
            table = jobs_table()
            over = (table.c.expires_at <= now, table.c.status.not_in(UNFINISHED))
            gone = table.delete().where(*over).returning(table.c.id)
            return list(database.core.execute(gone).scalars())

        return await self._do(delete, make=False) or []

    async def fail_orphans(self, error: bytes) -> int:
        """Fails the unfinished jobs of hubs that are dead; returns how many.

        `running` does this at the start. Called again now and then, it also ends the jobs of siblings that died.
        """
        return await self._do(functools.partial(self._fail_orphans, error=error), make=False) or 0

    def _fail_orphans(self, database: Database, error: bytes) -> int:
        # The rows before the locks: whoever has a row held its lock before.
        unfinished = "SELECT DISTINCT hub FROM jobs WHERE status IN ('queued', 'in_progress')"
        suspects = {hub for (hub,) in database.raw.execute(unfinished)}
        dead = suspects - living(self._instances) - {self._id}
        if not dead:
            return 0
        table = jobs_table()
        orphans = table.update().where(table.c.hub.in_(dead), table.c.status.in_(UNFINISHED))
        failed = {"status": "failed", "error": error, "completed_at": self._now()}
        count = database.core.execute(orphans, failed).rowcount
        if count:
            log.warning("%d unfinished jobs of a hub that ended were marked as failed", count)
        return count

    def _start(self, orphan_error: bytes) -> None:
        try:
            self._perform(functools.partial(self._fail_orphans, error=orphan_error), make=False)
        except StorageFull:
            words = "its disk is full"
        except OSError as error:
            words = error.strerror or str(error)
        except sqlite3.Error as error:
            words = f"{self._path.name}: {error}"
        else:
            return
        raise ConfigurationError(f"cache_dir: {self._path.parent} cannot be used: {words}")

    def _end(self) -> None:
        self._close()
        if self._lock is not None:
            self._lock.release(delete=True)
            self._lock = None

    async def _do(self, work: Callable[[Database], T], make: bool = True) -> T | None:
        return await self._on_thread(self._perform, work, make)

    def _on_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        if self._executor is None:
            raise RuntimeError("the store is not running")
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _perform(self, work: Callable[[Database], T], make: bool) -> T | None:
        """Does one operation; None where there is no database and `make` is false.

        What fails is tried again with all opened anew: that mends what happened to the files meanwhile.
        """
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                database = self._opened(make)
                return None if database is None else work(database)
            except Exception as error:
                cause = getattr(error, "orig", error)  # SQLAlchemy wraps, and is not imported here
                if is_full(cause):
                    raise StorageFull("The hub's disk is full; the job could not be stored.") from None
                if not attempts_left or not is_mendable(cause):
                    raise cause from None
                log.warning("%s: %s; opening it again", self._path.name, cause)
                self._close()
                time.sleep(0.02 * (ATTEMPTS - attempts_left))  # somebody may be deleting the folder right now
        raise AssertionError

    def _opened(self, make: bool) -> Database | None:
        """The database; it and this process's lock are made anew where they are not, or no longer, in place."""
        if self._lock is None or not self._lock.in_place():
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            self._instances.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self._instances / f"{self._id}.lock")
        if self._database is not None and not self._database.in_place():
            self._close()
        if self._database is None and (make or self._path.exists()):
            opening = Lock(self._instances / "opening.lock")
            try:
                self._database = open_database(self._path)
            finally:
                opening.release()
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _newest(core: Connection, *conditions: Any, limit: int = 1) -> list[JobRow]:
    table = jobs_table()
    columns = [table.c[name] for name in JobRow.__struct_fields__]
    newest = table.select().with_only_columns(*columns).where(*conditions).order_by(table.c.created_at.desc())
    return [JobRow(**row._mapping) for row in core.execute(newest.limit(limit))]
