"""Orders of the admin API, each in a process of its own: begun, watched, cancelled. They are kept in memory alone:
after a restart a pull is ordered again, and goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from hub.errors import ErrorBody, HubError, NotFound, QueueFull, error_from
from hub.library.orders import Order, Result
from hub.library.places import Places
from hub.library.process import Call, Completed, Failed, LibraryEvent
from hub.library.progress import Note, Progress

log = logging.getLogger(__name__)

MAX_RUNNING = 8
MAX_NOTES = 50
KEPT = 100
"""Tasks that are remembered when they have ended."""
GRACE = 3.0
"""Seconds that a process has to end after it was told to."""
PAUSE = 60
"""Seconds for which the failure of an order counts for those who would begin it again unasked."""
LINE = 1 << 20

TaskStatus = Literal["in_progress", "completed", "failed", "cancelled"]

_event = msgspec.json.Decoder(LibraryEvent)


class TaskState(Struct, kw_only=True):
    """An order, and how it stands with it. Times are unix seconds. `progress` is the last that was told of, `result`
    and `error` are what came of it."""

    id: str
    object: Literal["models.task"] = "models.task"
    order: Order
    status: TaskStatus = "in_progress"
    created_at: int
    completed_at: int | None = None
    progress: Progress | None = None
    notes: list[str] = []
    result: Result | None = None
    error: ErrorBody | None = None


class Task:
    """An order at work, or done. Made and used in one event loop."""

    def __init__(self, order: Order) -> None:
        self.state = TaskState(id=f"task_{secrets.token_hex(12)}", order=order, created_at=int(time.time()))
        self.failure: HubError | None = None
        self._changed = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state.status != "in_progress"

    @property
    def changed(self) -> asyncio.Event:
        """Set when something has happened since it was asked for: ask first, look then, and wait last."""
        return self._changed

    async def end(self) -> None:
        """Waits until it has ended, and raises its error where it failed."""
        while not self.ended:
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def begin(
        self, places: Places, environment: Mapping[str, str], on_end: Callable[[Result | None], Awaitable[None]]
    ) -> None:
        """Starts the process. on_end: awaited at the end, before those who wait hear of it."""
        self._work = asyncio.create_task(self._run(places, environment, on_end))

    async def cancel(self) -> None:
        """Ends the process, and returns when it has ended; what it had fetched stays."""
        if self._work is not None and not self.ended:
            self._work.cancel()
            await asyncio.wait([self._work])

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run(
        self, places: Places, environment: Mapping[str, str], on_end: Callable[[Result | None], Awaitable[None]]
    ) -> None:
        state = self.state
        status: TaskStatus = "failed"
        end: Completed | Failed = Failed(error=HubError("The process that did this has died.").body, status=500)
        try:
            end = await self._perform(places, environment) or end
        except asyncio.CancelledError:
            status = "cancelled"
        except Exception:
            log.exception("%s failed", state.id)
        if isinstance(end, Completed):
            status, state.result = "completed", end.result
        elif status == "failed":
            state.error, self.failure = end.error, error_from(end.error, end.status)
        try:
            await asyncio.shield(on_end(state.result))
        except Exception:
            log.exception("%s has ended, and what follows from that failed", state.id)
        finally:
            state.status, state.completed_at = status, int(time.time())
            self._tell()

    async def _perform(self, places: Places, environment: Mapping[str, str]) -> Completed | Failed | None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hub.library.process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches all of the terminal's; the hub ends its own
            env={**os.environ, **environment},
            limit=LINE,
        )
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101
            # It stays open: its end would tell the process that nobody waits for it any more.
            process.stdin.write(msgspec.json.encode(Call(places=places, order=self.state.order)) + b"\n")
            last = None
            async for line in process.stdout:
                event = _event.decode(line)
                if isinstance(event, Progress):
                    self.state.progress = event
                elif isinstance(event, Note):
                    self.state.notes = [*self.state.notes, event.message][-MAX_NOTES:]
                else:
                    last = event
                self._tell()
            await process.wait()
            return last
        finally:
            await asyncio.shield(_stop(process))


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(GRACE):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Tasks:
    """All orders of this hub's admin API, the newest last."""

    def __init__(
        self, places: Places, environment: Mapping[str, str], on_end: Callable[[Result | None], Awaitable[None]]
    ) -> None:
        """environment: variables for the processes. on_end: awaited when one has ended, before others hear of it."""
        self._places = places
        self._environment = environment
        self._on_end = on_end
        self._tasks: dict[str, Task] = {}

    def begin(self, order: Order) -> Task:
        """Starts an order, or gives the one at work that is the same. Raises QueueFull."""
        running = [task for task in self._tasks.values() if not task.ended]
        for task in running:
            if task.state.order == order:
                return task
        if len(running) >= MAX_RUNNING:
            raise QueueFull(f"{MAX_RUNNING} tasks are at work already; wait for one of them.", retry_after=10)
        ended = [key for key, task in self._tasks.items() if task.ended]
        for key in ended[: max(0, len(ended) - KEPT)]:
            del self._tasks[key]
        task = Task(order)
        self._tasks[task.state.id] = task
        task.begin(self._places, self._environment, self._on_end)
        return task

    def failure(self, order: Order) -> HubError | None:
        """What the same order has just failed with: to begin it again at once would fail again."""
        for task in self.all:
            if task.state.order == order:
                just = task.ended and time.time() - (task.state.completed_at or 0) < PAUSE
                return task.failure if just else None
        return None

    def get(self, name: str) -> Task:
        """The task of this id. Raises NotFound."""
        if name not in self._tasks:
            raise NotFound("There is no such task; they are forgotten when the hub ends.", param="task_id")
        return self._tasks[name]

    def forget(self, name: str) -> None:
        """Forgets one that has ended."""
        self._tasks.pop(name, None)

    @property
    def all(self) -> list[Task]:
        """The newest first."""
        return list(reversed(self._tasks.values()))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends what is at work with the context."""
        try:
            yield
        finally:
            await asyncio.gather(*(task.cancel() for task in self._tasks.values()))
