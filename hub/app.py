"""The one place where Litestar is put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from hub.api import admin, aigne, docs, engine, files, health, images, jobs, loras, models, openapi, tasks, usage, wire
from hub.api.auth import require_key
from hub.errors import HubError
from hub.hub import Hub
from hub.settings import Settings


def create_app(settings: Settings) -> Litestar:
    """The ASGI application. Raises ConfigurationError at once; its lifespan starts the engine and ends it."""
    hub = Hub(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with hub.running():
            yield

    return Litestar(
        route_handlers=[
            images.generate,
            images.edit,
            images.vary,
            jobs.list_jobs,
            jobs.get_job,
            jobs.delete_job,
            jobs.follow_job,
            engine.get_engine,
            engine.load,
            engine.unload,
            models.list_models,
            models.get_model,
            loras.list_loras,
            usage.get_usage,
            *admin.handlers,
            *tasks.handlers,
            files.download,
            health.health,
            health.ready,
            aigne.blocklet,
            aigne.invoke,
            aigne.generations,
            aigne.catalogue,
            aigne.hub_status,
            *docs.handlers,
        ],
        state=State({"hub": hub}),
        lifespan=[lifespan],
        guards=[require_key],
        before_send=[wire.add_common_headers],
        exception_handlers={
            HubError: wire.on_hub_error,
            HTTPException: wire.on_http_exception,
            Exception: wire.on_exception,
        },
        request_max_body_size=settings.max_body_mb * 1024 * 1024,
        openapi_config=openapi.openapi_config(),
        plugins=[openapi.StructSchemas()],
        logging_config=None,
    )
