"""The file under the store: opened, checked, migrated, set aside where it is damaged; and the locks between hubs.

Several hubs may share one cache. Opening, migrating and setting aside happen under a lock between processes; each
running hub holds a lock of its own, by which the others see that it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from hub import migrations
from hub.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger(__name__)

BUSY_TIMEOUT = 15.0
"""Seconds for which a statement waits while another hub writes."""

INSTANCE = re.compile(r"(?P<id>[0-9a-f]{16})\.lock")
SUFFIXES = ("", "-wal", "-shm")
PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "trusted_schema = OFF")

DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# SQLite says FULL for ENOSPC alone; quotas and size limits end as failed writes, or as a missing piece of shared memory
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Damaged(Exception):
    """The file is no database of a hub."""


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0)


def is_full(error: BaseException) -> bool:
    """Whether an operation failed because there is no room on the disk."""
    return _code(error) in FULL or (isinstance(error, OSError) and error.errno in NO_ROOM)


def is_mendable(error: BaseException) -> bool:
    """Whether opening the database anew may help: files that are gone, replaced or damaged, but no busy sibling."""
    if isinstance(error, sqlite3.Error):
        return not isinstance(error, sqlite3.IntegrityError) and _code(error) & 0xFF != sqlite3.SQLITE_BUSY
    return isinstance(error, FileNotFoundError)


class Database:
    """An open hub.db. SQLite writes its log back into the file when the last hub closes it."""

    def __init__(self, path: Path) -> None:
        """Makes an empty file where there is none. Raises sqlite3.Error or OSError."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            # Not opened here: closing a descriptor would end the locks that SQLite has on the file in this process.
            if path.is_file():
                os.chmod(path, 0o600)
        self.path = path
        self.raw = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        self._core: Connection | None = None
        self._identities: dict[str, tuple[int, int] | None] = {}

    @property
    def core(self) -> Connection:
        """SQLAlchemy over the same connection. Each statement is a transaction of its own; such a one never starts
        from an old snapshot, which SQLite would refuse at once instead of waiting for the other hub."""
        if self._core is None:
            from sqlalchemy import StaticPool, create_engine

            self._core = create_engine(
                "sqlite://",
                creator=lambda: self.raw,
                poolclass=StaticPool,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,  # errors are logged, prompts are not
            ).connect()
        return self._core

    def remember_files(self) -> None:
        """Call when the database is ready: its log and shared memory exist then, and stay while it is open."""
        self._identities = {name: _identity(name) for name in (f"{self.path}{suffix}" for suffix in SUFFIXES)}

    def in_place(self) -> bool:
        """Whether the files at the path are still the open ones."""
        return all(_identity(name) == identity for name, identity in self._identities.items())

    def close(self) -> None:
        """Safe for a new file at the old path: SQLite knows by the inode that it is not its own."""
        if self._core is not None:
            self._core.close()
            self._core.engine.dispose()
        self.raw.close()


def _identity(path: str | int) -> tuple[int, int] | None:
    """What tells a file from another one of the same name."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def open_database(path: Path) -> Database:
    """Opens, checks and migrates, or makes the database. A damaged one is set aside."""
    try:
        return _open_sound(path)
    except (_Damaged, sqlite3.Error) as error:
        if not isinstance(error, _Damaged) and _code(error) & 0xFF not in DAMAGED:
            raise
        log.warning("%s is damaged (%s): set aside as %s; its jobs are forgotten", path.name, error, _set_aside(path))
    return _open_sound(path)


def _open_sound(path: Path) -> Database:
    database = Database(path)
    try:
        verdicts = database.raw.execute("PRAGMA quick_check(1)").fetchall()
        if verdicts != [("ok",)]:
            raise _Damaged("its check failed")
        version = _version(database.raw)
        if version > migrations.HEAD:
            raise ConfigurationError(
                f"{path}: made by a newer hub (schema {version}; this one knows {migrations.HEAD}). "
                "Update this hub, or delete the file; its jobs are then forgotten."
            )
        for pragma in PRAGMAS:  # not before: the first one changes the file
            database.raw.execute(f"PRAGMA {pragma}").fetchall()
        if version < migrations.HEAD:
            _migrate(database, version)
        database.remember_files()
    except BaseException:
        database.close()
        raise
    return database


def _version(raw: sqlite3.Connection) -> str:
    """The schema's revision; empty for an empty database."""
    tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return ""
    rows = raw.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    if len(rows) != 1:
        raise _Damaged("it was not made by a hub")
    return str(rows[0][0])


def _migrate(database: Database, version: str) -> None:
    """To HEAD in one transaction. What was there before stays as a copy."""
    if version:
        _copy(database.raw, f"{database.path}.before-{migrations.HEAD}")
    try:
        database.core.exec_driver_sql("BEGIN IMMEDIATE")
        migrations.upgrade(database.core)
        database.raw.commit()
    except BaseException as error:
        database.raw.rollback()
        raise getattr(error, "orig", error) from None


def _copy(raw: sqlite3.Connection, target: str) -> None:
    part = f"{target}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o600))
    copy = sqlite3.connect(part)
    try:
        raw.backup(copy)
    finally:
        copy.close()
    os.replace(part, target)


def _set_aside(path: Path) -> str:
    """Renames the file and its companions; returns the file's new name."""
    number = 1
    while os.path.lexists(target := f"{path}.damaged-{number}"):
        number += 1
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{target}{suffix}")
    return os.path.basename(target)


class Lock:
    """A lock between processes, on a file that is made for it. It ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Waits until it has the lock of the file that is at the path."""
        self._path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(self._descriptor)
                raise
            if self.in_place():
                return
            os.close(self._descriptor)  # while this waited, another hub deleted the file, or the owner the cache

    def in_place(self) -> bool:
        """Whether others who look at the path find this lock."""
        return _identity(self._descriptor) == _identity(str(self._path))

    def release(self, delete: bool = False) -> None:
        """Lets go; `delete` only where nobody waits for the file."""
        if delete and self.in_place():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def living(instances: Path) -> set[str]:
    """The ids of hubs that hold their lock. The lock files of dead ones are deleted."""
    living = set()
    with os.scandir(instances) as entries:
        found = [(entry.path, match["id"]) for entry in entries if (match := INSTANCE.fullmatch(entry.name))]
    for path, instance in found:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # it ended meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(descriptor) == _identity(path):
                os.unlink(path)
            else:
                living.add(instance)  # it has just made its file anew
        except BlockingIOError:
            living.add(instance)
        finally:
            os.close(descriptor)
    return living
