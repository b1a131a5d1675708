"""GET /health: the API process lives. GET /ready: the engine takes requests, too."""

from __future__ import annotations

from typing import Any, Literal

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct

from hub import __version__
from hub.api.described import answer, as_json, operation
from hub.hub import Hub


class Health(Struct, omit_defaults=True):
    """`status` is ok; starting while the engine is not ready; or failed where it could not start, with the `reason`,
    until a later try succeeds."""

    status: Literal["ok", "starting", "failed"]
    version: str
    reason: str | None = None


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
            503: answer(as_json(Health), description="The engine starts, or starts again; or it could not, and why."),
        }
    ),
    summary="Readiness",
)
async def ready(request: Request[Any, Any, Any]) -> Response[Health]:
    """200 once the engine process is ready, 503 before and while it restarts."""
    hub: Hub = request.app.state.hub
    if hub.engine.device is None:
        reason = hub.engine.problem
        return Response(Health("failed" if reason else "starting", __version__, reason), status_code=503)
    return Response(Health("ok", __version__))
