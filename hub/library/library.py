"""The library: does orders, and tells what there is. For the command line, and for the processes of the admin API."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from hub.library.orders import (
    Add,
    Alias,
    Bundled,
    Clean,
    Export,
    Import,
    LibraryModel,
    Made,
    Order,
    Origin,
    Pull,
    Remove,
    Result,
    Verified,
    Verify,
)
from hub.library.places import Marks, Places, bytes_of
from hub.library.progress import Note, Report
from hub.library.writing import told
from hub.manifest import ModelManifest
from hub.registry import Registry, absence


class Library:
    """All that an owner does with models. Threads and processes may share the folders."""

    def __init__(self, places: Places, cancelled: threading.Event | None = None) -> None:
        """cancelled: ends a pull when it is set; what has come is kept."""
        self.places = places
        self._cancelled = cancelled

    def perform(self, order: Order, report: Report) -> Result:
        """Does an order. Raises HubError or ConfigurationError; nothing is half done then."""
        from hub.library.uses import told_to_others

        writes = isinstance(order, Pull | Add | Import | Remove) or (isinstance(order, Clean) and not order.dry_run)
        around = told_to_others(self.places, report) if writes else contextlib.nullcontext()
        with told("The folder of models or of weights"), around:
            return self._perform(order, report)

    def _perform(self, order: Order, report: Report) -> Result:
        from hub.library import tidy

        match order:
            case Pull():
                return self._pull(order, report)
            case Add():
                return self._add(order, report)
            case Verify():
                return self._verify(order, report)
            case Export():
                return self._export(order, report)
            case Import():
                return self._import(order, report)
            case Remove():
                return tidy.remove(order.model, self.places, report)
            case Clean():
                return tidy.clean(self.places, report, dry_run=order.dry_run)
            case Alias():
                return tidy.alias(order.name, order.target, self.places, report)

    def _pull(self, order: Pull, report: Report) -> Made:
        from hub.library.pulled import pull

        return pull(order, self.places, report, self._cancelled)

    def _add(self, order: Add, report: Report) -> Made:
        from hub.library.add import add

        places = self.places
        added = add(
            Path(order.path),
            id=order.id,
            name=order.name,
            license=order.license,
            copy=order.copy,
            config=order.config,
            variant=order.variant,
            models=places.registry(),
            weights=places.weights,
            manifests_dir=Path(places.owned),
            report=report,
        )
        for note in added.notes:
            report(Note(message=note))
        made = self._one(places.registry(), added.manifest.id)
        return Made(models=[made.id], bytes=bytes_of(made), guessed=added.guessed)

    def _verify(self, order: Verify, report: Report) -> Verified:
        from hub.library.verify import verify

        registry = self.places.registry()
        if order.models is None:
            models = registry.local
        else:
            models = list({id(found): found for found in (self._one(registry, name) for name in order.models)}.values())
        return verify(models, self.places.weights, Path(self.places.cache_dir) / "weights.json", report)

    def _export(self, order: Export, report: Report) -> Bundled:
        from hub.library.bundles import export

        registry, target = self.places.registry(), Path(order.bundle)
        models = {found.id: found for found in (self._one(registry, name) for name in order.models)}
        texts = {name: self.places.manifest_text(name) for name in models}
        target.parent.mkdir(parents=True, exist_ok=True)
        sign_with = Path(order.sign_with) if order.sign_with else None
        done = export(list(models.values()), texts, target, self.places.weights, report, sign_with=sign_with)
        return Bundled(bundle=target.name, models=list(done.models), bytes=done.size, signed_by=done.signer)

    def _import(self, order: Import, report: Report) -> Made:
        from hub.library.bundles import import_bundle

        places, trust = self.places, Path(order.trust) if order.trust else None
        done = import_bundle(
            Path(order.bundle),
            places.weights,
            Path(places.owned),
            report,
            trust=trust,
            known=places.registry(),
            decided=places.aliases,
            replace=order.replace,
        )
        registry = places.registry()
        total = sum(bytes_of(self._one(registry, name)) for name in done.models)
        return Made(models=list(done.models), bytes=total, guessed=[], signed_by=done.signer)

    @staticmethod
    def _one(registry: Registry, name: str) -> ModelManifest:
        return registry.get(name).local


def listing(registry: Registry, places: Places, *, loaded: Collection[str] | None, default: str) -> list[LibraryModel]:
    """Every model whose weights are for this machine, by id. loaded: ids of those in memory, None where
    nobody was asked."""
    used = Marks(Path(places.cache_dir)).all()
    aliases: dict[str, list[str]] = {}
    for listed in registry:
        if listed.is_alias:
            aliases.setdefault(listed.manifest.id, []).append(listed.id)
    chosen = next((listed.manifest.id for listed in registry if listed.id == default), None)
    return [
        describe_model(
            manifest,
            places,
            aliases=sorted(aliases.get(manifest.id, [])),
            used=used,
            loaded=None if loaded is None else manifest.id in loaded,
            default=manifest.id == chosen,
        )
        for manifest in registry.local
    ]


def describe_model(
    manifest: ModelManifest,
    places: Places,
    *,
    aliases: list[str],
    used: Mapping[str, int],
    loaded: bool | None,
    default: bool,
) -> LibraryModel:
    """One model as its owner sees it."""
    return LibraryModel(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description.strip(),
        license=manifest.license,
        tasks=manifest.tasks,
        aliases=aliases,
        origin=_origin(manifest, places),
        source=manifest.source,
        variant=manifest.pipeline.variant,
        state="missing" if absence(manifest) else "ready",
        bytes=bytes_of(manifest),
        last_used_at=used.get(manifest.id),
        loaded=loaded,
        default=default,
    )


def _origin(manifest: ModelManifest, places: Places) -> Origin:
    if manifest.source is not None:
        return manifest.source.kind
    if Path(manifest.path).parent == Path(places.models_dirs[0]) and manifest.id == "builtin":
        return "built-in"
    return "file" if manifest.is_single_file else "folder"
