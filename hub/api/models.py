"""GET /v1/models and /v1/models/{id}, also under /api: every id that answers, aliases included."""

from __future__ import annotations

from typing import Any

from litestar import Request, get
from litestar.params import FromPath
from msgspec import Struct

from hub.hub import Hub
from hub.registry import ListedModel


class Model(Struct, kw_only=True):
    """OpenAI's model object; `root` is the model behind an alias."""

    id: str
    object: str = "model"
    created: int
    owned_by: str
    root: str


class ModelList(Struct, kw_only=True):
    """OpenAI's list of models."""

    object: str = "list"
    data: list[Model]


def _model(listed: ListedModel) -> Model:
    manifest = listed.manifest
    return Model(id=listed.id, created=manifest.created_at, owned_by=manifest.owned_by, root=manifest.id)


@get(["/v1/models", "/api/models"], summary="List models")
async def list_models(request: Request[Any, Any, Any]) -> ModelList:
    """All models and aliases of this hub."""
    hub: Hub = request.app.state.hub
    return ModelList(data=[_model(listed) for listed in hub.registry])


@get(["/v1/models/{model:path}", "/api/models/{model:path}"], summary="Get a model")
async def get_model(request: Request[Any, Any, Any], model: FromPath[str]) -> Model:
    """One model or alias; ids may hold slashes."""
    hub: Hub = request.app.state.hub
    return _model(hub.registry.get(str(model).strip("/")))
