"""An owner's model is copied into weights_dir, or read where it stays; its SHA-256s are found on the way."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from hub.errors import ModelRefused
from hub.library.contents import check_path, shown
from hub.library.layout import Weights, local_source
from hub.library.progress import Meter, Report
from hub.library.whole import Whole
from hub.library.writing import digest_of, unwritable
from hub.manifest import SourceSection


def hashed(weights: Mapping[str, Path], report: Report) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    sizes = {name: file.stat().st_size for name, file in weights.items()}
    meter = Meter("verify", sum(sizes.values()), report)
    return {name: digest_of(file, name, sizes[name], meter) for name, file in weights.items()}


@contextlib.contextmanager
def copied(
    whole: Whole, place: Path, model: str, weights: Weights, report: Report
) -> Iterator[tuple[SourceSection, dict[str, str]]]:
    """Has the files in weights_dir, and there they stay if the context ends well; nothing is left behind otherwise.
    Their source, and the table of their SHA-256s."""
    named = {_kept_name(path, whole): file for path, file in whole.files.items()}
    for path, file in named.items():
        check_path(path)
        _refuse_outside(file, place, path)
    sizes = {path: file.stat().st_size for path, file in named.items()}
    weights.check_room(sum(sizes.values()), "The copy")
    repo = local_source(model, {}).repo
    copier = Copier(weights, repo, Meter("copy", sum(sizes.values()), report))
    with weights.changing(repo, report):
        try:
            digests = {path: copier.keep(file, path, sizes[path]) for path, file in named.items()}
            source = local_source(model, digests)
            source.file = next(iter(named)) if whole.config else None
            copier.link(source, digests)
            table = {path: digest for path, digest in digests.items() if path.endswith(".safetensors")}
            snapshot, kept = weights.snapshot(source), set(named.values())
            others = [file for file in whole.weights.values() if file not in kept]  # of the folder of configurations
            table |= hashed({Path(os.path.relpath(file, snapshot)).as_posix(): file for file in others}, report)
            yield source, table
        except BaseException as error:
            copier.clear()
            if isinstance(error, OSError) and not isinstance(error, ConnectionError):  # of whoever is reported to
                raise unwritable(error, "The copy in weights_dir") from None
            raise


class Copier:
    """Puts files among a repository's blobs, and remembers which were not there before."""

    def __init__(self, weights: Weights, repo: str, meter: Meter) -> None:
        self._weights, self._repo, self._meter = weights, repo, meter
        self._fresh: list[Path] = []

    def keep(self, file: Path, path: str, size: int) -> str:
        """Copies a file to where its digest says, which it returns."""
        part = self._weights.blob(self._repo, f".{secrets.token_hex(8)}.tmp")
        part.parent.mkdir(parents=True, exist_ok=True)
        self._fresh.append(part)
        digest = digest_of(file, path, size, self._meter, into=part)
        blob = self._weights.blob(self._repo, digest)
        if not blob.exists():
            self._fresh.append(blob)
        part.replace(blob)
        return digest

    def link(self, source: SourceSection, digests: Mapping[str, str]) -> None:
        """Makes the snapshot."""
        snapshot = self._weights.snapshot(source)
        if not snapshot.exists():
            self._fresh.append(snapshot)
        self._weights.link_all(source, digests)

    def clear(self) -> None:
        """Removes what was made, and the folders that are empty then."""
        for place in reversed(self._fresh):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)
        repo = self._weights.repo(self._repo)
        for folder in (repo / "blobs", repo / "snapshots", repo):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _kept_name(path: str, whole: Whole) -> str:
    """A single file may be called as its owner likes, and a manifest's `source.file` not."""
    if whole.config is None:
        return path
    plain = re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", path.removesuffix(".safetensors")).strip("-._")[:100]
    return f"{plain or 'model'}.safetensors"


def _refuse_outside(file: Path, place: Path, path: str) -> None:
    """A link may stay within the model's folder, or lead to the blobs of the same repository of a cache."""
    root = place if place.is_dir() else place.parent
    real, own = file.resolve(), root.resolve()
    blobs = own.parent.parent / "blobs" if own.parent.name == "snapshots" else own
    if place.is_dir() and not (real.is_relative_to(own) or real.parent == blobs):
        raise ModelRefused(f"{shown(path)} is a link that leads out of the model's folder; it is not copied.")
    if not real.is_file():
        raise ModelRefused(f"{shown(path)} is not an ordinary file.")
