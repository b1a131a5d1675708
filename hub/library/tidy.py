"""Taking away: models with their weights, what no model uses any more, and names."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hub.errors import InvalidRequest, ModelExists, ModelNotFound
from hub.library.contents import INDEX
from hub.library.layout import Weights
from hub.library.orders import Gone, Renamed
from hub.library.places import Places
from hub.library.progress import Note, Report
from hub.library.verify import QUARANTINED
from hub.manifest import ModelManifest, SourceSection, repo_folder
from hub.registry import ALIASES, Registry, read_aliases

FRESH = 600.0
"""Seconds for which a snapshot is left alone that no manifest names: somebody may be about to write it."""
FOREIGN = 24 * 3600.0
"""The same for downloads that another program has begun."""
INCOMPLETE = ".incomplete"
_OURS = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\.incomplete")


def remove(model: str, places: Places, report: Report) -> Gone:
    """Deletes a model. Raises ModelNotFound, or InvalidRequest for an alias and for what is part of the hub."""
    registry = places.registry()
    listed = registry.get(model)
    if listed.is_alias:
        words = f"'{model}' is an alias of '{listed.manifest.id}'. `hub models alias {model} --remove` takes it away."
        raise InvalidRequest(words, param="model", code="unsupported_value")
    source = places.manifest_file(listed.manifest.id)
    if source is None:
        words = f"'{model}' is part of the hub and cannot be removed."
        raise InvalidRequest(words, param="model", code="unsupported_value")
    weights, found = places.weights, listed.manifest
    if found.source is None:
        source.unlink(missing_ok=True)
        report(Note(message=f"The files of {model} stay where they are: they were not copied."))
        return Gone(models=[found.id], deleted=[], bytes=0)
    with weights.changing(found.source.repo, report):
        source.unlink(missing_ok=True)
        others = used_sources(places.registry())
        if (found.source.repo, found.source.revision) in others:
            report(Note(message=f"Another model uses the weights of {model}; they stay."))
            return Gone(models=[found.id], deleted=[], bytes=0)
        deleted, freed = _delete_snapshot(weights, found.source)
    return Gone(models=[found.id], deleted=deleted, bytes=freed)


def used_sources(models: Registry | Iterable[ModelManifest]) -> set[tuple[str, str]]:
    """Repository and revision of every snapshot that a model is made of, in whatever way it names it."""
    used = set()
    for each in models:
        manifest = each if isinstance(each, ModelManifest) else each.manifest
        places = [manifest.path, manifest.pipeline.config, manifest.lossy.vae, *manifest.components.values()]
        for place in filter(None, places):
            parts = Path(place).parts
            if "snapshots" in parts:
                at = parts.index("snapshots")
                used.add((parts[at - 1], parts[at + 1] if len(parts) > at + 1 else ""))
        if manifest.source is not None:
            used.add((manifest.source.repo, manifest.source.revision))
    return used


def _delete_snapshot(weights: Weights, source: SourceSection) -> tuple[list[str], int]:
    """A snapshot and the blobs that no other one has; with the last one its repository's folder."""
    folder, snapshot = weights.repo(source.repo), weights.snapshot(source)
    if not snapshot.is_dir():
        return [], 0
    (snapshot / INDEX).unlink(missing_ok=True)  # from here on it is not whole
    shutil.rmtree(snapshot, ignore_errors=True)
    gone, freed = [f"{source.repo}@{source.revision[:12]}"], 0
    for blob in _orphans(folder):
        freed += _delete(blob)
    if not any(_folders(folder / "snapshots")):
        shutil.rmtree(folder, ignore_errors=True)
    return gone, freed


def clean(places: Places, report: Report, *, dry_run: bool) -> Gone:
    """Deletes what no model uses; see `Clean`. In a folder that the owner has named, and so maybe shares with other
    programs, only of repositories that a model of this hub comes from."""
    used = used_sources(places.registry())
    weights, deleted, freed = places.weights, [], 0
    for folder in _folders(weights.root):
        if not folder.name.startswith("models--"):
            continue
        own = not places.shared or folder.name.startswith("models--local--") or _is_used(folder, used)
        if not own:
            continue
        lock = FileLock(weights.root / ".locks" / f"{folder.name}.lock")
        lock_folder = weights.root / ".locks"
        lock_folder.mkdir(parents=True, exist_ok=True)
        try:
            with lock.acquire(timeout=0):
                for name, place in list(_useless(folder, used)):
                    freed += _bytes_below(place) if dry_run else _delete(place)
                    deleted.append(name)
                if not dry_run and not any(_folders(folder / "snapshots")) and not any(_files(folder / "blobs")):
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            report(Note(message=f"Another process works on {_repo_of(folder)}; it was left alone."))
    return Gone(models=[], deleted=deleted, bytes=freed, dry_run=dry_run)


def _is_used(folder: Path, used: set[tuple[str, str]]) -> bool:
    return any(folder.name in (repo, repo_folder(repo)) for repo, _ in used)


def _repo_of(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _useless(folder: Path, used: set[tuple[str, str]]) -> Iterator[tuple[str, Path]]:
    """What of a repository may go, by a name for people."""
    repo, now = _repo_of(folder), time.time()
    kept_blobs = set()
    for snapshot in _folders(folder / "snapshots"):
        wanted = {(repo, snapshot.name), (folder.name, snapshot.name)} & used
        if not wanted and now - snapshot.stat().st_mtime > FRESH:
            yield f"{repo}@{snapshot.name[:12]}", snapshot
        else:
            kept_blobs |= _linked(snapshot)
    for blob in _files(folder / "blobs"):
        age = now - blob.stat().st_mtime
        if blob.name.endswith(INCOMPLETE):
            if _OURS.fullmatch(blob.name) or age > FOREIGN:
                yield f"{repo}: interrupted download {blob.name[:12]}", blob
        elif blob.name.endswith(QUARANTINED):
            yield f"{repo}: damaged file {blob.name[:12]}", blob
        elif blob.name not in kept_blobs and age > FRESH:
            yield f"{repo}: unused file {blob.name[:12]}", blob


def _linked(snapshot: Path) -> set[str]:
    """The names of the blobs that a snapshot leads to."""
    found = set()
    for at, _, names in os.walk(snapshot):
        for name in names:
            with contextlib.suppress(OSError):
                found.add((Path(at) / name).readlink().name)
    return found


def _orphans(folder: Path) -> list[Path]:
    kept = set().union(*(_linked(snapshot) for snapshot in _folders(folder / "snapshots")))
    return [blob for blob in _files(folder / "blobs") if blob.name not in kept]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_file())
    except OSError:
        return []


def _bytes_below(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(each.stat().st_size for each in place.rglob("*") if each.is_file() and not each.is_symlink())


def _delete(place: Path) -> int:
    """How many bytes that frees; what cannot be deleted frees none."""
    try:
        count = _bytes_below(place)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
    except OSError:
        return 0
    return count


def alias(name: str, target: str | None, places: Places, report: Report) -> Renamed:
    """Writes an alias into the owner's aliases.toml, or takes it out; what else stands there stays as it is.

    Raises ModelNotFound for a target, or an alias to be removed, that is not there, and ModelExists.
    """
    import tomlkit

    registry = places.registry()
    source = Path(places.owned) / ALIASES
    known = read_aliases(source.parent)
    if target is None and name not in known:
        raise ModelNotFound(f"{ALIASES} has no alias '{name}'.", param="name")
    if target is not None:
        manifest = registry.get(target).manifest
        target = manifest.id
        if any(listed.id == name and not listed.is_alias for listed in registry):
            raise ModelExists(f"'{name}' is a model's own id, and cannot be another one's alias.", param="name")
    if name in places.aliases:
        report(Note(message=f"hub.toml has the alias '{name}' under [aliases], which counts for more."))
    document = tomlkit.parse(source.read_text(encoding="utf-8")) if source.is_file() else tomlkit.document()
    if target is None:
        del document[name]
    else:
        if not source.is_file():
            document.add(
                tomlkit.comment('Further names of models: "NAME" = "MODEL". Those in hub.toml count for more.')
            )
        document[name] = target
    source.parent.mkdir(parents=True, exist_ok=True)
    write_text(source, tomlkit.dumps(document))
    return Renamed(name=name, target=target)


def write_text(path: Path, text: str) -> None:
    """The whole file or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
