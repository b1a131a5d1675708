"""Server-sent events: a picture that is being made, as OpenAI streams it, and a response that frees what it held."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal

import msgspec
from litestar import Response
from litestar.types import Receive, Scope, Send
from msgspec import UNSET, Struct, UnsetType

from hub.api.answers import ImagesUsage, in_base64, rendering_of, spliced, usage_body, warnings_of
from hub.api.wire import ClientGone, ErrorResponse, unless_client_leaves
from hub.errors import HubError
from hub.hub import Hub
from hub.jobs import Job
from hub.types import Effort, Event, OutputFormat, Preview, Usage

log = logging.getLogger("hub.api")

KEEP_ALIVE = 10.0
"""Seconds of silence after which a comment is sent, so that proxies and clients see a living connection."""

PartialType = Literal["image_generation.partial_image", "image_edit.partial_image"]
CompletedType = Literal["image_generation.completed", "image_edit.completed"]


class PartialImageEvent(Struct, kw_only=True):
    """OpenAI's event of a preview. `image_index` tells the pictures of one request apart (an extension)."""

    type: PartialType
    b64_json: str
    created_at: int
    size: str
    quality: Effort
    background: str
    output_format: OutputFormat
    partial_image_index: int
    image_index: int


class CompletedEvent(Struct, kw_only=True):
    """OpenAI's event of a finished picture, one per picture. The usage of several adds up to the request's. `quality`
    is left out where neither the provider nor the request told one. `seed`, `warnings` and `image_index` are
    extensions."""

    type: CompletedType
    b64_json: str
    created_at: int
    size: str
    quality: Effort | UnsetType = UNSET
    background: str
    output_format: OutputFormat
    usage: ImagesUsage
    image_index: int
    seed: int | UnsetType = UNSET
    warnings: list[str]


class EventStream(Response[bytes]):
    """Sends events as they come. The headers leave at once; when the client leaves, and at the end, `held` is closed.

    Litestar's own streaming response would not run a generator's `finally` if the client left before its first step.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], held: contextlib.ExitStack) -> None:
        super().__init__(b"", media_type="text/event-stream")
        self._events = events
        self._held = held

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Litestar's hook: the ASGI application that answers."""
        return self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would collect the events
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with contextlib.suppress(ClientGone):
                await unless_client_leaves(receive, self._send_all(send))
        finally:
            self._held.close()

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await send({"type": "http.response.body", "body": b": stream\n\n", "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def encode_event(name: str, data: Struct) -> bytes:
    """One event; JSON has no line breaks, so its data is one line."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def error_event(error: HubError) -> bytes:
    """An error that came too late for a status."""
    return encode_event("error", ErrorResponse(error.body))


async def or_silence(queue: asyncio.Queue[Event | None], seconds: float = KEEP_ALIVE) -> AsyncIterator[Event | bytes]:
    """A job's events until its last; in between comments, when nothing has happened for some time."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                event = await queue.get()
        except TimeoutError:
            yield b": keep-alive\n\n"
            continue
        if event is None:
            return
        yield event


async def or_error(events: AsyncGenerator[bytes, None], job: Job) -> AsyncGenerator[bytes, None]:
    """The events; and what fails among them, as an `error` event, since it comes too late for a status."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    except HubError as error:
        yield error_event(error)
    except Exception:
        log.exception("%s: streaming it failed", job.row.id)
        yield error_event(HubError(f"The hub failed on this request. Its log tells why, under {job.row.id}."))


async def image_events(hub: Hub, job: Job, queue: asyncio.Queue[Event | None]) -> AsyncGenerator[bytes, None]:
    """A job as OpenAI streams it: previews, then its pictures. Raises the job's error, which can come late."""
    async for event in or_silence(queue):
        if isinstance(event, bytes):
            yield event
        elif isinstance(event, Preview):
            preview = partial_image(job, event)
            yield encode_event(preview.type, preview)
    for completed in await completed_events(hub, job):
        yield encode_event(completed.type, completed)
    hub.jobs.collect(job)


def partial_image(job: Job, preview: Preview) -> PartialImageEvent:
    """A preview's event; comes only after the job was accepted, so its plan is known. A variation is told as an edit:
    OpenAI has no events of variations."""
    if job.plan is None:
        raise RuntimeError("a preview came before its request was accepted")
    return PartialImageEvent(
        type="image_generation.partial_image" if job.row.kind == "image_generation" else "image_edit.partial_image",
        b64_json=spliced(preview.image),
        created_at=int(job.row.created_at),
        size=str(job.plan.size),
        quality=job.plan.quality,
        background=job.plan.background,
        output_format=job.plan.output_format,
        partial_image_index=preview.partial,
        image_index=preview.index,
    )


async def completed_events(hub: Hub, job: Job) -> list[CompletedEvent]:
    """One event per picture; raises the job's error where it failed."""
    result = await job.finished()
    images = await in_base64(hub, job)
    each = result.usage.output_tokens // max(1, len(images))
    told: CompletedType = "image_generation.completed" if job.row.kind == "image_generation" else "image_edit.completed"
    events = []
    for index, image in enumerate(images):
        first = index == 0
        usage = Usage(
            text_tokens=result.usage.text_tokens if first else 0,
            image_tokens=result.usage.image_tokens if first else 0,
            output_tokens=each,
        )
        events.append(
            CompletedEvent(
                type=told,
                b64_json=image,
                created_at=int(job.row.created_at),
                size=str(result.size),
                quality=result.quality if result.quality_told else UNSET,
                background=result.background,
                output_format=result.output_format,
                usage=usage_body(usage),
                image_index=index,
                seed=UNSET if result.seed is None else result.seed + index,
                warnings=warnings_of(rendering_of(job), result),
            )
        )
    return events
