"""Asks a provider on loopback through the real driver, transport and adapter."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from PIL import Image

from hub import providers
from hub.manifest import RemoteManifest
from hub.remote.credentials import Credentials, Key, Keys
from hub.remote.provider import RemoteProvider
from hub.remote.transport import Transport
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
    credentials = Credentials({"test": Keys([Key("test/1", KEY)])})

    async def main() -> ImageResult:
        transport = Transport()
        async with transport.running(), asyncio.timeout(30):
            provider = RemoteProvider(providers.adapter, transport, credentials)
            on_event = events.append if events is not None else None
            return await provider.generate(manifest, ImageRequest(prompt=prompt, **wishes), on_event)

    return asyncio.run(main())


def picture(width: int = 64, height: int = 64, mode: str = "RGB", colour: Any = "white") -> bytes:
    """A source, or a mask, as a PNG."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()
