"""Models into a bundle: everything is read and checked once, then written, and each byte compared on its way."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from hub import __version__
from hub.errors import HubError, InvalidRequest, ModelRefused, StorageFull
from hub.library import signing
from hub.library.bundles.archive import END, Reader, header_of, padding_of, space_of
from hub.library.bundles.index import (
    FORMAT,
    BundledFile,
    BundledModel,
    Index,
    check_content,
    check_names,
    read_index,
    replaced_in,
)
from hub.library.bundles.reading import INDEX_NAME, MAX_INDEX, SIGNATURE_NAME
from hub.library.bundles.tree import Tree, tree_of
from hub.library.contents import shown
from hub.library.layout import MARGIN, Weights
from hub.library.progress import Meter, Report
from hub.library.views import check_complete
from hub.library.writing import CHUNK, sync_folder, unwritable
from hub.manifest import ModelManifest
from hub.registry import absence


class ExportResult(Struct, frozen=True):
    """`size`: bytes of the bundle; `signer`: the fingerprint of the key that signed it."""

    models: tuple[str, ...]
    size: int
    signer: str | None


class _Found(Struct, frozen=True):
    """A file, as it was when it was read: `path` is how errors and progress call it."""

    place: Path
    path: str
    size: int
    sha256: str


def export(
    models: Sequence[ModelManifest],
    texts: Mapping[str, str],
    target: Path,
    weights: Weights,
    report: Report,
    *,
    sign_with: Path | None = None,
) -> ExportResult:
    """Writes a bundle with the models, whose manifests are as the registry has them (absolute paths); `texts` are their
    files' texts, by ids. Where the file TARGET.part of a run that was killed is of the same models, what is right in it
    is kept. Raises ModelRefused for models that are damaged or cannot be carried, StorageFull, and InvalidRequest."""
    if not models or len({model.id for model in models}) < len(models):
        raise InvalidRequest("A bundle needs models, each once.")
    if target.is_dir():
        raise InvalidRequest(f"{target.name or 'That'} is a folder: name the bundle's file, as in small.hubmodels.")
    if target.exists():
        raise InvalidRequest(f"{target.name} is there already; remove it, or choose another name.")
    key = signing.load_private(sign_with) if sign_with else None
    trees = [_tree(model, weights, report) for model in models]
    found = _read_all(trees, report)
    carried = tuple(_bundled(tree, texts[tree.model.id], found[tree.model.id]) for tree in trees)
    index = Index(FORMAT, __version__, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), carried)
    places = {file.sha256: file for files in found.values() for file in files.values()}
    with _part_of(target) as (stream, part):
        index = _continued(stream, index)
        raw = msgspec.json.encode(index)
        read_index(raw)  # what an import would refuse is not written
        start = _member(INDEX_NAME, raw)
        if key is not None:
            start += _member(SIGNATURE_NAME, signing.sign(raw, key))
        size = len(start) + sum(map(space_of, index.blobs.values())) + len(END)
        _check_room(target, size - os.fstat(stream.fileno()).st_size)
        _write(stream, start, [places[digest] for digest in index.blobs], report)
        part.replace(target)
    sync_folder(target.parent)
    signer = signing.fingerprint(signing.public_bytes(key)) if key else None
    return ExportResult(tuple(model.id for model in models), size, signer)


def _tree(model: ModelManifest, weights: Weights, report: Report) -> Tree:
    if absence(model) is not None:  # its words have paths
        raise ModelRefused(f"'{model.id}' cannot be exported: not all of its files are in their places.")
    tree = tree_of(model, weights, report)
    named = {path for path, place in tree.files.items() if path.endswith(".gguf")}
    check_names(tree.files, named)
    check_complete(
        tree.files,
        model.pipeline.variant,
        single=tree.places.get(("source", "file")),
        config=tree.places.get(("pipeline", "config")),
        replaced=replaced_in(model),
    )
    return tree


def _read_all(trees: Sequence[Tree], report: Report) -> dict[str, dict[str, _Found]]:
    """Each file is read once, whoever shares it; by model and name. Raises ModelRefused for those that are damaged."""
    real = {place: Path(os.path.realpath(place)) for tree in trees for place in tree.files.values()}
    try:
        meter = Meter("verify", sum(place.stat().st_size for place in set(real.values())), report)
    except OSError:
        raise ModelRefused("A file of the models cannot be read.") from None
    known: dict[Path, _Found] = {}
    found: dict[str, dict[str, _Found]] = {}
    for tree in trees:
        files = found[tree.model.id] = {}
        for path, place in sorted(tree.files.items()):
            at = real[place]
            if at not in known:
                known[at] = _read(at, path, meter)
            files[path] = known[at]
            check_content(at, path)
        _check_table(tree, {place: files[path].sha256 for path, place in tree.files.items()})
    return found


def _read(place: Path, path: str, meter: Meter) -> _Found:
    """Raises ModelRefused where a blob is not what Hugging Face's cache calls it."""
    digest = hashlib.sha256()
    try:
        with place.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            named = place.name if place.parent.name == "blobs" else ""
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                if len(named) == 40:
                    git.update(chunk)
                meter.add(path, size, len(chunk))
    except OSError as error:
        raise ModelRefused(f"{shown(path)} cannot be read: {error.strerror}.") from None
    right = {64: digest.hexdigest(), 40: git.hexdigest()}
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", named) and named != right[len(named)]:
        raise ModelRefused(f"{shown(path)} is damaged: it is not what it was when it was fetched. Fetch it again.")
    return _Found(place, path, size, digest.hexdigest())


def _check_table(tree: Tree, digests: Mapping[Path, str]) -> None:
    """The manifest's own table sha256, whose names are relative to the first place; other files are not carried."""
    first = Path(tree.model.path)
    folder = first.parent if tree.model.is_single_file else first
    found = {os.path.normpath(place): digest for place, digest in digests.items()}
    for name, digest in tree.model.sha256.items():
        if found.get(os.path.normpath(folder / name), digest) != digest:
            raise ModelRefused(
                f"'{tree.model.id}' is damaged: {shown(name)} is not what its manifest's table sha256 says."
            )


def _bundled(tree: Tree, text: str, found: Mapping[str, _Found]) -> BundledModel:
    digests = {path: file.sha256 for path, file in found.items()}
    files = tuple(BundledFile(path, file.size, file.sha256) for path, file in sorted(found.items()))
    return BundledModel(tree.model.id, tree.manifest(text, digests), tree.source(digests), files)


def _member(name: str, data: bytes) -> bytes:
    return header_of(name, len(data)) + data + bytes(padding_of(len(data)))


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """The file that becomes the bundle, which this process alone writes."""
    part = target.with_name(f"{target.name}.part")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "r+b") as stream:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = part.stat().st_ino == os.fstat(descriptor).st_ino
            except (BlockingIOError, FileNotFoundError):
                ours = False
            if not ours:
                raise InvalidRequest(f"Another process writes {target.name} now.")
            try:
                yield stream, part
            finally:
                if os.fstat(descriptor).st_size == 0:  # nothing that could be gone on with
                    part.unlink()
    except ConnectionError:  # of whoever is reported to: an interruption
        raise
    except OSError as error:
        raise unwritable(error, target.name) from None


def _continued(stream: BinaryIO, index: Index) -> Index:
    """The same index, dated as the one in the file is, where that one is of the same models."""
    try:
        reader = Reader(stream)
        member = reader.next()
        if member is not None and member.name == INDEX_NAME and member.size <= MAX_INDEX:
            before = msgspec.json.decode(b"".join(reader.chunks()), type=Index)
            if msgspec.structs.replace(index, created=before.created) == before:
                return before
    except (HubError, ValueError, RecursionError):
        pass  # nothing, or something else: it is written anew
    return index


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed + MARGIN > free:
        raise StorageFull(f"{target.name} takes {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free.")


def _write(stream: BinaryIO, start: bytes, files: Sequence[_Found], report: Report) -> None:
    """Member by member, each in its place; those that are there and right are kept, if the beginning is the same."""
    meter = Meter("copy", sum(file.size for file in files), report)
    stream.seek(0)
    if stream.read(len(start)) != start:
        stream.seek(0)
        stream.truncate()
        stream.write(start)
    place = len(start)
    for file in files:
        stream.seek(place)
        if _is_there(stream, file):
            meter.add(file.path, file.size, file.size, moved=False)
        else:
            stream.seek(place)
            stream.write(header_of(f"blobs/{file.sha256}", file.size))
            _copy(file, stream, meter)
            stream.write(bytes(padding_of(file.size)))
        place += space_of(file.size)
    stream.seek(place)
    stream.write(END)
    stream.truncate()
    stream.flush()
    os.fsync(stream.fileno())


def _is_there(stream: BinaryIO, file: _Found) -> bool:
    header = header_of(f"blobs/{file.sha256}", file.size)
    if stream.read(len(header)) != header:
        return False
    digest, left = hashlib.sha256(), file.size
    while left and (chunk := stream.read(min(CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    size = padding_of(file.size)
    return digest.hexdigest() == file.sha256 and stream.read(size) == bytes(size)


def _copy(file: _Found, stream: BinaryIO, meter: Meter) -> None:
    """Raises ModelRefused where the file is not any more what it was when it was read first."""
    digest, left = hashlib.sha256(), file.size
    try:
        source = file.place.open("rb")
    except OSError:
        raise ModelRefused(f"{shown(file.path)} has gone while it was exported.") from None
    with source:
        while left and (chunk := source.read(min(CHUNK, left))):
            digest.update(chunk)
            stream.write(chunk)
            meter.add(file.path, file.size, len(chunk))
            left -= len(chunk)
        changed = left or source.read(1)
    if changed or digest.hexdigest() != file.sha256:
        raise ModelRefused(f"{shown(file.path)} has changed while it was exported. Try again.")
