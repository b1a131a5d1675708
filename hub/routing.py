"""Which target serves a request, and why. Pure: no I/O, no clock."""

from __future__ import annotations

from msgspec import Struct

from hub.manifest import ModelManifest, RemoteManifest, RouteManifest
from hub.registry import Registry


class Target(Struct, frozen=True):
    """One place that can serve the model."""

    manifest: ModelManifest | RemoteManifest


class Route(Struct, frozen=True):
    """The targets in the order in which they are to be tried, and the reason in words."""

    targets: tuple[Target, ...]
    reason: str


def route(model: str, registry: Registry) -> Route:
    """The route of a model id or alias; raises ModelNotFound."""
    listed = registry.get(model)
    manifest = listed.manifest
    reason = f"'{model}' is an alias of '{manifest.id}'" if listed.is_alias else f"'{model}' is a model of this hub"
    if isinstance(manifest, RouteManifest):
        raise NotImplementedError
    return Route((Target(manifest),), reason)
