"""What drives every remote provider: the wish, its calls side by side, and their pictures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from hub.errors import HubError, NothingMade, ProviderError, ProviderTimeout
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Call, Made, Partial
from hub.remote.caller import Caller, billed
from hub.remote.credentials import Credentials, Keys
from hub.remote.pictures import Had, have
from hub.remote.result import put_together, shares
from hub.remote.transport import Transport
from hub.remote.wish import Wish, noting, plan
from hub.remote.works import Work, Works
from hub.types import DEFAULT_SIZE, Accepted, Event, ImageRequest, ImageResult, OnEvent, Preview, Progress

log = logging.getLogger(__name__)

T = TypeVar("T")

PARALLEL = 4
"""Calls of one request at a time."""


class RemoteProvider:
    """Has pictures made by the models of `provider = …` manifests that are not local."""

    def __init__(self, adapter_of: Callable[[str], Adapter], transport: Transport, credentials: Credentials) -> None:
        """adapter_of: by the provider's name; raises HubError for one that there is not."""
        self._adapter_of = adapter_of
        self._transport = transport
        self._credentials = credentials

    async def generate(
        self,
        manifest: RemoteManifest,
        request: ImageRequest,
        on_event: OnEvent | None = None,
        *,
        works: Works | None = None,
        stays: bool = False,
    ) -> ImageResult:
        """Makes the pictures; `on_event` hears of their life, on the event loop. Raises HubError.

        They are as the provider made them, byte for byte: other sizes and formats than were asked for are told, not
        mended. `works` will hold the calls. `stays`: the request must not leave this machine, so what the provider
        names elsewhere is not asked for.
        """
        adapter = self._adapter_of(manifest.provider)
        honoured = adapter.honoured(manifest)
        if request.images:
            wish = await asyncio.to_thread(plan, manifest, honoured, request)
        else:
            wish = plan(manifest, honoured, request)
        wish = noting(wish, adapter.unmet(wish))
        caller = Caller(self._transport, adapter, wish, self.keys_of(manifest), stays=stays)
        return await _Run(adapter, wish, caller, works or Works(), on_event).result()

    def keys_of(self, manifest: RemoteManifest) -> Keys:
        """The keys that a model's calls may carry."""
        return Keys(()) if manifest.keys_name is None else self._credentials.of(manifest.keys_name, manifest.id)


class _Run:
    """One request at one provider: its calls, side by side, and their pictures."""

    def __init__(self, adapter: Adapter, wish: Wish, caller: Caller, works: Works, on_event: OnEvent | None) -> None:
        self._adapter = adapter
        self._wish = wish
        self._caller = caller
        self._works = works
        self._on_event = on_event
        self._places = asyncio.Semaphore(PARALLEL)
        self._percent: dict[int, int] = {}

    async def result(self) -> ImageResult:
        wish, request = self._wish, self._wish.request
        parts = shares(request.n, self._adapter.most(wish.manifest, request))
        for n, first in dict.fromkeys(
            (parts[0], parts[-1])
        ):  # what cannot be asked for is told before anything is sent
            await self._call(n, first)
        self._tell(
            Accepted(
                size=wish.size or request.size or DEFAULT_SIZE,  # who chooses does not tell it beforehand
                quality=wish.effort or "medium",
                output_format=wish.output_format,
                background=wish.background,
            )
        )
        self._progress(0, 0)
        return put_together(self._adapter, wish, await self._all(parts))

    async def _all(self, parts: Sequence[tuple[int, int]]) -> list[tuple[Made, list[Had]]]:
        """What all calls make, or the first error. After one nothing more is sent; what is on its way already goes on
        until it is known whether it costs anything."""
        works = [self._works.one() for _ in parts]
        if len(parts) == 1:
            try:
                return [await self._share(*parts[0], works[0])]
            except HubError as error:
                raise (billed(error) if self._works.may_be_billed else error) from None
        tasks = [
            asyncio.create_task(self._share(n, first, work)) for (n, first), work in zip(parts, works, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except HubError as error:
            for task, work in zip(tasks, works, strict=True):
                if not work.may_be_billed:
                    task.cancel()
            await self._works.known()
            raise (billed(error) if self._works.may_be_billed else error) from None
        finally:
            await _stopped(tasks)

    async def _share(self, n: int, first: int, work: Work) -> tuple[Made, list[Had]]:
        async with self._places:
            if self._works.error is not None:
                raise self._works.error
            try:
                return await self._in_time(n, first, work)
            except HubError as error:
                self._works.error = self._works.error or error
                raise

    async def _in_time(self, n: int, first: int, work: Work) -> tuple[Made, list[Had]]:
        seconds = self._wish.manifest.remote.timeout
        try:
            async with asyncio.timeout(seconds):
                return await self._answered(n, first, work)
        except TimeoutError:
            work.heard(spent=work.may_be_billed)
            words = f"{self._adapter.title} did not answer within {seconds} seconds."
            raise ProviderTimeout(words, may_have_billed=work.may_be_billed) from None

    async def _answered(self, n: int, first: int, work: Work) -> tuple[Made, list[Had]]:
        call = await self._call(n, first)

        async def on_partial(partial: Partial) -> None:
            if partial.index < n:
                await self._preview(first, partial)

        def on_progress(percent: int) -> None:
            self._progress(first, n * min(100, max(0, percent)))

        made = await self._caller.made(call, work, on_partial, on_progress)
        if not made.pictures:
            raise NothingMade(f"{self._adapter.title} made no picture.", may_have_billed=True)
        had = await together(*(have(each, self._caller.download) for each in made.pictures[:n]))
        self._progress(first, 100 * n)
        return made, had

    async def _call(self, n: int, first: int) -> Call:
        if not self._wish.images:
            return self._adapter.call(self._wish, n, first)
        return await asyncio.to_thread(self._adapter.call, self._wish, n, first)  # large pictures in base64, perhaps

    async def _preview(self, first: int, partial: Partial) -> None:
        """One that is no picture is left out: the finished ones may be whole."""
        if self._on_event is None:
            return
        with contextlib.suppress(ProviderError):
            had = await have(partial.picture, self._caller.download)
            self._tell(Preview(index=first + partial.index, partial=partial.partial, image=had.data))

    def _progress(self, first: int, percent: int) -> None:
        """`percent`: of one picture, summed over those of the call that begins with number `first`."""
        self._percent[first] = percent
        n = self._wish.request.n
        self._tell(Progress(step=min(100 * n, sum(self._percent.values())), steps=100 * n))

    def _tell(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            log.exception("an event callback failed")
            self._on_event = None


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """All results, in order; or the first error, when all others were stopped."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _stopped(tasks)


async def _stopped(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
