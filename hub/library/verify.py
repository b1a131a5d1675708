"""Is every file still what it was? All bytes are read: a single flipped bit is found.

A blob is called by what it holds, and the manifest says what the weights must be. In weights_dir, a blob that is not
what its own name says is set aside, with the entry that says that its snapshot is whole: so nobody draws with it, and
a pull brings it back. One that is what it is called stays, whatever a manifest's table says: others may use it. Files
of the owner's own folders are never touched. The engine refuses whatever is not as the table has it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from hub.errors import ModelRefused
from hub.library.contents import INDEX, PAPERS
from hub.library.layout import Weights, folders_in, linked
from hub.library.orders import Fault, Problem, Verified
from hub.library.parts import missing_parts
from hub.library.places import files_of, size_of_file
from hub.library.progress import Meter, Note, Report
from hub.manifest import ModelManifest
from hub.pipelines.weights import forget
from hub.registry import absence

CHUNK = 1 << 20
QUARANTINED = ".quarantined"


class Expected(Struct, frozen=True):
    """A file of a model, and what is known of it: SHA-256 by the manifest, digest by the name of its blob."""

    name: str
    file: Path
    sha256: str | None
    blob: str | None


class _Digests(Struct, frozen=True):
    """SHA-256 of the bytes, and the SHA-1 that Git calls them by, where their blob is called by it."""

    sha256: str
    git: str


def verify(models: Iterable[ModelManifest], weights: Weights, hashes: Path, report: Report) -> Verified:
    """Reads all files of the models. hashes: where the engine remembers what it has read."""
    models = list(models)
    expected = {model.id: expected_files(model) for model in models}
    sizes = {each.file: size_of_file(each.file) for files in expected.values() for each in files}
    meter = Meter("verify", sum(sizes.values()), report)
    found: dict[Path, _Digests] = {}
    faults = []
    for model in models:
        files = expected[model.id]
        faults += [Fault(model=model.id, file=name, problem="missing", quarantined=False) for name in _missing(model)]
        unnamed = [each.name for each in files if each.sha256 is None and each.blob is None]
        if unnamed:
            words = f"what {len(unnamed)} of its files should be is not known ({', '.join(unnamed[:3])} …)"
            report(Note(message=f"{model.id}: {words}; they were read and not compared."))
        for each in files:
            name = each.name if len(models) == 1 else f"{model.id}: {each.name}"
            problem = _problem(each, found, functools.partial(meter.add, name, sizes[each.file]))
            if problem is None or any(known.model == model.id and known.file == each.name for known in faults):
                continue
            if each.name == INDEX and problem == "missing" and any(known.quarantined for known in faults):
                continue  # it was taken away just now, with what was set aside
            forget(hashes, each.file)
            aside = False
            if problem == "damaged" and not _is_itself(each, found[each.file]):
                problem, aside = _look_again(model, each, found, weights, report)
            if problem is not None:
                faults.append(Fault(model=model.id, file=each.name, problem=problem, quarantined=aside))
    read = sum(sizes[file] for file in found)
    return Verified(models=[model.id for model in models], files=len(found), bytes=read, faults=faults)


def _missing(model: ModelManifest) -> list[str]:
    """What the pipeline needs and is not there at all, by name."""
    if absence(model):
        return [INDEX]
    if model.is_single_file or model.components:  # their parts lie elsewhere
        return []
    try:
        return missing_parts(Path(model.path), model.pipeline.variant)
    except ModelRefused:  # its model_index.json is broken: that shows below
        return []


def expected_files(model: ModelManifest) -> list[Expected]:
    """What a model is made of: what is there, and what its manifest names beside."""
    first = Path(model.path).parent if model.is_single_file else Path(model.path)
    files = dict(files_of(model))
    for name in model.sha256:
        files.setdefault(name, Path(os.path.normpath(first / name)))
    return [Expected(name, file, model.sha256.get(name), _blob_name(file)) for name, file in sorted(files.items())]


def _blob_name(file: Path) -> str | None:
    """The digest that a link of Hugging Face's cache leads to; also where that is gone."""
    with contextlib.suppress(OSError):
        target = file.readlink()
        if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name):
            return target.name
    return None


def _problem(each: Expected, found: dict[Path, _Digests], read: Callable[[int], None]) -> Problem | None:
    """`missing`, `damaged`, or None. read: is told how many more bytes were read."""
    try:
        if each.file not in found:
            found[each.file] = _digests(each, read)
    except OSError:
        return "missing"
    if each.sha256 is not None and each.sha256 != found[each.file].sha256:
        return "damaged"
    return None if _is_itself(each, found[each.file]) else "damaged"


def _is_itself(each: Expected, found: _Digests) -> bool:
    """Whether a blob is what its own name says; other files have none that says anything."""
    return each.blob is None or each.blob == (found.git if len(each.blob) == 40 else found.sha256)


def _digests(each: Expected, read: Callable[[int], None]) -> _Digests:
    with each.file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            if each.blob is not None and len(each.blob) == 40:
                git.update(chunk)
            read(len(chunk))
    return _Digests(sha256.hexdigest(), git.hexdigest())


def _look_again(
    model: ModelManifest, each: Expected, found: dict[Path, _Digests], weights: Weights, report: Report
) -> tuple[Problem | None, bool]:
    """Reads a damaged blob once more while nobody else changes its repository: somebody may have exchanged it
    meanwhile. What is wrong, and whether it was set aside, which is done with what lies in the model's own repository
    of weights_dir alone."""
    folder = each.file.resolve().parent.parent
    if model.source is None or folder != weights.repo(model.source.repo).resolve():
        return "damaged", False
    try:
        with weights.changing(model.source.repo, report):
            again: dict[Path, _Digests] = {}
            problem = _problem(each, again, lambda _: None)
            found |= again
            if problem != "damaged" or _is_itself(each, found[each.file]):
                return problem, False
            return problem, _set_aside(each.file.resolve(), needed=PAPERS.fullmatch(each.name) is None)
    except OSError:  # a folder that may only be read
        return "damaged", False


def _set_aside(blob: Path, *, needed: bool) -> bool:
    """Takes a blob out of the way, and, where a model cannot do without it, what says that a snapshot with it is
    whole; whether it could."""
    try:
        for snapshot in folders_in(blob.parent.parent / "snapshots") if needed else ():
            if blob.name in linked(snapshot):
                (snapshot / INDEX).unlink(missing_ok=True)
        blob.rename(blob.with_name(blob.name + QUARANTINED))
    except OSError:
        return False
    return True
