"""A remote provider's models against its protocol, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub import providers
from hub.errors import HubError
from hub.manifest import RemoteManifest, RemoteSection
from hub.registry import REMOTE, read_manifest
from hub.remote.adapter import Answer, Call
from hub.types import Event, ImageRequest, ImageResult, OnEvent, Size, Task
from tests.providers.asking import half, running, wish_of
from tests.providers.upstream import KEY, Upstream

MODELS = Path(__file__).parents[2] / "models" / REMOTE


def png(width: int = 64, height: int = 64, *, transparent: bool = False) -> bytes:
    """A picture; the left half of a transparent one is opaque."""
    return half(width, height, left=255, right=0 if transparent else 255)


def request(**changes: Any) -> ImageRequest:
    """A small one."""
    return ImageRequest(**{"prompt": "a cat", **changes})


def request_for(task: Task, **changes: Any) -> ImageRequest:
    """A small one of a task."""
    sources = {} if task == "text-to-image" else {"images": (png(),)}
    mask = {"mask": png(transparent=True)} if task == "inpainting" else {}
    return request(**sources, **mask, **changes)


def ready_made(provider: str) -> list[RemoteManifest]:
    """Those of models/remote; a parameter of tests."""
    found = [read_manifest(source) for source in sorted(MODELS.glob(f"{provider.replace('_', '-')}-*.toml"))]
    return [each for each in found if isinstance(each, RemoteManifest) and each.provider == provider]


def manifest_of(provider: str, model: str = "painter", **remote: Any) -> RemoteManifest:
    """One with these things in its `remote` section, for all tasks."""
    return RemoteManifest(
        id=f"{provider}/{model}",
        name="Painter",
        description="",
        provider=provider,
        tasks=["text-to-image", "image-to-image", "inpainting"],
        remote=RemoteSection(model=model, **remote),
    )


def at(manifest: RemoteManifest, upstream: Upstream) -> RemoteManifest:
    """The same model at a loopback address."""
    place = {"base_url": upstream.url, "credentials": "test", "timeout": 20}
    return msgspec.structs.replace(manifest, remote=msgspec.structs.replace(manifest.remote, **place))


def made(
    upstream: Upstream, wanted: ImageRequest, manifest: RemoteManifest | None = None, on_event: OnEvent | None = None
) -> ImageResult:
    """What the whole way gives; the upstream has understood all of it."""

    async def run() -> ImageResult:
        async with running() as provider:
            model = upstream.protocol.manifest(upstream) if manifest is None else at(manifest, upstream)
            return await provider.generate(model, wanted, on_event)

    result = asyncio.run(run())
    assert upstream.failures == []
    return result


def error_of(upstream: Upstream, wanted: ImageRequest, manifest: RemoteManifest | None = None) -> HubError:
    """The error that the whole way ends in; it repeats no word of the provider's."""
    with pytest.raises(HubError) as caught:
        made(upstream, wanted, manifest)
    assert KEY not in str(caught.value)
    assert "secret words" not in str(caught.value)
    return caught.value


def heard() -> tuple[list[Event], Callable[[Event], None]]:
    """A list of what was told, and who fills it."""
    events: list[Event] = []
    return events, events.append


def call_of(manifest: RemoteManifest, wanted: ImageRequest, n: int = 1, first: int = 0) -> Call:
    """What the provider is asked."""
    return providers.adapter(manifest.provider).call(wish_of(manifest, wanted), n, first)


def notices_of(manifest: RemoteManifest, wanted: ImageRequest) -> list[str]:
    """What is told about the wish before anything is sent."""
    return [str(each) for each in wish_of(manifest, wanted).notices]


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    """An answer of JSON."""
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, msgspec.json.encode(body))


SQUARE = Size(1024, 1024)
