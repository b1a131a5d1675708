"""The one HTTP client of all remote providers: what is sent goes where it was meant to go, and what comes is bounded.

No redirect is followed (it would carry the key along), no proxy or certificate is taken from the environment, no
compressed answer is asked for. Bodies are read up to a limit, and every answer within its time, whoever drips. What
fails is told by a ProviderError that says whether the provider may have done the work: it may, from the moment on when
the request's body began to leave (what is not whole nobody works on, but when it became whole only the kernel knows).
That is so as well for a kept connection which the server ends just then: it is looked at before each request, so this
happens within the time that its end takes to arrive, too seldom to guess what the server had read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from hub.errors import HubError, ProviderError, ProviderFailed, ProviderTimeout, ProviderUnavailable
from hub.fetching import WHO_ASKS, Resolve, Unfetchable, certificates, fetch, joined, resolve, split, why_not
from hub.remote.adapter import Answer, Call

if TYPE_CHECKING:
    import httpx2

    from hub.http1 import AsyncioTransport

log = logging.getLogger(__name__)

MAX_ANSWER = 160 << 20
"""Bytes of an answer: ten large pictures in base64."""
MAX_ERROR = 1 << 16
"""Bytes of an answer that is not good; no more of it is looked at."""
MAX_PICTURE = 64 << 20
"""Bytes of a picture that is downloaded."""
CONNECT = 10.0
"""Seconds to reach a provider."""
CONNECTIONS = 200
BRIEFLY = 5.0
"""Seconds for what is not needed: an error's words, and telling a provider that nobody wants the pictures any more."""
REDIRECTS = 3
"""Hops of a picture's URL that are followed, each checked, none with a key."""


def _unheard() -> None:
    pass


class Transport:
    """Sends calls and downloads pictures. Used in one event loop, inside `running`."""

    def __init__(self, *, offline: bool = False, resolve: Resolve = resolve) -> None:
        """`offline`: pictures are downloaded from this machine alone. `resolve`: for tests."""
        self._offline = offline
        self._resolve = resolve
        self._connections: AsyncioTransport | None = None
        self._notifying: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connections are kept, as long as the context. There is none before the first call."""
        try:
            yield
        finally:
            await asyncio.gather(*self._notifying, return_exceptions=True)
            if self._connections is not None:
                await self._connections.aclose()
                self._connections = None

    async def send(
        self,
        call: Call,
        url: str,
        headers: Mapping[str, str],
        on_sent: Callable[[], None] = _unheard,
        *,
        patience: float | None = None,
    ) -> Answer:
        """The whole answer. `on_sent` is called when the request's body begins to leave. `patience`: seconds until the
        answer's headers; the caller limits the whole. Raises ProviderError."""
        sent = _Sent(on_sent)
        with _told(sent):
            async with asyncio.timeout(patience) as limit:
                async with contextlib.aclosing(await self._open(call, url, headers, sent, whole=MAX_ANSWER)) as answer:
                    limit.reschedule(None)
                    return await _read(answer)
        raise AssertionError

    @contextlib.asynccontextmanager
    async def events(
        self, call: Call, url: str, headers: Mapping[str, str], on_sent: Callable[[], None] = _unheard
    ) -> AsyncIterator[Answer | AsyncIterator[tuple[str, bytes]]]:
        """The server-sent events of an answer, as (name, data); or the whole answer where it is something else."""
        sent = _Sent(on_sent)
        with _told(sent):
            async with contextlib.aclosing(await self._open(call, url, headers, sent)) as answer:
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if answer.status_code == 200 and kind == "text/event-stream":
                    _check_encoding(answer)
                    async with contextlib.aclosing(_events(answer)) as events:
                        yield events
                else:
                    yield await _read(answer)

    def notify(self, call: Call, url: str, headers: Mapping[str, str]) -> None:
        """Sends a call whose answer nobody waits for, beside whatever else goes on. Never raises."""

        async def tell() -> None:
            with contextlib.suppress(ProviderError, TimeoutError):
                async with asyncio.timeout(BRIEFLY):
                    await self.send(call, url, headers)

        task = asyncio.create_task(tell())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    async def download(self, url: str, own_host: str, *, stays: bool = False) -> bytes:
        """A picture that an answer names. `own_host`: the provider's `host:port`, which may lie in a private network as
        the owner has named it. No key goes along. `stays`: from there or from this machine alone. Raises
        ProviderFailed."""
        own = stays and _host_of(url) == own_host
        try:
            return await fetch(
                url,
                trusted={own_host},
                max_bytes=MAX_PICTURE,
                resolve=self._resolve,
                patience=120,
                redirects=0 if own else REDIRECTS,
                offline=self._offline or (stays and not own),
                connections=self._connections or self._connect(),
            )
        except Unfetchable as error:
            log.warning("a picture of %s was not fetched: %s", own_host, why_not(url, error))
            if error.why == "timeout":
                words = "A picture that the provider has made did not arrive in time."
                raise ProviderTimeout(words, may_have_billed=True) from None
            words = "A picture that the provider has made could not be downloaded."
            raise ProviderFailed(words, may_have_billed=True) from None

    async def _open(
        self, call: Call, url: str, headers: Mapping[str, str], sent: _Sent, *, whole: int = 0
    ) -> httpx2.Response:
        """Sends a request, and has its answer's headers. `whole`: see AsyncioTransport."""
        import httpx2

        given: dict[str, Any] = {}
        kind = {}
        if call.form is not None:
            # Fields as parts, too: a form without files would be sent in another encoding.
            given["files"] = [(name, (None, text.encode())) for name, text in call.form.fields] + [
                (field, (name, data, media_type)) for field, name, data, media_type in call.form.files
            ]
        elif call.json is not None:
            given["content"] = msgspec.json.encode(call.json)
            kind["Content-Type"] = "application/json"
        accept = "text/event-stream" if call.stream else "application/json"
        request = httpx2.Request(
            call.method,
            _parsed(url) if call.method == "POST" else url,
            headers={**WHO_ASKS, "Accept": accept, **kind, **call.headers, **headers},
            extensions={"trace": sent.trace, "whole": whole, "timeout": {"connect": CONNECT}},
            **given,
        )
        # By the transport itself: redirects, cookies, credentials of a URL and proxies are what no call may have.
        return await (self._connections or self._connect()).handle_async_request(request)

    def _connect(self) -> AsyncioTransport:
        from hub.http1 import AsyncioTransport

        self._connections = AsyncioTransport(certificates(), CONNECTIONS)
        return self._connections


@functools.lru_cache(maxsize=256)
def _parsed(url: str) -> httpx2.URL:
    """One that is asked again and again; those of tasks are asked for one picture."""
    import httpx2

    return httpx2.URL(url)


class _Sent:
    """Whether a request's body has begun to leave."""

    def __init__(self, on_sent: Callable[[], None]) -> None:
        self.begun = False
        self._on_sent = on_sent

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """A hook of the transport's."""
        if event.endswith("send_request_body.started"):
            self.begun = True
            self._on_sent()


@contextlib.contextmanager
def _told(sent: _Sent) -> Iterator[None]:
    """What goes wrong with a connection, as ProviderErrors."""
    import httpx2

    try:
        yield
    except HubError:
        raise
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
        raise ProviderUnavailable("The provider cannot be reached.", code="provider_unreachable") from None
    except (httpx2.TimeoutException, TimeoutError):
        raise ProviderTimeout("The provider did not answer in time.", may_have_billed=sent.begun) from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL):
        raise ProviderFailed("The provider did not answer to the end.", may_have_billed=sent.begun) from None


def _check_encoding(answer: httpx2.Response) -> None:
    if answer.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise ProviderFailed("The provider answered in an encoding that was not asked for.", may_have_billed=True)


def _too_large() -> ProviderFailed:
    return ProviderFailed("The provider's answer is too large.", may_have_billed=True)


async def _read(answer: httpx2.Response) -> Answer:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if not 200 <= answer.status_code < 300:
        return Answer(answer.status_code, headers, await _begin(answer))
    _check_encoding(answer)
    if int(headers.get("content-length", "0")) > MAX_ANSWER:
        raise _too_large()
    body = await joined(answer.aiter_raw(), MAX_ANSWER)
    if body is None:
        raise _too_large()
    return Answer(answer.status_code, headers, body)


async def _begin(answer: httpx2.Response) -> bytes:
    """What comes soon of an error's body; its status says most already."""
    import httpx2

    body = bytearray()
    with contextlib.suppress(httpx2.HTTPError, TimeoutError):
        async with asyncio.timeout(BRIEFLY), contextlib.aclosing(_pieces(answer)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > MAX_ERROR:
                    break
    return bytes(body[:MAX_ERROR])


async def _pieces(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    """A body as it comes, up to the limit."""
    total = 0
    async with contextlib.aclosing(answer.aiter_raw()) as pieces:
        async for piece in pieces:
            total += len(piece)
            if total > MAX_ANSWER:
                raise _too_large()
            yield piece


async def _events(answer: httpx2.Response) -> AsyncGenerator[tuple[str, bytes]]:
    """Events by the rules of the HTML standard, as far as image APIs use them."""
    name, data = "", bytearray()
    async with contextlib.aclosing(_lines(answer)) as lines:
        async for line in lines:
            if not line:
                if data:
                    yield name, bytes(data)
                name, data = "", bytearray()
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                data += (b"\n" if data else b"") + value
    if data:  # the standard drops an event that no empty line ends, but it may be the picture
        yield name, bytes(data)


async def _lines(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    rest = bytearray()
    async with contextlib.aclosing(_pieces(answer)) as pieces:
        async for piece in pieces:
            start = len(rest)
            rest += piece
            if rest.find(b"\n", start) < 0:
                continue
            *lines, last = rest.split(b"\n")
            rest = bytearray(last)
            for line in lines:
                yield bytes(line).removesuffix(b"\r")
    if rest:
        yield bytes(rest).removesuffix(b"\r")


def _host_of(url: str) -> str | None:
    """`host:port` of a URL; None for one that is none."""
    try:
        parts, port = split(url)
    except Unfetchable:
        return None
    return f"{parts.hostname}:{port}"
