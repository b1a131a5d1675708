"""The registry: one TOML manifest per model, all read and checked at start, and again when they have changed.

A manifest is the only thing that a new model needs. docs/manifests.md explains each field.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import fnmatch
import functools
import hashlib
import json
import logging
import os
import re
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hub import __version__
from hub.errors import ConfigurationError, InvalidRequest, ModelNotFound
from hub.manifest import (
    COMPONENT_FILES,
    ID_PATTERN,
    AnyManifest,
    ModelId,
    ModelManifest,
    RouteManifest,
    TargetSection,
    kind_of,
)
from hub.types import Task

log = logging.getLogger(__name__)

ALL_MODELS = "GET /v1/models lists all."
"""The end of an unknown model's error, for clients of the API."""


class ListedModel(Struct, frozen=True):
    """An id that answers requests: a model's own, or an alias of it."""

    id: str
    manifest: AnyManifest
    revision: str
    """Another one after a start with another manifest, other weights or another hub: it may draw other pictures."""

    @property
    def is_alias(self) -> bool:
        """Whether the id is another name of the manifest's model."""
        return self.id != self.manifest.id

    @property
    def response_format(self) -> Literal["url", "b64_json"] | None:
        """What an answer of it holds where the request does not say; None where nobody says."""
        found = self.manifest
        return found.response_format if isinstance(found, RouteManifest) else found.defaults.response_format

    @property
    def local(self) -> ModelManifest:
        """The manifest of a model whose weights are for this machine; raises InvalidRequest for any other."""
        if isinstance(self.manifest, ModelManifest):
            return self.manifest
        kind = "names other models" if isinstance(self.manifest, RouteManifest) else "is a remote provider's"
        raise InvalidRequest(f"'{self.id}' {kind}: there are no weights of it on this machine.", param="model")


def read_manifest(source: Path, weights_dir: Path | None = None) -> AnyManifest:
    """Reads one manifest and makes its paths absolute; raises ConfigurationError that names the file and the field.

    Whether the weights are there, `absence` tells: a disk that is not mounted is no reason not to start.
    """
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
        manifest: AnyManifest = msgspec.convert(values, kind_of(values))
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{source}: {error}") from None
    if isinstance(manifest, ModelManifest):
        _place(source, manifest, weights_dir or Path("weights"))
    return manifest


def _place(source: Path, manifest: ModelManifest, weights_dir: Path) -> None:
    """Makes the paths of weights absolute, in place; raises ConfigurationError for those that do not go together."""
    pipeline, lossy, base = manifest.pipeline, manifest.lossy, source.parent
    if manifest.source is not None:
        base = manifest.source.folder_in(weights_dir.absolute())
        manifest.path = str(base / (manifest.source.file or ""))
    else:
        manifest.path = _absolute(base, manifest.path)
    if manifest.is_single_file and pipeline.config is None:
        raise ConfigurationError(
            f"{source}: pipeline.config: {Path(manifest.path).name} is a single file, without configurations and "
            "tokenizers. Set it to a diffusers folder of the same kind of model, which has these; its weights are not "
            "needed."
        )
    if not manifest.is_single_file and pipeline.config is not None:
        raise ConfigurationError(f"{source}: pipeline.config is for a `path` that is a single .safetensors file.")
    if pipeline.config is not None:
        pipeline.config = _absolute(base, pipeline.config)
    if lossy.vae is not None:
        lossy.vae = _absolute(base, lossy.vae)
    for name, place in manifest.components.items():
        manifest.components[name] = _absolute(base, place)


def _absolute(base: Path, place: str) -> str:
    """Links are not followed: in Hugging Face's cache they have the names, and what they lead to has none."""
    return os.path.normpath(base.absolute() / place)


def absence(manifest: ModelManifest) -> str | None:
    """What of a model's weights is not in its place, for the owner: field, path, and what to do; None where all is.
    Cheap: contents are not looked at. The manifest's paths are absolute."""
    try:
        return _absence(manifest)
    except OSError as error:  # a folder that may not be read, a share that went away
        return f"{'path' if manifest.source is None else 'source'}: {manifest.path} cannot be read: {error.strerror}."


def _absence(manifest: ModelManifest) -> str | None:
    single, folder = manifest.is_single_file, Path(manifest.folder)
    if single and not Path(manifest.path).is_file():
        return f"path: there is no file {manifest.path}. Put it there, or correct `path`."
    if not (folder / "model_index.json").is_file():
        if manifest.source is None:
            return (
                f"{'pipeline.config' if single else 'path'}: {folder} is not a diffusers folder "
                "(it has no model_index.json). Put the model there, correct the path, or remove the manifest."
            )
        if manifest.source.kind == "local":
            return f"source: its weights are not in {folder}. Import or add the model again."
        return f"source: its weights are not in {folder}. Fetch them with `hub models pull {manifest.id}`."
    for name, place in manifest.components.items():
        found = Path(place)
        if not (found / "config.json").is_file() and not (found.suffix in COMPONENT_FILES and found.is_file()):
            return (
                f"components.{name}: {found} is neither a .safetensors or .gguf file nor a folder with a config.json. "
                "Put the component there, correct the path, or remove it."
            )
    if manifest.lossy.vae is not None and _class_in(Path(manifest.lossy.vae)) != "AutoencoderTiny":
        return (
            f"lossy.vae: {manifest.lossy.vae} is not the folder of an AutoencoderTiny (its config.json says so). "
            "Put the decoder there, correct `lossy.vae`, or remove it."
        )
    return None


def _class_in(folder: Path) -> object:
    """The class of a diffusers model, as its folder has it; None where it tells none."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes())).get("_class_name")
    except (OSError, ValueError, TypeError):
        return None


def revision_of(source: Path, manifest: AnyManifest) -> str:
    """A digest of the manifest's bytes, the names, sizes and times of all files of the model's folders, and what draws
    with them. Cheap: the weights themselves are not read."""
    digest = hashlib.sha256(drawn_by().encode())
    with contextlib.suppress(FileNotFoundError):  # removed just now: the next look will tell
        digest.update(source.read_bytes())
    if not isinstance(manifest, ModelManifest):
        return digest.hexdigest()
    further = (manifest.pipeline.config, manifest.lossy.vae, *manifest.components.values())
    for place in filter(None, (manifest.path, *further)):
        for line in _files_of(Path(place)):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


@functools.cache
def drawn_by() -> str:
    """What may change a picture beside the model: the hub, also while it is worked on, and the libraries."""
    libraries = []
    for name in ("torch", "diffusers", "transformers"):
        with contextlib.suppress(PackageNotFoundError):  # some come without their papers
            libraries.append(f"{name} {version(name)}")
    own = [line for line in _files_of(Path(__file__).parent) if line.partition("\t")[0].endswith(".py")]
    return "\n".join([f"hub {__version__}", *libraries, *own])


def _files_of(folder: Path) -> list[str]:
    """Name, size and time of every file below the folder, sorted; of a file its own. Links are followed, as those who
    load the model do; what cannot be read has a name only."""
    if folder.is_file():
        return [_line(folder, folder.name)]
    found, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:  # a link that leads upwards
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            path = Path(at, name)
            found.append(_line(path, str(path.relative_to(folder))))
    return sorted(found)


def _line(path: Path, name: str) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{name}\t"
    return f"{name}\t{status.st_size}\t{status.st_mtime_ns}"


class Registry:
    """All models by id and alias. Immutable after `open_registry`."""

    def __init__(
        self, manifests: Mapping[str, AnyManifest], aliases: Mapping[str, str], revisions: Mapping[str, str]
    ) -> None:
        """`revisions`: by the manifests' ids."""
        self._manifests = dict(manifests)
        self._aliases = dict(aliases)
        self._revisions = dict(revisions)

    def __iter__(self) -> Iterator[ListedModel]:
        for name in (*self._manifests, *self._aliases):
            yield self._listed(name, self._aliases.get(name, name))

    def tasks_of(self, listed: ListedModel) -> list[Task]:
        """What an id can be asked for: of a route, whatever one of its targets can do."""
        found = listed.manifest
        if not isinstance(found, RouteManifest):
            return found.tasks
        behind = [self._manifests.get(self._aliases.get(each.model, each.model)) for each in found.targets]
        tasks = (task for each in behind if each and not isinstance(each, RouteManifest) for task in each.tasks)
        return list(dict.fromkeys(tasks))

    @property
    def local(self) -> list[ModelManifest]:
        """The models whose weights are for this machine, each once."""
        return [manifest for manifest in self._manifests.values() if isinstance(manifest, ModelManifest)]

    def _listed(self, name: str, target: str) -> ListedModel:
        return ListedModel(name, self._manifests[target], self._revisions[target])

    def get(self, model: str) -> ListedModel:
        """The model behind an id or alias; raises ModelNotFound that lists near names."""
        target = self._aliases.get(model, model)
        if target in self._manifests:
            return self._listed(model, target)
        known = [*self._manifests, *self._aliases]
        near = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.5) or list(self._manifests)[:3]
        shown = re.sub(r"[^ -~]", "?", model[:64])
        raise ModelNotFound(
            f"The model '{shown}' does not exist. Near names: {', '.join(near)}. {ALL_MODELS}",
            param="model",
        )


ALIASES = "aliases.toml"
"""In a folder of manifests: further names, as `hub models alias` writes them."""


def manifests_in(folder: Path) -> list[Path]:
    """The files with manifests in a folder, by name. The settings may lie there, too."""
    return sorted(file for file in folder.glob("*.toml") if file.name not in ("hub.toml", ALIASES))


def read_aliases(folder: Path) -> dict[str, str]:
    """The folder's own aliases; raises ConfigurationError."""
    source = folder / ALIASES
    try:
        return msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), dict[ModelId, ModelId])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{source}: {error}") from None


Aliases = Mapping[str, str | list[str]]
"""The owner's: an alias and the model's id, or the ids of several, of which a route is made."""

REMOTE = "remote"
"""In a folder of manifests: ready-made ones of remote models, of which those count that the owner has chosen."""


def open_registry(
    folders: Sequence[Path],
    owner_aliases: Aliases,
    weights_dir: Path | None = None,
    remote_models: Sequence[str] = (),
) -> Registry:
    """Reads every manifest of the folders; of two with one id, the later folder's counts.

    `owner_aliases` (hub.toml) win over those in a folder's aliases.toml, and these over the manifests' own. Two
    manifests that claim one alias are an error unless they lie in different folders (the later counts) or one of the
    two decides. `weights_dir`: where what was pulled or imported lies. `remote_models`: ids, or patterns such as
    `openai/*`, of the ready-made manifests that are wanted. Raises ConfigurationError.
    """
    manifests: dict[str, AnyManifest] = {}
    sources: dict[str, Path] = {}
    aliases: dict[str, str] = {}
    chosen: dict[str, str] = {}
    unused = set(remote_models)
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"models_dir: {folder} is not a folder")
        own = read_aliases(folder)
        claimed = _Claims({*owner_aliases, *own})
        for source, manifest in _read_all(folder, weights_dir, remote_models):
            claimed.add(source, manifest)
            unused -= {pattern for pattern in unused if named(manifest.id, [pattern])}
            manifests[manifest.id], sources[manifest.id] = manifest, source
            aliases |= dict.fromkeys(manifest.aliases, manifest.id)
        chosen |= own
    if not manifests:
        raise ConfigurationError(f"no model manifest (*.toml) in {', '.join(map(str, folders))}")
    if unused:
        raise ConfigurationError(
            f"remote_models: there is no ready-made model '{min(unused)}'; docs/providers.md has a list."
        )
    revisions = {name: revision_of(source, manifests[name]) for name, source in sources.items()}
    for alias, wanted in owner_aliases.items():
        if not re.fullmatch(ID_PATTERN, alias) or alias in sources:
            why = "is a model's own id" if alias in sources else "is not a possible model id"
            raise ConfigurationError(f"aliases.{alias}: {why}")
        for target in [wanted] if isinstance(wanted, str) else wanted or [""]:
            if target not in sources:
                raise ConfigurationError(
                    f"aliases.{alias}: there is no model '{target}' (models: {', '.join(sources)})"
                )
        if not isinstance(wanted, str):
            manifests[alias] = _route_of(alias, wanted)
            revisions[alias] = " ".join(revisions[target] for target in wanted)
    # One of aliases.toml may outlive its model: that is no reason not to start.
    aliases |= {alias: target for alias, target in chosen.items() if target in manifests}
    aliases |= {alias: target for alias, target in owner_aliases.items() if isinstance(target, str)}
    aliases = {alias: target for alias, target in aliases.items() if alias not in manifests}
    return Registry(manifests, aliases, revisions)


def _read_all(
    folder: Path, weights_dir: Path | None, remote_models: Sequence[str]
) -> Iterator[tuple[Path, AnyManifest]]:
    """A folder's manifests, and those of its ready-made ones that are wanted."""
    for source in (*manifests_in(folder), *(ready_made_in(folder) if remote_models else [])):
        try:
            manifest = read_manifest(source, weights_dir)
        except ConfigurationError:
            if not source.exists():  # it was removed since the folder was read
                continue
            raise
        if source.parent == folder or named(manifest.id, remote_models):
            yield source, manifest


def ready_made_in(folder: Path) -> list[Path]:
    """The files with ready-made manifests of remote models in a folder of manifests, by name."""
    return sorted((folder / REMOTE).glob("*.toml"))


def named(model: str, remote_models: Collection[str]) -> bool:
    """Whether one of the ids and patterns means this model."""
    return any(fnmatch.fnmatchcase(model, each) for each in remote_models)


class _Claims:
    """Who claims which id in one folder."""

    def __init__(self, decided: Collection[str]) -> None:
        """decided: ids of which the owner has said what they mean."""
        self._decided = decided
        self._by: dict[str, Path] = {}
        self._routes: dict[str, Path] = {}

    def add(self, source: Path, manifest: AnyManifest) -> None:
        """Raises ConfigurationError where another manifest claims the same. A route's own id takes it from other
        manifests' aliases: that is what it was made for."""
        by, names = self._by, manifest.aliases
        if isinstance(manifest, RouteManifest):
            self._check(source, manifest.id, self._routes)
        else:
            names = [manifest.id, *names]
        for name in names:
            self._check(source, name, by)

    def _check(self, source: Path, name: str, by: dict[str, Path]) -> None:
        if name in by and name not in self._decided:
            raise ConfigurationError(
                f"{source}: '{name}' is claimed by {by[name].name} too. "
                f'Remove it from one, or decide with `"{name}" = "MODEL"` under [aliases] in hub.toml.'
            )
        by[name] = source


def _route_of(alias: str, models: Sequence[str]) -> RouteManifest:
    """The route that an alias of several models is."""
    return RouteManifest(
        id=alias,
        name=alias,
        description=f"Served by {', '.join(models)}.",
        targets=[TargetSection(model=model) for model in models],
    )


class LiveRegistry:
    """The registry as the folders have it: read anew when a manifest has come, gone or changed."""

    INTERVAL = 1.0
    """Seconds between two looks."""

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        owner_aliases: Aliases,
        weights_dir: Path | None = None,
        remote_models: Sequence[str] = (),
    ) -> None:
        """folders: asked at each look, for the owner's may be made later. Raises ConfigurationError; later, what is
        wrong is logged, and what was read before stays."""
        self._folders, self._aliases, self._weights_dir = folders, owner_aliases, weights_dir
        self._remote_models = remote_models
        self._looking = threading.Lock()
        self.current = self._open()
        """For one request: the next one may get another."""
        self._seen = self._look()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Looks again and again, as long as the context, on a thread: a slow disk holds nobody up."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.INTERVAL)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Looks now. Never raises."""
        with self._looking:
            try:
                self._refresh()
            except Exception:
                log.exception("looking at the models failed; trying again")

    def _refresh(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self.current = self._open()
        except (ConfigurationError, OSError) as error:
            log.error("the models have changed and are not read anew: %s", error)
        else:
            log.info("the models have changed: %s", ", ".join(listed.id for listed in self.current))
            seen = self._look()
        self._seen = seen

    def _open(self) -> Registry:
        return open_registry(self._folders(), self._aliases, self._weights_dir, self._remote_models)

    def _look(self) -> list[str]:
        """Of each manifest name, size and time; and whether its weights are there, which decides what it draws."""
        lines = []
        for folder in (each for own in self._folders() for each in (own, own / REMOTE)):
            with contextlib.suppress(OSError):
                lines += sorted(
                    f"{entry.path}\t{status.st_size}\t{status.st_mtime_ns}\t{status.st_ino}"
                    for entry in os.scandir(folder)
                    if entry.name.endswith(".toml") and (status := entry.stat())
                )
        return lines + [f"{manifest.id}\t{absence(manifest)}" for manifest in self.current.local]
