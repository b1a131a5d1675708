"""The file under the store: made, opened, checked, migrated, set aside where it is damaged.

Several hubs may share one cache, and anybody may delete of it what they like, at any time. So a new file is put in its
place whole, with its tables, and what an older one has left beside it (`-wal`, `-shm`) goes first: SQLite would take
the old log for the new file's, and nothing in it says whose it is. Making, opening, migrating and setting aside happen
while no other hub is in the folder (hub/locks.py).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hub import migrations
from hub.errors import ConfigurationError
from hub.locks import alone_in, identity

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger(__name__)

BUSY_TIMEOUT = 15.0
"""Seconds for which a statement waits while another hub writes."""

COMPANIONS = ("-wal", "-shm", "-journal")
SUFFIXES = ("", *COMPANIONS[:2])
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
        ours = isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError))
        return not ours and _code(error) & 0xFF != sqlite3.SQLITE_BUSY
    return isinstance(error, (FileNotFoundError, FileExistsError))  # the second: `mkdir`, of what goes as it looks


class Database:
    """An open hub.db. SQLite writes its log back into the file when the last hub closes it."""

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error, or OSError where there is no file."""
        self._identities = {str(path): identity(str(path))}
        self._size = 0
        # Not opened here: closing a descriptor would end the locks that SQLite has on the file in this process.
        if path.is_file():
            os.chmod(path, 0o600)
        self.path = path
        # Never made here: an empty file would get the log that an older one has left.
        place = f"{path.absolute().as_uri()}?mode=rw"
        self.raw = sqlite3.connect(place, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
        self._core: Connection | None = None

    @property
    def core(self) -> Connection:
        """SQLAlchemy over the same connection. Each statement is a transaction of its own; such a one never starts
        from an old snapshot, which SQLite would refuse at once instead of waiting for the other hub."""
        if self._core is None:
            self._core = _alchemy(self.raw)
        return self._core

    def remember_files(self) -> None:
        """Call when the database is ready: its log and shared memory exist then, and stay while it is open. Raises
        FileNotFoundError where the file has gone, or was replaced, since it was opened."""
        opened = dict(self._identities)
        self._identities = {name: identity(name) for name in (f"{self.path}{suffix}" for suffix in SUFFIXES)}
        if None in self._identities.values() or opened.items() - self._identities.items():
            raise FileNotFoundError(errno.ENOENT, "deleted while it was opened", self.path.name)
        self._size = self.path.stat().st_size

    def in_place(self) -> bool:
        """Whether the files at the path are still the open ones, and nobody has cut the first one short."""
        same = all(identity(name) == known for name, known in self._identities.items())
        return same and self.path.stat().st_size >= self._size

    def replace_without_log(self) -> None:
        """Call when not all is in place. A file whose log alone was deleted must not be used any more: it is torn, and
        whoever closes it last would write into it a log that it has no longer. Here is all of it still, so a whole copy
        takes its place. What was deleted with its log stays deleted."""
        with alone_in(self.path.parent) as folder:
            if identity(str(self.path)) == self._identities[str(self.path)] and not self.in_place():
                _put(self.path.name, folder, self.raw.serialize())

    def close(self) -> None:
        """Safe for a new file at the old path: SQLite knows by the inode that it is not its own."""
        if self._core is not None:
            self._core.close()
            self._core.engine.dispose()
        self.raw.close()


def open_database(path: Path) -> Database:
    """Opens, checks and migrates, or makes the database. A damaged one is set aside."""
    if not path.exists():
        _empty(migrations.FOLDER, migrations.HEAD)  # before the lock, since the first time takes long
    with alone_in(path.parent) as folder:
        _make(path.name, folder)
        opened = identity(str(path))
        try:
            return _open_sound(path)
        except (_Damaged, sqlite3.Error) as error:
            if not isinstance(error, _Damaged) and _code(error) & 0xFF not in DAMAGED:
                raise
            if identity(str(path)) != opened:
                raise FileNotFoundError(errno.ENOENT, "deleted while it was opened", path.name) from None
            aside = _set_aside(path.name, folder)
            words = "its jobs are forgotten, and what was spent in this month: every budget begins anew"
            log.warning("%s is damaged (%s): set aside as %s; %s", path.name, error, aside, words)
        _make(path.name, folder)
        return _open_sound(path)


@contextlib.contextmanager
def looking_into(path: Path) -> Iterator[sqlite3.Connection | None]:
    """The database for a look from beside the hub, which may run: nothing is made, migrated or set aside. None where
    there is none yet, or it is of an older hub.

    Raises sqlite3.Error, or OSError, where it cannot be read; and ConfigurationError where a newer hub has made it.
    """
    with contextlib.ExitStack() as stack:
        database = _looked_at(path, stack)
        yield None if database is None else database.raw


def _looked_at(path: Path, stack: contextlib.ExitStack) -> Database | None:
    """The database as it is; None where there is none, or no longer, or one of an older hub. It is opened and read for
    the first time while nobody else opens or replaces it; what is read of it later holds nobody up."""
    if not path.is_file():
        return None
    with contextlib.ExitStack() as alone:
        try:
            alone.enter_context(alone_in(path.parent))
            database = Database(path)
        except (OSError, sqlite3.Error):
            if path.is_file():
                raise
            return None
        stack.callback(database.close)
        database.raw.execute("PRAGMA query_only = ON")
        try:
            version = _version(database.raw)
        except _Damaged as error:
            raise sqlite3.DatabaseError(str(error)) from None
        _refuse_newer(path, version)
        return database if version == migrations.HEAD else None


def _make(name: str, folder: int) -> None:
    """Puts a new database in its place, where there is nothing."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        _put(name, folder, _empty(migrations.FOLDER, migrations.HEAD))


def _put(name: str, folder: int, content: bytes) -> None:
    """Puts a whole database in its place, and away what belongs to the one before. Not synchronised: what is in it
    counts when SQLite has written its log back, which does that."""
    part = f".{name}-{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with open(descriptor, "wb") as file:
            file.write(content)
        for suffix in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{name}{suffix}", dir_fd=folder)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


@functools.cache
def _empty(_folder: Path, _head: str) -> bytes:
    """A database at HEAD without rows, as a file's content. Alembic makes it once (50 ms): a cache that is deleted
    again and again is made again within one."""
    raw = sqlite3.connect(":memory:", isolation_level=None)
    core = _alchemy(raw)
    try:
        _upgrade(core, raw)
        content = bytearray(raw.serialize())
    finally:
        core.close()
        core.engine.dispose()
        raw.close()
    content[18:20] = b"\2\2"  # "journal_mode = WAL", which a database in memory cannot be told
    return bytes(content)


def _open_sound(path: Path) -> Database:
    database = Database(path)
    try:
        verdicts = database.raw.execute("PRAGMA quick_check(1)").fetchall()
        if verdicts != [("ok",)]:
            raise _Damaged("its check failed")
        version = _version(database.raw)
        _refuse_newer(path, version)
        for pragma in PRAGMAS:  # not before: the first one changes the file
            database.raw.execute(f"PRAGMA {pragma}").fetchall()
        if version < migrations.HEAD:
            _migrate(database, version)
        database.remember_files()
    except BaseException:
        database.close()
        raise
    return database


def _refuse_newer(path: Path, version: str) -> None:
    if version > migrations.HEAD:
        raise ConfigurationError(
            f"{path}: made by a newer hub (schema {version}; this one knows {migrations.HEAD}). "
            "Update this hub, or delete the file; its jobs are then forgotten, and so is what was spent in this month."
        )


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
    _upgrade(database.core, database.raw)


def _upgrade(core: Connection, raw: sqlite3.Connection) -> None:
    try:
        core.exec_driver_sql("BEGIN IMMEDIATE")
        migrations.upgrade(core)
        raw.commit()
    except BaseException as error:
        raw.rollback()
        raise getattr(error, "orig", error) from None


def _alchemy(raw: sqlite3.Connection) -> Connection:
    from sqlalchemy import StaticPool, create_engine

    return create_engine(
        "sqlite://",
        creator=lambda: raw,
        poolclass=StaticPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # errors are logged, prompts are not
    ).connect()


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


def _set_aside(name: str, folder: int) -> str:
    """Renames the file and its companions; returns the file's new name."""
    number, taken = 1, set(os.listdir(folder))
    while (target := f"{name}.damaged-{number}") in taken:
        number += 1
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{name}{suffix}", f"{target}{suffix}", src_dir_fd=folder, dst_dir_fd=folder)
    return target
