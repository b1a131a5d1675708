"""GET /v1/loras, also under /api: the LoRAs that a request may name."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from litestar import HttpMethod, Request, route
from msgspec import Struct

from hub.hub import Hub


class LoraObject(Struct, kw_only=True):
    """A LoRA in the owner's folder; `id` is the name to ask for."""

    id: str
    object: Literal["lora"] = "lora"
    bytes: int


class LoraList(Struct, kw_only=True):
    """All of them, by name."""

    object: Literal["list"] = "list"
    data: list[LoraObject]


@route(
    ["/v1/loras", "/api/loras"],
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    status_code=200,
    summary="List LoRAs",
)
async def list_loras(request: Request[Any, Any, Any]) -> LoraList:
    """All LoRAs of this hub. Which model each is for, only its use tells."""
    hub: Hub = request.app.state.hub
    files = await asyncio.to_thread(list, hub.loras)
    return LoraList(data=[LoraObject(id=file.name, bytes=file.bytes) for file in files])
