"""The owner's hand on the models: /v1/admin, also under /api. Long work is a task, whose progress can be followed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Meta, Struct

from hub.api.described import as_events, as_json, errors, operation, path
from hub.api.events import KEEP_ALIVE, EventStream, encode_event
from hub.api.wire import AnyRequest, read_json
from hub.errors import ModelExists, NotFound, Offline
from hub.hub import Hub
from hub.library.library import listing
from hub.library.orders import (
    BUNDLE_SUFFIX,
    Add,
    Alias,
    Clean,
    Export,
    Import,
    LibraryModel,
    Models,
    Order,
    Pull,
    Remove,
    Text,
    Verify,
)
from hub.library.tasks import Task, TaskState
from hub.manifest import ModelId, Variant

PATH_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,7}$"
BUNDLE_PATTERN = rf"^[A-Za-z0-9_][A-Za-z0-9._-]{{0,99}}\{BUNDLE_SUFFIX}$"

BundleName = Annotated[str, Meta(pattern=BUNDLE_PATTERN, examples=["models.hubmodels"])]
PathName = Annotated[str, Meta(pattern=PATH_PATTERN)]
ADMIN = {"admin": True}
TASK_ID = path("task_id", "The task's id, as the order was answered.")


class AddRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A diffusers folder or a safetensors file below `models_dir`, by its path there; the rest as `hub models add` has
    it. `config`: the id of a model with configurations, for a single file."""

    path: PathName
    id: ModelId | None = None
    name: Text | None = None
    license: Text | None = None
    copy: bool = False
    config: ModelId | None = None
    variant: Variant | None = None


class ExportRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Models to be written into one file below `bundles_dir`. It is signed with none: that takes a private key, which
    `hub models export` is given."""

    models: Models
    bundle: BundleName


class ImportRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A bundle below `bundles_dir`. Where the owner has set `bundle_signers`, one of these must have signed it.
    `replace`: models that are here already, too."""

    bundle: BundleName
    replace: bool = False


class LibraryModelList(Struct, kw_only=True):
    """Every model, aliases within."""

    object: Literal["list"] = "list"
    data: list[LibraryModel]


class TaskList(Struct, kw_only=True):
    """The newest first."""

    object: Literal["list"] = "list"
    data: list[TaskState]


class Bundle(Struct, kw_only=True):
    """A file below `bundles_dir`; `created` is in unix seconds."""

    bundle: str
    bytes: int
    created: int


class BundleList(Struct, kw_only=True):
    """By name."""

    object: Literal["list"] = "list"
    data: list[Bundle]


TaskEventType = Literal["task.progress", "task.completed", "task.failed", "task.cancelled"]
_TYPES: dict[str, TaskEventType] = {
    "in_progress": "task.progress",
    "completed": "task.completed",
    "failed": "task.failed",
    "cancelled": "task.cancelled",
}


class TaskEvent(Struct, kw_only=True):
    """`task.progress` while it is at work; then its end."""

    type: TaskEventType
    task: TaskState


@get(
    ["/v1/admin/models", "/api/admin/models"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(LibraryModelList)}),
    responses=errors(403),
    summary="List models with size, origin and use",
)
async def list_library(request: AnyRequest) -> Response[bytes]:
    """What `hub models list` tells."""
    hub: Hub = request.app.state.hub
    found = await asyncio.to_thread(
        listing, hub.registry, hub.places, loaded=loaded_in(hub), default=hub.settings.default_model
    )
    return _json(LibraryModelList(data=found))


@get(
    ["/v1/admin/models/{model:path}", "/api/admin/models/{model:path}"],
    opt=ADMIN,
    operation_class=operation(
        answers={200: as_json(LibraryModel)}, parameters=[path("model", "A model's id or alias; it may hold slashes.")]
    ),
    responses=errors(403, 404),
    summary="Get a model with size, origin and use",
)
async def show_library(request: AnyRequest, model: FromPath[str]) -> Response[bytes]:
    """One of the list."""
    hub: Hub = request.app.state.hub
    wanted = hub.registry.get(str(model).strip("/")).manifest.id
    found = await asyncio.to_thread(
        listing, hub.registry, hub.places, loaded=loaded_in(hub), default=hub.settings.default_model
    )
    return _json(next(each for each in found if each.id == wanted))


def loaded_in(hub: Hub) -> set[str]:
    """Ids of the models in memory."""
    return {model.id for _, holds in hub.engine.holds if holds for model in holds.models}


def check(order: Order, hub: Hub) -> Order:
    """An order with its paths as this machine has them. Raises what would fail it anyway, at once."""
    match order:
        case Pull() if hub.settings.offline:
            raise Offline("This hub is offline (`offline` in its settings), so nothing is fetched.")
        case Verify(models=list() as models) | Export(models=models):
            for model in models:
                hub.registry.get(model)
        case Remove():
            _check_removable(order.model, hub)
        case Alias(target=str() as target):
            hub.registry.get(target)
    match order:
        case Add():
            place = Path(hub.places.owned) / order.path
            if not place.exists():
                raise NotFound("There is no such folder or file below models_dir.", param="path")
            return msgspec.structs.replace(order, path=str(place))
        case Export():
            return msgspec.structs.replace(order, bundle=str(Path(hub.places.bundles_dir) / order.bundle))
        case Import():
            place = Path(hub.places.bundles_dir) / order.bundle
            if not place.is_file():
                raise NotFound("There is no such bundle below bundles_dir.", param="bundle")
            signers = hub.settings.bundle_signers
            return msgspec.structs.replace(order, bundle=str(place), trust=str(signers) if signers else None)
    return order


def _check_removable(model: str, hub: Hub) -> None:
    listed = hub.registry.get(model)
    if listed.is_alias:
        raise ModelExists(f"'{model}' is an alias of '{listed.manifest.id}'; take it away as one.", param="model")
    if hub.places.manifest_file(model) is None:
        raise ModelExists(f"'{model}' is part of the hub and cannot be removed.", param="model")


def shown(state: TaskState) -> TaskState:
    """A task without this machine's paths."""
    order = state.order
    match order:
        case Add():
            order = msgspec.structs.replace(order, path=Path(order.path).name)
        case Export() | Import():
            order = msgspec.structs.replace(order, bundle=Path(order.bundle).name)
    if isinstance(order, Import):
        order = msgspec.structs.replace(order, trust=None)
    return msgspec.structs.replace(state, order=order)


def _handler(name: str, body: type[Struct], order: Any, summary: str, *statuses: int) -> HTTPRouteHandler:
    """POST /v1/admin/models/NAME: begins a task."""

    async def begin(request: AnyRequest) -> Response[bytes]:
        hub: Hub = request.app.state.hub
        read = await read_json(request, body)
        wanted: Order = order(**msgspec.structs.asdict(read))
        return _json(shown(hub.tasks.begin(check(wanted, hub)).state), status=202)

    begin.__name__ = f"order_{name}"
    begin.__doc__ = (order.__doc__ or "").strip()
    return post(
        [f"/v1/admin/models/{name}", f"/api/admin/models/{name}"],
        opt=ADMIN,
        status_code=202,
        operation_class=operation(as_json(body), answers={202: as_json(TaskState)}),
        responses=errors(403, 429, *statuses),
        summary=summary,
    )(begin)


orders = [
    _handler("pull", Pull, Pull, "Fetch a model from Hugging Face", 503),
    _handler("add", AddRequest, Add, "Add a model that is here", 404),
    _handler("verify", Verify, Verify, "Verify models", 404),
    _handler("remove", Remove, Remove, "Remove a model", 404, 409),
    _handler("gc", Clean, Clean, "Delete what no model uses"),
    _handler("alias", Alias, Alias, "Name a model", 404),
    _handler("export", ExportRequest, Export, "Write models into a bundle", 404),
    _handler("import", ImportRequest, Import, "Take models from a bundle", 404),
]


@get(
    ["/v1/admin/tasks", "/api/admin/tasks"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(TaskList)}),
    responses=errors(403),
    summary="List tasks",
)
async def list_tasks(request: AnyRequest) -> Response[bytes]:
    """The orders since the hub was started, and how it stands with them."""
    hub: Hub = request.app.state.hub
    return _json(TaskList(data=[shown(task.state) for task in hub.tasks.all]))


@get(
    ["/v1/admin/tasks/{task_id:str}", "/api/admin/tasks/{task_id:str}"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(TaskState)}, parameters=[TASK_ID]),
    responses=errors(403, 404),
    summary="Get a task",
)
async def get_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """How it stands with an order."""
    hub: Hub = request.app.state.hub
    return _json(shown(hub.tasks.get(task_id).state))


@delete(
    ["/v1/admin/tasks/{task_id:str}", "/api/admin/tasks/{task_id:str}"],
    opt=ADMIN,
    status_code=200,
    operation_class=operation(answers={200: as_json(TaskState)}, parameters=[TASK_ID]),
    responses=errors(403, 404),
    summary="Cancel a task",
)
async def cancel_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """Ends its work; what a pull has fetched stays, and the next one goes on from there."""
    hub: Hub = request.app.state.hub
    task = hub.tasks.get(task_id)
    await task.cancel()
    return _json(shown(task.state))


@get(
    ["/v1/admin/tasks/{task_id:str}/events", "/api/admin/tasks/{task_id:str}/events"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_events(TaskEvent)}, parameters=[TASK_ID]),
    responses=errors(403, 404),
    summary="Follow a task",
)
async def follow_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """The task as it is now, its progress as it comes, and its end. Leaving changes nothing."""
    hub: Hub = request.app.state.hub
    return EventStream(task_events(hub.tasks.get(task_id)), ExitStack())


async def task_events(task: Task) -> AsyncGenerator[bytes, None]:
    """A task's events, from its state now to its end."""

    def event() -> bytes:
        kind = _TYPES[task.state.status]
        return encode_event(kind, TaskEvent(type=kind, task=shown(task.state)))

    while not task.ended:
        yield event()
        if not await task.change(KEEP_ALIVE):
            yield b": keep-alive\n\n"
    yield event()


@get(
    ["/v1/admin/bundles", "/api/admin/bundles"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(BundleList)}),
    responses=errors(403),
    summary="List bundles",
)
async def list_bundles(request: AnyRequest) -> Response[bytes]:
    """The files that can be imported, and those that were exported."""
    hub: Hub = request.app.state.hub
    return _json(BundleList(data=await asyncio.to_thread(_bundles, hub.places.bundles_dir)))


def _bundles(folder: str) -> list[Bundle]:
    try:
        entries = [each for each in os.scandir(folder) if each.name.endswith(BUNDLE_SUFFIX) and each.is_file()]
    except OSError:
        return []
    found = [(each.name, each.stat()) for each in entries]
    return [Bundle(bundle=name, bytes=told.st_size, created=int(told.st_mtime)) for name, told in sorted(found)]


def _json(body: Struct, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type="application/json", status_code=status)


handlers = [list_library, show_library, *orders, list_tasks, get_task, cancel_task, follow_task, list_bundles]
