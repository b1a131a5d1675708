"""Which target serves a request, and why. Pure: no I/O, no clock."""

from __future__ import annotations

from urllib.parse import urlsplit

from msgspec import Struct

from hub.manifest import ModelManifest, RemoteManifest, RouteManifest
from hub.offline import is_here
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


def leaves(manifest: ModelManifest | RemoteManifest) -> bool:
    """Whether a request to this model leaves the machine, as the owner has it: `remote.leaves`, else its address."""
    if not isinstance(manifest, RemoteManifest):
        return False
    return is_elsewhere(manifest) if manifest.remote.leaves is None else manifest.remote.leaves


def is_elsewhere(manifest: RemoteManifest) -> bool:
    """Whether its address is not this machine by loopback. A provider's own address never is."""
    base_url = manifest.remote.base_url
    return base_url is None or not is_here(urlsplit(base_url).hostname)
