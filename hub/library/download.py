"""One file on its way into `blobs`: resumed, counted, and checked before it has its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from hub.errors import PullFailed, StorageFull
from hub.library.contents import shown
from hub.library.hugging_face import KEPT, HuggingFace, Trouble
from hub.library.progress import Meter, Note, Report
from hub.library.writing import FULL

CHUNK = 1 << 20


class RemoteFile(Struct, frozen=True):
    """A file as the repository lists it. `digest`: its name among the blobs, its SHA-256 or, where Git itself keeps it,
    Git's own SHA-1; `sha256`: null for these."""

    size: int
    digest: str
    sha256: str | None = None


class Digests:
    """Of bytes as they come: SHA-256, and Git's for what Git keeps."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote = remote
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        """With the next bytes."""
        self._sha256.update(chunk)
        if self._remote.sha256 is None:
            self._git.update(chunk)

    @property
    def sha256(self) -> str:
        """Of all that came."""
        return self._sha256.hexdigest()

    @property
    def fits(self) -> bool:
        """Whether it is the file that the repository lists."""
        if self._remote.sha256 is not None:
            return self.sha256 == self._remote.sha256
        return self._git.hexdigest() == self._remote.digest


def verified(file: Path, remote: RemoteFile, look: Callable[[], None]) -> str | None:
    """The SHA-256 of a file that is there already; None where it is not what it should be. `look` is called now and
    then, and may raise."""
    digests = Digests(remote)
    try:
        with file.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size != remote.size:
                return None
            while chunk := stream.read(CHUNK):
                look()
                digests.update(chunk)
    except FileNotFoundError:
        return None
    return digests.sha256 if digests.fits else None


def part_of(blob: Path) -> Path:
    """Where a blob is while it comes."""
    return blob.with_name(f"{blob.name}.incomplete")


class Download:
    """A file that is fetched into `<blob>.incomplete`, from where it was left. The caller alone changes it."""

    def __init__(
        self, source: HuggingFace, blob: Path, path: str, remote: RemoteFile, *, meter: Meter, report: Report
    ) -> None:
        self._source, self._path, self._remote, self._meter, self._report = source, path, remote, meter, report
        self.part = part_of(blob)
        self._stream: BinaryIO
        self._place = self._best = 0
        self._digests = Digests(remote)

    def run(self) -> str:
        """Fetches what is missing, and returns the SHA-256 of all of it, which is on the disk and is what the
        repository lists; raises PullFailed, and leaves nothing, where that is not what comes, twice."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        with open(descriptor, "r+b", buffering=0) as self._stream:  # noqa: PTH123 - a descriptor
            self._take_up()
            for _ in range(2):
                self._source.persist(self._receive, self._is_further)
                if self._digests.fits:
                    os.fsync(self._stream.fileno())
                    return self._digests.sha256
                self._report(Note(message=f"{shown(self._path)} came damaged; fetching it again from its start."))
                self._rewind()
        self.part.unlink()
        raise PullFailed(
            f"{shown(self._path)} is not what the repository lists: its digest was wrong, twice. It was removed. A "
            "proxy or mirror may have changed it."
        )

    def _take_up(self) -> None:
        if os.fstat(self._stream.fileno()).st_size > self._remote.size:
            self._stream.truncate(0)
        while chunk := self._stream.read(CHUNK):
            self._source.check_wanted()
            self._digests.update(chunk)
            self._place += len(chunk)
        self._best = self._place
        self._meter.add(self._path, self._remote.size, self._place, moved=False)

    def _is_further(self) -> bool:
        """Whether more came since the last time than a server sends that cuts every answer."""
        further = self._place >= self._best + CHUNK
        self._best = max(self._best, self._place)
        return further

    def _receive(self) -> None:
        if self._place == self._remote.size:
            return
        try:
            with closing(self._source.stream(self._path, self._place)) as chunks:
                for place, chunk in chunks:
                    self._source.check_wanted()
                    if place != self._place:
                        self._rewind()
                    # What comes beyond the end is not wanted: whether the rest is right, the digest tells.
                    self._write(chunk[: self._remote.size - self._place])
                    if len(chunk) + place > self._remote.size:
                        return
        except Trouble:
            if self._place < self._remote.size:
                raise
        if self._place < self._remote.size:
            raise Trouble(f"Only {self._place} of {self._remote.size} bytes of {shown(self._path)} came")

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._stream.write(rest) :]
        self._digests.update(chunk)
        self._place += len(chunk)
        self._meter.add(self._path, self._remote.size, len(chunk))

    def _rewind(self) -> None:
        self._stream.seek(0)
        self._stream.truncate(0)
        self._meter.add(self._path, self._remote.size, -self._place, moved=False)
        self._place, self._digests = 0, Digests(self._remote)


def of_disk(error: OSError) -> StorageFull | PullFailed:
    """What an error of the file system means for a pull."""
    if error.errno in FULL:
        return StorageFull(f"The disk with weights_dir is full. {KEPT} Make room first (`hub models gc`).")
    words = os.strerror(error.errno) if error.errno else "it failed"
    return PullFailed(f"weights_dir cannot be used ({words}). Check the folder and its owner.")


def present(blobs: Iterable[tuple[Path, RemoteFile]]) -> int:
    """Bytes of these that are on the disk already, whole or in part."""
    total = 0
    for blob, remote in blobs:
        for file in (blob, part_of(blob)):
            try:
                size = file.stat().st_size
            except OSError:
                continue
            if file != blob or size == remote.size:
                total += min(size, remote.size)
                break
    return total
