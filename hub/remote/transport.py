"""The one HTTP client of all remote providers: what is sent goes where it was meant to go, and what comes is bounded.

No redirect is followed (it would carry the key along), no proxy or certificate is taken from the environment, no
compressed answer is asked for. Bodies are read up to a limit, and every answer within its time, whoever drips. What
fails is told by a ProviderError that says whether the provider may have done the work: it may, from the moment on when
the whole request was on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from hub.errors import ProviderError, ProviderFailed, ProviderTimeout, ProviderUnavailable
from hub.fetching import Resolve, Unfetchable, fetch, resolve, split
from hub.remote.adapter import Answer, Call

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER = 160 << 20
"""Bytes of an answer: ten large pictures in base64."""
MAX_ERROR = 1 << 16
"""Bytes of an answer that is not good; no more of it is looked at."""
MAX_PICTURE = 64 << 20
"""Bytes of a picture that is downloaded."""
CONNECT = 10.0
"""Seconds to reach a provider."""
CONNECTIONS = 200
REDIRECTS = 3
"""Hops of a picture's URL that are followed, each checked, none with a key."""


class Transport:
    """Sends calls and downloads pictures. Used in one event loop, inside `running`."""

    def __init__(self, *, offline: bool = False, resolve: Resolve = resolve) -> None:
        """`offline`: pictures are downloaded from this machine alone. `resolve`: for tests."""
        self._offline = offline
        self._resolve = resolve
        self._client: httpx2.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connections are kept, as long as the context. There is none before the first call."""
        try:
            yield
        finally:
            if self._client is not None:
                await self._client.aclose()
                self._client = None

    async def send(self, call: Call, url: str, headers: Mapping[str, str]) -> Answer:
        """The whole answer. Raises ProviderError. The caller limits the time."""
        sent = _Sent()
        with self._told(sent):
            async with self._open(call, url, headers, sent) as answer:
                return await _read(answer)
        raise AssertionError

    @contextlib.asynccontextmanager
    async def events(
        self, call: Call, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer | AsyncIterator[tuple[str, bytes]]]:
        """The server-sent events of an answer, as (name, data); or the whole answer where it is something else."""
        sent = _Sent()
        with self._told(sent):
            async with self._open(call, url, headers, sent) as answer:
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if answer.status_code == 200 and kind == "text/event-stream":
                    yield _events(answer)
                else:
                    yield await _read(answer)

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
            )
        except Unfetchable as error:
            if error.why == "timeout":
                words = "A picture that the provider has made did not arrive in time."
                raise ProviderTimeout(words, may_have_billed=True) from None
            words = "A picture that the provider has made could not be downloaded."
            raise ProviderFailed(words, may_have_billed=True) from None

    def _open(
        self, call: Call, url: str, headers: Mapping[str, str], sent: _Sent
    ) -> contextlib.AbstractAsyncContextManager[httpx2.Response]:
        client = self._client or self._connect()
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
        return client.stream(
            call.method,
            url,
            headers={"Accept": accept, **kind, **call.headers, **headers},
            extensions={"trace": sent.trace},
            **given,
        )

    def _connect(self) -> httpx2.AsyncClient:
        import httpx2

        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=httpx2.Timeout(None, connect=CONNECT),
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=30.0),
            headers={"Accept-Encoding": "identity", "User-Agent": "hub"},
        )
        return self._client

    @contextlib.contextmanager
    def _told(self, sent: _Sent) -> Any:
        """What goes wrong with a connection, as ProviderErrors."""
        import httpx2

        try:
            yield
        except ProviderError:
            raise
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            raise ProviderUnavailable("The provider cannot be reached.", code="provider_unreachable") from None
        except httpx2.TimeoutException:
            raise ProviderTimeout("The provider did not answer in time.", may_have_billed=sent.whole) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL):
            raise ProviderFailed("The provider did not answer to the end.", may_have_billed=sent.whole) from None


class _Sent:
    """Whether the whole request has left: what is not whole, nobody works on."""

    def __init__(self) -> None:
        self.whole = False

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """A hook of the client's."""
        if event.endswith("send_request_body.started"):
            self.whole = True


async def _read(answer: httpx2.Response) -> Answer:
    good = 200 <= answer.status_code < 300
    most = MAX_ANSWER if good else MAX_ERROR
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if good and headers.get("content-encoding", "identity") != "identity":
        raise ProviderFailed("The provider answered in an encoding that was not asked for.", may_have_billed=True)
    pieces, length = [], 0
    async for piece in answer.aiter_raw():
        pieces.append(piece)
        length += len(piece)
        if length > most:
            if good:
                raise ProviderFailed("The provider's answer is too large.", may_have_billed=True)
            break
    return Answer(answer.status_code, headers, b"".join(pieces))


async def _events(answer: httpx2.Response) -> AsyncIterator[tuple[str, bytes]]:
    """Events by the rules of the HTML standard, as far as image APIs use them."""
    name, data = "", bytearray()
    async for line in _lines(answer):
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


async def _lines(answer: httpx2.Response) -> AsyncIterator[bytes]:
    rest, total = bytearray(), 0
    async for piece in answer.aiter_raw():
        total += len(piece)
        if total > MAX_ANSWER:
            raise ProviderFailed("The provider's answer is too large.", may_have_billed=True)
        start = len(rest)
        rest += piece
        end = rest.find(b"\n", start)
        if end < 0:
            continue
        *lines, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in lines:
            yield bytes(line).removesuffix(b"\r")


def _host_of(url: str) -> str | None:
    """`host:port` of a URL; None for one that is none."""
    try:
        parts, port = split(url)
    except Unfetchable:
        return None
    return f"{parts.hostname}:{port}"


async def within(seconds: float, work: Any) -> Any:
    """The result of `work`, or ProviderTimeout after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise ProviderTimeout("The provider did not answer in time.", may_have_billed=True) from None
