"""Asks a provider on loopback through the real driver, transport and adapter; what such tests are made of."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image

from hub import providers
from hub.manifest import RemoteManifest
from hub.remote.credentials import Credentials, Key, Keys
from hub.remote.provider import RemoteProvider
from hub.remote.transport import Transport
from hub.remote.wish import Wish, noting, plan
from hub.types import Event, ImageRequest, ImageResult
from tests.providers.upstream import KEY, Upstream


def ask(
    upstream: Upstream,
    *,
    manifest: RemoteManifest | None = None,
    remote: dict[str, Any] | None = None,
    events: list[Event] | None = None,
    prompt: str = "a red fox",
    **wishes: Any,
) -> ImageResult:
    """What a request makes. `remote`: changes of the manifest's section. `events`: gets what was told on the way."""
    manifest = manifest or upstream.protocol.manifest(upstream, **(remote or {}))
    on_event = events.append if events is not None else None

    async def main() -> ImageResult:
        async with asyncio.timeout(30), running() as provider:
            return await provider.generate(manifest, ImageRequest(prompt=prompt, **wishes), on_event)

    return asyncio.run(main())


@asynccontextmanager
async def running() -> AsyncIterator[RemoteProvider]:
    """A hub's remote side, with the key that every upstream takes."""
    transport = Transport()
    async with transport.running():
        yield RemoteProvider(providers.adapter, transport, Credentials({"test": Keys([Key("test/1", KEY)])}))


def wish_of(manifest: RemoteManifest, wanted: ImageRequest) -> Wish:
    """As the driver makes it."""
    adapter = providers.adapter(manifest.provider)
    wish = plan(manifest, adapter.honoured(manifest), wanted)
    return noting(wish, adapter.unmet(wish))


def picture(
    width: int = 64, height: int = 64, image_format: str = "PNG", *, mode: str = "RGB", colour: Any = "white"
) -> bytes:
    """A source, or a mask."""
    return encoded(Image.new(mode, (width, height), colour), image_format)


def half(width: int = 64, height: int = 64, *, left: int = 0, right: int = 255) -> bytes:
    """A picture whose halves are more or less opaque: as a mask, the one may change whose alpha is 0."""
    image = Image.new("RGBA", (width, height), (0, 0, 0, right))
    image.paste((0, 0, 0, left), (0, 0, width // 2, height))
    return encoded(image)


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()
