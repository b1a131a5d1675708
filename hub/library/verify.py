"""Is every file still what it was? All bytes are read: a single flipped bit is found.

A blob is called by what it holds, and the manifest says what the weights must be. What is damaged in weights_dir is set
aside, with the entry that says that its snapshot is whole: so nobody draws with it, and a pull brings it back. Files
of the owner's own folders are never touched; the engine refuses them by the manifest's table.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from hub.errors import ModelRefused
from hub.library.contents import INDEX
from hub.library.layout import Weights
from hub.library.orders import Fault, Problem, Verified
from hub.library.parts import missing_parts
from hub.library.places import files_of, size_of_file
from hub.library.progress import Meter, Note, Report
from hub.manifest import ModelManifest, repo_folder
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


def verify(models: Iterable[ModelManifest], weights: Weights, hashes: Path, report: Report) -> Verified:
    """Reads all files of the models. hashes: where the engine remembers what it has read."""
    models = list(models)
    expected = {model.id: expected_files(model) for model in models}
    sizes = {each.file: size_of_file(each.file) for files in expected.values() for each in files}
    meter = Meter("verify", sum(sizes.values()), report)
    found: dict[Path, tuple[str, str]] = {}
    faults = []
    for model in models:
        files = expected[model.id]
        faults += [Fault(model=model.id, file=name, problem="missing", quarantined=False) for name in _missing(model)]
        unnamed = [each.name for each in files if each.sha256 is None and each.blob is None]
        if unnamed:
            words = f"what {len(unnamed)} of its files should be is not known ({', '.join(unnamed[:3])} …)"
            report(Note(message=f"{model.id}: {words}; they were read and not compared."))
        for each in files:
            problem = _problem(each, found, meter, sizes[each.file])
            if problem is not None and not any(known.model == model.id and known.file == each.name for known in faults):
                forget(hashes, each.file)
                aside = problem == "damaged" and each.blob is not None and _set_aside(model, each, weights)
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


def _problem(each: Expected, found: dict[Path, tuple[str, str]], meter: Meter, size: int) -> Problem | None:
    """`missing`, `damaged`, or None."""
    try:
        if each.file not in found:
            found[each.file] = _digests(each, meter, size)
    except OSError:
        return "missing"
    sha256, git = found[each.file]
    if each.sha256 is not None and each.sha256 != sha256:
        return "damaged"
    if each.blob is not None and each.blob != (git if len(each.blob) == 40 else sha256):
        return "damaged"
    return None


def _digests(each: Expected, meter: Meter, size: int) -> tuple[str, str]:
    """SHA-256 of the bytes, and the SHA-1 that Git calls them by."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with each.file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            if each.blob is not None and len(each.blob) == 40:
                git.update(chunk)
            meter.add(each.name, size, len(chunk))
    return sha256.hexdigest(), git.hexdigest()


def _set_aside(model: ModelManifest, each: Expected, weights: Weights) -> bool:
    """Takes a damaged blob, and what says that a snapshot with it is whole, out of the way; whether it could."""
    blob = each.file.resolve()
    folder = blob.parent.parent
    if folder.parent != weights.root.resolve() or model.source is None:
        return False
    if folder.name != repo_folder(model.source.repo):
        return False
    try:
        for snapshot in (folder / "snapshots").iterdir():
            if (snapshot / each.name).is_symlink() and (snapshot / each.name).resolve() == blob:
                (snapshot / INDEX).unlink(missing_ok=True)
        blob.rename(blob.with_name(blob.name + QUARANTINED))
    except OSError:
        return False
    return True
