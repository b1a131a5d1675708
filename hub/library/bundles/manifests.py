"""The manifests of a bundle into their folder: no other model's id or name is taken, and none is half-written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hub.errors import ConfigurationError, HubError, ModelExists, ModelRefused
from hub.library.bundles.archive import sync_folder
from hub.library.bundles.index import BundledModel
from hub.library.bundles.reading import Bundle
from hub.registry import ALIASES, absence, manifests_in, read_aliases, read_manifest


def manifest_name(model: str) -> str:
    """The file of a model's manifest; two files in the folder are something else."""
    name = f"{model.replace('/', '--')}.toml"
    return f"{model}-model.toml" if name in ("hub.toml", ALIASES) else name


class Shelf:
    """The folder of manifests; it need not be there. `replace`: models with the same ids are replaced."""

    def __init__(self, folder: Path, replace: bool) -> None:
        self._folder, self._replace = folder, replace
        self._places: dict[str, Path] = {}
        self._fresh: dict[Path, Path] = {}

    def check(self, bundle: Bundle) -> None:
        """Raises ModelExists where a bundle's model has a name that another one has: the hub would refuse to start."""
        claimed, files = self._claimed()
        decided = self._decided()
        for model in bundle.index.models:
            place = files.get(model.id, self._folder / manifest_name(model.id))
            if place.exists() and not self._replace and not _is(place, model):
                raise ModelExists(f"There is a model '{model.id}' already. Remove it first, or have it replaced.")
            if place in self._places.values():
                raise ModelRefused(f"The bundle has two models whose manifests would be {place.name}.")
            self._places[model.id] = place
        for model in bundle.index.models:
            for name in (model.id, *bundle.manifests[model.id].aliases):
                owner = claimed.setdefault(name, model.id)
                if owner != model.id and name not in decided:
                    raise ModelExists(
                        f"'{name}' of the model '{model.id}' is a name of '{owner}' already. Decide first whose it is, "
                        "with `hub models alias`."
                    )

    def _claimed(self) -> tuple[dict[str, str], dict[str, Path]]:
        """Whose an id or alias is, and the file of each model. A broken manifest claims nothing but its file."""
        claimed: dict[str, str] = {}
        files: dict[str, Path] = {}
        for file in manifests_in(self._folder):
            with contextlib.suppress(ConfigurationError):
                found = read_manifest(file)
                files[found.id] = file
                claimed |= dict.fromkeys((found.id, *found.aliases), found.id)
        return claimed, files

    def _decided(self) -> set[str]:
        try:
            return set(read_aliases(self._folder))
        except ConfigurationError:
            return set()

    def prepare(self, bundle: Bundle, weights_dir: Path) -> None:
        """Writes all manifests under names that nobody reads yet, each once it has been read as the hub will read it
        and found its files. Raises ModelRefused; then nothing is left of them."""
        was = self._folder.is_dir()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for model in bundle.index.models:
                place = self._places[model.id]
                if not _is(place, model):
                    self._fresh[place] = place.with_name(f".{place.name}.tmp")
                    _write(self._fresh[place], model.manifest)
                _check(self._fresh.get(place, place), model, weights_dir)
        except BaseException:
            for part in self._fresh.values():
                part.unlink(missing_ok=True)
            if not was:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()
            raise

    def publish(self) -> None:
        """Makes them models, one after another; from the first on there is no way back, and a next run goes on."""
        try:
            for place, part in self._fresh.items():
                part.replace(place)
            sync_folder(self._folder)
        except OSError as error:
            raise HubError(f"The manifests cannot be written: {error.strerror}. Import the bundle again.") from None


def _is(place: Path, model: BundledModel) -> bool:
    """Whether the very same manifest is there already, of a run that was killed or an earlier one."""
    try:
        return place.read_bytes() == model.manifest.encode()
    except OSError:
        return False


def _write(part: Path, text: str) -> None:
    part.unlink(missing_ok=True)  # of a run that was killed
    with part.open("xb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _check(file: Path, model: BundledModel, weights_dir: Path) -> None:
    try:
        lacking = absence(read_manifest(file, weights_dir))
    except ConfigurationError as error:  # its words begin with the file
        raise ModelRefused(f"The manifest of '{model.id}' is refused{str(error).removeprefix(str(file))}") from None
    if lacking is not None:  # its words have paths
        raise ModelRefused(f"'{model.id}' in the bundle is not a model that can be loaded: something of it is missing.")
