"""Has a request served: by the first of its route's targets that can, with policy and budget looked at again for each.

The next target is asked after what another one may do better: the engine or a provider failed, the model is not there,
it does not fit. It is not after what is the request's own fault, nor after a cancellation; and nothing is paid twice:
after an answer that may have been billed, only what costs nothing follows, unless the route says `retry_billed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from hub import providers
from hub.breaker import Breakers, Open
from hub.errors import (
    BudgetExceeded,
    HubError,
    InvalidRequest,
    ModelUnusable,
    ProviderTimeout,
    StorageFull,
)
from hub.ledger import Ledger, estimate
from hub.manifest import ModelManifest, RemoteManifest
from hub.refusal import refusal, with_words
from hub.registry import ListedModel, Registry
from hub.remote.caller import LONGEST_WAIT
from hub.remote.provider import RemoteProvider
from hub.remote.works import Works
from hub.route import Caller, KeyState, Route, Servable, State, Target
from hub.routing import is_free, itself, route
from hub.settings import Settings
from hub.types import ImageRequest, ImageResult, OnEvent

log = logging.getLogger(__name__)

BY_MODEL = {"background", "image", "mask"}
"""Parameters whose values one model takes and another one does not, while none ignores them."""


Draw = Callable[[ModelManifest, ImageRequest, OnEvent | None], Awaitable[ImageResult]]


class Serving:
    """Decides, tries, and keeps the books.

    `draw` has a model of this machine draw, after its weights were seen to; `lacks` says whether these are not here and
    nothing fetches them. `waiting`: how many jobs have not begun that came before the one that asks.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Callable[[], Registry],
        draw: Draw,
        lacks: Callable[[ModelManifest], bool],
        remote: RemoteProvider,
        ledger: Ledger,
        waiting: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._draw = draw
        self._lacks = lacks
        self._remote = remote
        self._ledger = ledger
        self.waiting = waiting
        self.breakers = Breakers()

    async def generate(self, model: str, request: ImageRequest, on_event: OnEvent | None) -> ImageResult:
        """The pictures, with the `target` that has drawn them. Raises HubError."""
        listed = self._registry().get(model)
        if not isinstance(listed.manifest, ModelManifest):
            return await _Run(self, listed, request, on_event).result()
        decided = itself(listed)  # nothing to decide, and on the way of most requests
        return await self.attempt(decided, decided.targets[0], request, on_event)

    async def decide(
        self,
        model: str,
        request: ImageRequest,
        *,
        caller: Caller | None = None,
        tried: dict[str, HubError] | None = None,
        billed: bool = False,
        waiting: int = 0,
    ) -> Route:
        """The route of a model id or alias as things are now. Raises ModelNotFound."""
        registry = self._registry()
        return route(
            registry.get(model),
            registry,
            request,
            caller or await self.caller(request.owner),
            lambda manifest: self._state_of(manifest, request),
            offline=self._settings.offline,
            waiting=waiting,
            tried={name: error.code for name, error in (tried or {}).items()},
            billed=billed,
        )

    async def caller(self, owner: str) -> Caller:
        """What a key may do now."""
        budget = await self._ledger.budget(owner)
        return Caller(owner=owner, may_leave=self._settings.may_leave(owner), budget=budget)

    async def attempt(
        self,
        decided: Route,
        target: Target,
        request: ImageRequest,
        on_event: OnEvent | None,
        *,
        works: Works | None = None,
        stays: bool = True,
    ) -> ImageResult:
        """One try at one target, in the ledger from before it begins to after it has ended. `works` will hold
        the calls of a remote one. `stays`: nothing that the target names is fetched from another machine either. Raises
        HubError."""
        manifest = target.manifest
        log.info("%s: %d of %s (%s)", request.label or "request", request.n, manifest.id, decided.reason)
        entry = await self._ledger.reserve(owner=request.owner, asked=decided.asked, target=manifest, request=request)
        result, billed, works = None, False, works or Works()
        try:
            if isinstance(manifest, ModelManifest):
                result = await self._draw(manifest, request, on_event)
            else:
                with self._breaking(manifest):
                    result = await self._remote.generate(manifest, request, on_event, works=works, stays=stays)
        except HubError as error:
            billed = error.may_have_billed
            if isinstance(manifest, ModelManifest):
                raise
            log.warning("%s: %s failed: %d %s", request.label or "request", manifest.id, error.status, error.code)
            raise _of(manifest, error) from None
        except BaseException:  # cancelled, or a fault of ours, when it may have been sent
            billed = works.may_be_billed
            raise
        finally:
            await self._ledger.settle(entry, result, may_have_billed=billed)
        return msgspec.structs.replace(result, target=manifest.id)

    @contextlib.contextmanager
    def _breaking(self, manifest: RemoteManifest) -> Iterator[None]:
        try:
            with self.breakers.of(manifest.id).attempt():
                yield
        except Open as opened:
            raise self.breakers.refusal(manifest.id, opened.wait) from None

    def _state_of(self, manifest: Servable, request: ImageRequest) -> State:
        cost = 0.0 if is_free(manifest) else estimate(manifest, request)
        if isinstance(manifest, ModelManifest):
            return State(cost=cost, absent=self._lacks(manifest))
        pause = self.breakers.of(manifest.id).wait
        key, rest = self._key_state(manifest)
        return State(cost=cost, key=key, open=pause > 0, wait=rest or pause)

    def _key_state(self, manifest: RemoteManifest) -> tuple[KeyState, float]:
        """What is wrong with a target's keys, and for how many seconds. Short rests are waited for by the driver."""
        keys = self._remote.keys_of(manifest)
        if not keys.all:
            try:
                return ("none" if providers.adapter(manifest.provider).asks_for_key(manifest) else ""), 0.0
            except ModelUnusable:  # told by the attempt, in its own words
                return "", 0.0
        if keys.pick() is not None:
            return "", 0.0
        rest = keys.rested_in()
        if rest is None:
            return ("no credit" if keys.no_credit else "refused"), 0.0
        return ("busy", rest) if rest > LONGEST_WAIT else ("", 0.0)


class _Run:
    """One request at its route's targets."""

    def __init__(self, serving: Serving, listed: ListedModel, request: ImageRequest, on_event: OnEvent | None) -> None:
        self._serving = serving
        self._asked = listed.id
        self._request = request
        self._on_event = on_event
        self._works = Works()
        self._waiting = serving.waiting()
        self._deadline: int | None = getattr(listed.manifest, "deadline", None)
        self._retry_billed: bool = getattr(listed.manifest, "retry_billed", False)
        self._errors: dict[str, HubError] = {}
        self._at: Target | None = None

    async def result(self) -> ImageResult:
        """The pictures of the first target that makes them, in time."""
        limit = asyncio.timeout(self._deadline)
        try:
            async with limit:
                while True:
                    result = await self._next(limit)
                    if result is not None:
                        return result
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._late() from None

    async def _next(self, limit: asyncio.Timeout) -> ImageResult | None:
        """What the next target makes; None where it fails and another one may be asked."""
        request, errors = self._request, self._errors
        caller = await self._serving.caller(request.owner)
        billed = self._billed and not self._retry_billed
        found = await self._serving.decide(
            self._asked, request, caller=caller, tried=errors, billed=billed, waiting=self._waiting
        )
        if not found.targets:
            raise refusal(found, request, caller, list(errors.values()))
        target = self._at = found.targets[0]
        stays = not caller.may_leave or (found.manifest is not None and not found.manifest.remote)
        self._works = Works()
        try:
            result = await self._serving.attempt(found, target, request, self._on_event, works=self._works, stays=stays)
        except HubError as error:
            if limit.expired() or not goes_on(error, request):
                raise
            errors[target.manifest.id] = error
            log.warning("%s: %s (%s); another target may serve it", request.label or "request", error, error.code)
            return None
        warning = found.warning(target)
        return msgspec.structs.replace(result, warnings=(*result.warnings, warning)) if warning else result

    @property
    def _billed(self) -> bool:
        return any(each.may_have_billed for each in self._errors.values())

    def _late(self) -> ProviderTimeout:
        told = [f"{name} failed ({error.code})" for name, error in self._errors.items()]
        sent = False
        if self._at is not None and self._at.manifest.id not in self._errors:
            told.append(f"{self._at.manifest.id} was still at it")
            sent = self._works.may_be_billed
        words = f"Nothing served '{self._asked}' within {self._deadline} seconds: {'; '.join(told) or 'none began'}."
        return ProviderTimeout(words, may_have_billed=sent or self._billed)


def _of(manifest: RemoteManifest, error: HubError) -> HubError:
    """The error with the model's id before its words: several models may be at one provider, or have no name of their
    own there."""
    return error if manifest.id in error.message else with_words(error, f"{manifest.id}: {error.message}")


def goes_on(error: HubError, request: ImageRequest) -> bool:
    """Whether another target may do better: after what is not the request's own fault."""
    if isinstance(error, InvalidRequest):
        return error.code == "unsupported_value" and (request.strict or error.param in BY_MODEL)
    return isinstance(error, BudgetExceeded) or (error.status >= 500 and not isinstance(error, StorageFull))
