"""The locks between hubs that share one cache, of which anybody may delete what they like, at any time.

- `alone_in`: making and replacing what all of them share happens one at a time;
- `Lock`: each running hub holds one on a file of its own, by which the others see that it lives.

All are flock(2), which ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

ALONE = "lock"
"""What the file is called on which `alone_in` holds its second lock."""
INSTANCE = re.compile(r"(?P<id>[0-9a-f]{16})\.lock")
UNBORN = re.compile(r"[0-9a-f]{16}\.lock-[0-9a-f]{16}\.tmp")

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""A file system that does not lock what it is asked to. EBADF: NFS, for a descriptor that is not open for writing."""


def identity(path: str | int, folder: int | None = None) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None where there is none. Of a path, or a descriptor."""
    try:
        status = os.stat(path, dir_fd=folder)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """No other hub makes or replaces what all of them share in the folder, as long as the context.

    Gives the folder's descriptor: in a folder that was deleted meanwhile nothing can be made by it, nor can anything be
    removed in a new one of its name.

    Two locks. One on the folder itself, which no deletion of its files ends; but network file systems refuse it, since
    a folder cannot be opened for writing, or keep it from other machines. So there is one on a file besides. Where that
    is the only one, whoever deletes the file while it is held lets a second hub in; SQLite's own locks are left then.

    Raises OSError: one of NO_LOCKS where nothing can be locked, FileNotFoundError where the folder was deleted.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        file = _locked_file(descriptor)
        try:
            yield descriptor
        finally:
            os.close(file)
    finally:
        os.close(descriptor)


def _locked_file(folder: int) -> int:
    """A descriptor of the file ALONE, locked and in its place: one that was deleted while it was waited for locks
    nobody out."""
    while True:
        file = os.open(ALONE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if identity(file) == identity(ALONE, folder):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


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
        return identity(self._descriptor) == identity(str(self._path))

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
        if identity(descriptor) != identity(path):
            return False  # it has just made its file anew
        os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
