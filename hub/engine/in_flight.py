"""The requests that a worker has: who waits for their answers, and who hears of their steps and previews."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from hub.engine.protocol import Answer, Failed, Finished, Generate, Previewed, Settled, Stepped
from hub.errors import EngineUnavailable, GenerationFailed, HubError, InvalidRequest, ModelUnusable, OutOfMemory
from hub.types import Event, OnEvent, Preview, Progress

log = logging.getLogger(__name__)


class _Waiting(Struct):
    answer: asyncio.Future[Finished]
    on_event: OnEvent | None
    model: str
    pictures: int


class InFlight:
    """By id, from the moment a request is sent until its caller has gone."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}
        self._asking: dict[int, asyncio.Future[Settled]] = {}

    @property
    def busy(self) -> Counter[str]:
        """Pictures by model."""
        pictures: Counter[str] = Counter()
        for waiting in self._waiting.values():
            pictures[waiting.model] += waiting.pictures
        return pictures

    @contextlib.contextmanager
    def waiting(self, request: Generate, on_event: OnEvent | None) -> Iterator[asyncio.Future[Finished]]:
        """A future for the answer."""
        answer: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = _Waiting(answer, on_event, request.model.id, len(request.seeds))
        try:
            yield answer
        finally:
            del self._waiting[request.id]

    @contextlib.contextmanager
    def asking(self, request_id: int) -> Iterator[asyncio.Future[Settled]]:
        """A future for what becomes of a Load or an Unload."""
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._asking[request_id] = answer
        try:
            yield answer
        finally:
            del self._asking[request_id]

    def settle(self, message: Settled | Failed) -> bool:
        """Gives a frame to the one who has asked; whether it was for one of those."""
        answer = self._asking.get(message.id)
        if answer is None:
            return isinstance(message, Settled)  # the asker has gone
        if not answer.done():
            if isinstance(message, Settled):
                answer.set_result(message)
            else:
                answer.set_exception(_error_of(message))
        return True

    def hand_out(self, message: Answer) -> None:
        """Gives a frame to the one whom it concerns."""
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

    def fail_all(self, words: str) -> None:
        """Answers all that have no answer yet with EngineUnavailable."""
        answers: list[asyncio.Future[Any]] = [waiting.answer for waiting in self._waiting.values()]
        answers += self._asking.values()
        for answer in answers:
            if not answer.done():
                answer.set_exception(EngineUnavailable(words, retry_after=5))


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
    if failed.kind == "memory":
        return OutOfMemory(failed.message)
    if failed.kind == "unusable":
        return ModelUnusable(failed.message)
    return GenerationFailed(failed.message, param=failed.param)
