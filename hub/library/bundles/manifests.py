"""The manifests of a bundle into their folder: no other model's id or name is taken, and none is half-written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from hub.errors import ConfigurationError, ModelExists, ModelRefused
from hub.library.bundles.index import BundledModel
from hub.library.bundles.reading import Bundle
from hub.library.manifests import check_writable, file_for
from hub.library.writing import publish, sync_folder, unwritable
from hub.manifest import ModelManifest
from hub.registry import ListedModel, absence, manifests_in, read_aliases, read_manifest


class Shelf:
    """The folder of manifests; it need not be there. `known`: all names that the hub has, also those of models in other
    folders, as the shipped ones; `decided`: aliases of hub.toml, whose owner has said what they mean. `replace`: models
    with the same ids are replaced."""

    def __init__(
        self, folder: Path, known: Iterable[ListedModel] = (), decided: Collection[str] = (), *, replace: bool = False
    ) -> None:
        self._folder, self._replace = folder, replace
        self._known = {listed.id: listed.manifest.id for listed in known}
        self._decided = {*decided, *_aliases_in(folder)}
        self._places: dict[str, Path] = {}
        self._there: set[Path] = set()
        self._fresh: dict[Path, Path] = {}

    def check(self, bundle: Bundle) -> None:
        """Raises ModelExists where a bundle's model has a name that another one has: the hub would refuse to start, or
        give its clients another model than they ask for. HubError where the folder cannot be written."""
        claimed, files = self._claimed()
        for model in bundle.index.models:
            place = files.get(model.id, file_for(self._folder, model.id))
            is_taken = place.exists() or claimed.get(model.id) == model.id
            if is_taken and not self._replace and not _is(place, model):
                raise ModelExists(f"There is a model '{model.id}' already. Remove it first, or have it replaced.")
            if place in self._places.values():
                raise ModelRefused(f"The bundle has two models whose manifests would be {place.name}.")
            self._places[model.id] = place
            if place.exists():
                self._there.add(place)
        for model in bundle.index.models:
            for name in (model.id, *bundle.manifests[model.id].aliases):
                self._check_name(name, model.id, claimed.setdefault(name, model.id))
        check_writable(self._folder)

    def _check_name(self, name: str, model: str, owner: str) -> None:
        """An alias that is decided means what it was decided to; an id would be stronger than an alias, and is not
        given to another model."""
        if owner == model or (name != model and name in self._decided):
            return
        advice = "Take that name away first" if name == model else "Decide first whose it is"
        raise ModelExists(
            f"'{name}' of the model '{model}' is a name of '{owner}' already. {advice}, with `hub models alias`."
        )

    def _claimed(self) -> tuple[dict[str, str], dict[str, Path]]:
        """Whose an id or alias is, and the file of each model in the folder. A broken manifest claims nothing but its
        file."""
        claimed = dict(self._known)
        files: dict[str, Path] = {}
        for file in manifests_in(self._folder):
            with contextlib.suppress(ConfigurationError):
                found = read_manifest(file)
                files[found.id] = file
                claimed |= dict.fromkeys((found.id, *found.aliases), found.id)
        return claimed, files

    def prepare(self, bundle: Bundle, weights_dir: Path) -> None:
        """Writes all manifests under names that nobody reads yet, each once it has been read as the hub will read it
        and found its files. Raises ModelRefused; then nothing is left of them."""
        was = self._folder.is_dir()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for model in bundle.index.models:
                place = self._places[model.id]
                part = _part_of(place, model)
                part.unlink(missing_ok=True)  # of a run that was killed
                if not _is(place, model):
                    self._fresh[place] = part
                    _write(part, model.manifest)
                _check(self._fresh.get(place, place), model, weights_dir)
        except BaseException:
            self._clear()
            if not was:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()
            raise

    def publish(self) -> None:
        """Makes them models, one after another; from the first on there is no way back, and a next run goes on. Raises
        ModelExists where somebody has taken a name meanwhile."""
        try:
            for place, part in self._fresh.items():
                publish(part, place, exclusive=place not in self._there)
            sync_folder(self._folder)
        except FileExistsError:
            raise ModelExists(
                "A model with the same id has come meanwhile. Remove it first, or have it replaced."
            ) from None
        except OSError as error:
            raise unwritable(error, "The manifest") from None
        finally:
            self._clear()

    def _clear(self) -> None:
        for part in self._fresh.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _aliases_in(folder: Path) -> set[str]:
    try:
        return set(read_aliases(folder))
    except ConfigurationError:
        return set()


def _is(place: Path, model: BundledModel) -> bool:
    """Whether the very same manifest is there already, of a run that was killed or an earlier one."""
    try:
        return place.read_bytes() == model.manifest.encode()
    except OSError:
        return False


def _part_of(place: Path, model: BundledModel) -> Path:
    """The same for the same manifest, so that what a run leaves that is killed goes away with the next one; another one
    for another manifest, whose import may go on at the same time."""
    return place.with_name(f".{place.name[:100]}.{hashlib.sha256(model.manifest.encode()).hexdigest()[:8]}.tmp")


def _write(part: Path, text: str) -> None:
    with part.open("xb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _check(file: Path, model: BundledModel, weights_dir: Path) -> None:
    try:
        manifest = read_manifest(file, weights_dir)
    except ConfigurationError as error:  # its words begin with the file
        raise ModelRefused(f"The manifest of '{model.id}' is refused{str(error).removeprefix(str(file))}") from None
    if not isinstance(manifest, ModelManifest) or absence(manifest) is not None:  # its words have paths
        raise ModelRefused(f"'{model.id}' in the bundle is not a model that can be loaded: something of it is missing.")
