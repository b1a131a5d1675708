"""What the engine has in memory, and the owner's hand on it: /v1/engine, also under /api."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar import Response, get, post
from msgspec import Meta, Struct

from hub.api.described import as_json, errors, operation
from hub.api.wire import AnyRequest, read_json
from hub.engine.protocol import HeldModel, HeldModule, Memory
from hub.engine.worker_process import DeviceState
from hub.hub import Hub

EVERY = "*"
Where = Literal["device", "main memory", "partly on the device"]


class EngineModule(Struct, kw_only=True):
    """A module of a model in memory: its name in the pipeline, its class, and the bytes of its weights. On a CPU main
    memory is the device. One that several models share is told with each."""

    name: str
    type: str
    bytes: int
    where: Where


class LoadedModel(Struct, kw_only=True):
    """A model in memory. Times are unix seconds; `expires_at` is when it is unloaded if nobody asks for it, null where
    that is never, or where `requests` are at work on it. `keep_alive` is in seconds, -1 for ever."""

    id: str
    loaded_at: int
    last_used_at: int
    expires_at: int | None
    keep_alive: int
    pinned: bool
    requests: int
    bytes: int
    modules: list[EngineModule]


class DeviceMemoryUse(Struct, kw_only=True):
    """Bytes of a device: all of it, what is free, the weights of this hub, and the most that the hub may use (null:
    what is there)."""

    total: int
    free: int
    weights: int
    limit: int | None


class EngineDevice(Struct, kw_only=True):
    """A device, how it stands with it, and what is there. `memory` is null until its process has loaded something.
    `uploads`: how often a module was brought to the device since its process has started, and `uploaded_bytes`, how
    much that was."""

    device: str
    status: Literal["ok", "starting", "failed"]
    reason: str | None
    memory: DeviceMemoryUse | None
    uploads: int
    uploaded_bytes: int
    models: list[LoadedModel]


class EngineState(Struct, kw_only=True):
    """All devices that this hub uses."""

    object: Literal["engine"] = "engine"
    devices: list[EngineDevice]


class LoadRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A model's id or alias. `pinned`: whether it stays in memory from now on, whatever its keep_alive; null leaves
    that as it is. To unpin a model does not load it."""

    model: Annotated[str, Meta(examples=["builtin"])]
    pinned: bool | None = None


class UnloadRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A model's id or alias, or `*` for all of them."""

    model: Annotated[str, Meta(examples=["builtin"])]


class Unloaded(Struct, kw_only=True):
    """The models that have left the memory, and those that leave as soon as they have no work: they are `busy`, or
    still being loaded. None is pinned any more."""

    object: Literal["engine.unloaded"] = "engine.unloaded"
    unloaded: list[str]
    busy: list[str]


@get(
    ["/v1/engine", "/api/engine"],
    operation_class=operation(answers={200: as_json(EngineState)}),
    summary="What is in memory",
)
async def get_engine(request: AnyRequest) -> Response[bytes]:
    """Which models are loaded, where, since when, and the memory of each device; at most two seconds old, or as old as
    the forward that runs."""
    return _state(request.app.state.hub)


@post(
    ["/v1/engine/load", "/api/engine/load"],
    status_code=200,
    operation_class=operation(as_json(LoadRequest), answers={200: as_json(EngineState)}),
    responses=errors(404),
    summary="Load or pin a model",
)
async def load(request: AnyRequest) -> Response[bytes]:
    """Loads a model before it is asked for, and answers when that is done; pins and unpins it."""
    hub: Hub = request.app.state.hub
    wanted = await read_json(request, LoadRequest)
    await hub.load(wanted.model, pinned=wanted.pinned)
    return _state(hub)


@post(
    ["/v1/engine/unload", "/api/engine/unload"],
    status_code=200,
    operation_class=operation(as_json(UnloadRequest), answers={200: as_json(Unloaded)}),
    responses=errors(404),
    summary="Unload models",
)
async def unload(request: AnyRequest) -> Response[bytes]:
    """Gives a model's memory back, or that of all: at once, or when the requests that they work on are answered."""
    hub: Hub = request.app.state.hub
    wanted = await read_json(request, UnloadRequest)
    gone, later = await hub.unload(None if wanted.model == EVERY else wanted.model)
    return _json(Unloaded(unloaded=gone, busy=later))


def _state(hub: Hub) -> Response[bytes]:
    return _json(EngineState(devices=[_device(state, holds) for state, holds in hub.engine.holds]))


def _json(body: Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _device(state: DeviceState, holds: Memory | None) -> EngineDevice:
    return EngineDevice(
        device=state.device,
        status=state.status,
        reason=state.reason,
        memory=_memory(holds) if holds else None,
        uploads=holds.uploads if holds else 0,
        uploaded_bytes=holds.uploaded if holds else 0,
        models=[_model(model) for model in holds.models] if holds else [],
    )


def _memory(holds: Memory) -> DeviceMemoryUse:
    device = holds.device
    return DeviceMemoryUse(total=device.total, free=device.free, weights=holds.weights, limit=holds.limit)


def _model(model: HeldModel) -> LoadedModel:
    expires = None if model.pinned or model.busy or model.keep_alive < 0 else int(model.used + model.keep_alive)
    return LoadedModel(
        id=model.id,
        loaded_at=int(model.since),
        last_used_at=int(model.used),
        expires_at=expires,
        keep_alive=int(model.keep_alive),
        pinned=model.pinned,
        requests=model.busy,
        bytes=sum(module.bytes for module in model.modules),
        modules=[
            EngineModule(name=module.name, type=module.type, bytes=module.bytes, where=_where(module))
            for module in model.modules
        ],
    )


def _where(module: HeldModule) -> Where:
    if module.on_device == module.bytes:
        return "device"
    return "partly on the device" if module.on_device else "main memory"
