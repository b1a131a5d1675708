"""The file under the store: made, opened, checked, migrated, set aside where it is damaged; and the locks between hubs.

Several hubs may share one cache, and anybody may delete of it what they like, at any time. So:

- a new file is put in its place whole, with its tables, and what an older one has left beside it (`-wal`, `-shm`) goes
  first: SQLite would take the old log for the new file's, and nothing in it says whose it is;
- making, opening, migrating and setting aside happen under a lock on the folder itself, which no deletion of its
  files ends;
- each running hub holds a lock on a file of its own, by which the others see that it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
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
UNBORN = re.compile(r"[0-9a-f]{16}\.lock-[0-9a-f]{16}\.tmp")
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
        self._identities = {str(path): _identity(str(path))}
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
        self._identities = {name: _identity(name) for name in (f"{self.path}{suffix}" for suffix in SUFFIXES)}
        if None in self._identities.values() or opened.items() - self._identities.items():
            raise FileNotFoundError(errno.ENOENT, "deleted while it was opened", self.path.name)
        self._size = self.path.stat().st_size

    def in_place(self) -> bool:
        """Whether the files at the path are still the open ones, and nobody has cut the first one short."""
        same = all(_identity(name) == identity for name, identity in self._identities.items())
        return same and self.path.stat().st_size >= self._size

    def replace_without_log(self) -> None:
        """Call when not all is in place. A file whose log alone was deleted must not be used any more: it is torn, and
        whoever closes it last would write into it a log that it has no longer. Here is all of it still, so a whole copy
        takes its place. What was deleted with its log stays deleted."""
        with alone_in(self.path.parent) as folder:
            if _identity(str(self.path)) == self._identities[str(self.path)] and not self.in_place():
                _put(self.path.name, folder, self.raw.serialize())

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


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """No other hub makes or replaces what all of them share in the folder, as long as the context.

    Gives the folder's descriptor: in a folder that was deleted meanwhile nothing can be made by it, nor can anything be
    removed in a new one of its name.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def open_database(path: Path) -> Database:
    """Opens, checks and migrates, or makes the database. A damaged one is set aside."""
    if not path.exists():
        _empty(migrations.FOLDER, migrations.HEAD)  # before the lock, since the first time takes long
    with alone_in(path.parent) as folder:
        _make(path.name, folder)
        opened = _identity(str(path))
        try:
            return _open_sound(path)
        except (_Damaged, sqlite3.Error) as error:
            if not isinstance(error, _Damaged) and _code(error) & 0xFF not in DAMAGED:
                raise
            if _identity(str(path)) != opened:
                raise FileNotFoundError(errno.ENOENT, "deleted while it was opened", path.name) from None
            aside = _set_aside(path.name, folder)
            log.warning("%s is damaged (%s): set aside as %s; its jobs are forgotten", path.name, error, aside)
        _make(path.name, folder)
        return _open_sound(path)


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


class Lock:
    """A running hub's, on a file that is made for it. It ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Replaces a file that is at the path. Others never see it there without its lock."""
        self._path = path
        fresh = path.with_name(f"{path.name}-{secrets.token_hex(8)}.tmp")
        self._descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.rename(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            os.close(self._descriptor)
            raise

    def in_place(self) -> bool:
        """Whether others who look at the path find this lock."""
        return _identity(self._descriptor) == _identity(str(self._path))

    def release(self, delete: bool = False) -> None:
        """Lets go, and of the file, too, where it is to be deleted: others then know nothing of the hub."""
        if delete and self.in_place():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def told_by_locks(instances: Path) -> tuple[set[str], set[str]]:
    """The ids of hubs that hold their lock, and of those that have died: their lock is there, and free. Its file is
    deleted. Of a hub without a file nothing is known: it has ended in order, or somebody has deleted the file."""
    living: set[str] = set()
    dead: set[str] = set()
    with os.scandir(instances) as entries:
        found = [(entry.path, INSTANCE.fullmatch(entry.name)) for entry in entries]
    for path, match in found:
        if match is None and not UNBORN.fullmatch(os.path.basename(path)):
            continue
        try:
            free = _delete_if_free(path)
        except FileNotFoundError:
            continue  # it ended meanwhile
        if match is not None:
            (dead if free else living).add(match["id"])
    return living, dead


def _delete_if_free(path: str) -> bool:
    """Whether nobody holds the lock of this file, which is deleted then."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _identity(descriptor) != _identity(path):
            return False  # it has just made its file anew
        os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
