"""Files of the library on their way to the disk: whole or not at all, counted, and there to stay."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from hub.errors import HubError, StorageFull
from hub.library.progress import Meter

CHUNK = 4 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an error of a disk without room, or of a file too large for it, is called."""
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def write_text(file: Path, text: str, *, exclusive: bool = False) -> None:
    """All of a small file, or what was there before. `exclusive`: raises FileExistsError where anything was there, also
    where another process has written it just now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with fresh.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        publish(fresh, file, exclusive=exclusive)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(file.parent)


def publish(fresh: Path, file: Path, *, exclusive: bool) -> None:
    """Gives a file that is whole the name by which it is read. `exclusive`: as in `write_text`."""
    if not exclusive:
        fresh.replace(file)
        return
    try:
        os.link(fresh, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: only the name can be had alone there
        file.open("x").close()
        fresh.replace(file)
    else:
        fresh.unlink()


def sync_folder(folder: Path) -> None:
    """Names that were changed in it survive a power failure from here on, where the file system can do that for
    folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise


def digest_of(file: Path, name: str, size: int, meter: Meter, into: Path | None = None) -> str:
    """A file's SHA-256; `name` and `size`: what the meter tells; `into`: where to copy it meanwhile, down to the
    disk."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream, into.open("xb") if into else contextlib.nullcontext() as out:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
            meter.add(name, size, len(chunk))
        if out is not None:
            out.flush()
            os.fsync(out.fileno())
    return digest.hexdigest()


def unwritable(error: OSError, what: str) -> HubError:
    """What an error of the file system means for whoever has to write `what`, which begins the sentence."""
    if error.errno in FULL:
        return StorageFull(f"{what} cannot be written: its disk has no room, or takes no file of this size.")
    words = os.strerror(error.errno) if error.errno else "it failed"
    return HubError(f"{what} cannot be written: {words}. Check the folder and its owner.")


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Has errors of the file system become words that anybody may read; see `unwritable`."""
    try:
        yield
    except ConnectionError:  # of whoever is reported to
        raise
    except OSError as error:
        raise unwritable(error, what) from error
