"""GET /v1/models and /v1/models/{id}, also under /api: every id that answers, aliases included."""

from __future__ import annotations

from typing import Any, Literal

from litestar import HttpMethod, Request, route
from litestar.params import FromPath
from msgspec import Struct

from hub.api.described import errors, operation, path
from hub.hub import Hub
from hub.registry import ListedModel


class Model(Struct, kw_only=True):
    """OpenAI's model object; `root` is the model behind an alias."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str


class ModelList(Struct, kw_only=True):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


def _model(listed: ListedModel) -> Model:
    manifest = listed.manifest
    return Model(id=listed.id, created=manifest.created_at, owned_by=manifest.owned_by, root=manifest.id)


@route(
    ["/v1/models", "/api/models"],
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    status_code=200,
    summary="List models",
)
async def list_models(request: Request[Any, Any, Any]) -> ModelList:
    """All models and aliases of this hub."""
    hub: Hub = request.app.state.hub
    return ModelList(data=[_model(listed) for listed in hub.registry])


@route(
    ["/v1/models/{model:path}", "/api/models/{model:path}"],
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    status_code=200,
    operation_class=operation(parameters=[path("model", "A model's id or alias; it may hold slashes.")]),
    responses=errors(404),
    summary="Get a model",
)
async def get_model(request: Request[Any, Any, Any], model: FromPath[str]) -> Model:
    """One model or alias; ids may hold slashes."""
    hub: Hub = request.app.state.hub
    return _model(hub.registry.get(str(model).strip("/")))
