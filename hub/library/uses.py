"""Which weights are in use: by the models of this hub, and by those of others that share weights_dir.

Every hub that changes weights_dir leaves a small file there, `.hubs/<digest of its folder of manifests>.json`: where
its manifests lie, and what of weights_dir they used when it last worked. What either says is kept by the others: a
folder that is not there now, or not on this machine, is no sign that nobody needs the weights. Only the hub itself
takes something off its list.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hub.errors import ConfigurationError, HubError
from hub.library.layout import Weights, files_in, folders_in, linked
from hub.library.places import Places, places_in
from hub.library.progress import Note, Report
from hub.library.writing import write_text
from hub.manifest import ModelManifest
from hub.registry import manifests_in, read_manifest

HUBS = ".hubs"
MANY_LINKS = 40


class HubFile(Struct, frozen=True, kw_only=True):
    """What a hub tells the others. `folders`: with its manifests; `uses`: snapshots and blobs below weights_dir."""

    folders: list[str]
    uses: list[str]


class Uses:
    """Places that models are made of: as they are given, as links lead on from there, and all folders above. Real
    paths, so it makes no difference how a manifest comes to a file."""

    def __init__(self, models: Iterable[ModelManifest] = ()) -> None:
        self._real: set[str] = set()
        self._walked: set[str] = set()
        for manifest in models:
            for place in places_in(manifest):
                self.add(place)

    def __contains__(self, place: Path) -> bool:
        """Whether it is used, or something in it."""
        return os.path.realpath(place) in self._real

    def add(self, place: str) -> None:
        """A file, or a folder with all that its links lead to."""
        self._follow(place)
        for at, folders, names in os.walk(place, followlinks=True):
            real = os.path.realpath(at)
            if real in self._walked:
                folders.clear()
                continue
            self._walked.add(real)
            self._take(real)
            for file in (os.path.join(at, name) for name in names):  # noqa: PTH118 - as os.walk has it
                if Path(file).is_symlink() and not Path(file).name.startswith("."):  # hidden ones are no model's
                    self._follow(file)

    def _follow(self, place: str) -> None:
        """A link may lead to another one, in a snapshot: each step counts."""
        step = Path(place)
        for _ in range(MANY_LINKS):
            step = Path(os.path.realpath(step.parent), step.name)
            self._take(str(step))
            try:
                step = step.parent / step.readlink()
            except OSError:  # it is none
                break
        self._take(os.path.realpath(place))

    def _take(self, real: str) -> None:
        while real not in self._real:
            self._real.add(real)
            real = str(Path(real).parent)


def read_models(
    folders: Iterable[Path], weights_dir: Path, but: Path | None = None
) -> tuple[list[ModelManifest], bool]:
    """All manifests of some folders, also those that another one hides, but the file `but`; and whether all of the
    folders are there and could be read."""
    found, whole = [], True
    for folder in folders:
        whole = whole and os.access(folder, os.R_OK | os.X_OK)
        for source in manifests_in(folder):
            if source == but:
                continue
            try:
                manifest = read_manifest(source, weights_dir)
            except ConfigurationError:
                whole = False
            else:
                found += [manifest] if isinstance(manifest, ModelManifest) else []
    return found, whole


def used_by_this_hub(places: Places, but: Path | None = None) -> Uses:
    """By its manifests, without the one in the file `but`. They can be read: the registry has just done so."""
    return Uses(read_models(places.folders(), places.weights.root, but)[0])


def used_by_anybody(places: Places, but: Path | None = None, report: Report | None = None) -> Uses:
    """By this hub, and by all others that have told of themselves. Raises HubError or OSError where it cannot be
    known. report: is told of hubs that may be gone."""
    uses, root = used_by_this_hub(places, but), places.weights.root
    own = _file(places)
    hubs = root / HUBS
    for file in sorted(hubs.iterdir()) if hubs.exists() else []:  # one that cannot be read is no empty one
        if file.suffix != ".json" or file == own:
            continue
        other = _read(file)
        for place in other.uses:
            uses.add(str(root / place))
        models, whole = read_models(map(Path, other.folders), root)
        for manifest in models:
            for place in places_in(manifest):
                uses.add(place)
        if not whole and other.uses and report is not None:
            words = "A hub that shares weights_dir has manifests that cannot be read from here; what it used stays."
            report(Note(message=f"{words} If there is no such hub any more, delete {HUBS}/{file.name} in weights_dir."))
    return uses


@contextlib.contextmanager
def told_to_others(places: Places, report: Report) -> Iterator[None]:
    """Around work on weights: other hubs know before it where the manifests will be, and after it what they use."""
    _tell(places, report)
    yield
    _tell(places, report)


def _tell(places: Places, report: Report) -> None:
    root, file = places.weights.root, _file(places)
    if not root.is_dir():  # nothing to protect yet
        return
    folders = [os.path.realpath(folder) for folder in dict.fromkeys([*places.folders(), Path(places.owned)])]
    models, whole = read_models(places.folders(), root)
    uses = Uses(models)
    try:
        if not whole and file.is_file():  # what a broken manifest uses stays on the list
            for place in _read(file).uses:
                uses.add(str(root / place))
        told = HubFile(folders=folders, uses=_listed(places.weights, uses))
        content = msgspec.json.format(msgspec.json.encode(told))
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_bytes() != content:
            write_text(file, content.decode())
    except OSError as error:  # an order that writes nothing else there can be done all the same
        why = os.strerror(error.errno) if error.errno else "it failed"
        words = "Other hubs that share weights_dir cannot be told of this one's models"
        report(Note(message=f"{words} ({why}): their gc may delete what these use."))


def _listed(weights: Weights, uses: Uses) -> list[str]:
    """Snapshots that are used, and blobs that are without one, by their places below weights_dir."""
    found = []
    for folder in folders_in(weights.root):
        used = [snapshot for snapshot in folders_in(folder / "snapshots") if snapshot in uses]
        within: set[str] = set().union(*map(linked, used))
        loose = [blob for blob in files_in(folder / "blobs") if blob in uses and blob.name not in within]
        found += [place.relative_to(weights.root).as_posix() for place in (*used, *loose)]
    return found


def _file(places: Places) -> Path:
    digest = hashlib.sha256(os.path.realpath(places.owned).encode("utf-8", "surrogateescape")).hexdigest()
    return places.weights.root / HUBS / f"{digest[:24]}.json"


def _read(file: Path) -> HubFile:
    try:
        return msgspec.json.decode(file.read_bytes(), type=HubFile)
    except (OSError, ValueError):
        words = f"{HUBS}/{file.name} in weights_dir cannot be read, so what another hub uses is not known."
        raise HubError(f"{words} Run an order of that hub, or delete the file if there is no such hub.") from None
