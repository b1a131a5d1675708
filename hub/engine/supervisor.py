"""The API process's side of the engine: keeps one worker process alive and turns its frames into awaitable calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from hub.engine.protocol import (
    Answer,
    Cancel,
    CannotStart,
    Failed,
    Finished,
    Generate,
    Ping,
    Pong,
    Previewed,
    Ready,
    Stepped,
    from_worker,
    pack,
    read_frame,
)
from hub.errors import EngineUnavailable, GenerationFailed, HubError, InvalidRequest
from hub.settings import Settings
from hub.types import Event, OnEvent, Preview, Progress

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0
STOP_TIMEOUT = 5.0
PING_EVERY = 10.0
MAX_UNANSWERED = 6
"""So many pings in a row, with no other frame either, and the worker is taken for frozen. Patient: a library that is
imported or a driver that wakes up holds the interpreter's lock, and with it the worker's reader, for many seconds."""

NOT_STARTED = "The engine could not be started; the server's log says why."

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


class _Waiting(Struct):
    """A request that the worker has or will get: its answer to be, and who hears of its steps and previews."""

    answer: asyncio.Future[Finished]
    on_event: OnEvent | None
    sent: bool = False


class Engine:
    """One worker, any number of concurrent requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: dict[int, _Waiting] = {}
        self._next_id = 0
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Future[None]
        self._cause = NOT_STARTED
        self._unanswered = 0
        self.device: str | None = None
        """Where the worker computes (`cpu`, `cuda`); None until it is ready."""
        self.problem: str | None = None
        """Why the last start failed, in public words; None before the first, and while a worker runs."""

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id while one runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting)

    async def generate(self, request: Generate, on_event: OnEvent | None = None) -> Finished:
        """Runs a request; its `id` and `progress` are set here. Cancelling the call stops the work within a forward.

        Raises InvalidRequest (what the pipeline refuses), GenerationFailed, or EngineUnavailable when the worker
        dies under it or cannot start.
        """
        self._next_id += 1
        request = msgspec.structs.replace(request, id=self._next_id, progress=on_event is not None)
        waiting = _Waiting(asyncio.get_running_loop().create_future(), on_event)
        self._waiting[request.id] = waiting
        try:
            writer = await self._wait_until_ready()
            waiting.sent = True
            writer.write(pack(request))
            with contextlib.suppress(ConnectionError):  # then the answer is an exception already
                await writer.drain()
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting.sent and self._writer is not None:
                self._writer.write(pack(Cancel(request.id)))
            raise
        finally:
            del self._waiting[request.id]

    async def _wait_until_ready(self) -> asyncio.StreamWriter:
        try:
            async with asyncio.timeout(self._settings.engine_start_timeout):
                while self._writer is None or not self._ready.done():
                    await asyncio.shield(self._ready)
                return self._writer
        except TimeoutError:
            raise EngineUnavailable("The engine has not started yet. Try again.", retry_after=10) from None

    def end_soon(self, seconds: float) -> None:
        """Refuses what still runs after so many seconds, since the hub ends. From a signal handler or any thread."""
        words = "The hub is shutting down and could not finish this picture."
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._fail_all, words)

    def _fail_all(self, words: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(EngineUnavailable(words, retry_after=5))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the worker at once, keeps it alive, and ends it with the context."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        supervision = asyncio.create_task(self._supervise())
        try:
            yield
        finally:
            supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervision

    async def _supervise(self) -> None:
        """Starts the worker, serves it until it ends, and starts it again; forever."""
        failures = 0
        while True:
            try:
                was_ready = await self._run_worker()
            except Exception:
                log.exception("the connection to the engine process failed")
                was_ready = False
            failures = 0 if was_ready else failures + 1
            if failures:
                delay = min(2.0 ** min(failures, 10), MAX_BACKOFF)
                log.error("%s (trying again in %.0f s)", self._cause, delay)
                self._refuse(self._cause)
                await asyncio.sleep(delay)

    async def _run_worker(self) -> bool:
        """One worker's life; returns whether it ever became ready, else `_cause` says why not.

        The connection is a pair of sockets, of which the worker inherits one: there is no name that others could
        connect to, and nothing is left behind, however this process ends.
        """
        self._cause, was_ready = NOT_STARTED, False
        ours, theirs = socket.socketpair()
        async with contextlib.AsyncExitStack() as stack:
            with theirs:
                reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
                stack.callback(writer.close)
                process = self._process = await self._spawn(theirs)
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
        log.info("the engine process ended (exit code %s)", process.returncode)
        return was_ready

    async def _spawn(self, connection: socket.socket) -> asyncio.subprocess.Process:
        settings = self._settings
        log.info("starting the engine process; importing its libraries takes some seconds")
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hub.engine.worker", "--socket", str(connection.fileno())),
            *("--device", settings.device, "--max-batch", str(settings.max_batch)),
            *("--learned", str(settings.cache_dir / "saturation.json"), "--log-level", settings.log_level),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(connection.fileno(),),
            env={**os.environ, **WORKER_ENVIRONMENT},
        )

    async def _watch(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        """Kills a worker that does not become ready in time, or does not answer later on.

        Pings are counted and not seconds: these pass, too, while the whole hub stands still (Ctrl-Z, a busy machine),
        and no answer is to be expected then.
        """
        limit = self._settings.engine_start_timeout
        try:
            async with asyncio.timeout(limit):
                await asyncio.shield(self._ready)
            self._unanswered = 0
            while self._unanswered < MAX_UNANSWERED:
                self._unanswered += 1
                writer.write(pack(Ping()))
                await asyncio.sleep(PING_EVERY)
            log.error("the engine process has not answered for %.0f s; it is killed", MAX_UNANSWERED * PING_EVERY)
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
                        self.device, self.problem = message.device, None
                        log.info("the engine is ready (process %s, device %s)", self.worker_pid, message.device)
                        if not self._ready.done():
                            self._ready.set_result(None)
                    case CannotStart():
                        self._cause = f"The engine cannot start: {message.reason}"
                        return
                    case Pong():
                        pass
                    case _:
                        self._hand_out(message)

    def _hand_out(self, message: Answer) -> None:
        waiting = self._waiting.get(message.id)
        if waiting is None or waiting.answer.done():
            return  # the caller has gone
        match message:
            case Stepped():
                _tell(waiting, Progress(step=message.step, steps=message.steps))
            case Previewed():
                _tell(waiting, Preview(index=message.index, partial=message.partial, image=message.image))
            case Finished():
                waiting.answer.set_result(message)
            case Failed():
                waiting.answer.set_exception(_error_of(message))

    def _disconnect(self) -> bool:
        """Closes the connection and fails what the worker had; returns whether it was ever ready."""
        was_ready = self._ready.done()
        if was_ready:
            self._ready = asyncio.get_running_loop().create_future()
        if self._writer is not None:
            self._writer.close()  # at which the worker exits
            self._writer = None
        self.device = None
        for waiting in self._waiting.values():
            if waiting.sent and not waiting.answer.done():
                words = "The engine process stopped while it made this picture. It is being restarted; try again."
                waiting.answer.set_exception(EngineUnavailable(words, retry_after=5))
        return was_ready

    def _refuse(self, words: str) -> None:
        """Fails all that wait for the start; later requests wait for the next try."""
        self.problem = words
        if not self._ready.done():
            self._ready.set_exception(EngineUnavailable(words, retry_after=10))
            self._ready.exception()  # marked as seen: there may be nobody waiting
        self._ready = asyncio.get_running_loop().create_future()


def _tell(waiting: _Waiting, event: Event) -> None:
    """A listener's own failure is told to the log and ends its listening, nothing else."""
    try:
        if waiting.on_event:
            waiting.on_event(event)
    except Exception:
        log.exception("an event callback failed")
        waiting.on_event = None


def _error_of(failed: Failed) -> HubError:
    if failed.kind == "invalid":
        return InvalidRequest(failed.message, param=failed.param, code="unsupported_value")
    if failed.kind == "blocked":
        return InvalidRequest(failed.message, param=failed.param, code="content_policy_violation")
    return GenerationFailed(failed.message, param=failed.param)


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
