"""Where weights lie: `weights_dir`, in the layout of Hugging Face's cache, which other programs can share.

    models--ORG--NAME/blobs/<sha256>                  the files, by what they hold (what Git keeps itself: by its sha1)
    models--ORG--NAME/snapshots/<commit>/unet/…       links into blobs, by name
    .locks/models--ORG--NAME.lock                     held by whoever changes that repository

A file is linked when all of it is there and was found to be what it should be, and model_index.json last of all: a
snapshot that has one is whole. So several processes may use one folder, and be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from hub.errors import StorageFull
from hub.library.contents import INDEX, is_kept
from hub.library.progress import Note, Report
from hub.manifest import SourceSection, repo_folder

MARGIN = 256 << 20
"""Bytes of the disk that stay free."""


class Weights:
    """The folder; it need not be there. Used by any number of threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repo(self, repo: str) -> Path:
        """A repository's folder."""
        return self.root / repo_folder(repo)

    def blob(self, repo: str, digest: str) -> Path:
        """Where a file of this digest lies, or would."""
        return self.repo(repo) / "blobs" / digest

    def snapshot(self, source: SourceSection) -> Path:
        """The folder that looks like the model's own."""
        return source.folder_in(self.root)

    def lock_file(self, folder: str) -> Path:
        """What is locked by whoever changes the repository of this folder's name."""
        return self.root / ".locks" / f"{folder}.lock"

    @contextlib.contextmanager
    def changing(self, repo: str, report: Report) -> Iterator[None]:
        """This process alone changes the repository, as long as the context; waits for others, and says so."""
        place = self.lock_file(repo_folder(repo))
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            report(Note(message=f"Another process works on {repo}; waiting for it."))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def link(self, source: SourceSection, path: str, digest: str) -> None:
        """Puts a blob, which is there, into a snapshot under its name; replaces what was there."""
        place = self.snapshot(source) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = self.blob(source.repo, digest)
        fresh = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.tmp")
        try:
            fresh.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:  # a file system without links
            shutil.copyfile(blob, fresh)
        fresh.replace(place)

    def link_all(self, source: SourceSection, digests: Mapping[str, str]) -> None:
        """Links every file of a snapshot, by name; what says that it is whole comes last."""
        for path, digest in sorted(digests.items(), key=lambda item: (item[0] == INDEX, item[0])):
            self.link(source, path, digest)

    def check_room(self, needed: int, what: str) -> None:
        """Raises StorageFull where the disk has less than so many bytes, and a margin."""
        place = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if needed + MARGIN > free:
            raise StorageFull(
                f"{what} takes {needed / 1e9:.2f} GB, and the disk with weights_dir has {free / 1e9:.2f} GB free. Make "
                "room (`hub models gc`, `hub models rm`), or set weights_dir to a larger disk."
            )


def files_below(folder: Path) -> dict[str, Path]:
    """Every file that is kept of a model's folder, by its name there; hidden ones and those of other kinds are not."""
    found = {}
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = (Path(at) / name).relative_to(folder).as_posix()
            if not name.startswith(".") and is_kept(path):
                found[path] = folder / path
    return found


def local_source(model: str, digests: Mapping[str, str]) -> SourceSection:
    """Names a model's files that are kept here and come from no repository. digests: SHA-256 by file name."""
    listing = "".join(f"{path} {digest}\n" for path, digest in sorted(digests.items()))
    revision = hashlib.sha256(listing.encode()).hexdigest()[:40]
    name = model.replace("/", ".").replace("..", ".").replace("--", "-").strip(".")
    return SourceSection(kind="local", repo=f"local/{name[:90]}", revision=revision)


def linked(snapshot: Path, but: Container[Path] = ()) -> set[str]:
    """The names of the blobs that a snapshot's links lead to, but those of some links."""
    found = set()
    for at, _, names in os.walk(snapshot):
        for place in (Path(at) / name for name in names):
            if place not in but:
                with contextlib.suppress(OSError):
                    found.add(place.readlink().name)
    return found


def folders_in(folder: Path) -> list[Path]:
    """Real ones, by name; none where the folder cannot be read."""
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())
    except OSError:
        return []


def files_in(folder: Path) -> list[Path]:
    """By name; none where the folder cannot be read."""
    try:
        return sorted(each for each in folder.iterdir() if each.is_file())
    except OSError:
        return []
