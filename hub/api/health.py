"""GET /health: the API process lives. GET /ready: the engine takes requests, too."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from msgspec import Struct

from hub import __version__
from hub.hub import Hub


class Health(Struct):
    """`status` is ok, or starting while the engine is not ready."""

    status: str
    version: str


@get("/health", opt={"public": True}, summary="Liveness")
async def health() -> Health:
    """Always ok while the process can answer, under load and without an engine too."""
    return Health("ok", __version__)


@get("/ready", opt={"public": True}, summary="Readiness")
async def ready(request: Request[Any, Any, Any]) -> Response[Health]:
    """200 once the engine process is ready, 503 before and while it restarts."""
    hub: Hub = request.app.state.hub
    if hub.engine.device is None:
        return Response(Health("starting", __version__), status_code=503)
    return Response(Health("ok", __version__))
