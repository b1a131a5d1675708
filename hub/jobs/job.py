"""One job: what was asked, what became of it, and, while it runs, who watches and listens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from hub.errors import ErrorBody, HubError, NotFound
from hub.store import JobRow
from hub.types import Accepted, Background, Effort, Event, OutputFormat, Progress, Size, Usage

Kind = Literal["image_generation", "image_edit", "image_variation"]


RESTARTED = ErrorBody(
    message="The hub was stopped while it worked on this job. Send the request again. If a remote provider was at work "
    "on it, it may have been paid for.",
    type="server_error",
    param=None,
    code="hub_restarted",
)


class JobResult(Struct, frozen=True, kw_only=True):
    """What a completed job has made: names of stored files, and all that an answer tells of them; see ImageResult."""

    files: list[str]
    seed: int | None
    size: Size
    quality: Effort
    output_format: OutputFormat
    usage: Usage
    warnings: list[str]
    background: Background = "opaque"
    quality_told: bool = True
    revised_prompts: list[str] = []
    target: str = ""


class Ask(Struct, frozen=True, kw_only=True):
    """A request as the jobs see it.

    `owner` is the name of the caller's key. `rendering` is opaque here: the API's own note of how to answer.
    `fingerprint` is a digest of the whole request where identical ones may share a run, else None. It `joins` any of
    them, or one alone that its client has abandoned, as one does that comes again. `recipe` is a digest of all that its
    pictures follow from, where a later request for the same may have them, else None; `fresh` asks for a run all the
    same. `goes_on`: the work is finished even when nobody waits for it any more. `takes_base64`: the client has the
    pictures with its answer, so that their files are hardly read.
    """

    owner: str | None
    kind: Kind
    model: str
    rendering: bytes
    output_format: OutputFormat
    fingerprint: str | None = None
    joins: Literal["any", "abandoned"] = "any"
    recipe: str | None = None
    fresh: bool = False
    idempotency_key: str | None = None
    goes_on: bool = False
    takes_base64: bool = False


class Job:
    """One job: its row, and while this process runs it also its events, its watchers and its pictures."""

    def __init__(self, row: JobRow) -> None:
        self.row = row
        self.goes_on = False
        """Whether the work is finished even when nobody waits for it."""
        self.result = msgspec.json.decode(row.result, type=JobResult) if row.result else None
        self.error: HubError | None = None
        self.images: tuple[bytes, ...] = ()
        """The encoded pictures, while there may be a client to send them to; later they are read from files."""
        self.encoded: tuple[bytes | memoryview, ...] = ()
        """The same in base64, where a provider sent them so."""
        self.made: JobResult | None = None
        """The result, still without its files' names, where a client may have it before they are stored."""
        self.plan: Accepted | None = None
        """What the pictures will be like; known once the request was accepted."""
        self.repeats = False
        """Whether its pictures were drawn for another job, before."""
        self.collected = False
        """Whether some client was given the result."""
        self.forgotten: asyncio.TimerHandle | None = None
        """When it is no longer handed to identical requests, although nobody took its result."""
        self.watchers = 0
        self.unsaved = False
        """Whether its end could not be written down yet."""
        self.noted = False
        """Whether it was written down that it has started."""
        self.closing = False
        """Whether the work is over and its end is being written down; then it cannot be cancelled any more."""
        self.task: asyncio.Task[None] | None = None
        self._accepted = asyncio.Event()
        self._ended = asyncio.Event()
        self._had = asyncio.Event()
        self._listeners: list[asyncio.Queue[Event | None]] = []
        if row.status in ("completed", "failed", "cancelled"):
            self._ended.set()
            self._had.set()

    @property
    def ended(self) -> bool:
        """Whether nothing about it will change any more."""
        return self._ended.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether its clients have left, and none of them was given the result."""
        return not self.watchers and not self.collected

    @property
    def eta(self) -> float | None:
        """Seconds until its last step, reckoned from those done so far; None where that cannot be known yet."""
        row = self.row
        if self.ended or row.started_at is None or row.step < 2:
            return None
        return (time.time() - row.started_at) / (row.step - 1) * (row.steps - row.step)

    async def accepted(self) -> None:
        """Returns once the request is known to be good; raises its error where it is not."""
        accepted, ended = asyncio.ensure_future(self._accepted.wait()), asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({accepted, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            accepted.cancel()
            ended.cancel()
        if self.error is not None:
            raise self.error

    async def finished(self) -> JobResult:
        """The result; raises the HubError that the job ended with."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise NotFound("This job has no result.")
        return self.result

    async def had(self) -> JobResult:
        """The same as soon as the pictures are here, for whoever takes them at once and needs no file."""
        await self._had.wait()
        return self.made or await self.finished()

    async def settled(self) -> None:
        """Returns when nothing is being written down: whoever comes back for a job sees no half-way."""
        if self.closing:
            await self._ended.wait()

    @contextlib.contextmanager
    def events(self) -> Iterator[asyncio.Queue[Event | None]]:
        """A queue of the events from now on; None is the last."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if self.ended:
            queue.put_nowait(None)
        self._listeners.append(queue)
        try:
            yield queue
        finally:
            self._listeners.remove(queue)

    def hear(self, event: Event) -> None:
        """Notes an event of the provider and passes it on to all that listen."""
        if isinstance(event, Accepted):
            if self.plan is not None:  # by another target, after the one before has failed: it begins anew
                self.row.started_at, self.row.status, self.row.step, self.row.steps = None, "queued", 0, 0
            self.plan = event
            self._accepted.set()
        if isinstance(event, Progress):
            if self.row.started_at is None:
                self.row.started_at, self.row.status = time.time(), "in_progress"
            self.row.step, self.row.steps = event.step, event.steps
        for queue in self._listeners:
            queue.put_nowait(event)

    def have(self, made: JobResult) -> None:
        """Wakes all that wait for the pictures alone; from now on the job cannot be cancelled."""
        self.made, self.closing = made, True
        self._had.set()

    def end(self) -> None:
        """Wakes all that wait for the end."""
        self._ended.set()
        self._had.set()
        for queue in self._listeners:
            queue.put_nowait(None)
