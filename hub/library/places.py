"""Where a hub keeps its models, and the files that one is made of."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from filelock import FileLock
from msgspec import Struct

from hub.errors import ModelNotFound
from hub.library.layout import Weights, files_below
from hub.manifest import ModelManifest
from hub.registry import Registry, manifests_in, open_registry
from hub.settings import Settings

MARK_EVERY = 60.0
MANIFESTS_LOCK = ".models.lock"


class Places(Struct, frozen=True, kw_only=True):
    """The folders, as strings so that they can be told to another process; and what hub.toml says of models."""

    models_dirs: list[str]
    owned: str
    """Where manifests are written."""
    weights_dir: str
    cache_dir: str
    bundles_dir: str
    aliases: dict[str, str | list[str]]
    """Those of hub.toml."""
    remote_models: list[str]
    """Ready-made manifests of remote models that are wanted."""
    default: str
    """The model, or an alias of it, for requests that name none."""
    shared: bool
    """Whether the owner has named weights_dir: other programs may keep things there."""
    offline: bool

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """As the settings say."""
        return cls(
            models_dirs=[str(folder) for folder in settings.models_dirs],
            owned=str(settings.owned_models),
            weights_dir=str(settings.weights_folder),
            cache_dir=str(settings.cache_dir),
            bundles_dir=str(settings.bundles_folder),
            aliases=settings.aliases,
            remote_models=settings.remote_models,
            default=settings.default_model,
            shared=settings.weights_dir is not None,
            offline=settings.offline,
        )

    @property
    def weights(self) -> Weights:
        """The folder of weights."""
        return Weights(Path(self.weights_dir))

    def registry(self) -> Registry:
        """All models, read now. Raises ConfigurationError. The owner's folder may be new since the start."""
        return open_registry(self.folders(), self.aliases, Path(self.weights_dir), self.remote_models)

    def folders(self) -> list[Path]:
        """Those with manifests, as the registry reads them."""
        folders = [Path(each) for each in self.models_dirs]
        if (owned := Path(self.owned)) not in folders and owned.is_dir():
            folders.append(owned)
        return folders

    @contextlib.contextmanager
    def changing_manifests(self) -> Iterator[None]:
        """This process alone changes the owner's manifests and aliases, as long as the context, which is short. Whoever
        needs a repository's lock too (`Weights.changing`) takes that one first. Raises OSError."""
        with changing_manifests(Path(self.owned)):
            yield

    def manifest_file(self, model: str) -> Path | None:
        """The owner's own manifest with this id; None where there is none, or only a shipped one."""
        shipped = Path(self.models_dirs[0])
        for source in manifests_in(Path(self.owned)):
            if source.parent == shipped and source.name == "builtin.toml":
                continue
            if _id_in(source) == model:
                return source
        return None

    def manifest_text(self, model: str) -> str:
        """The manifest of a model that there is, as its file has it; the later folder's, as the registry reads them."""
        for folder in reversed([*map(Path, self.models_dirs), Path(self.owned)]):
            for source in manifests_in(folder):
                if _id_in(source) == model:
                    return source.read_text(encoding="utf-8")
        raise ModelNotFound(f"The manifest of '{model}' is gone.", param="model")


@contextlib.contextmanager
def changing_manifests(folder: Path) -> Iterator[None]:
    """The same for those who know the folder alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / MANIFESTS_LOCK):
        yield


def _id_in(source: Path) -> object:
    import tomllib

    try:
        return tomllib.loads(source.read_text(encoding="utf-8")).get("id")
    except (OSError, ValueError):
        return None


def places_in(manifest: ModelManifest) -> list[str]:
    """Every file and folder that a manifest names, absolute: its own, its configurations, a small decoder, parts."""
    named = (manifest.path, manifest.pipeline.config, manifest.lossy.vae)
    return [*filter(None, named), *manifest.components.values()]


def files_of(manifest: ModelManifest) -> Iterator[tuple[str, Path]]:
    """Every file that a model is made of, by a name relative to its folder, as hub.pipelines.weights names them; also
    links that lead nowhere any more. Of a single file's folder of configurations all."""
    path = Path(manifest.path)
    first = path.parent if manifest.is_single_file else path
    seen = set()
    for place in map(Path, places_in(manifest)):
        found = files_below(place) if place.is_dir() else {place.name: place}
        for file in found.values():
            name = Path(os.path.relpath(file, first)).as_posix()
            if name not in seen and (file.is_file() or file.is_symlink()):
                seen.add(name)
                yield name, file


def bytes_of(manifest: ModelManifest) -> int:
    """What a model takes on the disk."""
    return sum(size_of_file(file) for _, file in files_of(manifest))


def size_of_file(file: Path) -> int:
    """Bytes; none of what is a link that leads nowhere."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


class Marks:
    """When each model was asked for last: the time of an empty file in the cache, which may be deleted."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "used"
        self._marked: dict[str, float] = {}

    def mark(self, model: str) -> None:
        """It is asked for now. Never raises: nobody's picture depends on it."""
        now = time.monotonic()
        if now - self._marked.get(model, -MARK_EVERY) < MARK_EVERY:
            return
        self._marked[model] = now
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / quote(model, safe="")).touch()
        except OSError:
            return

    def all(self) -> dict[str, int]:
        """Unix seconds by model."""
        try:
            entries = list(os.scandir(self._folder))
            return {unquote(entry.name): int(entry.stat().st_mtime) for entry in entries}
        except OSError:
            return {}
