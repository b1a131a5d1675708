"""One worker process as the API process sees it: started, watched and restarted; its frames as awaitable calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from hub.engine.in_flight import InFlight
from hub.engine.placement import WorkerState
from hub.engine.protocol import (
    Cancel,
    CannotStart,
    Failed,
    Finished,
    Generate,
    Load,
    Memory,
    Ping,
    Pong,
    Ready,
    Settled,
    Unload,
    from_worker,
    pack,
    read_frame,
)
from hub.errors import EngineUnavailable
from hub.offline import variables
from hub.settings import Settings
from hub.types import OnEvent

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0
STOP_TIMEOUT = 5.0
PING_EVERY = 10.0
MAX_UNANSWERED = 6
"""So many pings in a row, with no other frame either, and the worker is taken for frozen. Patient: a library that is
imported or a driver that wakes up holds the interpreter's lock, and with it the worker's reader, for many seconds."""

MEGABYTE = 1024 * 1024

NOT_READY = "The engine process has just stopped. It is being restarted; try again."
NOT_STARTED = "The engine could not be started; the server's log says why."


class DeviceState(Struct, frozen=True, omit_defaults=True):
    """How it stands with a device: ok; starting while its worker is not ready; or failed, with the `reason`, where
    that could not start, until a later try succeeds."""

    device: str
    status: Literal["ok", "starting", "failed"]
    reason: str | None = None


def code_caches(cache_dir: Path) -> dict[str, str]:
    """Where torch.compile keeps code, and takes it from: not in a folder that any user of the machine may make."""
    folder = cache_dir / "compiled"
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


class WorkerProcess:
    """One device's worker, any number of concurrent requests. Made and used in one event loop."""

    def __init__(
        self,
        number: int,
        device: str,
        settings: Settings,
        environment: Mapping[str, str],
        on_ready: Callable[[Ready], None],
        *,
        on_memory: Callable[[], None],
    ) -> None:
        """number: among all workers. device: may be `auto`, until the first worker has told which one that is.
        environment: the worker's own variables. on_ready: hears of each start. on_memory: hears when `state` tells of
        other models or other memory."""
        self.device = device
        self.process: asyncio.subprocess.Process | None = None
        self.problem: str | None = None
        """Why the last start failed, in public words; None before the first, and while a worker runs."""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the worker is ready, or with an EngineUnavailable when this start has failed; then a new one."""
        self.requests = InFlight()
        self.holds: Memory | None = None
        """What the worker has said last of its memory; None before it has said anything."""
        self._number = number
        self._settings = settings
        self._environment = environment
        self._on_ready = on_ready
        self._on_memory = on_memory
        self._writer: asyncio.StreamWriter | None = None
        self._cause = NOT_STARTED
        self._unanswered = 0
        self._settled = False
        self._memory = (0, 0)
        self._held: frozenset[str] = frozenset()
        self._loading: dict[str, int] = {}

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self._writer is not None and self.started.done()

    def has(self, model: str) -> bool:
        """Whether it holds the model."""
        return model in self._held

    @property
    def device_state(self) -> DeviceState:
        """For those who ask from outside."""
        if self.is_ready:
            return DeviceState(self.device, "ok")
        return DeviceState(self.device, "failed" if self.problem else "starting", self.problem)

    @property
    def state(self) -> WorkerState:
        """For the choice of a worker."""
        return WorkerState(
            device=self.device,
            ready=self.is_ready,
            starting=not self._settled,
            total=self._memory[0],
            free=self._memory[1],
            spare=self.holds.spare if self.holds else 0,
            held=self._held,
            loading=dict(self._loading),
            busy=self.requests.busy,
        )

    async def generate(self, request: Generate, on_event: OnEvent | None, size: int) -> Finished:
        """Runs a request; the worker must be ready. size: bytes that the model takes if it is to be loaded.

        Raises as `Engine.generate` does.
        """
        assert self._writer is not None  # noqa: S101  # only ready workers are chosen
        writer, model = self._writer, request.model.id
        if model not in self._held:
            self._loading.setdefault(model, size)
        with self.requests.waiting(request, on_event) as answer:
            try:
                writer.write(pack(request))
                with contextlib.suppress(ConnectionError):  # then the answer is an exception already
                    await writer.drain()
                return await answer
            except asyncio.CancelledError:
                if writer is self._writer:
                    writer.write(pack(Cancel(request.id)))
                raise

    async def ask(self, request: Load | Unload, size: int = 0) -> Settled:
        """Has a model of so many bytes loaded, or models unloaded. Raises as `generate` does."""
        if self._writer is None:
            raise EngineUnavailable(NOT_READY, retry_after=5)
        if isinstance(request, Load) and request.model.id not in self._held:
            self._loading.setdefault(request.model.id, size)
        with self.requests.asking(request.id) as answer:
            with contextlib.suppress(ConnectionError):  # then the answer is an exception already
                self._writer.write(pack(request))
                await self._writer.drain()
            return await answer

    async def run(self) -> None:
        """Starts the worker, serves it until it ends, and starts it again; forever."""
        failures = 0
        while True:
            try:
                was_ready = await self._run_once()
            except Exception:
                log.exception("the connection to the engine process failed")
                was_ready = False
            failures = 0 if was_ready else failures + 1
            if failures:
                delay = min(2.0 ** min(failures, 10), MAX_BACKOFF)
                log.error("%s (trying again in %.0f s)", self._cause, delay)
                self._refuse(self._cause)
                await asyncio.sleep(delay)

    async def _run_once(self) -> bool:
        """One process's life; returns whether it ever became ready, else `_cause` says why not.

        The connection is a pair of sockets, of which the worker inherits one: there is no name that others could
        connect to, and nothing is left behind, however this process ends.
        """
        self._cause, was_ready = NOT_STARTED, False
        ours, theirs = socket.socketpair()
        async with contextlib.AsyncExitStack() as stack:
            with theirs:
                reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
                stack.callback(writer.close)
                process = self.process = await self._spawn(theirs)
            stack.push_async_callback(_stop, process, asyncio.create_task(process.wait()))
            watch = asyncio.create_task(self._watch(process, writer))
            stack.callback(watch.cancel)
            self._writer = writer
            try:
                await self._serve(reader)
            except Exception:
                log.exception("the connection to the engine process failed")
            finally:
                was_ready = self._disconnect()
                if not was_ready:  # still importing its libraries: it has nothing to put in order
                    _kill(process)
        log.info("the engine process on %s ended (exit code %s)", self.device, process.returncode)
        return was_ready

    async def _spawn(self, connection: socket.socket) -> asyncio.subprocess.Process:
        settings = self._settings
        log.info("starting the engine process on %s; importing its libraries takes some seconds", self.device)
        learned = f"saturation{f'.{self._number}' if self._number else ''}.json"  # one process, one file
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hub.engine.worker", "--socket", str(connection.fileno())),
            *("--device", self.device, "--setting", settings.device, "--max-batch", str(settings.max_batch)),
            *("--learned", str(settings.cache_dir / learned), "--compiled", str(settings.cache_dir / "compiled")),
            *("--hashes", str(settings.cache_dir / "weights.json"), "--log-level", settings.log_level),
            *("--keep-alive", str(settings.keep_alive), "--reserve", str(settings.device_reserve_mb * MEGABYTE)),
            *(("--limit", str(settings.device_memory_mb * MEGABYTE)) if settings.device_memory_mb else ()),
            *(("--offline",) if settings.offline else ()),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(connection.fileno(),),
            process_group=0,  # Ctrl-C reaches all of the terminal's; the worker ends with its connection
            env={
                **os.environ,
                **variables(offline=settings.offline),
                **self._environment,
                **code_caches(settings.cache_dir),
            },
        )

    async def _watch(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        """Kills a worker that does not become ready in time, or does not answer later on.

        Pings are counted and not seconds: these pass, too, while the whole hub stands still (Ctrl-Z, a busy machine),
        and no answer is to be expected then.
        """
        limit = self._settings.engine_start_timeout
        try:
            async with asyncio.timeout(limit):
                await asyncio.shield(self.started)
            self._unanswered = 0
            while self._unanswered < MAX_UNANSWERED:
                self._unanswered += 1
                writer.write(pack(Ping()))
                await asyncio.sleep(PING_EVERY)
            log.error(
                "the engine process on %s has not answered for %.0f s; it is killed",
                self.device,
                MAX_UNANSWERED * PING_EVERY,
            )
        except TimeoutError:
            self._cause = f"The engine process did not become ready within {limit} s and was killed."
        _kill(process)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        """Hands out the worker's frames until it closes the connection, or says that it cannot start."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = from_worker.decode(await read_frame(reader))
                self._unanswered = 0
                match message:
                    case Ready():
                        self._take_up(message)
                    case CannotStart():
                        self._cause = f"The engine cannot start: {message.reason}"
                        return
                    case Memory():
                        self._memory = self._memory[0], message.device.free
                        self._held = frozenset(model.id for model in message.models)
                        self._loading.pop(message.tried or "", None)
                        self.holds = message
                        self._on_memory()
                    case Pong():
                        pass
                    case Settled() | Failed() if self.requests.settle(message):
                        pass
                    case Settled():
                        pass
                    case _:
                        self.requests.hand_out(message)

    def _take_up(self, ready: Ready) -> None:
        self.device, self.problem, self._settled = ready.device, None, True
        self._memory = next(((each.total, each.free) for each in ready.devices if each.name == ready.device), (0, 0))
        pid = self.process.pid if self.process else None
        log.info("the engine is ready (process %s, device %s)", pid, ready.device)
        if not self.started.done():
            self.started.set_result(None)
        self._on_ready(ready)

    def _disconnect(self) -> bool:
        """Closes the connection and fails what the worker had; returns whether it was ever ready."""
        was_ready = self.started.done()
        if was_ready:
            self.started = asyncio.get_running_loop().create_future()
        if self._writer is not None:
            self._writer.close()  # at which the worker exits
            self._writer = None
        self._memory, self._held, self._loading, self.holds = (0, 0), frozenset(), {}, None
        words = "The engine process stopped while it worked on this. It is being restarted; try again."
        self.requests.fail_all(words)
        self._on_memory()
        return was_ready

    def _refuse(self, words: str) -> None:
        """Tells all that wait for the start; later requests wait for the next try."""
        self.problem, self._settled = words, True
        if not self.started.done():
            self.started.set_exception(EngineUnavailable(words, retry_after=10))
            self.started.exception()  # marked as seen: there may be nobody waiting
        self.started = asyncio.get_running_loop().create_future()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        process.kill()


async def _stop(process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
    """Waits for a worker whose connection was closed, and kills it where it does not end."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await asyncio.shield(exited)
    except TimeoutError:
        _kill(process)
        await exited
