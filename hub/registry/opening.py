"""Opening the registry: all folders' manifests, the owner's aliases, and who claims which id."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hub.errors import ConfigurationError
from hub.manifest import ID_PATTERN, AnyManifest, RouteManifest, TargetSection
from hub.registry.models import Registry
from hub.registry.reading import manifests_in, named, read_aliases, read_manifest, ready_made_in
from hub.registry.revision import revision_of

Aliases = Mapping[str, str | list[str]]
"""The owner's: an alias and the model's id, or the names of several, of which a route is made."""


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
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"models_dir: {folder} is not a folder")
        own = read_aliases(folder)
        claimed = _Claims({*owner_aliases, *own})
        for source, manifest in _read_all(folder, weights_dir, remote_models):
            claimed.add(source, manifest)
            manifests[manifest.id], sources[manifest.id] = manifest, source
            aliases |= dict.fromkeys(manifest.aliases, manifest.id)
        chosen |= own
    if not manifests:
        raise ConfigurationError(f"no model manifest (*.toml) in {', '.join(map(str, folders))}")
    _check_wanted(remote_models, manifests)
    single = {alias: wanted for alias, wanted in owner_aliases.items() if isinstance(wanted, str)}
    _check_aliases(owner_aliases, single, manifests)
    revisions = {name: revision_of(source, manifests[name]) for name, source in sources.items()}
    # One of aliases.toml may outlive its model: that is no reason not to start.
    aliases |= {alias: target for alias, target in chosen.items() if target in manifests} | single
    routes = {alias: wanted for alias, wanted in owner_aliases.items() if not isinstance(wanted, str)}
    for alias, wanted in routes.items():
        behind = [target for each in wanted if each not in routes and (target := aliases.get(each, each)) in manifests]
        _check_route(alias, wanted, [manifests[target] for target in behind], manifests)
        revisions[alias] = " ".join(revisions[target] for target in behind)
    manifests |= {alias: route_of(alias, wanted) for alias, wanted in routes.items()}
    aliases = {alias: target for alias, target in aliases.items() if alias not in manifests}
    ready_made = {source.stem for folder in folders for source in ready_made_in(folder)}
    return Registry(manifests, aliases, revisions, ready_made)


def _check_wanted(remote_models: Sequence[str], known: Collection[str]) -> None:
    """Raises ConfigurationError for an id or a pattern that means no model."""
    unused = [pattern for pattern in remote_models if not any(named(each, [pattern]) for each in known)]
    if unused:
        raise ConfigurationError(
            f"remote_models: there is no ready-made model '{min(unused)}'; docs/providers.md has a list."
        )


def _check_aliases(owner_aliases: Collection[str], single: Mapping[str, str], known: Collection[str]) -> None:
    """Raises ConfigurationError for an alias that can be none, or for one of a single model that leads nowhere."""
    for alias in owner_aliases:
        if not re.fullmatch(ID_PATTERN, alias) or alias in known:
            why = "is a model's own id" if alias in known else "is not a possible model id"
            raise ConfigurationError(f"aliases.{alias}: {why}")
        if alias in single and single[alias] not in known:
            words = f"there is no model '{single[alias]}' (models: {', '.join(known)})"
            raise ConfigurationError(f"aliases.{alias}: {words}")


def _check_route(alias: str, wanted: Sequence[str], behind: Sequence[AnyManifest], known: Collection[str]) -> None:
    """Raises ConfigurationError where no target can serve. One that is not there yet, or not any more, is left out by
    the router: no reason not to start."""
    if not wanted:
        raise ConfigurationError(f"aliases.{alias}: the list is empty. Name at least one model, or take the line out.")
    if all(isinstance(each, RouteManifest) for each in behind):
        words = f"it leads to {', '.join(wanted)}, and none of them is a model (models: {', '.join(known)})"
        raise ConfigurationError(f"aliases.{alias}: {words}")


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


class _Claims:
    """Who claims which id in one folder."""

    def __init__(self, decided: Collection[str]) -> None:
        """decided: ids of which the owner has said what they mean."""
        self._decided = decided
        self._by: dict[str, Path] = {}
        self._ids: dict[str, Path] = {}

    def add(self, source: Path, manifest: AnyManifest) -> None:
        """Raises ConfigurationError where another manifest claims the same. A route's own id takes it from other
        manifests' aliases: that is what it was made for."""
        by, names, same = self._by, manifest.aliases, self._ids.get(manifest.id)
        if same is not None:
            raise ConfigurationError(
                f"{source}: {same.name} has the id '{manifest.id}', too. Remove one of the two files, or give it "
                "another id."
            )
        self._ids[manifest.id] = source
        if not isinstance(manifest, RouteManifest):
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


def route_of(alias: str, models: Sequence[str]) -> RouteManifest:
    """The route that an alias of several models is."""
    return RouteManifest(
        id=alias,
        name=alias,
        description=f"Served by {', '.join(models)}.",
        targets=[TargetSection(model=model) for model in models],
    )
