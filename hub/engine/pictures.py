"""The pictures that a worker draws: a Job for each request, a run of the weave for each of its pictures, and threads
that turn finished pixels into files beside the next forward."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from hub.engine.devices import use, works
from hub.engine.halting import Halt
from hub.engine.jobs import Blocked, Job
from hub.engine.loras import Outfit
from hub.engine.meter import Meter
from hub.engine.protocol import EngineModel, FromWorker, Generate
from hub.engine.residency import Residency
from hub.engine.weave import Weave
from hub.pipelines.auto import LoadedPipeline

log = logging.getLogger("hub.worker")

ENCODERS = 2


class Pictures:
    """Only the device thread touches it, except for what the encoders' threads do."""

    def __init__(
        self,
        device: torch.device,
        max_batch: int,
        send: Callable[[FromWorker], None],
        answered: Callable[[int], None],
        *,
        residency: Residency,
        meter: Meter | None = None,
    ) -> None:
        """`send` takes frames, and `answered` the ids of requests that have their answer, both from any thread."""
        self._device = device
        self._send = send
        self._on_answer = answered
        self._residency = residency
        self.halt = Halt(lambda picture: self._pictures[picture][0].request.id)
        self._weave = Weave(max_batch, self._on_step, self._on_done, meter=meter, halt=self.halt, residency=residency)
        self._encoders = ThreadPoolExecutor(ENCODERS, "encoder", use, (device,))
        self._jobs: dict[int, Job] = {}
        self._pictures: dict[int, tuple[Job, int]] = {}
        self._next = 0

    @property
    def busy(self) -> Counter[EngineModel]:
        """Requests by model, until they are dropped."""
        return Counter(job.request.model for job in self._jobs.values())

    @property
    def answered(self) -> list[int]:
        """The ids of requests that have their answer, and are not dropped yet."""
        return [number for number, job in self._jobs.items() if job.outbox.closed]

    @property
    def drawing(self) -> bool:
        """Whether any picture waits for a forward."""
        return self._weave.busy

    def tick(self) -> None:
        """Runs one forward; see Weave."""
        self._weave.tick()

    def start(self, request: Generate, pipeline: LoadedPipeline, outfit: Outfit | None) -> None:
        """Begins with all pictures of a request. Raises as Job does."""
        job = Job(request, pipeline, self._send, self._on_preview, self._residency, outfit=outfit)
        self._jobs[request.id] = job
        for index in range(len(request.seeds)):
            if request.id not in self._jobs:
                return  # an earlier picture failed at once and took the request with it
            number = self._next
            self._next += 1
            self._pictures[number] = (job, index)
            draw, steps, done = job.body(index)
            self._weave.start(number, draw, steps, request.owner, done, budget=job.budgets[index])

    def drop(self, request_id: int) -> Generate | None:
        """Ends a request wherever it is, in the weave or at the encoders; returns it where there was one."""
        self.halt.forget(request_id)
        job = self._jobs.pop(request_id, None)
        if job is not None:
            job.outbox.close()
        for number in [n for n, (job, _) in self._pictures.items() if job.request.id == request_id]:
            del self._pictures[number]
            self._weave.cancel(number)
        if job is not None:
            job.release()
        return job.request if job is not None else None

    def _on_step(self, number: int, done: int, total: int) -> None:
        job, index = self._pictures[number]
        news = job.stepped(index, done, total)
        if news is not None:
            self._send(news)

    def _on_done(self, number: int, outcome: Any) -> None:
        job, index = self._pictures.pop(number)
        if isinstance(outcome, BaseException):
            self._fail(job, outcome)
            self.drop(job.request.id)
            return
        self._encoders.submit(self._encode, job, job.outbox.ticket(), index, outcome)

    def _on_preview(self, job: Job, index: int, partial: int, pixels: Any) -> None:
        self._encoders.submit(self._encode_preview, job, job.outbox.ticket(), index, partial, pixels)

    def _encode_preview(self, job: Job, ticket: int, index: int, partial: int, pixels: Any) -> None:
        """On an encoder's thread. It may be what the finished pictures had to wait for."""
        job.encode_preview(ticket, index, partial, pixels)
        self._clean_up(job)

    def _encode(self, job: Job, ticket: int, index: int, pixels: Any) -> None:
        """On an encoder's thread."""
        try:
            job.encode(ticket, index, pixels)
        except Exception as error:
            self._fail(job, error)
        finally:
            self._clean_up(job)

    def _clean_up(self, job: Job) -> None:
        """A request that has its answer leaves nothing behind."""
        if job.outbox.closed:
            self._on_answer(job.request.id)

    def _fail(self, job: Job, error: BaseException) -> None:
        blocked = isinstance(error, Blocked)
        log.error("%s failed", job.request.label or job.request.id, exc_info=None if blocked else error)
        job.fail(error)
        if isinstance(error, torch.AcceleratorError) and not works(self._device):
            log.critical("%s is broken for this process, which ends; the next one tries it anew", self._device)
            os._exit(1)
