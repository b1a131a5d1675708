"""Asking a provider on loopback for what its ready-made manifests promise, and going away meanwhile."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from hub.manifest import RemoteManifest
from hub.registry import read_manifest
from hub.remote.adapter import Adapter
from hub.remote.wish import Wish
from hub.types import ImageRequest, ImageResult
from tests.providers.asking import half, picture, running, wish_of
from tests.providers.upstream import Upstream

__all__ = ["READY_MADE", "ask", "give_up", "left_and_right", "mask", "picture", "ready_made", "wish_for"]

READY_MADE = Path(__file__).parents[2] / "models" / "remote"


def ready_made(file: str, upstream: Upstream | None = None) -> RemoteManifest:
    """A manifest that ships with the hub, at an upstream."""
    manifest = read_manifest(READY_MADE / f"{file}.toml")
    assert isinstance(manifest, RemoteManifest)
    if upstream is not None:
        manifest.remote.base_url, manifest.remote.credentials = upstream.url, "test"
        manifest.remote.timeout = 20
    return manifest


def ask(
    upstream: Upstream,
    request: ImageRequest,
    manifest: RemoteManifest | None = None,
    on_event: Any = None,
    until: Callable[[], bool] = lambda: True,
) -> ImageResult:
    """What comes of a request. The loop runs on until `until` says that all is done."""

    async def work() -> ImageResult:
        async with running() as provider:
            try:
                return await provider.generate(manifest or upstream.protocol.manifest(upstream), request, on_event)
            finally:
                await _until(until)

    result = asyncio.run(work())
    assert not upstream.failures
    return result


def give_up(upstream: Upstream, request: ImageRequest, when: Callable[[], bool]) -> None:
    """Asks, and goes away as soon as `when` says so; then waits a little for what the provider is told."""

    async def work() -> None:
        async with running() as provider:
            task = asyncio.create_task(provider.generate(upstream.protocol.manifest(upstream), request))
            await _until(when)
            told = len(upstream.asked)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            await _until(lambda: len(upstream.asked) > told)

    asyncio.run(work())


async def _until(when: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not when():
            await asyncio.sleep(0.01)


def wish_for(adapter: Adapter, manifest: RemoteManifest, **request: Any) -> Wish:
    """What the adapter is told of a request."""
    assert manifest.provider == adapter.name
    return wish_of(manifest, ImageRequest(**{"prompt": "a cat", **request}))


def mask(width: int = 64, height: int = 64) -> bytes:
    """A mask by which the left half may change."""
    return half(width, height, left=0, right=255)


def left_and_right(data: bytes) -> tuple[int, int]:
    """How bright a mask is at both ends."""
    grey = Image.open(io.BytesIO(data)).convert("L")
    return grey.getpixel((0, 0)), grey.getpixel((grey.width - 1, 0))  # type: ignore[return-value]
