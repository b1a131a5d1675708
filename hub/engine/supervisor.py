"""The API process's side of the engine: a worker process for each device, and the choice of one for each request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from hub.engine.placement import Wanted, candidates, choose, crowded, empty
from hub.engine.protocol import EngineModel, Finished, Generate, Load, Memory, Ready, Unload
from hub.engine.worker_process import DeviceState, WorkerProcess
from hub.errors import EngineUnavailable, HubError
from hub.offline import OFFLINE, QUIET
from hub.pipelines.weights import size_of
from hub.settings import Settings
from hub.types import OnEvent

log = logging.getLogger(__name__)

PATIENCE = 20.0
"""Seconds that a request waits for a better worker that starts, while another one could take it."""

WORKER_ENVIRONMENT = {
    # Read by the libraries when they are imported, hence set here and not in the worker.
    **QUIET,
    **OFFLINE,
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class Engine:
    """All workers; any number of concurrent requests."""

    def __init__(
        self,
        settings: Settings,
        pins: Mapping[str, str] | None = None,
        make_room: Callable[[], Awaitable[None]] | None = None,
        on_empty: Callable[[], None] | None = None,
    ) -> None:
        """pins: models whose manifests say on which device they run, to be checked when the devices are known.
        make_room: awaited before a model is loaded that wants more memory than is known to be free; must not raise.
        on_empty: hears, maybe more than once, that no device holds a model and nobody waits for one."""
        self._settings = settings
        self._pins = pins or {}
        self._kept: set[EngineModel] = set()
        self._make_room = make_room
        self._on_empty = on_empty
        self._workers: list[WorkerProcess] = []
        self._supervisions: set[asyncio.Task[None]] = set()
        self._sizes: dict[EngineModel, int] = {}
        self._next_id = 0
        self._in_flight = 0
        self._loop: asyncio.AbstractEventLoop

    @property
    def devices(self) -> list[DeviceState]:
        """How it stands with each; `auto` stands for those that are not known yet."""
        return [worker.device_state for worker in self._workers]

    @property
    def device(self) -> str | None:
        """The first one that takes requests; None while there is none."""
        return next((worker.device for worker in self._workers if worker.is_ready), None)

    @property
    def problem(self) -> str | None:
        """Why no device takes requests, in public words; None while one does, or may soon."""
        problems = [worker.problem for worker in self._workers]
        return problems[0] if problems and all(problems) else None

    @property
    def worker_pids(self) -> list[int | None]:
        """The workers' process ids, None for one that does not run."""
        processes = [worker.process for worker in self._workers]
        return [each.pid if each and each.returncode is None else None for each in processes]

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._in_flight

    async def generate(self, request: Generate, on_event: OnEvent | None = None) -> Finished:
        """Runs a request; its `id` and `progress` are set here. Cancelling the call stops the work within a forward.

        Raises InvalidRequest (what the pipeline refuses), GenerationFailed, or EngineUnavailable when the worker
        dies under it or cannot start, or the hub does not use the device that the model is pinned to.
        """
        request = msgspec.structs.replace(request, id=self._number(), progress=on_event is not None)
        self._in_flight += 1
        try:
            worker = await self._place_with_room(request.model)
            return await worker.generate(request, on_event, self._size(request.model))
        finally:
            self._in_flight -= 1
            self._on_memory()

    async def _place_with_room(self, model: EngineModel) -> WorkerProcess:
        """As `_place`, and neighbours have been asked where the model is to be loaded into too little memory. For
        callers that count in `in_flight`: else the neighbours are let back meanwhile."""
        worker = await self._place(model)
        if self._make_room is not None and self._is_crowded(worker, model):
            await self._make_room()
            return await self._place(model)  # the first one may have died meanwhile
        return worker

    async def load(self, model: EngineModel, *, pinned: bool | None = None) -> None:
        """Has the model in memory; `pinned`: whether it stays there from now on, also when a worker is started anew;
        None leaves that as it is. One that is not there need not be loaded to be unpinned. Raises as `generate`
        does."""
        if pinned is False:
            self._kept.discard(model)
            holders = [worker for worker in self._workers if worker.has(model.id)]
            await asyncio.gather(*(worker.ask(Load(self._number(), model, pinned)) for worker in holders))
            return
        self._in_flight += 1
        try:
            worker = await self._place_with_room(model)
            await worker.ask(Load(self._number(), model, pinned), self._size(model))
        finally:
            self._in_flight -= 1
            self._on_memory()
        if pinned:
            self._kept.add(model)

    async def unload(self, models: list[str] | None) -> tuple[list[str], list[str]]:
        """Unpins the models of these ids, or all, and has their memory given back. Returns the ids of those that are
        gone, and of those that still have work and go when it is done."""
        self._kept = {model for model in self._kept if models is not None and model.id not in models}
        ready = [worker for worker in self._workers if worker.is_ready]
        answers = await asyncio.gather(*(worker.ask(Unload(self._number(), models)) for worker in ready))
        gone = {name for answer in answers for name in answer.models}
        later = {name for answer in answers for name in answer.later}
        return sorted(gone - later), sorted(later)

    def has(self, model: str) -> bool:
        """Whether a worker has the model in memory."""
        return any(worker.has(model) for worker in self._workers)

    @property
    def holds(self) -> list[tuple[DeviceState, Memory | None]]:
        """What each worker has in memory, as it said last; None while it does not run."""
        return [(worker.device_state, worker.holds) for worker in self._workers]

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _place(self, model: EngineModel) -> WorkerProcess:
        """The worker that runs a request for the model, as soon as one is ready; the caller sends it at once."""
        wanted = Wanted(model.id, self._size(model), model.device)
        failures: dict[WorkerProcess, BaseException] = {}
        patient_until = self._loop.time() + PATIENCE
        try:
            async with asyncio.timeout(self._settings.engine_start_timeout):
                while True:
                    states = [worker.state for worker in self._workers]
                    chosen = choose(states, wanted, patient=self._loop.time() < patient_until)
                    if chosen is not None:
                        return self._workers[chosen]
                    may = [self._workers[index] for index in candidates([each.device for each in states], model.device)]
                    if not may:
                        refusal = EngineUnavailable(self._not_used(model.id, model.device))
                        refusal.headers["x-should-retry"] = "false"  # clients try again after a 503
                        raise refusal
                    tries = {each.started: each for each in may if not each.is_ready and each not in failures}
                    if not tries:
                        raise next(reversed(failures.values()))
                    await asyncio.wait(tries, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                    failures |= {w: error for done, w in tries.items() if done.done() and (error := done.exception())}
        except TimeoutError:
            raise EngineUnavailable("The engine has not started yet. Try again.", retry_after=10) from None

    def _is_crowded(self, worker: WorkerProcess, model: EngineModel) -> bool:
        states = [each.state for each in self._workers]
        return crowded(states, self._workers.index(worker), Wanted(model.id, self._size(model)))

    def _on_memory(self) -> None:
        if self._on_empty is not None and not self._in_flight and empty([each.state for each in self._workers]):
            self._on_empty()

    def _size(self, model: EngineModel) -> int:
        """Bytes of the model's weights; not looked up where nothing depends on it."""
        if len(self._workers) < 2 and self._make_room is None:
            return 0
        if model not in self._sizes:
            self._sizes[model] = size_of(Path(model.path), dict(model.components), model.variant)
        return self._sizes[model]

    def _not_used(self, model: str, pin: str | None) -> str:
        used = ", ".join(dict.fromkeys(worker.device for worker in self._workers))
        return (
            f"The manifest of {model} pins it to {pin} (`device`), but this hub uses {used}. "
            "The owner has to change the manifest, or HUB_DEVICE (`device` in hub.toml)."
        )

    def end_soon(self, seconds: float) -> None:
        """Refuses what still runs after so many seconds, since the hub ends. From a signal handler or any thread."""
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._fail_all)

    def _fail_all(self) -> None:
        for worker in self._workers:
            worker.requests.fail_all("The hub is shutting down and could not finish this picture.")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the workers at once, keeps them alive, and ends them with the context."""
        self._loop = asyncio.get_running_loop()
        for device in self._settings.devices:
            self._begin(device)
        self._check_pins()
        try:
            yield
        finally:
            for supervision in self._supervisions:
                supervision.cancel()
            await asyncio.gather(*self._supervisions, return_exceptions=True)

    def _begin(self, device: str) -> None:
        environment = WORKER_ENVIRONMENT | threads_for(self._settings.devices)
        number, on_memory = len(self._workers), self._on_memory
        worker = WorkerProcess(number, device, self._settings, environment, self._on_ready, on_memory=on_memory)
        self._workers.append(worker)
        self._supervisions.add(asyncio.create_task(worker.run()))

    def _on_ready(self, ready: Ready) -> None:
        """What is pinned is loaded anew. With `auto`, the first worker tells which other ones there should be."""
        for model in self._kept:
            keeping = asyncio.create_task(self._keep(model))
            self._supervisions.add(keeping)
            keeping.add_done_callback(self._supervisions.discard)
        if self._settings.devices != ["auto"] or len(self._workers) > 1:
            return
        for device in ready.devices:
            if device.name != ready.device:
                self._begin(device.name)
        self._check_pins()

    async def _keep(self, model: EngineModel) -> None:
        try:
            await self.load(model, pinned=True)
        except HubError as error:
            log.error("%s is pinned and could not be loaded: %s", model.id, error.message)

    def _check_pins(self) -> None:
        devices = [worker.device for worker in self._workers]
        for model, pin in self._pins.items():
            if not candidates(devices, pin):
                log.error("%s Until then its requests are refused.", self._not_used(model, pin))


def threads_for(devices: list[str]) -> dict[str, str]:
    """Variables that divide the cores among several workers on the CPU, unless the owner has: each would take all,
    and they would wait for one another at every barrier."""
    count = devices.count("cpu")
    if count < 2 or "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // count))}
