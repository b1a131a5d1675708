"""GET /health: the API process lives. GET /ready: the engine takes requests, too."""

from __future__ import annotations

from typing import Any, Literal

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct

from hub import __version__
from hub.api.described import answer, as_json, operation
from hub.engine.worker_process import DeviceState
from hub.hub import Hub


class Health(Struct, omit_defaults=True):
    """`status` is ok; starting while no device takes requests; or failed where none could be started, with the
    `reason`, until a later try succeeds. `devices` tells the same of each device."""

    status: Literal["ok", "starting", "failed"]
    version: str
    reason: str | None = None
    devices: list[DeviceState] = []


@route(
    "/health",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    summary="Liveness",
)
async def health(request: Request[Any, Any, Any]) -> Health:
    """Always ok while the process can answer, under load and without an engine too."""
    hub: Hub = request.app.state.hub
    return Health("ok", __version__, devices=hub.engine.devices)


@route(
    "/ready",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    opt={"public": True},
    status_code=200,
    operation_class=operation(
        answers={
            200: answer(as_json(Health), description="A device takes requests."),
            503: answer(as_json(Health), description="The engine starts, or starts again; or it could not, and why."),
        }
    ),
    summary="Readiness",
)
async def ready(request: Request[Any, Any, Any]) -> Response[Health]:
    """200 as long as one device takes requests, 503 before and while none does."""
    engine = request.app.state.hub.engine
    if engine.device is None:
        reason = engine.problem
        words = Health("failed" if reason else "starting", __version__, reason, engine.devices)
        return Response(words, status_code=503)
    return Response(Health("ok", __version__, devices=engine.devices))
