"""Programs that hold memory on the hub's card and give way when they are asked: Ollama and vLLM.

Ollama unloads a model at `keep_alive` 0, when what it answers with it is done, and loads it again at its next request:
nothing has to be given back. vLLM sleeps and answers nobody until it is woken, so the hub does that as soon as it holds
nothing itself. `mode=wait` lets vLLM finish what it has begun; versions that do not know it ignore it.

A neighbour never fails a request of the hub's: what goes wrong there is said once in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a request waits until its neighbours have given way; then it tries its luck."""
ANSWER = 5.0
"""Seconds for an answer to a plain question."""
UNLOAD = 20.0
"""Seconds until the memory is free, once a server has agreed. A model of Ollama's that answers somebody goes later."""
SLEEP = 300.0
"""Seconds for vLLM to finish what it has begun. A request does not wait for so long, but to wake it does."""
WAKE = 60.0
WAKE_TRIES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each try to wake it: what the hub's worker had may not be free at once."""
CLOSE = 20.0
"""Seconds that the hub's end waits for the neighbours to be awake."""
POLL = 0.25
MAX_BYTES = 1 << 20
MAX_MODELS = 100
NOBODY = 0
"""In a status's stead: nothing listens."""

T = TypeVar("T")


class _Loaded(Struct):
    model: str


class _Models(Struct):
    models: list[_Loaded] | None


class _Sleeping(Struct):
    is_sleeping: bool


class _Unhelpful(Exception):
    """What a neighbour did instead of what it was asked to, in words that follow its name."""

    def __init__(self, words: str, status: int | None = None) -> None:
        super().__init__(words)
        self.status = status


class Neighbour:
    """A server, and what was said of it last."""

    asleep = False
    """Whether it has to be woken."""

    def __init__(self, kind: str, url: str) -> None:
        """kind: as the settings call it. url: its origin."""
        self.name = f"{kind} at {url}"
        self.url = url
        self._said = ""

    async def give_way(self) -> None:
        """Asks it for its memory, and waits until it has given that up. Never raises."""
        await self._try(self._give_way)

    async def come_back(self) -> None:
        """Wakes it, or tries to. Never raises; where it was in vain it is `asleep` still."""
        await self._try(self._come_back)

    async def _give_way(self, client: httpx2.AsyncClient) -> None:
        raise NotImplementedError

    async def _come_back(self, client: httpx2.AsyncClient) -> None:
        """Most come back by themselves."""

    async def _try(self, work: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
        import httpx2

        said = ""
        try:
            async with httpx2.AsyncClient(
                follow_redirects=False,
                trust_env=False,  # its proxies are for the internet
                timeout=None,  # `_call` has its own, for the whole answer
                headers={"Accept-Encoding": "identity"},
                limits=httpx2.Limits(max_keepalive_connections=0),  # none that the server has just closed
            ) as client:
                await work(client)
        except _Unhelpful as error:
            said = str(error)
        except Exception as error:  # a request goes on, whatever this is
            said = f"cannot be asked: {error!r}"
        if said and said != self._said:
            log.warning("%s %s", self.name, said)
        self._said = said

    async def _call(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Any = None, *, seconds: float | None = None
    ) -> bytes:
        """The body of a 200. seconds: for the whole answer, `ANSWER` if nothing else is said. Raises _Unhelpful."""
        import httpx2

        seconds = seconds or ANSWER
        did = f"{method} {path.partition('?')[0]}"
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream(method, self.url + path, json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise _Unhelpful(f"answered {did} with {answer.status_code}", answer.status_code)
                data = bytearray()
                async for piece in answer.aiter_raw():
                    data += piece
                    if len(data) > MAX_BYTES:
                        raise _Unhelpful(f"answered {did} with more than {MAX_BYTES >> 20} MB")
                return bytes(data)
        except TimeoutError:
            raise _Unhelpful(f"did not answer {did} within {seconds:.0f} s") from None
        except httpx2.ConnectError:
            raise _Unhelpful("cannot be reached (ConnectError)", NOBODY) from None
        except httpx2.HTTPError as error:
            raise _Unhelpful(f"cannot be reached ({type(error).__name__})") from None

    async def _ask(self, client: httpx2.AsyncClient, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(await self._call(client, "GET", path), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _Unhelpful(f"answered GET {path} with something else than it should") from None


class Ollama(Neighbour):
    """GET /api/ps, then POST /api/generate with `keep_alive` 0 for each model. That answers at once; /api/ps lists a
    model until it has gone."""

    async def _give_way(self, client: httpx2.AsyncClient) -> None:
        models = await self._loaded(client)
        failed: _Unhelpful | None = None
        for model in sorted(models):
            try:
                await self._call(client, "POST", "/api/generate", {"model": model, "keep_alive": 0})
            except _Unhelpful as error:
                failed = error
                models.discard(model)

        async def gone() -> bool:
            return not models & await self._loaded(client)

        if models:
            listed = reprlib.repr(sorted(models))
            await _until(gone, f"still held {listed} after {UNLOAD:.0f} s")
            log.info("%s has unloaded %s", self.name, listed)
        if failed:
            raise failed

    async def _loaded(self, client: httpx2.AsyncClient) -> set[str]:
        models = {each.model for each in (await self._ask(client, "/api/ps", _Models)).models or ()}
        if len(models) > MAX_MODELS:
            raise _Unhelpful(f"says that it has loaded {len(models)} models")
        return models


class VLLM(Neighbour):
    """GET /is_sleeping, POST /sleep and POST /wake_up, which a vLLM server has in its development mode alone. One that
    sleeps already was put to sleep by somebody else, who will wake it."""

    async def _give_way(self, client: httpx2.AsyncClient) -> None:
        if await self._sleeps(client):
            return
        self.asleep = True  # whatever it answers: it may do so later
        try:
            await self._call(client, "POST", "/sleep?level=1&mode=wait", seconds=SLEEP)
        except _Unhelpful as error:
            hint = "; it has to be started with --enable-sleep-mode" if error.status else ""
            raise _Unhelpful(f"{error}{hint}") from None
        await _until(lambda: self._sleeps(client), f"did not sleep within {UNLOAD:.0f} s")  # old ones answer early
        log.info("%s sleeps", self.name)

    async def _come_back(self, client: httpx2.AsyncClient) -> None:
        try:
            await self._call(client, "POST", "/wake_up", seconds=WAKE)
            if await self._sleeps(client):
                raise _Unhelpful("sleeps still")
        except _Unhelpful as error:
            if error.status not in (NOBODY, 404):  # else it has ended, or was started anew without the endpoints
                raise
        else:
            log.info("%s is awake", self.name)
        self.asleep = False

    async def _sleeps(self, client: httpx2.AsyncClient) -> bool:
        try:
            return (await self._ask(client, "/is_sleeping", _Sleeping)).is_sleeping
        except _Unhelpful as error:
            if error.status != 404:
                raise
            raise _Unhelpful(
                "cannot be asked to sleep: start it with VLLM_SERVER_DEV_MODE=1 in its environment and with "
                "--enable-sleep-mode, and keep its port from strangers",
                error.status,
            ) from None


async def _until(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Asks again and again. Raises _Unhelpful with the words `otherwise`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + UNLOAD
    while not await condition():
        if loop.time() > end:
            raise _Unhelpful(otherwise)
        await asyncio.sleep(POLL)


KINDS: dict[str, type[Neighbour]] = {"ollama": Ollama, "vllm": VLLM}


class Neighbours:
    """All of them. Made and used in one event loop; nothing is sent before the first `make_room`."""

    def __init__(self, named: Sequence[str]) -> None:
        """named: `ollama:URL` or `vllm:URL`, as in the settings."""
        pairs = [name.partition(":") for name in named]
        self._all = [KINDS[kind](kind, url) for kind, _, url in pairs]
        self._needed = False
        self._lock = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    async def make_room(self) -> None:
        """Asks all to give way, and returns when they have, or after `PATIENCE`. Who comes while they are asked waits
        for the same answers."""
        self._needed = True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        await asyncio.wait({self._asking}, timeout=PATIENCE)

    def let_back(self) -> None:
        """The hub holds nothing any more. Those that sleep for it are woken soon, unless it needs room again first."""
        self._needed = False
        asked = self._asking is not None and not self._asking.done()
        if (asked or any(each.asleep for each in self._all)) and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake_all())

    async def _ask_all(self) -> None:
        async with self._lock:
            await asyncio.gather(*(each.give_way() for each in self._all))

    async def _wake_all(self) -> None:
        for seconds in WAKE_TRIES:
            await asyncio.sleep(seconds)
            async with self._lock:
                if self._needed:
                    return
                await asyncio.gather(*(each.come_back() for each in self._all if each.asleep))
                if not any(each.asleep for each in self._all):
                    return
        self._tell_who_sleeps()

    def _tell_who_sleeps(self) -> None:
        for each in self._all:
            if each.asleep:
                log.error("%s sleeps and could not be woken; to do so: curl -X POST %s/wake_up", each.name, each.url)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At its end, which comes after the workers', nobody sleeps any more."""
        try:
            yield
        finally:
            self.let_back()
            tasks = {task for task in (self._asking, self._waking) if task is not None and not task.done()}
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=CLOSE)
                for task in late:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if late:
                    self._tell_who_sleeps()
