"""The hub itself: owns every component, knows no HTTP. The API and the command line enter here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec

from hub import providers
from hub.engine.supervisor import Engine
from hub.errors import ConfigurationError, ModelLoading, ModelNotFound, ModelUnusable, Offline
from hub.files import Files
from hub.inputs import InputImages
from hub.jobs import RESTARTED, Jobs
from hub.keys import Keyring
from hub.ledger import Ledger
from hub.library.orders import Gone, Pull, Result
from hub.library.places import Marks, Places
from hub.library.progress import Progress
from hub.library.tasks import Tasks
from hub.loras import Loras
from hub.manifest import ModelManifest, RouteManifest
from hub.neighbours import Neighbours
from hub.offline import QUIET, forbid, is_here, variables
from hub.providers.local import LocalProvider
from hub.registry import LiveRegistry, Registry, absence
from hub.remote.credentials import open_credentials
from hub.remote.provider import RemoteProvider
from hub.remote.transport import Transport
from hub.route import Caller, Route
from hub.routing import broken
from hub.serving import Serving
from hub.settings import Settings
from hub.store import Store
from hub.types import ImageRequest, ImageResult, OnEvent
from hub.usage import count_usage

log = logging.getLogger(__name__)


class Hub:
    """Routes requests to providers, over components that live as long as it does."""

    def __init__(self, settings: Settings) -> None:
        """Reads and checks everything but starts nothing. Raises ConfigurationError naming file and field."""
        os.environ.update(QUIET)  # for programs that embed the hub; the command line has been here before
        if settings.offline:
            _check_neighbours(settings)
            forbid()
        self.settings = settings
        self._registry = LiveRegistry(
            lambda: settings.models_dirs, settings.aliases, settings.weights_folder, settings.remote_models
        )
        try:
            self.registry.get(settings.default_model)
        except ModelNotFound as error:
            raise ConfigurationError(f"default_model: {error.message}") from None
        self.loras = Loras(settings.loras_folder, must_be=settings.loras_dir is not None)
        self.files = Files(settings.cache_dir, settings.file_ttl)
        models = self.registry.local
        for model in models:
            if missing := absence(model):
                log.error("%s cannot be used until this is mended: %s", model.id, missing)
        pins = {model.id: model.device for model in models if model.device}
        self.neighbours = Neighbours(settings.neighbours)
        told = (self.neighbours.make_room, self.neighbours.let_back) if settings.neighbours else (None, None)
        self.engine = Engine(settings, pins, *told)
        self.keys = Keyring(settings.api_keys)
        self.inputs = InputImages(self.files, settings.image_hosts, offline=settings.offline)
        self.store = Store(settings.cache_dir)
        self.ledger = Ledger(self.store, settings.budget_of)
        self.jobs = Jobs(self.store, self.files, max(settings.job_ttl, settings.file_ttl), settings.max_queue)
        self.places = Places.of(settings)
        self.tasks = Tasks(self.places, variables(offline=settings.offline), self._on_order)
        self._marks = Marks(settings.cache_dir)
        self._local = LocalProvider(self.engine, self.loras, receipts=settings.receipts)
        self._transport = Transport(offline=settings.offline)
        credentials = open_credentials(settings.credentials, providers.key_variables())
        remote = RemoteProvider(providers.adapter, self._transport, credentials)
        self._serving = Serving(
            settings=settings,
            registry=lambda: self.registry,
            draw=self._draw,
            lacks=self._lacks,
            remote=remote,
            ledger=self.ledger,
            waiting=lambda: self.jobs.ahead,
        )
        self._tell_broken_routes()

    @property
    def registry(self) -> Registry:
        """All models as they are now."""
        return self._registry.current

    async def generate(self, model: str, request: ImageRequest, on_event: OnEvent | None = None) -> ImageResult:
        """Makes the pictures with the first target of the model's route that can. Raises HubError."""
        result = await self._serving.generate(model, request, on_event)
        if result.usage is None:
            usage = count_usage(request.prompt, result.sources, result.size, len(result.images))
            result = msgspec.structs.replace(result, usage=usage)
        return result

    async def decide(self, model: str, request: ImageRequest, caller: Caller | None = None) -> Route:
        """What `generate` would do, without doing it. `caller`: where the ledger does not run. Raises ModelNotFound."""
        return await self._serving.decide(model, request, caller=caller)

    async def caller(self, owner: str) -> Caller:
        """What a key ("" on a hub without keys) may do now."""
        return await self._serving.caller(owner)

    def _tell_broken_routes(self) -> None:
        for listed in self.registry:
            if isinstance(listed.manifest, RouteManifest) and not listed.is_alias:
                for each in broken(listed.manifest, self.registry):
                    log.error("%s: its target %s is left out: it %s", listed.id, each.model, each.words)

    async def _draw(self, manifest: ModelManifest, request: ImageRequest, on_event: OnEvent | None) -> ImageResult:
        manifest = await self._present(manifest)
        self._marks.mark(manifest.id)
        return await self._local.generate(manifest, request, on_event)

    def _lacks(self, manifest: ModelManifest) -> bool:
        """Whether a model's weights are not here, and nothing fetches them."""
        if absence(manifest) is None or self.engine.has(manifest.id):
            return False
        return self.settings.offline or not self._can_be_fetched(manifest)

    async def load(self, model: str, *, pinned: bool | None = None) -> None:
        """Has a model in memory before it is asked for. `pinned`: whether it stays there; None leaves that as it is.
        Raises HubError."""
        manifest = await self._present(self.registry.get(model).local)
        await self._local.load(manifest, pinned=pinned)

    async def _present(self, manifest: ModelManifest) -> ModelManifest:
        """The manifest of a model whose weights are there; they are fetched where `auto_pull` says so.

        Raises ModelUnusable where they are not there, or what `_fetch` raises.
        """
        missing = absence(manifest)
        if missing is None or self.engine.has(manifest.id):  # what is in memory goes on without its files
            return manifest
        if self._can_be_fetched(manifest):
            await self._fetch(manifest.id)
            manifest = self.registry.get(manifest.id).local
            missing = absence(manifest)
        if missing is not None:
            log.error("%s cannot be used: %s", manifest.id, missing)
            words = f"The weights of {manifest.id} are not on this machine. Its owner can see what is missing with"
            raise ModelUnusable(f"{words} `hub doctor`.", param="model")
        return manifest

    def _can_be_fetched(self, manifest: ModelManifest) -> bool:
        source = manifest.source
        return self.settings.auto_pull != "off" and source is not None and source.kind == "huggingface"

    async def _fetch(self, model: str) -> None:
        """Has a model's weights fetched, and waits for them where the owner wants that.

        Raises Offline, ModelLoading, or what the pull fails with, or has just failed with.
        """
        if self.settings.offline:
            raise Offline(f"The weights of {model} are not on this machine, and the hub is offline.", param="model")
        order = Pull(repo=model)
        if (failure := self.tasks.failure(order)) is not None:
            raise failure.with_traceback(None)  # one object for many: else it would grow with each
        task = self.tasks.begin(order)
        if self.settings.auto_pull == "refuse":
            raise loading(model, task.state.progress)
        await task.end()

    async def _on_order(self, result: Result | None) -> None:
        """What was done to the models counts from the next request on; one that was removed leaves the memory."""
        await asyncio.to_thread(self._registry.refresh)
        if isinstance(result, Gone) and result.models:
            await self.engine.unload(result.models)

    async def unload(self, model: str | None) -> tuple[list[str], list[str]]:
        """Gives back the memory of a model, or of all; returns the ids of those that are gone, and of those that still
        have work and go when it is done. Raises ModelNotFound."""
        return await self.engine.unload(None if model is None else [self.registry.get(model).local.id])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Jobs are kept, the engine process runs and what has expired is swept, as long as the context."""
        async with (
            self.store.running(msgspec.json.encode(RESTARTED)),
            self.ledger.running(),
            self.files.sweeping(),
            self._transport.running(),
            self.neighbours.running(),
            self.engine.running(),
            self.jobs.running(),
            self.tasks.running(),
            self._registry.watching(),
        ):
            yield


def loading(model: str, progress: Progress | None) -> ModelLoading:
    """How far it is with a model's weights, and when to ask again."""
    words, retry_after = f"The weights of {model} are being fetched", 10
    if progress is not None and progress.all_total:
        done = f"{100 * progress.all_done // progress.all_total} % of {progress.all_total / 1e9:.1f} GB"
        words += f" ({done})"
        retry_after = min(300, max(2, round(progress.seconds_left or 10)))
    return ModelLoading(f"{words}. Ask again in {retry_after} seconds.", param="model", retry_after=retry_after)


def _check_neighbours(settings: Settings) -> None:
    """Raises ConfigurationError where an offline hub would have to reach another machine to ask for memory."""
    for named in settings.neighbours:
        if not is_here(urlsplit(named.partition(":")[2]).hostname):
            raise ConfigurationError(
                f"neighbours: {named} is not this machine by loopback, and the hub is offline (`offline`). "
                "Name it by 127.0.0.1, leave it out, or let the hub go online."
            )


@contextlib.asynccontextmanager
async def open_hub(settings: Settings) -> AsyncIterator[Hub]:
    """A running hub, for programs that embed it and for the command line."""
    hub = Hub(settings)
    async with hub.running():
        yield hub
