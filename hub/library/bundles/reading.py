"""Opening a bundle: its index and who signed it, before anything else of it is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from hub.errors import ModelRefused, NotFound
from hub.library import signing
from hub.library.bundles.archive import BLOCK, MAX_TAIL, Member, Reader, space_of
from hub.library.bundles.index import Index, read_index
from hub.library.contents import shown
from hub.manifest import ModelManifest

INDEX_NAME, SIGNATURE_NAME = "bundle.json", "bundle.json.sig"
MAX_INDEX, MAX_SIGNATURE = 64 << 20, 8192


class Bundle(Struct, frozen=True):
    """What a bundle carries. `manifests`: by ids, with places relative to their files; `signer`: the fingerprint of the
    key that signed it, which may be anybody's; `size`: bytes of the whole file."""

    index: Index
    manifests: dict[str, ModelManifest]
    signer: str | None
    size: int


class Opened:
    """A bundle that is being read. The signature was found right, if there is one; `key`: by whose key."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self._size = reader, size
        self._raw = self._small(reader.next(), INDEX_NAME, MAX_INDEX)
        self._next = reader.next()
        self.key: bytes | None = None
        self._before = space_of(len(self._raw))
        if self._next is not None and self._next.name == SIGNATURE_NAME:
            signature = self._small(self._next, SIGNATURE_NAME, MAX_SIGNATURE)
            self.key = signing.verify(self._raw, signature)
            self._before += space_of(len(signature))
            self._next = reader.next()

    def _small(self, member: Member | None, name: str, limit: int) -> bytes:
        if member is None or member.name != name:
            found = f"begins with '{shown(member.name)}'" if member else "is empty"
            raise ModelRefused(f"This is no bundle: it {found}, where {name} should be.")
        if member.size > limit:
            raise ModelRefused(f"{name} is too large to be one.")
        return b"".join(self._reader.chunks())

    def read(self) -> Bundle:
        """Checks the index, and the file's size against what it tells of; raises ModelRefused."""
        index, manifests = read_index(self._raw)
        told = self._before + sum(map(space_of, index.blobs.values())) + 2 * BLOCK
        if not told <= self._size <= told + MAX_TAIL:
            words = "is cut off" if self._size < told else "has more in it than it tells of"
            raise ModelRefused(f"The bundle {words}: it has {self._size} bytes, and bundle.json tells of {told}.")
        signer = signing.fingerprint(self.key) if self.key else None
        return Bundle(index, manifests, signer, self._size)

    def blobs(self, wanted: dict[str, int]) -> Iterator[tuple[str, Reader]]:
        """Each blob's SHA-256, as its name says, and where to read its bytes or skip them; all of the `wanted`, once.
        Raises ModelRefused for members that are missing, unknown, or of other sizes than announced."""
        left, member = dict(wanted), self._next
        while member is not None:
            folder, _, digest = member.name.partition("/")
            if folder != "blobs" or digest not in wanted:
                raise ModelRefused(f"'{shown(member.name)}' in the bundle is nothing that bundle.json tells of.")
            if digest not in left:
                raise ModelRefused(f"'{shown(member.name)}' is in the bundle twice.")
            if left.pop(digest) != member.size:
                raise ModelRefused(f"'{shown(member.name)}' in the bundle has another size than bundle.json says.")
            yield digest, self._reader
            member = self._reader.next()
        if left:
            raise ModelRefused(f"The bundle lacks 'blobs/{min(left)}', of which bundle.json tells.")


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Opened]:
    """Raises NotFound, and ModelRefused for what is no bundle."""
    if not path.is_file():  # a FIFO would be waited for
        raise NotFound("There is no such bundle.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ModelRefused(f"The bundle cannot be opened: {error.strerror}.") from None
    with stream:
        yield Opened(Reader(stream), path.stat().st_size)


def read_bundle(path: Path) -> Bundle:
    """What a bundle says of itself; its weights are not read. Raises NotFound, and ModelRefused."""
    with open_bundle(path) as opened:
        return opened.read()
