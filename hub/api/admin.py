"""The owner's hand on the models: /v1/admin, also under /api. Long work is a task, whose progress can be followed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Meta, Struct

from hub.api.described import as_json, errors, operation, path
from hub.api.tasks import ADMIN, json_of, shown
from hub.api.wire import AnyRequest, read_json
from hub.errors import NotFound, Offline
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
from hub.library.tasks import TaskState
from hub.library.tidy import removable
from hub.manifest import ModelId, Variant

PATH_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,7}$(?!\n)"
BUNDLE_PATTERN = rf"^[A-Za-z0-9_][A-Za-z0-9._-]{{0,99}}\{BUNDLE_SUFFIX}$(?!\n)"

BundleName = Annotated[str, Meta(pattern=BUNDLE_PATTERN, examples=["models.hubmodels"])]
PathName = Annotated[str, Meta(pattern=PATH_PATTERN)]


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


class Bundle(Struct, kw_only=True):
    """A file below `bundles_dir`; `created` is in unix seconds."""

    bundle: str
    bytes: int
    created: int


class BundleList(Struct, kw_only=True):
    """By name."""

    object: Literal["list"] = "list"
    data: list[Bundle]


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
    return json_of(LibraryModelList(data=found))


@get(
    ["/v1/admin/models/{model:path}", "/api/admin/models/{model:path}"],
    opt=ADMIN,
    operation_class=operation(
        answers={200: as_json(LibraryModel)},
        parameters=[path("model", "A model's id or alias; it may hold slashes.")],
    ),
    responses=errors(403, 404),
    summary="Get a model with size, origin and use",
)
async def show_library(request: AnyRequest, model: FromPath[str]) -> Response[bytes]:
    """One of the list."""
    hub: Hub = request.app.state.hub
    wanted = hub.registry.get(str(model).strip("/")).local.id
    found = await asyncio.to_thread(
        listing, hub.registry, hub.places, loaded=loaded_in(hub), default=hub.settings.default_model
    )
    return json_of(next(each for each in found if each.id == wanted))


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
                _ = hub.registry.get(model).local
        case Remove():
            removable(order.model, hub.places)
        case Alias(target=str() as target) | Add(config=str() as target):
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


def _handler(name: str, body: type[Struct], order: Any, summary: str, *statuses: int) -> HTTPRouteHandler:
    """POST /v1/admin/models/NAME: begins a task."""

    async def begin(request: AnyRequest) -> Response[bytes]:
        hub: Hub = request.app.state.hub
        read = await read_json(request, body)
        wanted: Order = order(**msgspec.structs.asdict(read))
        return json_of(shown(hub.tasks.begin(await asyncio.to_thread(check, wanted, hub)).state), status=202)

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
    ["/v1/admin/bundles", "/api/admin/bundles"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(BundleList)}),
    responses=errors(403),
    summary="List bundles",
)
async def list_bundles(request: AnyRequest) -> Response[bytes]:
    """The files that can be imported, and those that were exported."""
    hub: Hub = request.app.state.hub
    return json_of(BundleList(data=await asyncio.to_thread(_bundles, hub.places.bundles_dir)))


def _bundles(folder: str) -> list[Bundle]:
    try:
        entries = [each for each in os.scandir(folder) if each.name.endswith(BUNDLE_SUFFIX) and each.is_file()]
    except OSError:
        return []
    found = [(each.name, each.stat()) for each in entries]
    return [Bundle(bundle=name, bytes=told.st_size, created=int(told.st_mtime)) for name, told in sorted(found)]


handlers = [list_library, show_library, *orders, list_bundles]
