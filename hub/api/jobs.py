"""GET, follow and cancel the jobs that requests for images become: /v1/images/jobs, also under /api."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator
from typing import Literal

import msgspec
from litestar import Response, delete, get
from litestar.params import FromPath
from msgspec import Struct

from hub.api.described import answer, as_events, as_json, errors, operation, path, query
from hub.api.events import EventStream, PartialImageEvent, encode_event, or_error, or_silence, partial_image
from hub.api.job_body import ImageJob, job_body
from hub.api.refusals import unknown_parameter
from hub.api.wire import TARGET, AnyRequest, ErrorResponse, origin_for_links, owner_of, query_value
from hub.errors import InvalidRequest
from hub.hub import Hub
from hub.jobs import Job
from hub.types import Event, Preview

MAX_LISTED = 100
NEWS_INTERVAL = 0.1
"""Seconds between two events of progress, at least."""

ELSEWHERE_INTERVAL = 1.0
"""Seconds between two looks at a job of another process."""

JOB_ID_PATH = path("job_id", "The job's id: in `x-job-id` of every answer, and in the job itself.")


class ImageJobList(Struct, kw_only=True):
    """OpenAI's list, newest first; the jobs are without their results."""

    object: Literal["list"] = "list"
    data: list[ImageJob]


class ImageJobDeleted(Struct, kw_only=True):
    """A job that had ended, and is gone now with its pictures."""

    id: str
    object: Literal["image.job"] = "image.job"
    deleted: Literal[True] = True


JobEventType = Literal["job.progress", "job.completed", "job.failed", "job.cancelled"]
_ENDS: dict[str, JobEventType] = {
    "completed": "job.completed",
    "failed": "job.failed",
    "cancelled": "job.cancelled",
}


class JobEvent(Struct, kw_only=True):
    """`job.progress` while it waits or runs, without a result; then its end, with it."""

    type: JobEventType
    job: ImageJob


@get(
    ["/v1/images/jobs", "/api/images/jobs"],
    operation_class=operation(
        answers={200: as_json(ImageJobList)},
        parameters=[query("limit", "How many, at most.", type="integer", minimum=1, maximum=MAX_LISTED, default=20)],
    ),
    responses=errors(400),
    summary="List jobs",
)
async def list_jobs(request: AnyRequest) -> Response[bytes]:
    """The caller's newest jobs: where a client finds what it asked for before its connection broke."""
    hub: Hub = request.app.state.hub
    for name in request.query_params:
        if name != "limit":
            raise unknown_parameter(name)
    text = query_value(request, "limit")
    text = "20" if text is None else text
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_LISTED:
        raise InvalidRequest(f"Invalid 'limit': it must be 1 to {MAX_LISTED}.", param="limit")
    found = await hub.jobs.newest(owner_of(request), int(text))
    return _json(ImageJobList(data=[await job_body(job, hub, "", with_result=False) for job in found]))


@get(
    ["/v1/images/jobs/{job_id:str}", "/api/images/jobs/{job_id:str}"],
    operation_class=operation(answers={200: as_json(ImageJob)}, parameters=[JOB_ID_PATH], headers=["x-hub-target"]),
    responses=errors(404),
    summary="Get a job",
)
async def get_job(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Its state, and its result once it is completed: links, or base64 where its request asked for that."""
    hub: Hub = request.app.state.hub
    job = await hub.jobs.get(job_id, owner_of(request))
    body = await job_body(job, hub, origin_for_links(request, hub.settings))
    if body.result is not None:
        hub.jobs.collect(job)
    if job.result is not None:
        request.scope["state"][TARGET] = job.result.target
    return _json(body)


@delete(
    ["/v1/images/jobs/{job_id:str}", "/api/images/jobs/{job_id:str}"],
    status_code=200,
    operation_class=operation(
        answers={
            200: answer(
                as_json(ImageJob),
                as_json(ImageJobDeleted),
                description="The job, cancelled; or, where it had ended, that it is deleted.",
            )
        },
        parameters=[JOB_ID_PATH],
    ),
    responses=errors(400, 404),
    summary="Cancel or delete a job",
)
async def delete_job(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Cancels a job that waits or runs: the device is free within one step. Deletes one that has ended, with its
    pictures."""
    hub: Hub = request.app.state.hub
    job = await hub.jobs.get(job_id, owner_of(request))
    if job.ended:
        await hub.jobs.delete(job)
        return _json(ImageJobDeleted(id=job_id))
    if job.task is None:
        words = "This job runs in another hub process on the same cache; cancel it there."
        raise InvalidRequest(words, param="job_id", code="unsupported_value")
    await hub.jobs.cancel(job)
    return _json(await job_body(job, hub, origin_for_links(request, hub.settings)))


@get(
    ["/v1/images/jobs/{job_id:str}/events", "/api/images/jobs/{job_id:str}/events"],
    operation_class=operation(
        answers={200: as_events(JobEvent, PartialImageEvent, ErrorResponse)},
        parameters=[JOB_ID_PATH],
    ),
    responses=errors(404),
    summary="Follow a job",
)
async def follow_job(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """The job as it is now, its progress and previews as they come, and its end. Leaving changes nothing."""
    hub: Hub = request.app.state.hub
    job = await hub.jobs.get(job_id, owner_of(request))
    with contextlib.ExitStack() as held:
        queue = held.enter_context(job.events())
        events = job_events(hub, job, queue, origin_for_links(request, hub.settings))
        return EventStream(or_error(events, job), held.pop_all())


async def job_events(
    hub: Hub, job: Job, queue: asyncio.Queue[Event | None], origin: str
) -> AsyncGenerator[bytes, None]:
    """A job's events, from its state now to its end. Raises HubError where it or its pictures are deleted meanwhile."""

    async def event(kind: JobEventType, *, with_result: bool = False) -> bytes:
        body = await job_body(job, hub, origin, with_result=with_result)
        return encode_event(kind, JobEvent(type=kind, job=body))

    if not job.ended:
        yield await event("job.progress")
    while not job.ended and job.task is None:  # another hub process on this cache runs it
        await asyncio.sleep(ELSEWHERE_INTERVAL)
        job = await hub.jobs.get(job.row.id, job.row.owner)
        if job.ended:
            queue.put_nowait(None)
        else:
            yield await event("job.progress")
    told = time.monotonic()
    async for news in or_silence(queue):
        if isinstance(news, bytes):
            yield news
        elif isinstance(news, Preview):
            preview = partial_image(job, news)
            yield encode_event(preview.type, preview)
        elif time.monotonic() - told >= NEWS_INTERVAL:
            told = time.monotonic()
            yield await event("job.progress")
    yield await event(_ENDS[job.row.status], with_result=True)
    if job.row.status == "completed":
        hub.jobs.collect(job)


def _json(body: Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type="application/json")
