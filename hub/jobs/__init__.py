"""Jobs: every request is one, whether its client waits for the answer, follows it as a stream, or comes back for it.

A job runs once, for any number of clients that watch it. Identical requests that are in flight share one (see
`Ask.fingerprint`), and a finished `Idempotency-Key` leads back to its job. A job whose pictures another one has drawn
(see `Ask.recipe`) takes over their files instead of working. When the last watcher leaves, the work is cancelled,
unless the job `goes_on` alone. What a job made lies in files before it counts as completed, and its state lies in the
store, so that it can be fetched after its client has gone and after the hub was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import msgspec

from hub.errors import EngineUnavailable, HubError, IdempotencyKeyReuse, JobCancelled, NotFound, QueueFull
from hub.files import Files
from hub.jobs.job import RESTARTED, Ask, Job, JobResult, Kind
from hub.store import JobRow, Store
from hub.types import Event, ImageResult, OnEvent, OutputFormat, Progress, Usage

__all__ = ["RESTARTED", "Ask", "Job", "JobResult", "Jobs", "Kind", "Work"]

log = logging.getLogger(__name__)

Work = Callable[[OnEvent], Awaitable[ImageResult]]

UNCOLLECTED = 600.0
"""Seconds for which a finished picture that nobody took is handed to the next identical request."""
SWEEP_INTERVAL = 60.0
START_NOTED = 0.1
"""Seconds after which it is written down that a job has started, where no step was done before."""


class Jobs:
    """All jobs of this hub."""

    def __init__(self, store: Store, files: Files, ttl: float, max_running: int) -> None:
        """`ttl`: seconds for which a finished job is kept. `max_running`: jobs that may wait or run at once."""
        self._store = store
        self._files = files
        self._ttl = ttl
        self._max_running = max_running
        self._live: dict[str, Job] = {}
        self._keyed: dict[tuple[str | None, str], Job] = {}
        self._alike: dict[tuple[str | None, str], list[Job]] = {}
        self._noting: set[asyncio.Task[None]] = set()
        self._closing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweeps expired jobs, as long as the context; at its end, jobs that still run fail."""
        sweeper = asyncio.create_task(self._sweep_forever())
        try:
            yield
        finally:
            self._closing = True
            sweeper.cancel()
            for job in self._live.values():
                self._stop(job)
            tasks = [job.task for job in self._live.values() if job.task]
            await asyncio.gather(sweeper, *tasks, *self._noting, return_exceptions=True)

    async def submit(self, ask: Ask, work: Work) -> Job:
        """The job that answers a request: a new one, or one that an identical request has started.

        `work` makes the pictures, where none are stored that can be had again. Raises QueueFull and
        IdempotencyKeyReuse.
        """
        job = self._started(ask)
        while job is not None and job.result:
            if not await self._answers(job, job.result, ask):
                self._forget(job)
            elif ask.joins == "any" or job.abandoned:  # else another request was faster
                break
            job = self._started(ask)
        if job is None and ask.idempotency_key is not None:
            row = await self._store.with_idempotency_key(ask.owner, ask.idempotency_key)
            job = await self._replayed(row, ask) if row else None
            job = job or self._started(ask)  # by another request, while this one looked
        source = None
        if job is None and ask.recipe is not None and not ask.fresh:
            source = await self._source(ask.owner, ask.recipe)
            job = self._started(ask)
        if job is None:
            job = self._start(ask, work, source)
        job.goes_on = job.goes_on or ask.goes_on
        return job

    async def get(self, job_id: str, owner: str | None) -> Job:
        """A job by id; raises NotFound for one that is unknown, expired, or another key's."""
        job = self._live.get(job_id)
        if job is not None:
            await job.settled()
        else:
            row = await self._store.get(job_id)
            job = Job(row) if row else None
        if job is None or job.row.owner != owner or (job.ended and job.row.expires_at <= time.time()):
            raise NotFound("There is no such job, or it has expired.", param="job_id")
        return job

    async def newest(self, owner: str | None, limit: int) -> list[Job]:
        """The newest jobs of a key, newest first."""
        await asyncio.gather(*(job.settled() for job in self._live.values()))
        rows = await self._store.newest(owner, limit)
        return [self._live.get(row.id) or Job(row) for row in rows]

    def position(self, job: Job) -> int | None:
        """How many jobs start before this one, and itself: 1 is next. None for a job that does not wait."""
        if job.ended or job.row.status != "queued":
            return None
        waiting = [each for each in self._live.values() if not each.ended and each.row.status == "queued"]
        return waiting.index(job) + 1 if job in waiting else None

    @property
    def ahead(self) -> int:
        """How many jobs wait that came before the one whose work asks; all that wait, where it is no job's."""
        task, found = asyncio.current_task(), 0
        for job in self._live.values():
            if job.task is task:
                break
            found += not job.ended and job.row.status == "queued"
        return found

    async def images(self, job: Job) -> tuple[bytes, ...]:
        """The pictures of a completed job; raises NotFound where their files are gone."""
        if job.images:
            return job.images
        result = await job.finished()
        return tuple(await asyncio.gather(*(self._files.read_stored(name) for name in result.files)))

    async def cancel(self, job: Job) -> None:
        """Ends a job, for all that wait for it, and returns when it has ended."""
        self._forget(job)
        self._stop(job)
        if job.task is not None:
            await asyncio.wait({job.task})

    async def delete(self, job: Job) -> None:
        """Deletes a job that has ended, and its pictures."""
        self._forget(job)
        self._live.pop(job.row.id, None)
        if job.result:
            await self._files.delete(job.result.files)
        await self._store.delete(job.row.id)

    @contextlib.contextmanager
    def watching(self, job: Job) -> Iterator[None]:
        """A client waits for the job as long as the context; when the last one leaves, the work may be cancelled."""
        job.watchers += 1
        try:
            yield
        finally:
            job.watchers -= 1
            if not job.watchers:
                self._left_alone(job)

    def collect(self, job: Job) -> None:
        """Notes that a client was given the result."""
        job.collected = True
        if job.ended:
            self._forget(job)

    def _left_alone(self, job: Job) -> None:
        if job.ended:
            job.images = job.encoded = ()
            if not job.unsaved:
                self._live.pop(job.row.id, None)
        elif not job.goes_on and not job.closing:
            log.info("%s: its client has gone; its work is cancelled", job.row.id)
            self._forget(job)
            self._stop(job)

    @staticmethod
    def _stop(job: Job) -> None:
        if job.task is not None and not job.closing:
            job.task.cancel()

    def _started(self, ask: Ask) -> Job | None:
        """The job of an identical request that is in flight, or that has ended and whose result nobody took."""
        if ask.idempotency_key is not None:
            job = self._keyed.get((ask.owner, ask.idempotency_key))
            if job is not None and job.row.fingerprint != ask.fingerprint:
                raise IdempotencyKeyReuse("This Idempotency-Key is in use for another request. Use a new one.")
            return job
        alike = self._alike.get((ask.owner, ask.fingerprint), []) if ask.fingerprint else []
        return next((job for job in reversed(alike) if ask.joins == "any" or job.abandoned), None)

    async def _answers(self, job: Job, result: JobResult, ask: Ask) -> bool:
        """Whether a job that has its pictures can answer once more: not where a fresh run is asked for (but a key is
        a promise), and not where somebody deleted them."""
        if ask.fresh and ask.idempotency_key is None and job.ended:
            return False
        return await self._files.exist(result.files)

    async def _source(self, owner: str | None, recipe: str) -> JobRow | None:
        """The job that has drawn by this recipe. Not finding out must not be worse than there being none."""
        try:
            return await self._store.with_recipe(owner, recipe)
        except Exception as error:
            log.warning("looking for stored pictures failed (%s); they are drawn anew", error)
            return None

    async def _replayed(self, row: JobRow, ask: Ask) -> Job | None:
        """The completed job of an Idempotency-Key. A key whose job failed, or whose files are gone, starts anew."""
        if row.status != "completed":
            return None
        if row.fingerprint != ask.fingerprint:
            raise IdempotencyKeyReuse("This Idempotency-Key has answered another request. Use a new one.")
        job = Job(row)
        if job.result is None or not await self._files.exist(job.result.files):
            return None
        log.info("%s: answered again, for its Idempotency-Key", row.id)
        return job

    def _start(self, ask: Ask, work: Work, source: JobRow | None = None) -> Job:
        """A new job. It takes a place in the queue, unless there is a `source` that has its pictures."""
        if source is None and sum(not job.ended for job in self._live.values()) >= self._max_running:
            raise QueueFull("Too many requests are waiting on this hub. Try again shortly.", retry_after=5)
        now = time.time()
        row = JobRow(
            id=f"job_{secrets.token_hex(12)}",
            owner=ask.owner,
            kind=ask.kind,
            model=ask.model,
            status="queued",
            created_at=now,
            expires_at=now + self._ttl,
            fingerprint=ask.fingerprint,
            recipe=ask.recipe,
            idempotency_key=ask.idempotency_key,
            rendering=ask.rendering,
        )
        job = self._live[row.id] = Job(row)
        if ask.idempotency_key is not None:
            self._keyed[ask.owner, ask.idempotency_key] = job
        elif ask.fingerprint is not None:
            self._alike.setdefault((ask.owner, ask.fingerprint), []).append(job)
        job.task = asyncio.create_task(self._run(job, ask, work, source), name=row.id)
        job.task.add_done_callback(lambda _: self._ended(job))
        return job

    def _ended(self, job: Job) -> None:
        """A task that is cancelled before its first step never runs; its job has to end all the same."""
        if not job.ended:
            job.error, job.row.status = JobCancelled(), "cancelled"
            job.end()
            if not job.watchers:
                self._left_alone(job)
            self._live.pop(job.row.id, None)

    async def _run(self, job: Job, ask: Ask, work: Work, source: JobRow | None) -> None:
        """A job's life; never raises."""
        try:
            if source is None or not await self._repeat(job, source):
                await self._store.add(job.row)
                made = await work(functools.partial(self._hear, job))
                await self._complete(job, ask, made)
        except asyncio.CancelledError:
            if self._closing:
                self._fail(job, EngineUnavailable(RESTARTED.message, code=RESTARTED.code))
            else:
                job.error, job.row.status = JobCancelled(), "cancelled"
        except HubError as error:
            self._fail(job, error)
        except Exception:
            log.exception("%s failed", job.row.id)
            self._fail(job, HubError("The hub failed on this job; its log tells why."))
        await self._close(job)

    def _hear(self, job: Job, event: Event) -> None:
        """Passes an event on, and has it written down beside the work that the job has started: at its first step, or
        soon, since what is over before has only one row to write."""
        waited = job.row.started_at is None
        job.hear(event)
        if isinstance(event, Progress) and 0 < event.step < event.steps:
            self._note(job)
        elif waited and job.row.started_at is not None:
            asyncio.get_running_loop().call_later(START_NOTED, self._note, job)

    def _note(self, job: Job) -> None:
        started_at = job.row.started_at
        if started_at is not None and not (job.noted or job.closing or job.ended or self._closing):
            job.noted = True
            noting = asyncio.create_task(self._note_start(job.row.id, started_at, job.row.steps))
            self._noting.add(noting)
            noting.add_done_callback(self._noting.discard)

    async def _note_start(self, job_id: str, started_at: float, steps: int) -> None:
        try:
            await self._store.start(job_id, started_at, steps)
        except Exception as error:  # its end is written later, and tells the same
            log.warning("%s: its start could not be stored: %s", job_id, error)

    async def _repeat(self, job: Job, source: JobRow) -> bool:
        """Completes a job with the pictures of another one, under names of its own; whether they were still there."""
        keep_until = time.time() + self._ttl
        drawn = Job(source).result
        try:
            files = await self._files.share(drawn.files, keep_until) if drawn else []
        except NotFound:
            files = []
        if drawn is None or not files:
            log.info("%s: the pictures of %s are gone; they are drawn anew", job.row.id, source.id)
            return False
        job.repeats = True
        self._hold(job, msgspec.structs.replace(drawn, files=files), keep_until)
        log.info("%s: answered with the pictures of %s", job.row.id, source.id)
        return True

    async def _complete(self, job: Job, ask: Ask, made: ImageResult) -> None:
        keep_until = time.time() + self._ttl
        job.images, job.encoded = made.images, made.encoded
        output_format = made.output_format or ask.output_format
        result = JobResult(
            files=[],
            seed=made.seed,
            size=made.size,
            quality=made.quality,
            quality_told=made.quality_told,
            output_format=output_format,
            background=made.background,
            revised_prompts=list(made.revised_prompts),
            target=made.target,
            usage=made.usage or Usage(text_tokens=0, image_tokens=0, output_tokens=0),
            warnings=list(made.warnings),
        )
        if made.encoded:
            job.have(result)
        files = await self._save_all(made.images, output_format, keep_until, read_soon=not ask.takes_base64)
        self._hold(job, msgspec.structs.replace(result, files=files), keep_until)

    @staticmethod
    def _hold(job: Job, result: JobResult, keep_until: float) -> None:
        job.result, job.row.result = result, msgspec.json.encode(result)
        job.row.status, job.row.expires_at = "completed", keep_until

    async def _save_all(
        self, images: Sequence[bytes], output_format: OutputFormat, keep_until: float, *, read_soon: bool
    ) -> list[str]:
        """Stores all pictures of a job, or none."""
        if len(images) == 1:
            return [await self._files.save(images[0], output_format, keep_until, read_soon=read_soon)]
        saving = [
            asyncio.create_task(self._files.save(image, output_format, keep_until, read_soon=read_soon))
            for image in images
        ]
        try:
            return list(await asyncio.gather(*saving))
        except BaseException:
            ends = await asyncio.gather(*saving, return_exceptions=True)
            await self._files.delete([name for name in ends if isinstance(name, str)])
            raise

    @staticmethod
    def _fail(job: Job, error: HubError) -> None:
        job.error = error
        job.row.status, job.row.error = "failed", msgspec.json.encode(error.body)

    async def _close(self, job: Job) -> None:
        """Writes the end down, then tells it."""
        job.closing = True
        job.row.completed_at = time.time()
        try:
            await (self._store.add if job.repeats else self._store.save)(job.row)
        except Exception as error:
            log.exception("%s: its end could not be stored", job.row.id)
            job.unsaved = True
            if job.row.status == "completed" and job.result is not None:
                self._fail(job, error if isinstance(error, HubError) else HubError("The job could not be stored."))
                await self._files.delete(job.result.files)
                job.result, job.row.result, job.images, job.encoded = None, None, (), ()
        job.end()
        uncollected = job.row.status == "completed" and not job.row.idempotency_key and not job.collected
        if not uncollected:
            self._forget(job)
        elif job.row.fingerprint:
            job.forgotten = asyncio.get_running_loop().call_later(UNCOLLECTED, self._forget, job)
        if not job.watchers:
            self._left_alone(job)

    def _forget(self, job: Job) -> None:
        """Nobody joins it any more. `job` may have been read anew."""
        row = job.row
        if row.idempotency_key is not None:
            name = row.owner, row.idempotency_key
            if name in self._keyed and self._keyed[name].row.id == row.id:
                del self._keyed[name]
        elif row.fingerprint is not None:
            alike = self._alike.get((row.owner, row.fingerprint), [])
            for known in [each for each in alike if each.row.id == row.id]:
                alike.remove(known)
                if known.forgotten is not None:
                    known.forgotten.cancel()  # else it would hold the job, and repeats are fast
            if not alike:
                self._alike.pop((row.owner, row.fingerprint), None)

    async def _save_the_unsaved(self) -> None:
        """Ends that could not be written down when they came; until then the jobs are told from memory."""
        for job in [each for each in self._live.values() if each.unsaved]:
            await self._store.save(job.row)
            job.unsaved = False
            if not job.watchers:
                self._left_alone(job)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self._save_the_unsaved()
                await self._store.delete_expired()
                await self._store.fail_orphans(msgspec.json.encode(RESTARTED))
            except Exception:
                log.exception("sweeping expired jobs failed; trying again")
            await asyncio.sleep(SWEEP_INTERVAL)
