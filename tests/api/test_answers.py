"""What an answer tells, and what it leaves out because nobody knows it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hub.api.answers import Rendering, images_response
from hub.api.events import completed_events
from hub.jobs import Job, JobResult
from hub.store import JobRow
from hub.types import Size, Usage


@pytest.mark.parametrize("told", [True, False])
def test_a_quality_that_nobody_has_told_is_left_out(told: bool) -> None:
    result = JobResult(
        files=["a.png"],
        seed=None,
        size=Size(64, 64),
        quality="medium",
        quality_told=told,
        output_format="png",
        usage=Usage(text_tokens=1, image_tokens=0, output_tokens=4),
        warnings=[],
    )
    row = JobRow(
        id="job_1",
        owner=None,
        kind="image_generation",
        model="x",
        status="completed",
        created_at=1,
        expires_at=2,
        rendering=msgspec.json.encode(Rendering(response_format="url", extended=True, warnings=[])),
        result=msgspec.json.encode(result),
    )
    job = Job(row)
    job.encoded = (b"AAAA",)
    hub: Any = SimpleNamespace(files=SimpleNamespace(link=lambda name: f"/{name}"))
    answer = msgspec.to_builtins(asyncio.run(images_response(job, hub, "http://hub")))
    assert answer["data"] == [{"url": "http://hub/a.png"}]
    (event,) = [msgspec.json.decode(msgspec.json.encode(each)) for each in asyncio.run(completed_events(hub, job))]
    assert answer.get("quality") == event.get("quality") == ("medium" if told else None)
    assert ("quality" in answer, "quality" in event) == (told, told)
