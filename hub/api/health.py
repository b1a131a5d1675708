"""GET /health: the API process lives. GET /ready: the engine takes requests, too."""

from __future__ import annotations

from typing import Any

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct

from hub import __version__
from hub.api.openapi import answer, as_json, operation
from hub.hub import Hub


class Health(Struct):
    """`status` is ok, or starting while the engine is not ready."""

    status: str
    version: str


@route(
    "/health",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    summary="Liveness",
)
async def health() -> Health:
    """Always ok while the process can answer, under load and without an engine too."""
    return Health("ok", __version__)


@route(
    "/ready",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    operation_class=operation(
        answers={
            200: answer(as_json(Health), description="The engine takes requests."),
            503: answer(as_json(Health), description="The engine starts, or starts again."),
        }
    ),
    summary="Readiness",
)
async def ready(request: Request[Any, Any, Any]) -> Response[Health]:
    """200 once the engine process is ready, 503 before and while it restarts."""
    hub: Hub = request.app.state.hub
    if hub.engine.device is None:
        return Response(Health("starting", __version__), status_code=503)
    return Response(Health("ok", __version__))
