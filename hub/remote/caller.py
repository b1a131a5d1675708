"""The calls of one request: each with a key, sent again where that is safe, and asked about until it is done.

A call is sent again only where nothing can have been made of it: the connection failed before its body began to leave,
or the provider said that it has no room (429, 503), or does not take the key. Whatever else fails is told, with
`may_have_billed`, and what to do about it is the route's to decide (hub.routing).

`may_have_billed` is true where any call of the request was on its way as a whole, and the provider has not said by a
status (3xx, 4xx but 408, 503, 529) that it did nothing: the answer never came, came too late, was a 5xx of another kind
or no picture, or a picture could not be had. It is true as well for an error of one call whose sisters may have been
billed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from hub.errors import (
    HubError,
    InvalidRequest,
    ModelUnusable,
    NoCredit,
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderUnavailable,
)
from hub.fetching import Unfetchable, split
from hub.remote.adapter import (
    BLOCKED,
    Adapter,
    Answer,
    Call,
    JobFailed,
    Made,
    NotForThisModel,
    Partial,
    Pending,
    Unreadable,
    no_credit,
)
from hub.remote.credentials import Key, Keys
from hub.remote.result import joined
from hub.remote.transport import Transport
from hub.remote.wish import Wish
from hub.remote.works import Work

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
OnPartial = Callable[[Partial], Awaitable[None]]
OnProgress = Callable[[int], None]

RETRIES = 2
"""How often a call is sent again to a provider that is busy or out of reach; another key after one that was refused is
no retry."""
LONGEST_WAIT = 10.0
"""Seconds that a request waits for a busy provider; for longer, its client is told to come back."""
BACKOFF = 0.5
POLL_FAILURES = 5
"""How many questions in a row may fail: they cost nothing."""
POLL_TIMEOUT = 30.0
"""Seconds until the answer to a question begins. It may hold large pictures, for which there is the whole time."""
SHORTEST_POLL, LONGEST_POLL = 0.1, 30.0
"""Seconds between two questions, whatever a provider says."""


class Caller:
    """Sends the calls of one request. `stays`: what the provider names on another machine is not asked for."""

    def __init__(self, transport: Transport, adapter: Adapter, wish: Wish, keys: Keys, *, stays: bool = False) -> None:
        self._transport = transport
        self._adapter = adapter
        self._wish = wish
        self._keys = keys
        self._stays = stays
        base = wish.manifest.remote.base_url or adapter.base_url
        if base is None:
            words = f"{wish.manifest.id} has no address. This hub's owner has to give it one (remote.base_url)."
            raise ModelUnusable(words, param="model")
        self._base = base

    async def made(self, call: Call, work: Work, on_partial: OnPartial, on_progress: OnProgress) -> Made:
        """What the provider makes of a call, and how `work` stands meanwhile. Raises HubError."""
        try:
            found, key = await self._sent(call, work, on_partial)
            return await self._finished(found, key, on_progress) if isinstance(found, Pending) else found
        except HubError as error:
            work.heard(spent=error.may_have_billed)
            raise

    async def download(self, url: str) -> bytes:
        """A picture that an answer names. Raises ProviderError."""
        base = urlsplit(self._base)
        port = base.port or (443 if base.scheme == "https" else 80)
        return await self._transport.download(url, f"{base.hostname}:{port}", stays=self._stays)

    async def _sent(self, call: Call, work: Work, on_partial: OnPartial) -> tuple[Made | Pending, Key | None]:
        """The answer to a call, which is sent again where that is safe."""
        refused: list[Key] = []
        tries = 0
        while True:
            key = await self._key(refused)
            try:
                found = await self._try(call, key, work, on_partial)
            except ProviderError as error:
                if work.works.error is not None:
                    raise
                work.heard(spent=error.may_have_billed)
                await self._after(error, key, refused, tries)
                tries += not isinstance(error, ProviderKeyRefused)
            else:
                work.heard(spent=True)
                if key is not None:
                    self._keys.taken(key)
                return found, key

    async def _try(self, call: Call, key: Key | None, work: Work, on_partial: OnPartial) -> Made | Pending:
        url, headers = self._url(call.url), self._headers(key)
        if not call.stream:
            return self._read(await self._transport.send(call, url, headers, work.begin))
        async with self._transport.events(call, url, headers, work.begin) as events:
            if isinstance(events, Answer):
                return self._read(events)
            made: list[Made] = []
            begun = False
            try:
                async for name, data in events:
                    found = self._understood(self._adapter.event, self._wish, name, data)
                    if found is not None and not begun:
                        begun = True
                        work.heard(spent=True)
                    if isinstance(found, Partial):
                        await on_partial(found)
                    elif found is not None:
                        made.append(found)
            except HubError as error:  # a refusal, too: what was shown was made
                raise billed(error) if begun else error from None
            return joined(made)

    async def _after(self, error: ProviderError, key: Key | None, refused: list[Key], tries: int) -> None:
        """What follows an error: the next try may come when this returns; else it raises the error."""
        if error.may_have_billed or not isinstance(error, (ProviderKeyRefused, ProviderBusy, ProviderUnavailable)):
            raise error
        if isinstance(error, ProviderKeyRefused):
            if key is None:
                raise error
            seconds = self._keys.refuse(
                key, everywhere=not isinstance(error, NotForThisModel), no_credit=isinstance(error, NoCredit)
            )
            refused.append(key)
            log.warning(
                "%s does not take the key %s; it is left alone for %.0f s", self._adapter.name, key.name, seconds
            )
            if self._keys.pick(refused) is None and self._keys.rested_in(refused) is None:
                raise error
            return
        wait = BACKOFF * 2**tries
        if isinstance(error, ProviderBusy):
            wait = error.retry_after or wait
            if key is not None:
                self._keys.rest(key, wait)
        if tries == RETRIES:
            raise error
        if isinstance(error, ProviderBusy) and key is not None:
            return  # another key at once, or this one after its rest
        if wait > LONGEST_WAIT:
            raise error
        await _pause(wait)

    async def _key(self, refused: list[Key]) -> Key | None:
        """A key for the next try, after some time where all have to rest; raises ProviderError where there is none."""
        title, waited = self._adapter.title, 0.0
        while True:
            key = self._keys.pick(refused)
            if key is not None or not (self._keys.all or self._adapter.asks_for_key(self._wish.manifest)):
                return key
            if not self._keys.all:
                raise ProviderUnavailable(f"This hub has no key for {title}. Its owner has to give it one.").for_good()
            wait = self._keys.rested_in(refused)
            if wait is None and self._keys.no_credit:
                raise no_credit(title)
            if wait is None:
                raise ProviderKeyRefused(f"{title} does not take this hub's key. Its owner has to act.")
            waited += wait
            if waited > LONGEST_WAIT:
                raise ProviderBusy(f"{title} takes no request just now.", retry_after=max(1, math.ceil(wait)))
            await _pause(wait)

    async def _finished(self, pending: Pending, key: Key | None, on_progress: OnProgress) -> Made:
        """What becomes of a job. One that nobody waits for any more is cancelled."""
        try:
            while True:
                if pending.progress is not None:
                    on_progress(pending.progress)
                found = await self._asked(pending, key)
                if isinstance(found, Made):
                    return found if found.cost is not None else replace(found, cost=pending.cost)
                pending = found.since(pending)
        except (JobFailed, InvalidRequest):  # it has ended
            raise
        except (asyncio.CancelledError, HubError):
            if pending.cancel is not None:
                with contextlib.suppress(ProviderError):
                    self._transport.notify(pending.cancel, self._url(pending.cancel.url), self._headers(key))
            raise

    async def _asked(self, pending: Pending, key: Key | None) -> Made | Pending:
        """One more answer about a job, after some time; some questions may fail in a row."""
        if pending.ask is None:
            raise ProviderFailed(f"{self._adapter.title} did not say where its answer will be.", may_have_billed=True)
        failures, wait = 0, pending.after
        while True:
            await asyncio.sleep(min(LONGEST_POLL, max(SHORTEST_POLL, wait)))
            try:
                return await self._question(pending.ask, key)
            except _Again as again:
                failures += 1
                if failures == POLL_FAILURES or pending.ask.method != "GET":
                    raise billed(again.error) from None
                wait = max(pending.after * (1 + failures), again.error.retry_after or 0)

    async def _question(self, ask: Call, key: Key | None) -> Made | Pending:
        """Raises _Again for what another question may mend."""
        try:
            answer = await self._transport.send(ask, self._url(ask.url), self._headers(key), patience=POLL_TIMEOUT)
        except ProviderError as error:
            raise _Again(error) from None
        try:
            return self._read(answer)
        except HubError as error:
            if isinstance(error, ProviderKeyRefused):
                raise billed(error) from None
            told = 200 <= answer.status < 300 and not isinstance(error, Unreadable)
            if told or isinstance(error, JobFailed) or error.code == BLOCKED:
                raise
            if isinstance(error, ProviderError):
                raise _Again(error) from None
        # The request was taken: what the question is told is no fault of the client's.
        raise _Again(ProviderFailed(f"{self._adapter.title} does not tell what became of the pictures."))

    def _read(self, answer: Answer) -> Made | Pending:
        if 200 <= answer.status < 300:
            return self._understood(self._adapter.read, self._wish, answer)
        label = self._wish.request.label or "request"
        log.info("%s: %s answered %d", label, self._wish.manifest.id, answer.status)
        raise self._understood(self._adapter.refusal, answer)

    def _understood(self, of_adapter: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What an adapter makes of an answer. One that no adapter has thought of is no fault of the hub's."""
        try:
            return of_adapter(*args, **kwargs)
        except HubError:
            raise
        except Exception as error:  # its words may be the provider's
            log.error("%s: an answer was not understood: %s", self._adapter.name, _place_of(error))
        words = f"{self._adapter.title} answered with something else than pictures."
        raise Unreadable(words, may_have_billed=True)

    def _headers(self, key: Key | None) -> dict[str, str]:
        if key is None:
            return {}
        try:
            return dict(self._adapter.headers(key.reveal()))
        except Exception as error:  # its words may be the key
            log.error("%s: the key %s cannot be sent: %s", self._adapter.name, key.name, _place_of(error))
        raise ProviderUnavailable(f"This hub's key for {self._adapter.title} cannot be sent. Its owner has to act.")

    def _url(self, url: str) -> str:
        """A call's whole URL. One that the provider has named gets the key only where it is the provider's."""
        if url.startswith("/"):
            return self._base + url
        with contextlib.suppress(Unfetchable):
            named, _ = split(url)
            base, host = urlsplit(self._base), str(named.hostname)
            sites = () if self._stays else self._adapter.sites
            own = any(_within(str(base.hostname), site) and _within(host, site) for site in sites)
            if named.scheme == base.scheme and (named.netloc == base.netloc or (own and named.netloc == host)):
                return url
        raise ProviderFailed(f"{self._adapter.title} named an address that is not its own.", may_have_billed=True)


def _within(host: str, site: str) -> bool:
    return host == site or host.endswith(f".{site}")


class _Again(Exception):
    """A question failed, and may be asked again."""

    def __init__(self, error: ProviderError) -> None:
        super().__init__()
        self.error = error


Billed = TypeVar("Billed", bound=HubError)


def billed(error: Billed) -> Billed:
    """The error of a request for which the provider may charge, whatever the error alone would mean."""
    error.may_have_billed = True
    error.headers["x-should-retry"] = "false"
    return error


def _place_of(error: Exception) -> str:
    """What kind of error, and where, without its words."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}, {Path(where.filename).name}:{where.lineno}"


async def _pause(seconds: float) -> None:
    """Not all at once."""
    await asyncio.sleep(seconds * (1 + random.random() / 2))  # noqa: S311  # no secret
