"""The hub's SQLite database, `cache_dir/hub.db`: jobs that outlive the process that took them, and what was used
(hub/accounts.py).

One connection on one thread. An idle hub pays nothing for it: the file is made when the first row is. Alembic and
SQLAlchemy (0.2 s, 13 MiB) make and migrate the schema alone. The statements go through the DBAPI: SQLAlchemy takes 0.7
ms for one that SQLite does in 0.1, four times in each request and beside the cores that draw.

The cache may be deleted at any time, and several hubs may share one:

- before each operation four `stat` calls notice files that are gone or were replaced; then all is opened anew, and what
  fails meanwhile is tried again;
- a job that this hub works on, and whose row went with a deleted database, is written whole when it ends;
- making, opening, migrating and setting a damaged file aside happen under a lock between processes;
- each running hub holds a lock on `instances/<id>.lock`, and its rows bear the id. Where the lock can be taken, the
  hub is dead, and what it had not finished has failed. Where the file is gone, somebody may have deleted it: a hub that
  lives makes it again within seconds, and only one that does not, for longer, is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
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

from hub.database import Database, is_full, is_mendable, open_database
from hub.errors import ConfigurationError, StorageFull
from hub.locks import NO_LOCKS, Lock, told_by_locks

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 10
"""How often an operation is tried at least, however slow the machine is."""
PATIENCE = 5.0
"""Seconds for which an operation is tried again: as long as somebody may delete the cache again and again."""
START_PATIENCE = 1.0
"""The same at the start, when most likely the owner has to act."""
BEAT = 5.0
"""Seconds between two looks whether the others can still see that this hub lives."""
GRACE = 6 * BEAT
"""Seconds for which a hub may have no lock before it counts as dead; one statement may wait BUSY_TIMEOUT of them."""

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
INSERT_AGAIN = INSERT.replace("INSERT", "INSERT OR REPLACE", 1)
UNFINISHED = ("queued", "in_progress")
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
        self._opens = 0
        """How often the database was opened: a row of before may have gone with another file."""
        self._unfinished: dict[str, int] = {}
        """Jobs that this hub works on, and `_opens` when their rows were written; 0 for those that could not be."""
        self._missed: dict[str, float] = {}
        """Hubs with unfinished jobs and without a lock file, and since when (monotonic)."""
        self._orphan_error = b""

    @contextlib.asynccontextmanager
    async def running(self, orphan_error: bytes) -> AsyncIterator[None]:
        """The store can be used, as long as the context. Jobs of hubs that died fail with `orphan_error`.

        Raises ConfigurationError where the folder cannot be used or a newer hub has made the database.
        """
        self._id, self._orphan_error = secrets.token_hex(8), orphan_error
        self._executor = executor = ThreadPoolExecutor(1, thread_name_prefix="hub-store")
        beating = None
        try:
            await self._on_thread(self._start)
            beating = asyncio.create_task(self._beat_forever())
            yield
        finally:
            if beating is not None:
                beating.cancel()
            ended = self._on_thread(self._end)
            self._executor = None
            executor.shutdown(wait=False)  # what was asked for before is still done
            await ended

    @property
    def id(self) -> str:
        """This hub's, which its rows bear; another one each time it runs."""
        return self._id

    @property
    def path(self) -> Path:
        """The database."""
        return self._path

    async def add(self, job: JobRow) -> None:
        """Stores a new job, as one that this process works on."""
        values = {**msgspec.structs.asdict(job), "hub": self._id}
        statement = INSERT
        if job.status in UNFINISHED:
            self._unfinished[job.id] = 0

        def add(database: Database) -> None:
            nonlocal statement
            again, statement = statement, INSERT_AGAIN  # what failed may have been done nevertheless
            database.raw.execute(again, values)
            if job.id in self._unfinished:
                self._unfinished[job.id] = self._opens

        await self._do(add)

    async def save(self, job: JobRow) -> None:
        """Stores what may change of a job (`MUTABLE`). One that was deleted meanwhile stays deleted; but one that this
        process works on, and whose row went with the database, is stored again."""
        values = {name: getattr(job, name) for name in ("id", *MUTABLE)}
        whole = {**msgspec.structs.asdict(job), "hub": self._id}

        def save(database: Database) -> None:
            found = database.raw.execute(UPDATE, values).rowcount
            if not found and self._unfinished.get(job.id, self._opens) != self._opens:
                database.raw.execute(INSERT_AGAIN, whole)
            if job.id in self._unfinished:
                self._unfinished[job.id] = self._opens

        await self._do(save)
        if job.status not in UNFINISHED:
            self._unfinished.pop(job.id, None)

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
        self._unfinished.pop(job_id, None)
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
        suspects = {hub for (hub,) in database.raw.execute(unfinished)} - {self._id}
        living, dead = told_by_locks(self._instances)
        now = time.monotonic()
        self._missed = {hub: self._missed.get(hub, now) for hub in suspects - living - dead}
        dead |= {hub for hub, since in self._missed.items() if now - since >= GRACE}
        count = sum(self._fail(database, hub, error) for hub in dead & suspects)
        if count:
            log.warning("%d unfinished jobs of a hub that ended were marked as failed", count)
        return count

    def _fail(self, database: Database, hub: str, error: bytes) -> int:
        change = "UPDATE jobs SET status = 'failed', error = ?, completed_at = ? WHERE hub = ?"
        change += " AND status IN ('queued', 'in_progress')"
        return database.raw.execute(change, (error, self._now(), hub)).rowcount

    async def _beat_forever(self) -> None:
        """Shows that this hub lives, and looks again for others of which that is not known."""
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self._on_thread(self._show_life)
                if self._missed:
                    await self.fail_orphans(self._orphan_error)
            except Exception as error:
                log.warning("looking after the locks between hubs failed (%s); trying again", error)

    def _start(self) -> None:
        try:
            orphans = functools.partial(self._fail_orphans, error=self._orphan_error)
            self._perform(orphans, make=False, patience=START_PATIENCE)
        except StorageFull:
            words = "its disk is full"
        except OSError as error:
            words = error.strerror or str(error)
            if error.errno in NO_LOCKS:
                words += ": its file system cannot lock files. Set cache_dir to a folder on another disk"
        except sqlite3.Error as error:
            words = f"{self._path.name}: {error}"
        else:
            return
        raise ConfigurationError(f"cache_dir: {self._path.parent} cannot be used: {words}")

    def _end(self) -> None:
        """What is unfinished now stays so, and nothing will tell that from a hub whose lock somebody has deleted."""
        ended = not self._unfinished
        if not ended:
            try:
                end = functools.partial(self._fail, hub=self._id, error=self._orphan_error)
                self._perform(end, make=False, patience=START_PATIENCE)
                ended = True
            except Exception as error:  # the next hub finds the lock free, and does it
                log.warning("the unfinished jobs could not be marked as failed: %s", error)
        self._unfinished.clear()
        self._close()
        if self._lock is not None:
            self._lock.release(delete=ended)
            self._lock = None

    def perform(self, work: Callable[[Database], T], make: bool = True) -> asyncio.Future[T | None]:
        """Does what another module has to do with its table, with the same care: it may be done again after an error,
        and may have been done all the same. Done in the order of the calls; None where there is no database and `make`
        is false."""
        return self._on_thread(self._perform, work, make)

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
        return await self.perform(work, make)

    def _on_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        if self._executor is None:
            raise RuntimeError("the store is not running")
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _perform(self, work: Callable[[Database], T], make: bool, patience: float = PATIENCE) -> T | None:
        """Does one operation; None where there is no database and `make` is false.

        What fails is tried again with all opened anew: that mends what happened to the files meanwhile. It ends: after
        `patience` seconds and ATTEMPTS the next failure is told. Making all anew takes some milliseconds, so whoever
        deletes it again and again would have to do hardly anything else.
        """
        end, pause = time.monotonic() + patience, 0.002
        for attempt in itertools.count(1):
            try:
                database = self._opened(make)
                return None if database is None else work(database)
            except Exception as error:
                if is_full(error):
                    raise StorageFull("The hub's disk is full; the job could not be stored.") from None
                if not is_mendable(error) or (attempt >= ATTEMPTS and time.monotonic() > end):
                    raise
                log.warning("%s: %s; opening it again", self._path.name, error)
                self._close()
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        raise AssertionError

    def _opened(self, make: bool) -> Database | None:
        """The database; it and this process's lock are made anew where they are not, or no longer, in place."""
        self._show_life()
        if self._database is not None and not self._database.in_place():
            try:
                self._database.replace_without_log()
            finally:
                self._close()
        if self._database is None and (make or self._path.exists()):
            self._database = open_database(self._path)
            self._opens += 1
        return self._database

    def _show_life(self) -> None:
        if self._lock is None or not self._lock.in_place():
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            self._instances.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self._instances / f"{self._id}.lock")

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
