"""Pictures that a provider has sent in base64 leave while they are stored; whoever comes back for the job waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hub.errors import StorageFull
from hub.hub import Hub
from hub.jobs import Job
from hub.types import ImageResult, OnEvent
from tests.test_jobs import Painter, ask, in_hub, row_of


class Relay(Painter):
    """Work whose pictures came in base64."""

    async def __call__(self, on_event: OnEvent) -> ImageResult:
        made = await super().__call__(on_event)
        return ImageResult(
            images=made.images,
            encoded=(b"cGljdHVyZQ==",),
            seed=None,
            size=made.size,
            quality="medium",
            usage=made.usage,
        )


@contextmanager
def slow_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Iterator[threading.Event]:
    """Nothing is stored before the event is set; and then nothing, where there is an error."""
    go, store = threading.Event(), hub.files._store

    def slowly(path: Path, data: bytes, read_soon: bool) -> None:
        go.wait(10)
        if error is not None:
            raise error
        store(path, data, read_soon)

    monkeypatch.setattr(hub.files, "_store", slowly)
    try:
        yield go
    finally:
        go.set()


async def taken(hub: Hub, job: Job) -> tuple[bytes, ...]:
    """What a client does that waits for base64 alone."""
    with hub.jobs.watching(job):
        await job.had()
        hub.jobs.collect(job)
        return job.encoded


def test_who_waits_has_the_pictures_before_they_are_stored_and_leaving_then_cancels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(hub: Hub) -> None:
        with slow_disk(hub, monkeypatch) as go:
            job = await hub.jobs.submit(ask(), Relay())
            assert await taken(hub, job) == (b"cGljdHVyZQ==",)
            assert not job.ended
            assert (await row_of(hub, job)).status == "queued"
            go.set()
            await job.finished()
        assert (await row_of(hub, job)).status == "completed"
        assert job.result is not None
        assert job.result.files == hub.stored()  # type: ignore[attr-defined]
        assert job.encoded == job.images == (), "nobody holds them any more"

    in_hub(tmp_path, test)


def test_whoever_comes_back_for_the_job_finds_it_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(hub: Hub) -> None:
        with slow_disk(hub, monkeypatch) as go:
            job = await hub.jobs.submit(ask(), Relay())
            await taken(hub, job)
            back: list[asyncio.Task[Any]] = [
                asyncio.create_task(hub.jobs.get(job.row.id, None)),
                asyncio.create_task(hub.jobs.newest(None, 1)),
                asyncio.create_task(hub.jobs.cancel(job)),
            ]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in back)
            go.set()
            found, (listed,), _ = await asyncio.gather(*back)
        assert found.row.status == listed.row.status == "completed"
        assert await hub.jobs.images(found) == (b"picture 1.0",)

    in_hub(tmp_path, test)


def test_an_identical_request_joins_while_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(hub: Hub) -> None:
        relay = Relay()
        with slow_disk(hub, monkeypatch) as go:
            job = await hub.jobs.submit(ask("same"), relay)
            await job.had()
            assert await hub.jobs.submit(ask("same"), relay) is job
            go.set()
            await job.finished()
        assert relay.runs == 1

    in_hub(tmp_path, test)


def test_a_hub_that_ends_stores_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []

    async def first(hub: Hub) -> None:
        with slow_disk(hub, monkeypatch) as go:
            jobs.append(await hub.jobs.submit(ask(), Relay()))
            await taken(hub, jobs[0])
            asyncio.get_running_loop().call_later(0.1, go.set)
            async with hub.jobs.running():
                pass

    async def later(hub: Hub) -> None:
        assert (await row_of(hub, jobs[0])).status == "completed"

    in_hub(tmp_path, first)
    in_hub(tmp_path, later)


def test_where_it_cannot_be_stored_the_job_has_failed_and_its_client_has_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(hub: Hub) -> None:
        with slow_disk(hub, monkeypatch, OSError(28, "full")) as go:
            job = await hub.jobs.submit(ask(), Relay())
            assert await taken(hub, job) == (b"cGljdHVyZQ==",)
            go.set()
            with pytest.raises(StorageFull):
                await job.finished()
        assert (await row_of(hub, job)).status == "failed"
        assert not hub.stored()  # type: ignore[attr-defined]

    in_hub(tmp_path, test)


def test_pictures_of_this_machine_are_stored_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(hub: Hub) -> None:
        with slow_disk(hub, monkeypatch) as go:
            job = await hub.jobs.submit(ask(), Painter())
            waiting = asyncio.create_task(job.had())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            go.set()
            assert (await waiting).files == (await job.finished()).files != []

    in_hub(tmp_path, test)


def test_an_error_reaches_who_waits_for_the_pictures(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        job = await hub.jobs.submit(ask(), Relay(error=StorageFull("no")))
        with pytest.raises(StorageFull), hub.jobs.watching(job):
            await job.had()

    in_hub(tmp_path, test)
