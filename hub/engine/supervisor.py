"""The API process's side of the engine: a worker process for each device, and the choice of one for each request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from hub.engine.placement import Wanted, candidates, choose
from hub.engine.protocol import EngineModel, Finished, Generate, Ready
from hub.engine.worker_process import DeviceState, WorkerProcess
from hub.errors import EngineUnavailable
from hub.settings import Settings
from hub.types import OnEvent

log = logging.getLogger(__name__)

PATIENCE = 20.0
"""Seconds that a request waits for a better worker that starts, while another one could take it."""

WORKER_ENVIRONMENT = {
    # Read by the libraries when they are imported, hence set here and not in the worker.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class Engine:
    """All workers; any number of concurrent requests."""

    def __init__(self, settings: Settings, pins: Mapping[str, str] | None = None) -> None:
        """pins: models whose manifests say on which device they run, to be checked when the devices are known."""
        self._settings = settings
        self._pins = pins or {}
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
        self._next_id += 1
        request = msgspec.structs.replace(request, id=self._next_id, progress=on_event is not None)
        self._in_flight += 1
        try:
            worker = await self._place(request.model)
            return await worker.generate(request, on_event, self._size(request.model))
        finally:
            self._in_flight -= 1

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

    def _size(self, model: EngineModel) -> int:
        """Bytes of the model's weights; not looked up where there is nothing to choose."""
        if len(self._workers) < 2:
            return 0
        if model not in self._sizes:
            self._sizes[model] = weights_of(Path(model.path), dict(model.components))
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
        worker = WorkerProcess(len(self._workers), device, self._settings, environment, self._on_ready)
        self._workers.append(worker)
        self._supervisions.add(asyncio.create_task(worker.run()))

    def _on_ready(self, ready: Ready) -> None:
        """With `auto`, the first worker tells which others there should be."""
        if self._settings.devices != ["auto"] or len(self._workers) > 1:
            return
        for device in ready.devices:
            if device.name != ready.device:
                self._begin(device.name)
        self._check_pins()

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


def weights_of(path: Path, components: Mapping[str, str] | None = None) -> int:
    """Bytes of what is loaded from a file, or from a diffusers folder: its components' safetensors, without variants
    of them (`model.fp16.safetensors`) and single files with all in one, which may lie beside. `components` replace
    those of the folder."""
    own = components or {}
    places = [path, *map(Path, own.values())]
    files = [place for place in places if place.is_file()]
    files += [file for file in path.glob("*/*.safetensors") if file.parent.name not in own and "." not in file.stem]
    files += [file for place in places[1:] for file in place.glob("*.safetensors") if "." not in file.stem]
    return sum(file.stat().st_size for file in files if file.is_file())
