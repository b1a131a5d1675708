"""A bundle's tar, written in one way and read strictly: plain files by short names, and nothing else.

Our own reader of 512-byte headers, instead of tarfile: what is not read can smuggle nothing. Links, devices, sparse
files, long names and extended headers are refused by their names before a byte of them is looked at.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from msgspec import Struct

from hub.errors import ModelRefused
from hub.library.contents import shown
from hub.library.writing import CHUNK

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_TAIL = 1 << 20
"""Bytes of zeros that may stand after the end: other programs fill up their records."""
KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a FIFO",
    b"S": "a sparse file", b"x": "an extended header", b"g": "an extended header", b"L": "a long name",
    b"K": "a long name",
}  # fmt: skip
FORMATS = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK": "a zip archive",
    b"BZ": "compressed (bzip2)",
    b"\xfd7": "an xz file",
}


class Member(Struct, frozen=True):
    """A file of the archive."""

    name: str
    size: int


def header_of(name: str, size: int) -> bytes:
    """What stands before a member; the same for the same member, always. Sizes above 8 GiB are written in GNU's way."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def padding_of(size: int) -> int:
    """Bytes of zeros after so many, to the next block."""
    return -size % BLOCK


def space_of(size: int) -> int:
    """What a member of this size takes, all together."""
    return BLOCK + size + padding_of(size)


class Reader:
    """Members one after another, from a stream that is read once and forwards."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._member: Member | None = None
        self._left = 0

    def next(self) -> Member | None:
        """The next member, whose bytes are then read by `chunks`, or skipped; None at the archive's end, when nothing
        but zeros may follow. Raises ModelRefused."""
        if self._left:
            raise RuntimeError("the last member was not read")
        block = self._take(BLOCK)
        if block == bytes(BLOCK):
            self._finish()
            return None
        self._member = _parse(block)
        self._left = self._member.size
        return self._member

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The member's bytes. Raises ModelRefused where the file ends before."""
        while self._left:
            yield self._take(min(size, self._left), counted=True)
        self._skip_padding()

    def skip(self) -> None:
        """Passes over the member's bytes."""
        self._stream.seek(self._left, 1)
        self._left = 0
        self._skip_padding()

    def _skip_padding(self) -> None:
        size = padding_of(self._member.size if self._member else 0)
        if self._take(size) != bytes(size):
            raise ModelRefused(f"The bundle has something between its members, after '{self._name}'.")

    @property
    def _name(self) -> str:
        return shown(self._member.name) if self._member else "its beginning"

    def _take(self, count: int, *, counted: bool = False) -> bytes:
        try:
            data = self._stream.read(count)
        except OSError as error:  # of old media
            raise ModelRefused(f"The bundle cannot be read after '{self._name}': {error.strerror}.") from None
        if len(data) < count:
            raise ModelRefused(f"The bundle is cut off, at or after '{self._name}'.")
        self._left -= count if counted else 0
        return data

    def _finish(self) -> None:
        tail = self._stream.read(MAX_TAIL + 1)
        if len(tail) < BLOCK:
            raise ModelRefused("The bundle is cut off at its end.")
        if len(tail) > MAX_TAIL or tail.strip(b"\0"):
            raise ModelRefused("The bundle goes on after its end.")


def _parse(block: bytes) -> Member:
    for start, words in FORMATS.items():
        if block.startswith(start):
            raise ModelRefused(f"This is {words}; a bundle is a plain tar.")
    total = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if block[257:265] not in (b"ustar\x0000", b"ustar  \x00") or _octal(block[148:156]) != total:
        raise ModelRefused("This is no bundle, or it is damaged: a member's header is none.")
    raw, _, rest = block[:100].partition(b"\0")
    name = raw.decode("ascii", "replace")
    kind = block[156:157]
    if kind != b"0":
        words = KINDS.get(kind, "of an unknown kind")
        raise ModelRefused(f"'{shown(name)}' in the bundle is {words}; a bundle has plain files only.")
    if rest.strip(b"\0") or block[157:257].strip(b"\0") or block[345:].strip(b"\0"):
        raise ModelRefused(f"'{shown(name)}' in the bundle has more in its header than a plain file may have.")
    size = _size(block[124:136])
    if size is None:
        raise ModelRefused(f"'{shown(name)}' in the bundle has a size that is none.")
    return Member(name, size)


def _size(field: bytes) -> int | None:
    if field[0] == 0x80:
        size = int.from_bytes(field[1:], "big")
        return size if size < 1 << 62 else None
    return _octal(field)


def _octal(field: bytes) -> int | None:
    """As all write it: digits, and blanks or NULs around them."""
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
