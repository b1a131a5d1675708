"""Taking away: models with their weights, what no model uses any more, and names."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from msgspec import Struct

from hub.errors import ConfigurationError, ModelExists, ModelNotFound
from hub.library.contents import INDEX
from hub.library.layout import files_in, folders_in, linked
from hub.library.orders import Gone, Renamed
from hub.library.places import Places
from hub.library.progress import Note, Report
from hub.library.uses import Uses, read_models, used_by_anybody, used_by_this_hub
from hub.library.verify import QUARANTINED
from hub.library.writing import write_text
from hub.manifest import ModelManifest
from hub.registry import ALIASES, Registry, read_aliases

FRESH = 600.0
"""Seconds for which a snapshot is left alone that no manifest names: somebody may be about to write it."""
FOREIGN = 24 * 3600.0
"""The same for downloads that another program has begun, and for names that somebody has not yet put in place."""
INCOMPLETE = ".incomplete"
_OURS = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\.incomplete")


def remove(model: str, places: Places, report: Report) -> Gone:
    """Deletes a model. Raises what `removable` does; nothing is deleted, then."""
    found, _ = removable(model, places)
    weights, repo = places.weights, found.source.repo if found.source else None
    with weights.changing(repo, report) if repo else contextlib.nullcontext():
        with places.changing_manifests():
            found, file = removable(model, places)
            if (found.source.repo if found.source else None) != repo:
                raise ModelExists(f"'{model}' was changed at the same moment. Try again.", param="model")
            others = used_by_anybody(places, but=file) if repo else Uses()
            file.unlink()
            _forget_aliases(found.id, places)
        gone = Gone(models=[found.id], deleted=[], bytes=0)
        if found.source is None:
            report(Note(message=f"The files of {model} stay where they are: they were not copied."))
            return gone
        snapshot = weights.snapshot(found.source)
        if snapshot in others:
            report(Note(message=f"Another model uses the weights of {model}; they stay."))
            return gone
        repository = _Repository(weights.repo(found.source.repo), Whose(places.shared, others))
        deleted, freed = repository.delete_snapshot(snapshot)
        if snapshot.exists():
            report(Note(message=f"Not all weights of {model} could be deleted. `hub models gc` tries it again."))
    return Gone(models=[found.id], deleted=deleted, bytes=freed)


def removable(model: str, places: Places) -> tuple[ModelManifest, Path]:
    """A model that may go, and its manifest's file. Raises ModelNotFound, or ModelExists for an alias, for what is part
    of the hub, and for what its settings name."""
    registry = places.registry()
    listed = registry.get(model)
    found = listed.local
    if listed.is_alias:
        words = f"'{model}' is an alias of '{found.id}'. `hub models alias {model} --remove` takes it away."
        raise ModelExists(words, param="model")
    source = places.manifest_file(found.id)
    if source is None:
        words = f"'{model}' is part of the hub and cannot be removed."
        raise ModelExists(words, param="model")
    if found.id not in _ids(places, but=source):  # else the one of another folder takes its place
        _refuse_named(found.id, places, registry)
    return found, source


def _ids(places: Places, but: Path | None = None) -> set[str]:
    return {each.id for each in read_models(places.folders(), places.weights.root, but)[0]}


def _refuse_named(model: str, places: Places, registry: Registry) -> None:
    """Raises ModelExists for a model without which the hub would not start, or not know what to draw with."""
    named = sorted(
        alias for alias, target in places.aliases.items() if model in ([target] if isinstance(target, str) else target)
    )
    if named:
        words = f"hub.toml names '{model}' under [aliases], as '{named[0]}': take that line out first."
        raise ModelExists(words, param="model")
    with contextlib.suppress(ModelNotFound):
        if registry.get(places.default).manifest.id == model:
            also = "" if places.default == model else f" (as '{places.default}')"
            words = f"Requests that name no model get '{model}'{also}; set default_model to another first."
            raise ModelExists(words, param="model")


def _forget_aliases(model: str, places: Places) -> None:
    """Takes a removed model's aliases out of aliases.toml."""
    source = Path(places.owned) / ALIASES
    names = [name for name, target in read_aliases(source.parent).items() if target == model]
    if names and model not in _ids(places):
        document = _document(source)
        for name in names:
            del document[name]
        write_text(source, document.as_string())


class Whose(Struct, frozen=True):
    """What may go of a repository: `shared`, other programs may be at work in it; `uses`, what models are made of."""

    shared: bool
    uses: Uses


class _Repository:
    """A repository's folder, changed by this process alone."""

    def __init__(self, folder: Path, whose: Whose) -> None:
        self._folder, self._whose, self._now = folder, whose, time.time()
        self.name = folder.name.removeprefix("models--").replace("--", "/", 1)

    def delete_snapshot(self, snapshot: Path) -> tuple[list[str], int]:
        """The snapshot, the blobs that it alone has, and whatever else no model uses of the blobs beside."""
        if not snapshot.is_dir():
            return [], 0
        alone = linked(snapshot)
        _delete(snapshot)
        freed = sum(_delete(blob) for _, blob in list(self._useless_blobs(self._kept_blobs(), at_once=alone)))
        self.tidy({snapshot.name})
        return [self._told(snapshot)], freed

    def useless(self) -> Iterator[tuple[str, Path]]:
        """What may go, by a name for people."""
        kept, late = [], []
        for snapshot in folders_in(self._folder / "snapshots"):
            if snapshot in self._whose.uses or self._age(snapshot) <= FRESH:
                kept.append(snapshot)
                late += [place for place in snapshot.rglob(".*.tmp") if self._age(place) > FOREIGN]
            else:
                yield self._told(snapshot), snapshot
        late += [place for place in (self._folder / "refs").rglob(".*.tmp") if self._age(place) > FOREIGN]
        for place in late:
            yield f"{self.name}: left over {place.name[:40]}", place
        yield from self._useless_blobs(set().union(*(linked(snapshot, but=late) for snapshot in kept)))

    def _kept_blobs(self) -> set[str]:
        return set().union(*map(linked, folders_in(self._folder / "snapshots")))

    def _useless_blobs(self, kept: Collection[str], at_once: Collection[str] = ()) -> Iterator[tuple[str, Path]]:
        """kept: names of those that snapshots have; at_once: names of those that nobody can be about to link."""
        for blob in files_in(self._folder / "blobs"):
            name, age = blob.name, self._age(blob)
            if name.endswith(INCOMPLETE):
                ours = _OURS.fullmatch(name) is not None and (not self._whose.shared or age > FRESH)
                if ours or age > FOREIGN:
                    yield f"{self.name}: interrupted download {name[:12]}", blob
            elif name.endswith(QUARANTINED):
                yield f"{self.name}: damaged file {name[:12]}", blob
            elif name not in kept and blob not in self._whose.uses and (name in at_once or age > FRESH):
                yield f"{self.name}: unused file {name[:12]}", blob

    def tidy(self, gone: Collection[str]) -> None:
        """Takes away what names the commits that are `gone`, and the folder when nothing is left in it."""
        snapshots = folders_in(self._folder / "snapshots")
        if not snapshots and not files_in(self._folder / "blobs"):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for ref in (self._folder / "refs").rglob("*"):
            with contextlib.suppress(OSError, UnicodeError):  # another program's, perhaps
                if ref.is_file() and ref.read_text(encoding="utf-8").strip() in gone:
                    ref.unlink()

    def _told(self, snapshot: Path) -> str:
        return f"{self.name}@{snapshot.name[:12]}"

    def _age(self, place: Path) -> float:
        """Seconds since it was changed; of what has just gone none."""
        try:
            return self._now - place.lstat().st_mtime
        except OSError:
            return 0.0


def clean(places: Places, report: Report, *, dry_run: bool) -> Gone:
    """Deletes what no model uses; see `Clean`. In a folder that the owner has named, and so maybe shares with other
    programs, only of repositories that a model of this hub comes from. A dry run takes no lock, and writes nothing."""
    places.registry()  # where a manifest cannot be read, nothing is deleted that it may use
    own, uses = used_by_this_hub(places), used_by_anybody(places, report=report)
    weights, deleted, freed = places.weights, [], 0
    for folder in folders_in(weights.root):
        if not folder.name.startswith("models--"):
            continue
        if places.shared and not folder.name.startswith("models--local--") and folder not in own:
            continue
        repository = _Repository(folder, Whose(places.shared, uses))
        if dry_run:
            found = list(repository.useless())
            deleted += [name for name, _ in found]
            freed += sum(_bytes_below(place) for _, place in found)
            continue
        lock = weights.lock_file(folder.name)
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if any(True for _ in repository.useless()):  # a manifest may have come while others were looked at
                    places.registry()
                    repository = _Repository(folder, Whose(places.shared, used_by_anybody(places)))
                found = list(repository.useless())
                freed += sum(_delete(place) for _, place in found)
                deleted += [name for name, _ in found]
                repository.tidy({place.name for _, place in found})
        except Timeout:
            report(Note(message=f"Another process works on {repository.name}; it was left alone."))
    return Gone(models=[], deleted=deleted, bytes=freed, dry_run=dry_run)


def _bytes_below(place: Path) -> int:
    if place.is_symlink():
        return 0
    if place.is_file():
        return place.stat().st_size
    return sum(each.stat().st_size for each in place.rglob("*") if each.is_file() and not each.is_symlink())


def _delete(place: Path) -> int:
    """How many bytes that frees; what cannot be deleted frees none."""
    try:
        count = _bytes_below(place)
        if place.is_dir() and not place.is_symlink():
            (place / INDEX).unlink(missing_ok=True)  # from here on it is not whole
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
    with places.changing_manifests():
        return _alias(name, target, places, report)


def _alias(name: str, target: str | None, places: Places, report: Report) -> Renamed:
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
    document = _document(source) if source.is_file() else tomlkit.document()
    if target is None:
        del document[name]
    else:
        if not source.is_file():
            document.add(
                tomlkit.comment('Further names of models: "NAME" = "MODEL". Those in hub.toml count for more.')
            )
        document[name] = target
    before = source.read_text(encoding="utf-8") if source.is_file() else None
    write_text(source, tomlkit.dumps(document))
    try:
        places.registry()
    except ConfigurationError as error:  # without it two models claim the name, and nothing would start
        if before is not None:
            write_text(source, before)
        raise ModelExists(f"'{name}' stays as it is: {str(error).partition(': ')[2]}", param="name") from None
    return Renamed(name=name, target=target)


def _document(source: Path) -> Any:
    """Its lines and comments."""
    import tomlkit

    return tomlkit.parse(source.read_text(encoding="utf-8"))
