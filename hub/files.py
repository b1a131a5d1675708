"""The life of a generated file: saved atomically, linked with a signature, expired, swept.

A file's name, made here and never by a client, is `<32 hex digits>-<kept until, unix seconds>.<png|jpg|webp>`. A link
is `/files/<key id>.<good until, unix seconds>.<signature>/<name>`: all of it stands in the path, because some clients
drop queries. The signature is HMAC-SHA256 over exactly the name and the link's end, with a secret that outlives the
process. So a link needs no database, a file can be linked again while it is kept, and the sweeper reads names.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import hmac
import itertools
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hub.errors import ConfigurationError, FileExpired, FileForbidden, NotFound, StorageFull
from hub.locks import alone_in
from hub.types import OutputFormat

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME = re.compile(r"[0-9a-f]{32}-(?P<expires>[0-9]{1,12})\.(?P<extension>png|jpg|webp)")
SIGNATURE = re.compile(r"(?P<key>[0-9a-f]{8})\.(?P<expires>[0-9]{1,12})\.(?P<mac>[\w-]{32})", re.ASCII)
EXTENSIONS: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
PART = re.compile(r"[0-9a-f]{32}-[0-9]{1,12}\.tmp")
STATE_PART = re.compile(r"\.[a-z][a-z0-9.]{0,30}-[0-9a-f]{16}\.tmp")
"""What the hub and its workers write beside `files/` before it gets its name: `.secret-…`, `.hub.db-…` and the like."""
SWEEP_INTERVAL = 30.0
ORPHAN_AGE = 30.0
"""Seconds after which what was being written belongs to a process that died: it takes milliseconds. Where it does not,
it is written again."""
ATTEMPTS = 10
PATIENCE = 5.0
"""Seconds for which a picture is stored again, as long as somebody deletes what is being written."""


class Files:
    """Saves, links, reads and sweeps generated files under one folder."""

    def __init__(self, cache_dir: Path, ttl: int, now: Callable[[], float] = time.time) -> None:
        """`ttl`: seconds for which a link is good. `now`: unix seconds, for tests.

        Makes the folder and, on first use, the secret. Raises ConfigurationError where it cannot.
        """
        self._folder = cache_dir / "files"
        try:
            self._secret = _trying_again(lambda _: self._prepare(cache_dir))
        except OSError as error:
            raise ConfigurationError(f"cache_dir: {cache_dir} cannot be used: {error.strerror}") from None
        self._ttl = ttl
        self._now = now
        self._key_id = hashlib.sha256(b"key id" + self._secret).hexdigest()[:8]

    def _prepare(self, cache_dir: Path) -> bytes:
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in (cache_dir, self._folder):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "the hub may not write there. Set cache_dir to a folder of its own")
        return _load_secret(cache_dir / "secret")

    async def save(
        self, data: bytes, output_format: OutputFormat = "png", keep_until: float = 0, *, read_soon: bool = True
    ) -> str:
        """Stores an encoded picture and returns its name; raises StorageFull. Nothing half-written is ever visible.

        It is kept until `keep_until` (unix seconds), and at least as long as a link made now is good. `read_soon`:
        whether the system's memory is to hold it, too.
        """
        name = self._fresh_name(EXTENSIONS[output_format], keep_until)
        try:
            await asyncio.to_thread(self._store, self._folder / name, data, read_soon)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull("The hub's disk is full; the picture could not be stored.") from None
            raise
        return name

    async def share(self, names: Sequence[str], keep_until: float = 0) -> list[str]:
        """New names for stored pictures, which live apart from the old ones; raises NotFound, and makes none, where a
        file is gone. A hard link: no byte is copied, and the file is there or it is not, whoever deletes it meanwhile.

        Not synchronised with the disk: what a power failure takes away can be had again by asking again.
        """
        fresh = [self._fresh_name(name.rpartition(".")[2], keep_until) for name in names]
        linking = asyncio.create_task(asyncio.to_thread(self._link_all, names, fresh))
        try:
            await asyncio.shield(linking)
        except BaseException as error:
            await asyncio.wait({linking})  # a thread cannot be cancelled
            await self.delete(fresh)
            if isinstance(error, OSError):
                raise NotFound("The file of this picture is gone.") from None
            raise
        return fresh

    def _link_all(self, names: Sequence[str], fresh: Sequence[str]) -> None:
        for old, new in zip(names, fresh, strict=True):
            _link_regular(self._folder / old, self._folder / new)

    def _fresh_name(self, extension: str, keep_until: float) -> str:
        ends = int(max(keep_until, self._now() + self._ttl))
        return f"{secrets.token_hex(16)}-{ends}.{extension}"

    def link(self, name: str) -> str:
        """The path of a new link to a stored file: good for the time to live, but no longer than the file is kept."""
        match = NAME.fullmatch(name)
        kept = int(match["expires"]) if match else 0
        return f"/files/{self._signed(name, min(int(self._now()) + self._ttl, kept))}/{name}"

    async def read(self, signature: str, name: str) -> bytes:
        """The bytes behind a link; raises FileForbidden, FileExpired or NotFound, in that order of checks."""
        link = SIGNATURE.fullmatch(signature)
        expected = self._signed(name, int(link["expires"])) if link and NAME.fullmatch(name) else ""
        if not link or not hmac.compare_digest(signature.encode(), expected.encode()):
            raise FileForbidden("This link was altered, or was signed by another hub.")
        if self._now() >= int(link["expires"]):
            words = "This link has expired. Its job (GET /v1/images/jobs/{id}) gives fresh links while it is kept."
            raise FileExpired(words)
        return await self.read_stored(name)

    async def read_stored(self, name: str) -> bytes:
        """The bytes of a file that `save` has named; raises NotFound where it is gone."""
        try:
            return await asyncio.to_thread(_read_regular, self._folder / name)
        except OSError:
            raise NotFound("The file of this picture is gone.") from None

    async def exist(self, names: Sequence[str]) -> bool:
        """Whether all of these files are still there."""
        return all(await asyncio.gather(*(asyncio.to_thread((self._folder / name).is_file) for name in names)))

    async def delete(self, names: Sequence[str]) -> None:
        """Deletes stored files; those that are gone already are no error."""
        for name in names:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.unlink, self._folder / name)

    def _store(self, path: Path, data: bytes, read_soon: bool) -> None:
        """Writes the file, and, where somebody deleted the cache under the running hub, what belongs beside it: the
        folder, and the secret, so that new links survive a restart."""

        def store(again: bool) -> None:
            if again:
                self._folder.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, data, name_first=again, read_soon=read_soon)

        _trying_again(store)
        secret = self._folder.parent / "secret"
        if not secret.exists():
            try:
                _plant_secret(secret, self._secret)
            except OSError as error:  # deleted once more, or no room; the picture is there
                log.warning("the secret could not be written (%s); the next picture tries again", error.strerror)

    def seconds_left(self, signature: str) -> int:
        """For how long the link that `read` has just answered stays good."""
        link = SIGNATURE.fullmatch(signature)
        return max(0, int(link["expires"]) - int(self._now())) if link else 0

    @contextlib.asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Deletes what has expired, once a minute, as long as the context."""
        sweeper = asyncio.create_task(self._sweep_forever())
        try:
            yield
        finally:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except OSError:
                log.exception("sweeping generated files failed; trying again")
            await asyncio.sleep(SWEEP_INTERVAL)

    def sweep(self) -> int:
        """Deletes expired files and left-over temporary ones; returns how many. Other files are left alone."""
        now = self._now()
        gone = _delete_where(self._folder, lambda entry: self._is_over(entry, now))
        return gone + _delete_where(self._folder.parent, lambda entry: _is_left_over(entry, STATE_PART, now))

    @staticmethod
    def _is_over(entry: os.DirEntry[str], now: float) -> bool:
        if match := NAME.fullmatch(entry.name):
            return now >= int(match["expires"])
        return _is_left_over(entry, PART, now)

    def _signed(self, name: str, expires: int) -> str:
        """The first part of a link: key id, end and signature."""
        mac = hmac.digest(self._secret, f"GET\n{expires}\n{name}".encode(), "sha256")
        return f"{self._key_id}.{expires}.{base64.urlsafe_b64encode(mac[:24]).decode()}"


def _trying_again(work: Callable[[bool], T]) -> T:
    """Does what needs files that somebody may be deleting just now; told whether it is done again. It ends: after
    PATIENCE and ATTEMPTS the next failure is told, and one try takes a millisecond."""
    end = time.monotonic() + PATIENCE
    for attempt in itertools.count(1):
        try:
            return work(attempt > 1)
        except (FileNotFoundError, FileExistsError):  # the second: `mkdir`, of a folder that goes as it looks
            if attempt >= ATTEMPTS and time.monotonic() > end:
                raise
            time.sleep(0.001)
    raise AssertionError


def _is_left_over(entry: os.DirEntry[str], pattern: re.Pattern[str], now: float) -> bool:
    left_over = pattern.fullmatch(entry.name) is not None
    return left_over and now - entry.stat(follow_symlinks=False).st_mtime > ORPHAN_AGE


def _delete_where(folder: Path, is_over: Callable[[os.DirEntry[str]], bool]) -> int:
    """Deletes files, not folders; returns how many."""
    gone = 0
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return 0
    for entry in entries:
        try:
            if is_over(entry) and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                gone += 1
        except FileNotFoundError:
            continue  # another hub on the same cache was faster
        except OSError as error:
            log.warning("an expired file could not be deleted: %s", error.strerror)
    return gone


def _load_secret(path: Path) -> bytes:
    """The persistent signing secret, made on first use: 32 random bytes, mode 0600. Safe for two racing hubs."""
    if not path.exists():
        _plant_secret(path, secrets.token_bytes(32))
    secret = path.read_bytes()
    if len(secret) != 32:
        raise ConfigurationError(f"{path}: damaged (not 32 bytes). Delete it; links handed out so far end with it.")
    os.chmod(path, 0o600)
    return secret


def _plant_secret(path: Path, secret: bytes) -> None:
    """Puts the secret in place, whole or not at all, and never over one that another hub has just made."""
    fresh = path.with_name(f".secret-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = _new(fresh)
        try:
            _write(descriptor, secret)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _name_once(fresh, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


def _name_once(fresh: Path, path: Path) -> None:
    """Gives a file its name, unless there is one of that name already."""
    try:
        os.link(fresh, path)  # unlike rename, never replaces
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise
    except OSError:  # a file system without second names
        with alone_in(path.parent):
            if not path.exists():
                os.rename(fresh, path)


def _new(path: Path) -> int:
    """The descriptor of a file that was not there before, whatever somebody plants at its path."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _write(descriptor: int, data: bytes) -> None:
    """All of it: a file object would ask the kernel about the file first, and each call costs a turn at Python's
    lock."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write_atomically(path: Path, data: bytes, *, name_first: bool = False, read_soon: bool = True) -> None:
    """The whole file or none. After a power failure the name may be missing, as the database's last rows may: then the
    picture is gone, and asking again brings it back. It is never there with half of its bytes.

    `name_first`: it gets its name before the disk has it, for one that was deleted before it had. To wait for the disk
    takes the longest by far: whoever deletes the cache again and again would always be faster.

    What is not `read_soon` gives its pages of memory back when the disk has it: the next picture is written into the
    same ones, which may take a quarter of the time, and none of those leave that hold models.
    """
    part = path.with_suffix(".tmp")
    try:
        descriptor = _new(part)
        try:
            _write(descriptor, data)
            if name_first:
                os.rename(part, path)
            os.fsync(descriptor)
            if not read_soon and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        if not name_first:
            os.rename(part, path)
    except OSError:
        for left in (part, path) if name_first else (part,):
            with contextlib.suppress(OSError):
                os.unlink(left)
        raise


def _read_regular(path: Path) -> bytes:
    """Reads a file but never through a link that somebody planted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a planted FIFO must not block either
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    with open(descriptor, "rb") as file:
        return file.read()


def _link_regular(path: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has none, or no more (ext4: 65,000)."""
    try:
        os.link(path, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        _write_atomically(target, _read_regular(path))
    if not stat.S_ISREG(os.lstat(target).st_mode):  # somebody planted a link; now there are two
        raise FileNotFoundError(path)
