"""Providers on loopback, driven by the hub's own driver, transport and adapters, in one event loop each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hub import providers
from hub.errors import HubError
from hub.fetching import resolve
from hub.remote import caller, transport
from hub.remote.credentials import Credentials, Key, Keys
from hub.remote.provider import RemoteProvider
from hub.remote.transport import Transport
from hub.types import Event, ImageRequest, ImageResult
from tests.providers.protocols import protocol
from tests.providers.upstream import KEY, Protocol, Upstream, serving


class Driven:
    """A provider and whoever asks it."""

    def __init__(self, upstream: Upstream, runner: asyncio.Runner) -> None:
        self.upstream = upstream
        self.protocol: Protocol = upstream.protocol
        self.adapter = providers.adapter(self.protocol.provider)
        self.events: list[Event] = []
        """What was told of the last request."""
        self.took = 0.0
        """Seconds of the last request."""
        self.runner = runner
        self.addresses: dict[str, list[str]] = {}
        """What hosts resolve to, other than by the system."""
        self.now = 0.0
        """What keys go by: pauses take no time but this."""

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def resolve(self, host: str, port: int) -> list[str]:
        return self.addresses.get(host) or await resolve(host, port)

    async def asking(self, manifest: dict[str, Any] | None = None, keys: int = 1, **wishes: Any) -> ImageResult:
        """One request, with a hub that has seen no other."""
        given = Credentials({"test": Keys((Key(f"test/{each}", KEY) for each in range(keys)), lambda: self.now)})
        model = self.protocol.manifest(self.upstream, **(manifest or {}))
        self.events.clear()
        through = Transport(resolve=self.resolve)
        start = time.monotonic()
        try:
            async with through.running():
                provider = RemoteProvider(providers.adapter, through, given)
                return await provider.generate(model, ImageRequest(**{"prompt": "a fox", **wishes}), self.events.append)
        finally:
            self.took = time.monotonic() - start

    def make(self, manifest: dict[str, Any] | None = None, **wishes: Any) -> ImageResult:
        """What a request makes. Nothing of it is left behind."""

        async def main() -> ImageResult:
            async with asyncio.timeout(30):
                try:
                    return await self.asking(manifest, **wishes)
                finally:
                    assert len(asyncio.all_tasks()) == 1

        return self.runner.run(main())

    def fail(self, manifest: dict[str, Any] | None = None, **wishes: Any) -> HubError:
        """How a request fails: in words that are the hub's own."""
        with pytest.raises(HubError) as caught:
            self.make(manifest, **wishes)
        error = caught.value
        told = f"{error} {error.body} {error.headers}"
        for secret in (KEY, "secret", "127.0.0.1", str(self.upstream.server_port)):
            assert secret not in told, told
        return error


@pytest.fixture(scope="module", params=providers.names())
def _driven(request: pytest.FixtureRequest) -> Iterator[Driven]:
    with serving(protocol(request.param)) as upstream, asyncio.Runner() as runner:
        yield Driven(upstream, runner)


@pytest.fixture
def driven(_driven: Driven, monkeypatch: pytest.MonkeyPatch) -> Driven:
    """Every provider in turn. Nothing waits long here."""
    monkeypatch.setattr(caller, "_pause", _driven.pause)
    monkeypatch.setattr(caller, "SHORTEST_POLL", 0.005)
    monkeypatch.setattr(caller, "LONGEST_POLL", 0.01)
    monkeypatch.setattr(transport, "BRIEFLY", 0.3)
    _driven.upstream.forget()
    _driven.addresses.clear()
    _driven.now = 0.0
    return _driven
