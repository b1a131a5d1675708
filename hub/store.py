"""The hub's SQLite database, `cache_dir/hub.db`: jobs that outlive the process that took them.

One connection on one thread. An idle hub pays nothing for it: the file is made when the first row is. Alembic and
SQLAlchemy (0.2 s, 13 MiB) make and migrate the schema alone. The statements go through the DBAPI: SQLAlchemy takes 0.7
ms for one that SQLite does in 0.1, four times in each request and beside the cores that draw.

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
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from hub.database import Database, Lock, is_full, is_mendable, living, open_database
from hub.errors import ConfigurationError, StorageFull

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5

MUTABLE = ("status", "expires_at", "started_at", "completed_at", "step", "steps", "result", "error")


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


# Put together of names that stand in this module alone; values are always bound.
FIELDS = JobRow.__struct_fields__
INSERT = f"INSERT INTO jobs (hub, {', '.join(FIELDS)}) VALUES (:hub, :{', :'.join(FIELDS)})"  # noqa: S608
UPDATE = f"UPDATE jobs SET {', '.join(f'{name} = :{name}' for name in MUTABLE)} WHERE id = :id"  # noqa: S608
SELECT = f"SELECT {', '.join(FIELDS)} FROM jobs WHERE"  # noqa: S608


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
        await self._write(INSERT, {**msgspec.structs.asdict(job), "hub": self._id})

    async def save(self, job: JobRow) -> None:
        """Stores what may change of a job (`MUTABLE`). One that was deleted meanwhile stays deleted."""
        await self._write(UPDATE, {name: getattr(job, name) for name in ("id", *MUTABLE)})

    async def start(self, job_id: str, started_at: float, steps: int) -> None:
        """Notes that a job runs, so that it is known of one that is interrupted. One that has ended stays so."""
        change = "UPDATE jobs SET status = 'in_progress', started_at = ?, steps = ? WHERE id = ? AND status = 'queued'"
        await self._write(change, (started_at, steps, job_id))

    async def get(self, job_id: str) -> JobRow | None:
        """The job, as long as it was not deleted; it may be expired."""
        return next(iter(await self._read("id = ?", job_id)), None)

    async def with_idempotency_key(self, owner: str | None, key: str) -> JobRow | None:
        """The owner's newest job with this key that has not expired."""
        # NULL, the owner on an open hub, equals nothing; IS takes it for a value.
        found = await self._read("idempotency_key = ? AND owner IS ? AND expires_at > ?", key, owner, self._now())
        return next(iter(found), None)

    async def with_recipe(self, owner: str | None, recipe: str) -> JobRow | None:
        """The owner's newest completed job with this recipe that has not expired."""
        where = "recipe = ? AND owner IS ? AND status = 'completed' AND expires_at > ?"
        return next(iter(await self._read(where, recipe, owner, self._now())), None)

    async def newest(self, owner: str | None, limit: int) -> list[JobRow]:
        """The owner's jobs that have not expired, the newest first."""
        return await self._read("owner IS ? AND expires_at > ?", owner, self._now(), limit=limit)

    async def delete(self, job_id: str) -> None:
        """Deletes a job; one that is gone already is no error."""
        await self._write("DELETE FROM jobs WHERE id = ?", (job_id,), make=False)

    async def delete_expired(self) -> list[str]:
        """Deletes ended jobs whose time is over; returns their ids. Makes no database where there is none."""

        def delete(database: Database) -> list[str]:
            now = self._now()
            if not database.raw.execute("SELECT 1 FROM jobs WHERE expires_at <= ? LIMIT 1", (now,)).fetchall():
                return []  # without the lock that writing takes
            over = "DELETE FROM jobs WHERE expires_at <= ? AND status NOT IN ('queued', 'in_progress') RETURNING id"
            gone = database.raw.execute(over, (now,))
            return [job_id for (job_id,) in gone.fetchall()]

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
        change = "UPDATE jobs SET status = 'failed', error = ?, completed_at = ? WHERE hub = ?"
        change += " AND status IN ('queued', 'in_progress')"
        count = sum(database.raw.execute(change, (error, self._now(), hub)).rowcount for hub in dead)
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

    async def _write(self, statement: str, values: Any, make: bool = True) -> None:
        await self._do(lambda database: database.raw.execute(statement, values), make)

    async def _read(self, where: str, *values: Any, limit: int = 1) -> list[JobRow]:
        """The newest rows. Makes no database where there is none."""
        statement = f"{SELECT} {where} ORDER BY created_at DESC LIMIT ?"

        def read(database: Database) -> list[JobRow]:
            rows = database.raw.execute(statement, (*values, limit)).fetchall()
            return [JobRow(**dict(zip(FIELDS, row, strict=True))) for row in rows]

        return await self._do(read, make=False) or []

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
                if is_full(error):
                    raise StorageFull("The hub's disk is full; the job could not be stored.") from None
                if not attempts_left or not is_mendable(error):
                    raise
                log.warning("%s: %s; opening it again", self._path.name, error)
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
