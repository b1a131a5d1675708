"""What `hub models` tells of models that are not on this machine, and of routes. Nobody is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from hub.manifest import Order, RemoteManifest, RouteManifest, ShapesSection, TargetSection
from hub.types import Task

if TYPE_CHECKING:
    from hub.registry import Registry
    from hub.remote.credentials import Credentials
    from hub.settings import Settings

KeyState = Literal["present", "missing", "not needed", "unknown provider"]


class RemoteModel(Struct, frozen=True, kw_only=True, tag_field="origin", tag="remote"):
    """A remote model as its owner sees it; beside hub.library.orders.LibraryModel. `model`: the provider's name of it.
    `key`: whether there is one for it. `leaves`: whether requests to it leave this machine."""

    id: str
    name: str
    description: str
    license: str
    tasks: list[Task]
    aliases: list[str]
    provider: str
    model: str
    key: KeyState
    leaves: bool
    default: bool


class RouteModel(Struct, frozen=True, kw_only=True, tag_field="origin", tag="route"):
    """An id that several models serve. `remote`: whether anything of it may leave this machine."""

    id: str
    name: str
    description: str
    license: str
    tasks: list[Task]
    aliases: list[str]
    targets: list[str]
    order: Order
    remote: bool
    default: bool


def elsewhere(registry: Registry, settings: Settings) -> list[RemoteModel | RouteModel]:
    """All of them, by id as the registry has them. Raises ConfigurationError where the keys cannot be read."""
    aliases: dict[str, list[str]] = {}
    for listed in registry:
        aliases.setdefault(listed.manifest.id, []).extend([listed.id] if listed.is_alias else [])
    credentials: Credentials | None = None
    found: list[RemoteModel | RouteModel] = []
    for listed in registry:
        manifest = listed.manifest
        if listed.is_alias or not isinstance(manifest, RemoteManifest | RouteManifest):
            continue
        names = sorted(aliases[manifest.id])
        default = settings.default_model in (manifest.id, *names)
        if isinstance(manifest, RouteManifest):
            found.append(_route(manifest, registry.tasks_of(listed), names, default=default))
        else:
            credentials = credentials or _credentials(settings)
            found.append(_remote(manifest, names, credentials, default=default))
    return found


def _credentials(settings: Settings) -> Credentials:
    from hub import providers
    from hub.remote.credentials import open_credentials

    return open_credentials(settings.credentials, providers.key_variables(), dict(os.environ))


def _remote(manifest: RemoteManifest, aliases: list[str], credentials: Credentials, *, default: bool) -> RemoteModel:
    from hub.routing import leaves

    return RemoteModel(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description.strip(),
        license=manifest.license,
        tasks=manifest.tasks,
        aliases=aliases,
        provider=manifest.provider,
        model=manifest.remote.model,
        key=key_state(manifest, credentials),
        leaves=leaves(manifest),
        default=default,
    )


def _route(manifest: RouteManifest, tasks: list[Task], aliases: list[str], *, default: bool) -> RouteModel:
    return RouteModel(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description.strip(),
        license=manifest.license,
        tasks=tasks,
        aliases=aliases,
        targets=[target.model for target in manifest.targets],
        order=manifest.order,
        remote=manifest.remote,
        default=default,
    )


def key_state(manifest: RemoteManifest, credentials: Credentials) -> KeyState:
    """Whether a model's calls have a key."""
    from hub import providers

    if manifest.provider not in providers.names():
        return "unknown provider"
    if manifest.keys_name is not None and credentials.of(manifest.keys_name).all:
        return "present"
    needed = providers.adapter(manifest.provider).needs_key or manifest.remote.credentials
    return "missing" if needed else "not needed"


def in_words(model: RemoteModel | RouteModel) -> list[str]:
    """What the list says of it in its second line."""
    if isinstance(model, RouteModel):
        stays = [] if model.remote else ["never leaves this machine"]
        return [f"route, {model.order}: {', '.join(model.targets)}", *stays]
    keys = {
        "present": "with a key",
        "missing": "NO KEY",
        "not needed": "no key needed",
        "unknown provider": "NO SUCH PROVIDER",
    }
    where = "leaves this machine" if model.leaves else "stays on this machine"
    return [f"remote, {model.provider}: {model.model}", keys[model.key], where, *filter(None, [model.license])]


def in_rows(model: RemoteModel | RouteModel, manifest: RemoteManifest | RouteManifest) -> Iterator[tuple[str, str]]:
    """What `hub models show` tells, line by line."""
    yield "licence", model.license
    yield "tasks", ", ".join(model.tasks)
    yield "from", "; ".join(in_words(model))
    if isinstance(manifest, RouteManifest):
        for target in manifest.targets:
            yield "target", "; ".join([target.model, *_conditions(target)])
        yield "deadline", f"{manifest.deadline} s"
    else:
        yield from _remote_rows(manifest)
    yield "aliases", ", ".join(model.aliases)


def _remote_rows(manifest: RemoteManifest) -> Iterator[tuple[str, str]]:
    remote, prices = manifest.remote, manifest.prices
    yield "address", remote.base_url or "the provider's own"
    yield "sizes", ", ".join([*remote.sizes, *remote.aspect_ratios, *_shapes(remote.shapes)])
    yield "a call", f"{remote.max_n} pictures at most, of {remote.max_images} source pictures at most"
    yield "timeout", f"{remote.timeout} s"
    yield "prices", "none" if prices.is_free else f"of {prices.as_of}" if prices.as_of else "of an unknown day"


def _shapes(shapes: ShapesSection | None) -> Iterator[str]:
    if shapes is not None:
        yield f"sides of {shapes.min} to {shapes.max}, multiples of {shapes.multiple}"


def _conditions(target: TargetSection) -> Iterator[str]:
    if target.tasks:
        yield f"for {', '.join(target.tasks)}"
    if target.keys:
        yield f"for the keys {', '.join(target.keys)}"
    if target.max_pixels is not None:
        yield f"up to {target.max_pixels} pixels"
    if target.max_waiting is not None:
        yield f"while at most {target.max_waiting} requests wait"
