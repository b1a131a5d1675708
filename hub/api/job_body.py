"""The job object of the wire."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from hub.api.answers import ImagesResponse, images_response
from hub.errors import ErrorBody
from hub.hub import Hub
from hub.jobs import Job, Kind

JobStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class ImageJob(Struct, kw_only=True):
    """A job as OpenAI's own objects look. Times are unix seconds. `queue_position`: 1 is next; null when it does not
    wait. `step` of `steps`: denoising steps over all its pictures, 0 before the first. `progress`: per cent. `eta`:
    seconds until the last step, null while unknown. `result` is the whole answer once it is completed; `error` tells
    why it failed."""

    id: str
    object: Literal["image.job"] = "image.job"
    kind: Kind
    model: str
    status: JobStatus
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int
    queue_position: int | None
    step: int
    steps: int
    progress: int
    eta: float | None
    result: ImagesResponse | None
    error: ErrorBody | None


async def job_body(job: Job, hub: Hub, origin: str, *, with_result: bool = True) -> ImageJob:
    """A job as it is now; links are new each time and begin with `origin`. Raises NotFound where the pictures that
    are to be in the result are gone."""
    row = job.row
    completed = row.status == "completed" and job.ended
    status = "in_progress" if row.status == "completed" and not job.ended else row.status  # it is being stored
    return ImageJob(
        id=row.id,
        kind=row.kind,  # type: ignore[arg-type]  # the column holds what a Kind was
        model=row.model,
        status=status,  # type: ignore[arg-type]
        created_at=int(row.created_at),
        started_at=_seconds(row.started_at),
        completed_at=_seconds(row.completed_at),
        expires_at=int(row.expires_at),
        queue_position=hub.jobs.position(job),
        step=row.step,
        steps=row.steps,
        progress=100 if completed else 100 * row.step // max(1, row.steps),
        eta=None if job.eta is None else round(job.eta, 2),
        result=await images_response(job, hub, origin) if completed and with_result else None,
        error=msgspec.json.decode(row.error, type=ErrorBody) if row.error else None,
    )


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
