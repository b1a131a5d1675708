"""What drives every remote provider: the wish, its calls with keys and retries, the waiting, and the pictures.

A request is sent again only where nothing can have been made of it: the connection failed before it was whole, or the
provider said that it has no room (429, 503), or does not take the key. Whatever else fails is told, with
`may_have_billed`, and what to do about it is the route's to decide (hub.routing).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from hub.errors import (
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
    ProviderUnavailable,
)
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Partial, Pending
from hub.remote.credentials import PARKED, Credentials, Key, Keys
from hub.remote.pictures import Had, have
from hub.remote.transport import Transport
from hub.remote.wish import Notice, Wish, plan
from hub.types import Accepted, Event, ImageRequest, ImageResult, OnEvent, Preview, Progress, Size, Usage

log = logging.getLogger(__name__)

RETRIES = 2
"""How often a call is sent again, where that is safe."""
LONGEST_WAIT = 10.0
"""Seconds that a request waits for a busy provider; for longer, its client is told to come back."""
BACKOFF = 0.5
POLL_FAILURES = 5
"""How many questions in a row may fail: they cost nothing."""
PARALLEL = 4
"""Calls of one request at a time."""
CANCEL = 5.0
"""Seconds for telling a provider that nobody wants the pictures any more."""


class RemoteProvider:
    """Has pictures made by the models of `provider = …` manifests that are not local. See `hub.providers.Provider`."""

    def __init__(self, adapter_of: Callable[[str], Adapter], transport: Transport, credentials: Credentials) -> None:
        """adapter_of: by the provider's name; raises HubError for one that there is not."""
        self._adapter_of = adapter_of
        self._transport = transport
        self._credentials = credentials
        self._cancelling: set[asyncio.Task[None]] = set()

    async def generate(
        self,
        manifest: RemoteManifest,
        request: ImageRequest,
        on_event: OnEvent | None = None,
        *,
        stays: bool = False,
    ) -> ImageResult:
        """See `hub.providers.Provider`. The pictures are as the provider made them, byte for byte: other sizes and
        formats than were asked for are told, not mended. `stays`: the request must not leave this machine, so what the
        provider names elsewhere is not asked for."""
        adapter = self._adapter_of(manifest.provider)
        honoured = adapter.honoured(manifest)
        if request.images:
            wish = await asyncio.to_thread(plan, manifest, honoured, request)
        else:
            wish = plan(manifest, honoured, request)
        return await _Run(self, adapter, wish, on_event, stays).result()

    def keys_of(self, manifest: RemoteManifest, adapter: Adapter) -> Keys:
        """The keys that a model's calls may carry: a base URL of the owner's gets none that the manifest does not
        name."""
        name = manifest.remote.credentials or (adapter.name if manifest.remote.base_url is None else None)
        return Keys(()) if name is None else self._credentials.of(name)

    @property
    def transport(self) -> Transport:
        """The HTTP client."""
        return self._transport

    def cancel(self, call: Call, url: str, headers: dict[str, str]) -> None:
        """Tells a provider that nobody waits any more, beside whatever else goes on. Never raises."""

        async def tell() -> None:
            with contextlib.suppress(ProviderError, TimeoutError):
                async with asyncio.timeout(CANCEL):
                    await self._transport.send(call, url, headers)

        task = asyncio.create_task(tell())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


class _Run:
    """One request at one provider."""

    def __init__(
        self, provider: RemoteProvider, adapter: Adapter, wish: Wish, on_event: OnEvent | None, stays: bool
    ) -> None:
        self._provider = provider
        self._transport = provider.transport
        self._adapter = adapter
        self._wish = wish
        self._on_event = on_event
        self._stays = stays
        self._keys = provider.keys_of(wish.manifest, adapter)
        self._base = wish.manifest.remote.base_url or str(adapter.base_url)
        self._places = asyncio.Semaphore(PARALLEL)
        self._percent: dict[int, int] = {}
        self._sent = False
        """Whether the provider may be at work."""

    async def result(self) -> ImageResult:
        wish, request = self._wish, self._wish.request
        shares = _shares(request.n, wish.manifest.remote.max_n)
        for n, first in shares:  # what cannot be asked for is told before anything is sent
            self._adapter.call(wish, n, first)
        planned = wish.size or request.size or request.default_size or _SQUARE
        self._tell(
            Accepted(
                size=planned,
                quality=wish.effort or "medium",
                output_format=wish.output_format,
                background=wish.background,
            )
        )
        self._progress(0, 0)
        try:
            async with asyncio.timeout(wish.manifest.remote.timeout):
                parts = await self._all(shares)
        except TimeoutError:
            words = f"{self._adapter.title} did not answer within {wish.manifest.remote.timeout} seconds."
            raise ProviderTimeout(words, may_have_billed=self._sent) from None
        return self._put_together(parts)

    async def _all(self, shares: Sequence[tuple[int, int]]) -> list[tuple[Made, list[Had]]]:
        """Every call, or the first error, when all others were stopped."""
        tasks = [asyncio.create_task(self._share(n, first)) for n, first in shares]
        try:
            return list(await asyncio.gather(*tasks))
        except ProviderError as error:
            if any(task.done() and not task.cancelled() and task.exception() is None for task in tasks):
                error.may_have_billed = True  # by the others
                error.headers["x-should-retry"] = "false"
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _share(self, n: int, first: int) -> tuple[Made, list[Had]]:
        async with self._places:
            call = self._adapter.call(self._wish, n, first)
            made, key = await (self._stream(call, first) if call.stream else self._whole(call))
            while isinstance(made, Pending):
                made = await self._wait(made, key, first, n)
            if not made.pictures:
                raise ProviderFailed(f"{self._adapter.title} made no picture.", may_have_billed=True)
            had = await asyncio.gather(*(have(each, self._download) for each in made.pictures[:n]))
            self._progress(first, 100 * n)
            return made, list(had)

    async def _whole(self, call: Call) -> tuple[Made | Pending, Key | None]:
        """The answer to a call, which is sent again where that is safe."""
        refused: list[Key] = []
        for attempt in range(RETRIES + 1):
            key = self._pick(refused)
            try:
                self._sent = True
                answer = await self._transport.send(call, self._url(call.url), self._headers(key))
                return self._adapter.read(self._wish, self._good(answer)), key
            except (ProviderKeyRefused, ProviderBusy, ProviderUnavailable) as error:
                await self._after(error, key, refused, attempt)
        raise AssertionError("the last attempt raises")

    async def _stream(self, call: Call, first: int) -> tuple[Made | Pending, Key | None]:
        """The same for an answer that comes in events: previews are passed on."""
        refused: list[Key] = []
        for attempt in range(RETRIES + 1):
            key = self._pick(refused)
            try:
                self._sent = True
                async with self._transport.events(call, self._url(call.url), self._headers(key)) as events:
                    if isinstance(events, Answer):
                        return self._adapter.read(self._wish, self._good(events)), key
                    made: list[Made] = []
                    async for name, data in events:
                        found = self._adapter.event(self._wish, name, data)
                        if isinstance(found, Partial):
                            await self._preview(found, first)
                        elif found is not None:
                            made.append(found)
                    return _joined(made), key
            except (ProviderKeyRefused, ProviderBusy, ProviderUnavailable) as error:
                await self._after(error, key, refused, attempt)
        raise AssertionError("the last attempt raises")

    async def _wait(self, pending: Pending, key: Key | None, first: int, n: int) -> Made | Pending:
        """One more question, after some time; some may fail in a row, since they cost nothing."""
        try:
            if pending.progress is not None:
                self._progress(first, pending.progress * n)
            for failures in range(POLL_FAILURES):
                await asyncio.sleep(pending.after * (1 + failures))
                url = self._url(pending.ask.url)
                try:
                    answer = await self._transport.send(pending.ask, url, self._headers(key))
                    return self._adapter.read(self._wish, self._good(answer))
                except ProviderError as error:
                    final = isinstance(error, ProviderKeyRefused) or failures == POLL_FAILURES - 1
                    if final or pending.ask.method != "GET":
                        raise type(error)(error.message, retry_after=error.retry_after, may_have_billed=True) from None
            raise AssertionError("the last failure raises")
        except asyncio.CancelledError:
            if pending.cancel is not None:
                self._provider.cancel(pending.cancel, self._url(pending.cancel.url), self._headers(key))
            raise

    def _good(self, answer: Answer) -> Answer:
        if 200 <= answer.status < 300:
            return answer
        error = self._adapter.refusal(answer)
        log.info("%s: %s answered %d", self._wish.request.label or "request", self._adapter.name, answer.status)
        raise error

    def _pick(self, refused: Sequence[Key]) -> Key | None:
        """A key for the next try; raises ProviderError where there is none to be had."""
        key = self._keys.pick(refused)
        if key is not None or (not self._keys.all and not self._adapter.needs_key):
            return key
        title = self._adapter.title
        if not self._keys.all:
            raise ProviderUnavailable(f"This hub has no key for {title}. Its owner has to give it one.")
        if self._keys.wait > 0 and all(each.why == "busy" for each in self._keys.all if each.parked_until):
            wait = math.ceil(self._keys.wait)
            raise ProviderBusy(f"{title} takes no request just now.", retry_after=wait)
        raise ProviderKeyRefused(f"{title} does not take this hub's key. Its owner has to act.")

    async def _after(self, error: ProviderError, key: Key | None, refused: list[Key], attempt: int) -> None:
        """What follows an error after which the call may be sent again: another key, some time, or the error."""
        self._sent = error.may_have_billed
        if isinstance(error, ProviderKeyRefused) and key is not None:
            log.warning("%s does not take the key %s; it is left alone for %d s", self._adapter.name, key.name, PARKED)
            self._keys.park(key, PARKED, "refused")
            refused.append(key)
        elif isinstance(error, ProviderBusy) and key is not None:
            self._keys.park(key, error.retry_after or BACKOFF * 2**attempt, "busy")
        if attempt == RETRIES or error.may_have_billed:
            raise error
        if self._keys.pick(refused) is not None and not isinstance(error, ProviderUnavailable):
            return
        wait = max(self._keys.wait, BACKOFF * 2**attempt) if not isinstance(error, ProviderKeyRefused) else math.inf
        if wait > LONGEST_WAIT:
            raise error
        await asyncio.sleep(wait * (1 + random.random() / 2))  # noqa: S311  # no secret: not all at once

    def _headers(self, key: Key | None) -> dict[str, str]:
        return {} if key is None else dict(self._adapter.headers(key.reveal()))

    def _url(self, url: str) -> str:
        """A call's whole URL. One that the provider has named gets the key only where it is the provider's."""
        if not url.lower().startswith(("http://", "https://")):
            return self._base + url
        base, named = urlsplit(self._base), urlsplit(url)
        host = named.hostname or ""
        own = not self._stays and any(host == site or host.endswith(f".{site}") for site in self._adapter.sites)
        if named.scheme == base.scheme and (named.netloc == base.netloc or (own and named.netloc == host)):
            return url
        raise ProviderFailed(f"{self._adapter.title} named an address that is not its own.", may_have_billed=True)

    async def _download(self, url: str) -> bytes:
        base = urlsplit(self._base)
        port = base.port or (443 if base.scheme == "https" else 80)
        return await self._transport.download(url, f"{base.hostname}:{port}", stays=self._stays)

    async def _preview(self, partial: Partial, first: int) -> None:
        if self._on_event is not None:
            had = await have(partial.picture, self._download)
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

    def _put_together(self, parts: Sequence[tuple[Made, list[Had]]]) -> ImageResult:
        wish = self._wish
        all_made, had = [made for made, _ in parts], [each for _, some in parts for each in some]
        notices = [*wish.notices, *(notice for made in all_made for notice in made.notices), *self._differences(had)]
        usages = [made.usage for made in all_made if made.usage is not None]
        costs = [made.cost for made in all_made if made.cost is not None]
        encoded = [each.encoded for each in had if each.encoded is not None]
        return ImageResult(
            images=tuple(each.data for each in had),
            seed=all_made[0].seed if all_made[0].seed is not None else self._asked_seed(),
            size=had[0].size,
            quality=next((made.quality for made in all_made if made.quality), wish.effort or "medium"),
            output_format=had[0].format,
            background=next((made.background for made in all_made if made.background), wish.background),
            sources=(*(each.size for each in wish.images), *_mask_size(wish)),
            warnings=tuple(dict.fromkeys(map(str, notices))),
            usage=_sum(usages) if len(usages) == len(parts) else None,
            encoded=tuple(encoded) if len(encoded) == len(had) else (),
            revised_prompts=tuple(prompt for made in all_made for prompt in made.revised_prompts),
            cost=sum(costs) if len(costs) == len(parts) else None,
        )

    def _asked_seed(self) -> int | None:
        return self._wish.request.seed if "seed" in self._adapter.honoured(self._wish.manifest) else None

    def _differences(self, had: Sequence[Had]) -> list[Notice]:
        """What came otherwise than it was asked for. It is kept as it is: its provenance is part of the file."""
        wish, found = self._wish, []
        if len(had) < wish.request.n:
            found.append(Notice("n", f"{self._adapter.title} made {len(had)} of {wish.request.n} pictures"))
        told = {notice.param for notice in wish.notices}
        if wish.size is not None and any(each.size != wish.size for each in had) and "size" not in told:
            found.append(Notice("size", f"{self._adapter.title} made {had[0].size} instead of {wish.size}"))
        if any(each.format != wish.output_format for each in had) and "output_format" not in told:
            found.append(Notice("output_format", f"{self._adapter.title} made {had[0].format}, which is kept as it is"))
        return found


def _shares(n: int, most: int) -> list[tuple[int, int]]:
    """How many pictures each call makes, and the number of its first."""
    return [(min(most, n - first), first) for first in range(0, n, most)]


def _joined(made: Sequence[Made]) -> Made:
    """Several pictures that came one by one."""
    if not made:
        raise ProviderFailed("The provider's stream ended without a picture.", may_have_billed=True)
    usages = [each.usage for each in made if each.usage is not None]
    return Made(
        pictures=[picture for each in made for picture in each.pictures],
        usage=_sum(usages) if usages else None,
        seed=made[0].seed,
        revised_prompts=[prompt for each in made for prompt in each.revised_prompts],
        background=made[0].background,
        quality=made[0].quality,
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        text_tokens=sum(each.text_tokens for each in usages),
        image_tokens=sum(each.image_tokens for each in usages),
        output_tokens=sum(each.output_tokens for each in usages),
    )


def _mask_size(wish: Wish) -> list[Size]:
    return [Size(*wish.mask.picture.size)] if wish.mask is not None else []


_SQUARE = Size(1024, 1024)
"""What a stream's previews are said to be, where the provider chooses the size and does not tell it."""
