"""The life of jobs, with a real database and real files, and with fake work."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub.errors import (
    EngineUnavailable,
    ErrorBody,
    HubError,
    IdempotencyKeyReuse,
    InvalidRequest,
    JobCancelled,
    NotFound,
    QueueFull,
    StorageFull,
)
from hub.files import Files
from hub.jobs import RESTARTED, Ask, Job, Jobs, Work
from hub.store import JobRow, Store
from hub.types import Accepted, ImageResult, OnEvent, Preview, Progress, Size, Usage

TTL = 1000.0
SIZE = Size(64, 64)


class Hub:
    """Jobs over a store and files in one folder."""

    def __init__(self, folder: Path, max_running: int, ttl: float) -> None:
        self.folder = folder
        self.files = Files(folder, 60)
        self.store = Store(folder)
        self.jobs = Jobs(self.store, self.files, ttl, max_running)

    def stored(self) -> list[str]:
        return sorted(os.listdir(self.folder / "files"))


@asynccontextmanager
async def open_hub(folder: Path, max_running: int = 8, ttl: float = TTL) -> AsyncIterator[Hub]:
    hub = Hub(folder, max_running, ttl)
    async with hub.store.running(msgspec.json.encode(RESTARTED)), hub.jobs.running():
        yield hub


class Painter:
    """Fake work that says how often it ran, and goes on when it is told to."""

    def __init__(self, *, waits: bool = False, error: Exception | None = None, images: int = 1) -> None:
        self.runs = 0
        self.cancelled = 0
        self.error = error
        self.images = images
        self.go = asyncio.Event()
        self.hear: OnEvent | None = None
        if not waits:
            self.go.set()

    async def __call__(self, on_event: OnEvent) -> ImageResult:
        self.runs += 1
        self.hear = on_event
        number = self.runs
        on_event(Accepted(size=SIZE, quality="medium", output_format="png"))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        images = tuple(f"picture {number}.{k}".encode() for k in range(self.images))
        usage = Usage(text_tokens=1, image_tokens=2, output_tokens=3)
        return ImageResult(images=images, seed=7, size=SIZE, quality="medium", warnings=("w",), usage=usage)


def ask(
    fingerprint: str | None = None, key: str | None = None, owner: str | None = None, goes_on: bool = False, **how: Any
) -> Ask:
    values = {"kind": "image_generation", "model": "builtin", "rendering": b"{}", "output_format": "png", **how}
    return Ask(owner=owner, fingerprint=fingerprint, idempotency_key=key, goes_on=goes_on, **values)


async def answered(hub: Hub, job: Job) -> bytes:
    """What a client does that waits: the picture."""
    with hub.jobs.watching(job):
        await job.finished()
        hub.jobs.collect(job)
        return (await hub.jobs.images(job))[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def row_of(hub: Hub, job: Job) -> JobRow:
    row = await hub.store.get(job.row.id)
    assert row is not None
    return row


def in_hub(folder: Path, test: Callable[[Hub], Awaitable[None]], **how: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), open_hub(folder, **how) as hub:
            await test(hub)

    asyncio.run(main())


def test_a_job_is_stored_with_its_pictures_and_can_be_had_again(tmp_path: Path) -> None:
    made: dict[str, Any] = {}

    async def first(hub: Hub) -> None:
        job = await hub.jobs.submit(ask(), Painter(images=2))
        assert job.row.status == "queued"
        assert await answered(hub, job) == b"picture 1.0"
        made["id"], made["result"] = job.row.id, await job.finished()

    async def later(hub: Hub) -> None:
        job = await hub.jobs.get(made["id"], None)
        assert job.ended
        assert job.row.status == "completed"
        assert await job.finished() == made["result"]
        assert await hub.jobs.images(job) == (b"picture 1.0", b"picture 1.1")
        assert sorted(job.result.files if job.result else []) == hub.stored()

    in_hub(tmp_path, first)
    result = made["result"]
    assert (result.seed, result.size, result.quality, result.warnings) == (7, SIZE, "medium", ["w"])
    assert result.usage == Usage(text_tokens=1, image_tokens=2, output_tokens=3)
    in_hub(tmp_path, later)


def test_identical_requests_in_flight_share_one_run_and_different_ones_do_not(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = [await hub.jobs.submit(ask("same"), painter) for _ in range(5)]
        others = [await hub.jobs.submit(ask(fingerprint), painter) for fingerprint in ("other", None, None)]
        assert len({job.row.id for job in jobs}) == 1
        assert len({job.row.id for job in (*jobs, *others)}) == 4
        waiting = [asyncio.create_task(answered(hub, job)) for job in (*jobs, *others)]
        await until(lambda: painter.runs == 4)
        painter.go.set()
        pictures = await asyncio.gather(*waiting)
        assert pictures[:5] == pictures[:1] * 5
        assert len(set(pictures)) == 4
        assert len(hub.stored()) == 4

    in_hub(tmp_path, test)


@pytest.mark.parametrize("key", [None, "key"])
def test_requests_of_different_owners_never_share(tmp_path: Path, key: str | None) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = [await hub.jobs.submit(ask("same", key, owner), painter) for owner in ("alice", "bob", None)]
        assert len({job.row.id for job in jobs}) == 3
        painter.go.set()
        pictures = [await answered(hub, job) for job in jobs]
        assert len(set(pictures)) == 3
        for job, owner in zip(jobs, ("alice", "bob", None), strict=True):
            again = await hub.jobs.submit(ask("same", key, owner), painter)
            assert (again.row.id == job.row.id) == (key is not None), "a key's answer is its owner's alone"
            await answered(hub, again)

    in_hub(tmp_path, test)


def test_a_key_leads_back_to_its_job_even_after_a_restart(tmp_path: Path) -> None:
    ids: list[str] = []

    async def test(hub: Hub) -> None:
        painter = Painter()
        for _ in range(2):
            job = await hub.jobs.submit(ask("body", "key"), painter)
            assert await answered(hub, job) == b"picture 1.0"
            ids.append(job.row.id)
        assert painter.runs == (0 if len(ids) > 2 else 1)

    in_hub(tmp_path, test)
    in_hub(tmp_path, test)
    assert len(set(ids)) == 1


def test_a_key_with_another_request_is_refused_in_flight_and_afterwards(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask("body", "key"), painter)
        with pytest.raises(IdempotencyKeyReuse) as caught:
            await hub.jobs.submit(ask("another body", "key"), painter)
        assert caught.value.status == 409
        painter.go.set()
        await answered(hub, job)
        with pytest.raises(IdempotencyKeyReuse):
            await hub.jobs.submit(ask("another body", "key"), painter)
        assert painter.runs == 1

    in_hub(tmp_path, test)


def test_a_key_whose_job_failed_or_was_cancelled_starts_anew(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        broken = Painter(error=InvalidRequest("no"))
        with pytest.raises(InvalidRequest):
            await answered(hub, await hub.jobs.submit(ask("body", "key"), broken))
        waiting = Painter(waits=True)
        job = await hub.jobs.submit(ask("body", "key"), waiting)
        await until(lambda: waiting.runs == 1)
        await hub.jobs.cancel(job)
        assert await answered(hub, await hub.jobs.submit(ask("another body", "key"), Painter())) == b"picture 1.0"

    in_hub(tmp_path, test)


def test_a_key_whose_files_are_gone_starts_anew(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(images=2)
        job = await hub.jobs.submit(ask("body", "key"), painter)
        await answered(hub, job)
        assert job.result is not None
        await hub.files.delete(job.result.files[1:])
        assert await answered(hub, await hub.jobs.submit(ask("body", "key"), painter)) == b"picture 2.0"
        await answered(hub, await hub.jobs.submit(ask("body", "key"), painter))
        assert painter.runs == 2

    in_hub(tmp_path, test)


def test_concurrent_requests_with_one_key_make_one_run(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = await asyncio.gather(*(hub.jobs.submit(ask("body", "key"), painter) for _ in range(20)))
        painter.go.set()
        assert set(await asyncio.gather(*(answered(hub, job) for job in jobs))) == {b"picture 1.0"}
        assert painter.runs == 1
        assert len({job.row.id for job in jobs}) == 1

    in_hub(tmp_path, test)


def test_a_key_is_not_joined_by_an_identical_request_without_it(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        keyed = await hub.jobs.submit(ask("body", "key"), painter)
        plain = await hub.jobs.submit(ask("body"), painter)
        other = await hub.jobs.submit(ask("body", "another key"), painter)
        assert len({keyed.row.id, plain.row.id, other.row.id}) == 3

    in_hub(tmp_path, test)


def test_more_than_the_bound_is_refused_and_an_ended_job_makes_room(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = [await hub.jobs.submit(ask(str(k)), painter) for k in range(3)]
        with pytest.raises(QueueFull) as caught:
            await hub.jobs.submit(ask("another"), painter)
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "5"})
        assert await hub.jobs.submit(ask("1"), painter) is jobs[1], "joining needs no place"
        await hub.jobs.cancel(jobs[0])
        more = await hub.jobs.submit(ask("another"), painter)
        with pytest.raises(QueueFull):
            await hub.jobs.submit(ask("and another"), painter)
        painter.go.set()
        await asyncio.gather(*(answered(hub, job) for job in (*jobs[1:], more)))
        for k in range(10):
            await answered(hub, await hub.jobs.submit(ask(f"later {k}"), painter))

    in_hub(tmp_path, test, max_running=3)


def test_the_work_is_cancelled_when_the_last_watcher_leaves_and_not_before(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask("same"), painter)
        first = hub.jobs.watching(job)
        second = hub.jobs.watching(await hub.jobs.submit(ask("same"), painter))
        first.__enter__()
        second.__enter__()
        await until(lambda: painter.runs == 1)
        first.__exit__(None, None, None)
        await asyncio.sleep(0.05)
        assert (painter.cancelled, job.ended) == (0, False)
        second.__exit__(None, None, None)
        await until(lambda: job.ended)
        assert painter.cancelled == 1
        assert (await row_of(hub, job)).status == "cancelled"
        with pytest.raises(JobCancelled):
            await job.finished()

    in_hub(tmp_path, test)


@pytest.mark.parametrize("joins", [False, True])
def test_a_job_that_goes_on_is_finished_without_watchers_also_where_the_second_request_asked(
    tmp_path: Path, joins: bool
) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask("same", goes_on=not joins), painter)
        with hub.jobs.watching(job):
            if joins:
                await hub.jobs.submit(ask("same", goes_on=True), painter)
            await until(lambda: painter.runs == 1)
        await asyncio.sleep(0.02)
        assert painter.cancelled == 0
        painter.go.set()
        await until(lambda: job.ended)
        again = await hub.jobs.get(job.row.id, None)
        assert await hub.jobs.images(again) == (b"picture 1.0",)

    in_hub(tmp_path, test)


def test_a_request_that_joins_a_cancelled_run_is_not_possible_and_the_next_starts_afresh(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask("same"), painter)
        with hub.jobs.watching(job):
            await until(lambda: painter.runs == 1)
        next_one = await hub.jobs.submit(ask("same"), painter)  # in the same tick as the cancellation
        assert next_one is not job
        painter.go.set()
        assert await answered(hub, next_one) == b"picture 2.0"
        assert (await row_of(hub, job)).status == "cancelled"

    in_hub(tmp_path, test)


def test_a_result_that_nobody_took_goes_to_the_next_identical_request_and_to_no_other(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask("same", goes_on=True), painter)
        with hub.jobs.watching(job):
            pass  # it left at once
        await until(lambda: job.ended)
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 1.0"
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 2.0"
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 3.0"

    in_hub(tmp_path, test)


def test_a_result_that_was_fetched_by_its_id_is_collected(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask("same", goes_on=True), painter)
        await until(lambda: job.ended)
        hub.jobs.collect(await hub.jobs.get(job.row.id, None))
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 2.0"

    in_hub(tmp_path, test)


def test_a_deleted_job_is_not_handed_to_the_next_identical_request(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask("same", goes_on=True), painter)
        await until(lambda: job.ended)
        await hub.jobs.delete(await hub.jobs.get(job.row.id, None))
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 2.0"

    in_hub(tmp_path, test)


def test_a_result_whose_files_are_gone_is_not_handed_to_the_next_identical_request(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask("same", goes_on=True), painter)
        await until(lambda: job.ended)
        shutil.rmtree(hub.folder / "files")
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 2.0"

    in_hub(tmp_path, test)


def test_one_that_joins_what_was_abandoned_lets_alone_what_somebody_waits_for(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        again = ask("same", goes_on=True, joins="abandoned")
        first = await hub.jobs.submit(again, painter)
        with hub.jobs.watching(first):
            second = await hub.jobs.submit(again, painter)
            assert second is not first
            with hub.jobs.watching(second):
                pass
        with hub.jobs.watching(second):
            assert await hub.jobs.submit(again, painter) is first, "the second one has not displaced it"
        painter.go.set()
        await until(lambda: first.ended and second.ended)
        images = [await answered(hub, await hub.jobs.submit(again, painter)) for _ in range(3)]
        assert sorted(images) == [b"picture 1.0", b"picture 2.0", b"picture 3.0"]

    in_hub(tmp_path, test)


def test_two_that_come_at_once_for_a_result_that_nobody_took_are_not_given_the_same(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter, again = Painter(), ask("same", goes_on=True, joins="abandoned")
        job = await hub.jobs.submit(again, painter)
        await until(lambda: job.ended)

        async def come() -> bytes:
            return await answered(hub, await hub.jobs.submit(again, painter))

        assert len(set(await asyncio.gather(come(), come(), come()))) == 3

    in_hub(tmp_path, test)


def test_an_uncollected_result_is_forgotten_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.jobs.UNCOLLECTED", 0.05)

    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask("same", goes_on=True), painter)
        await until(lambda: job.ended)
        await asyncio.sleep(0.1)
        assert await answered(hub, await hub.jobs.submit(ask("same"), painter)) == b"picture 2.0"
        assert (await hub.jobs.get(job.row.id, None)).result is not None, "its id still leads to it"

    in_hub(tmp_path, test)


def test_a_failure_is_not_handed_to_the_next_identical_request(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        job = await hub.jobs.submit(ask("same", goes_on=True), Painter(error=HubError("broken")))
        await until(lambda: job.ended)
        assert await answered(hub, await hub.jobs.submit(ask("same"), Painter())) == b"picture 1.0"

    in_hub(tmp_path, test)


def test_cancelling_ends_all_that_wait(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask("same"), painter)
        waiting = [asyncio.create_task(answered(hub, job)) for _ in range(3)]
        with job.events() as queue:
            await until(lambda: painter.runs == 1)
            await hub.jobs.cancel(await hub.jobs.get(job.row.id, None))
            assert job.ended
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(each) for each in results] == [JobCancelled] * 3
            events = [queue.get_nowait() for _ in range(queue.qsize())]
            assert events[-1] is None
        row = await row_of(hub, job)
        assert (row.status, row.error, row.result) == ("cancelled", None, None)
        assert row.completed_at is not None
        await hub.jobs.cancel(job)  # once more: nothing to do
        assert hub.stored() == []

    in_hub(tmp_path, test)


def test_cancelling_twice_at_once_ends_the_job_once(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask(), painter)
        waiting = asyncio.create_task(answered(hub, job))
        await until(lambda: painter.runs == 1)

        async def after(turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await hub.jobs.cancel(job)

        await asyncio.gather(*(after(turns) for turns in range(6)))
        assert job.ended
        with pytest.raises(JobCancelled):
            await waiting
        assert (await row_of(hub, job)).status == "cancelled"

    in_hub(tmp_path, test, max_running=1)


@pytest.mark.parametrize("how", ["leaves", "cancels"])
@pytest.mark.parametrize("turns", range(6))
def test_a_client_that_leaves_while_the_result_is_written_down_leaves_no_job_behind(
    tmp_path: Path, how: str, turns: int
) -> None:
    async def test(hub: Hub) -> None:
        job = await hub.jobs.submit(ask("same"), Painter())
        with hub.jobs.watching(job):
            await until(lambda: job.result is not None)  # all that is left is to write it down
            for _ in range(turns):
                await asyncio.sleep(0)
            if how == "cancels":
                await hub.jobs.cancel(job)
        await until(lambda: job.ended)
        assert (await row_of(hub, job)).status in ("completed", "cancelled")
        assert await answered(hub, await hub.jobs.submit(ask("next"), Painter())) == b"picture 1.0"

    in_hub(tmp_path, test, max_running=1)


def test_a_job_that_is_cancelled_before_it_has_begun_ends(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        job = await hub.jobs.submit(ask(), painter)
        await hub.jobs.cancel(job)  # its task has not had a turn
        assert job.ended
        with pytest.raises(JobCancelled):
            await job.finished()
        assert await answered(hub, await hub.jobs.submit(ask(), painter))

    in_hub(tmp_path, test, max_running=1)


def test_deleting_takes_the_files_and_the_row(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        kept = await hub.jobs.submit(ask(), Painter())
        job = await hub.jobs.submit(ask("body", "key"), Painter(images=3))
        await answered(hub, kept)
        await answered(hub, job)
        assert len(hub.stored()) == 4
        await hub.jobs.delete(await hub.jobs.get(job.row.id, None))
        assert len(hub.stored()) == 1
        with pytest.raises(NotFound):
            await hub.jobs.get(job.row.id, None)
        assert [each.row.id for each in await hub.jobs.newest(None, 10)] == [kept.row.id]
        again = await hub.jobs.submit(ask("body", "key"), Painter())
        assert again.row.id != job.row.id

    in_hub(tmp_path, test)


def test_a_job_of_another_key_is_not_found_and_not_listed(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = [await hub.jobs.submit(ask(owner=owner), painter) for owner in ("alice", "bob", None)]
        await until(lambda: painter.runs == 3)
        for _ in range(2):  # while they run, and afterwards
            for job in jobs:
                for owner in ("alice", "bob", None):
                    if owner == job.row.owner:
                        assert (await hub.jobs.get(job.row.id, owner)).row.id == job.row.id
                        assert [each.row.id for each in await hub.jobs.newest(owner, 10)] == [job.row.id]
                        continue
                    with pytest.raises(NotFound):
                        await hub.jobs.get(job.row.id, owner)
            painter.go.set()
            await asyncio.gather(*(answered(hub, job) for job in jobs))
        with pytest.raises(NotFound):
            await hub.jobs.get("job_unknown", None)

    in_hub(tmp_path, test)


def test_an_expired_job_is_not_found(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        job = await hub.jobs.submit(ask("body", "key"), Painter())
        await answered(hub, job)
        assert (await hub.jobs.get(job.row.id, None)).row.status == "completed"
        await asyncio.sleep(0.35)
        with pytest.raises(NotFound):
            await hub.jobs.get(job.row.id, None)
        assert await hub.jobs.newest(None, 10) == []
        assert (await hub.jobs.submit(ask("body", "key"), Painter())).row.id != job.row.id

    in_hub(tmp_path, test, ttl=0.3)


def test_the_time_of_a_job_and_its_pictures_counts_from_its_end(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask(), painter)
        await until(lambda: painter.runs == 1)
        await asyncio.sleep(0.2)
        painter.go.set()
        await answered(hub, job)
        assert job.row.expires_at - job.row.created_at > TTL + 0.2
        assert (await row_of(hub, job)).expires_at == job.row.expires_at
        (name,) = hub.stored()
        assert int(name[33:-4]) == int(job.row.expires_at)

    in_hub(tmp_path, test)


def test_expired_rows_are_swept_at_once(tmp_path: Path) -> None:
    async def first(hub: Hub) -> None:
        await answered(hub, await hub.jobs.submit(ask(), Painter()))

    def rows() -> int:
        with sqlite3.connect(tmp_path / "hub.db") as database:
            count = database.execute("SELECT count(*) FROM jobs").fetchone()[0]
        database.close()
        return int(count)

    async def later(hub: Hub) -> None:
        await until(lambda: rows() == 0)

    in_hub(tmp_path, first, ttl=0.01)
    assert rows() == 1
    time.sleep(0.05)
    in_hub(tmp_path, later)


def test_the_position_counts_those_that_wait_and_the_eta_the_steps_to_come(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painters = [Painter(waits=True) for _ in range(4)]
        jobs = [await hub.jobs.submit(ask(), painter) for painter in painters]
        await until(lambda: all(painter.runs for painter in painters))
        assert [hub.jobs.position(job) for job in jobs] == [1, 2, 3, 4]
        assert [job.eta for job in jobs] == [None] * 4
        hear = painters[0].hear
        assert hear is not None
        hear(Progress(step=1, steps=11))
        assert jobs[0].row.status == "in_progress"
        assert jobs[0].eta is None, "one step tells no speed"
        assert [hub.jobs.position(job) for job in jobs] == [None, 1, 2, 3]
        await asyncio.sleep(0.1)
        hear(Progress(step=3, steps=11))  # two steps took 0.1 s, eight are to come
        eta = jobs[0].eta
        assert eta is not None
        assert 0.39 < eta < 1.5
        await hub.jobs.cancel(jobs[1])
        assert [hub.jobs.position(job) for job in jobs] == [None, None, 1, 2]
        painters[0].go.set()
        await answered(hub, jobs[0])
        assert jobs[0].eta is None
        row = await row_of(hub, jobs[0])
        assert (row.step, row.steps, row.status) == (3, 11, "completed")
        assert row.created_at <= (row.started_at or 0) <= (row.completed_at or 0) <= time.time()
        assert hub.jobs.position(await hub.jobs.get(jobs[0].row.id, None)) is None

    in_hub(tmp_path, test)


def test_that_a_job_has_started_is_stored_while_it_runs_and_never_over_its_end(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask(), painter)
        await until(lambda: painter.runs == 1)
        assert (await row_of(hub, job)).started_at is None
        assert painter.hear is not None
        painter.hear(Progress(step=0, steps=8))
        async with asyncio.timeout(10):
            while (row := await row_of(hub, job)).status != "in_progress":
                await asyncio.sleep(0.001)
        assert row.created_at <= (row.started_at or 0) == job.row.started_at
        assert row.steps == 8
        painter.hear(Progress(step=1, steps=8))
        painter.go.set()
        await answered(hub, job)
        await hub.store.start(job.row.id, 1.0, 1)
        row = await row_of(hub, job)
        assert (row.status, row.started_at, row.steps) == ("completed", job.row.started_at, 8)

    in_hub(tmp_path, test)


def test_a_start_that_cannot_be_stored_does_not_hurt_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: Any) -> None:
        raise StorageFull("The hub's disk is full.")

    async def test(hub: Hub) -> None:
        monkeypatch.setattr(hub.store, "start", full)
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask(), painter)
        await until(lambda: painter.runs == 1)
        assert painter.hear is not None
        painter.hear(Progress(step=1, steps=8))
        painter.go.set()
        assert await answered(hub, job) == b"picture 1.0"

    in_hub(tmp_path, test)
    assert "its start could not be stored" in caplog.text


def test_all_that_listen_hear_each_event_in_order_and_then_the_end(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        job = await hub.jobs.submit(ask(), painter)
        with job.events() as early:
            await until(lambda: painter.runs == 1)
            assert painter.hear is not None
            painter.hear(Progress(step=1, steps=2))
            with job.events() as late:
                painter.hear(Preview(index=0, partial=0, image=b"half"))
                painter.go.set()
                await answered(hub, job)
                heard = [[queue.get_nowait() for _ in range(queue.qsize())] for queue in (early, late)]
        plan = Accepted(size=SIZE, quality="medium", output_format="png")
        events = [plan, Progress(step=1, steps=2), Preview(index=0, partial=0, image=b"half"), None]
        assert heard == [events, events[2:]]
        assert job.plan == plan
        with job.events() as after:
            assert after.get_nowait() is None

    in_hub(tmp_path, test)


def test_accepted_waits_for_the_check_and_tells_its_error(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        await (await hub.jobs.submit(ask(), Painter(waits=True))).accepted()

        async def refuse(on_event: OnEvent) -> ImageResult:
            raise InvalidRequest("size: no.", param="size")

        job = await hub.jobs.submit(ask(), refuse)
        with pytest.raises(InvalidRequest, match="size: no"):
            await job.accepted()

    in_hub(tmp_path, test)


def test_an_error_is_told_to_all_and_kept_in_its_public_words(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        error = EngineUnavailable("The engine ended.", param="x", retry_after=5)
        job = await hub.jobs.submit(ask("same"), Painter(error=error))
        results = await asyncio.gather(answered(hub, job), answered(hub, job), return_exceptions=True)
        assert results == [error, error]
        row = await row_of(hub, job)
        assert row.status == "failed"
        kept = msgspec.json.decode(row.error or b"", type=ErrorBody)
        assert kept == ErrorBody(message="The engine ended.", type="server_error", param="x", code="engine_unavailable")
        again = await hub.jobs.get(job.row.id, None)
        assert again.ended
        with pytest.raises(NotFound):
            await hub.jobs.images(again)

    in_hub(tmp_path, test)


@pytest.mark.parametrize("error", [RuntimeError("/home/secret/path 0x7f"), MemoryError(), KeyError("secret")])
def test_an_unexpected_error_is_a_failed_job_whose_words_say_nothing_of_the_inside(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(hub: Hub) -> None:
        job = await hub.jobs.submit(ask(), Painter(error=error))
        with pytest.raises(HubError) as caught:
            await answered(hub, job)
        row = await row_of(hub, job)
        for words in (caught.value.message, (row.error or b"").decode()):
            assert not {"secret", "0x7f", "Traceback", type(error).__name__} & set(words.replace("/", " ").split())
            assert "secret" not in words
        assert (caught.value.status, caught.value.code, row.status) == (500, "internal_error", "failed")

    in_hub(tmp_path, test)
    assert "Traceback" in caplog.text, "the log has it"


def test_at_the_end_of_the_hub_unfinished_jobs_are_marked_as_failed(tmp_path: Path) -> None:
    ids: list[str] = []
    waiting: list[asyncio.Task[bytes]] = []

    async def first(hub: Hub) -> None:
        painter = Painter(waits=True)
        for goes_on in (False, True):
            job = await hub.jobs.submit(ask(goes_on=goes_on), painter)
            waiting.append(asyncio.create_task(answered(hub, job)))
            ids.append(job.row.id)
        await until(lambda: painter.runs == 2)
        done = await hub.jobs.submit(ask(), Painter())
        await answered(hub, done)
        ids.append(done.row.id)

    async def main() -> None:
        async with asyncio.timeout(20):
            async with open_hub(tmp_path) as hub:
                await first(hub)
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(each, HubError) for each in results)
            async with open_hub(tmp_path) as hub:
                jobs = [await hub.jobs.get(job_id, None) for job_id in ids]
                assert [job.row.status for job in jobs] == ["failed", "failed", "completed"]
                for job in jobs[:2]:
                    assert msgspec.json.decode(job.row.error or b"", type=ErrorBody) == RESTARTED
                    assert job.row.completed_at is not None

    asyncio.run(main())


def test_pictures_leave_the_memory_when_nobody_watches(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = [
            await hub.jobs.submit(ask("watched"), painter),
            await hub.jobs.submit(ask("left", goes_on=True), painter),
            await hub.jobs.submit(ask("body", "key", goes_on=True), painter),
        ]
        with hub.jobs.watching(jobs[0]):
            await until(lambda: painter.runs == 3)
            painter.go.set()
            await until(lambda: all(job.ended for job in jobs))
            assert jobs[0].images
            assert jobs[1].images == jobs[2].images == ()
        assert jobs[0].images == ()
        assert not hub.jobs._live
        for job in jobs:
            assert await hub.jobs.images(job)

    in_hub(tmp_path, test)


def test_nothing_is_kept_of_a_hundred_jobs(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        for k in range(30):
            how = ({}, {"fingerprint": str(k)}, {"fingerprint": str(k), "key": str(k)})[k % 3]
            painter = Painter(error=HubError("no") if k % 5 == 0 else None, waits=k % 7 == 0)
            job = await hub.jobs.submit(ask(**how), painter)
            if k % 7 == 0:
                await hub.jobs.cancel(job)
                continue
            await asyncio.gather(answered(hub, job), return_exceptions=True)
        assert (hub.jobs._live, hub.jobs._keyed, hub.jobs._alike) == ({}, {}, {})

    in_hub(tmp_path, test)


def failing(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize(("owner", "name"), [(Store, "add"), (Store, "save"), (Files, "save")])
@pytest.mark.parametrize("error", [StorageFull("The hub's disk is full."), sqlite3.OperationalError("/secret/path")])
def test_a_job_that_cannot_be_stored_has_failed_and_the_next_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception
) -> None:
    async def test(hub: Hub) -> None:
        with monkeypatch.context() as patch:
            failing(patch, owner, name, error)
            job = await hub.jobs.submit(ask("same", goes_on=True), Painter())
            with pytest.raises(HubError) as caught:
                await answered(hub, job)
        assert job.ended
        assert job.row.status == "failed"
        full = isinstance(error, StorageFull)
        assert (caught.value.status, caught.value.code) == ((507, "storage_full") if full else (500, "internal_error"))
        assert "secret" not in caught.value.message
        assert job.images == ()
        assert not list((tmp_path / "files").iterdir()), "no picture is left on the disk without its job"
        told = await hub.jobs.get(job.row.id, None) if name != "add" else job
        assert (told.ended, told.row.status) == (True, "failed")
        assert [each.row.status for each in await hub.jobs.newest(None, 10)] == ["failed"] * (name != "add")
        assert await answered(hub, await hub.jobs.submit(ask("same"), Painter())) == b"picture 1.0"

    in_hub(tmp_path, test, max_running=1)


def test_an_end_that_could_not_be_stored_is_stored_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(hub: Hub) -> None:
        with monkeypatch.context() as patch:
            failing(patch, Store, "save", StorageFull("The hub's disk is full."))
            job = await hub.jobs.submit(ask(goes_on=True), Painter())
            with pytest.raises(StorageFull):
                await answered(hub, job)
            with pytest.raises(StorageFull):
                await hub.jobs._save_the_unsaved()
        assert (await hub.store.get(job.row.id)).status == "queued"  # type: ignore[union-attr]
        await hub.jobs._save_the_unsaved()
        assert (await hub.store.get(job.row.id)).status == "failed"  # type: ignore[union-attr]
        assert not hub.jobs._live

    in_hub(tmp_path, test)


def test_of_several_pictures_all_are_stored_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, saved = Files.save, 0

    async def third_fails(files: Files, *arguments: Any, **how: Any) -> str:
        nonlocal saved
        saved += 1
        if saved == 3:
            raise StorageFull("The hub's disk is full.")
        return await plain(files, *arguments, **how)

    async def work(_: OnEvent) -> ImageResult:
        return ImageResult(images=(b"a", b"b", b"c"), seed=1, size=Size(8, 8), quality="low")

    async def test(hub: Hub) -> None:
        monkeypatch.setattr(Files, "save", third_fails)
        job = await hub.jobs.submit(ask(goes_on=True), work)
        with pytest.raises(StorageFull):
            await answered(hub, job)
        assert not list((tmp_path / "files").iterdir())

    in_hub(tmp_path, test)


def test_a_deleted_cache_does_not_hinder_the_next_job(tmp_path: Path) -> None:
    """All of the cache may be deleted at any time."""

    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        running = await hub.jobs.submit(ask(), painter)
        done = await hub.jobs.submit(ask(), Painter())
        await answered(hub, done)
        shutil.rmtree(hub.folder)
        painter.go.set()
        assert await answered(hub, running) == b"picture 1.0"
        assert await answered(hub, await hub.jobs.submit(ask(), Painter())) == b"picture 1.0"
        with pytest.raises(NotFound):
            await hub.jobs.get(done.row.id, None)

    in_hub(tmp_path / "cache", test)


# Repeats: pictures that another job has drawn


def by(recipe: str = "r", fingerprint: str = "body", **how: Any) -> Ask:
    return ask(fingerprint, recipe=recipe, **how)


async def drawn(hub: Hub, painter: Painter, **how: Any) -> tuple[Job, bytes]:
    job = await hub.jobs.submit(by(**how), painter)
    return job, await answered(hub, job)


def test_a_repeat_is_a_job_of_its_own_with_files_of_its_own_and_the_same_answer(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(images=2)
        first, picture = await drawn(hub, painter)
        await asyncio.sleep(0.05)
        second, same = await drawn(hub, painter, rendering=b'{"other": true}', model="alias", output_format="webp")
        assert (picture, same, painter.runs) == (b"picture 1.0", b"picture 1.0", 1)
        assert (first.repeats, second.repeats) == (False, True)
        assert second.row.id != first.row.id
        assert first.result is not None
        assert second.result is not None
        assert msgspec.structs.replace(second.result, files=first.result.files) == first.result
        assert sorted([*first.result.files, *second.result.files]) == hub.stored()
        assert len(set(hub.stored())) == 4
        row = await row_of(hub, second)
        assert (row.status, row.model, row.rendering) == ("completed", "alias", b'{"other": true}')
        assert (row.started_at, row.step, row.steps) == (None, 0, 0), "nothing ran"
        assert row.created_at > (await row_of(hub, first)).created_at
        assert row.expires_at > first.row.expires_at
        assert {int(name[33:-4]) for name in second.result.files} == {int(row.expires_at)}
        assert [each.row.id for each in await hub.jobs.newest(None, 10)] == [second.row.id, first.row.id]
        assert await hub.jobs.images(await hub.jobs.get(second.row.id, None)) == (b"picture 1.0", b"picture 1.1")

    in_hub(tmp_path, test)


def test_no_picture_of_a_repeat_is_held_in_memory_or_stored_twice(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        await drawn(hub, painter)
        for _ in range(30):
            job = await hub.jobs.submit(by(), painter)
            assert await answered(hub, job) == b"picture 1.0"
            assert job.images == ()
            assert job.forgotten is not None
            assert job.forgotten.cancelled()
        assert (hub.jobs._live, hub.jobs._keyed, hub.jobs._alike) == ({}, {}, {})
        assert len({(hub.folder / "files" / name).stat().st_ino for name in hub.stored()}) == 1

    in_hub(tmp_path, test)


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_deleting_one_of_several_repeats_leaves_the_others_their_pictures(tmp_path: Path, deleted: int) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(images=2)
        jobs = [(await drawn(hub, painter))[0] for _ in range(3)]
        await hub.jobs.delete(await hub.jobs.get(jobs[deleted].row.id, None))
        for job in jobs:
            if job is not jobs[deleted]:
                again = await hub.jobs.get(job.row.id, None)
                assert await hub.jobs.images(again) == (b"picture 1.0", b"picture 1.1")
        assert len(hub.stored()) == 4
        assert (await drawn(hub, painter))[1] == b"picture 1.0", "what is left goes on answering"
        for job in await hub.jobs.newest(None, 10):
            await hub.jobs.delete(job)
        assert hub.stored() == []
        assert (await drawn(hub, painter))[1] == b"picture 2.0"

    in_hub(tmp_path, test)


def test_a_request_by_another_recipe_or_owner_or_by_none_is_drawn(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        await drawn(hub, painter, owner="alice")
        for how in ({"owner": "bob"}, {"owner": None}, {"owner": "alice", "recipe": "other"}):
            job, picture = await drawn(hub, painter, **how)
            assert (job.repeats, picture) == (False, f"picture {painter.runs}.0".encode())
        assert painter.runs == 4
        for _ in range(2):
            assert not (await drawn(hub, painter, owner="alice", recipe=None))[0].repeats
        assert painter.runs == 6
        assert (await drawn(hub, painter, owner="alice", fingerprint="answered otherwise"))[0].repeats

    in_hub(tmp_path, test)


def test_what_failed_or_was_cancelled_is_drawn_and_then_repeated(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        with pytest.raises(EngineUnavailable):
            await drawn(hub, Painter(error=EngineUnavailable("gone")))
        waiting = Painter(waits=True)
        job = await hub.jobs.submit(by(), waiting)
        await until(lambda: waiting.runs == 1)
        await hub.jobs.cancel(job)
        painter = Painter()
        assert [(await drawn(hub, painter))[0].repeats for _ in range(2)] == [False, True]

    in_hub(tmp_path, test)


def test_repeats_outlive_the_process_and_end_with_the_time_to_live(tmp_path: Path) -> None:
    async def first(hub: Hub) -> None:
        await drawn(hub, Painter())

    async def second(hub: Hub) -> None:
        painter = Painter()
        for _ in range(3):
            assert (await drawn(hub, painter))[0].repeats, "each one keeps the picture for its own time"
            await asyncio.sleep(0.8)
        await asyncio.sleep(2)
        assert not (await drawn(hub, painter))[0].repeats

    in_hub(tmp_path, first, ttl=2)
    in_hub(tmp_path, second, ttl=2)


@pytest.mark.parametrize("gone", [slice(0, 1), slice(1, 2), slice(None)])
def test_a_job_whose_pictures_are_gone_is_drawn_and_leaves_nothing_behind(tmp_path: Path, gone: slice) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(images=2)
        job, _ = await drawn(hub, painter)
        assert job.result is not None
        await hub.files.delete(job.result.files[gone])
        left = hub.stored()
        again, picture = await drawn(hub, painter)
        assert (again.repeats, picture, painter.runs) == (False, b"picture 2.0", 2)
        assert len(hub.stored()) == len(left) + 2
        assert (await drawn(hub, painter))[1] == b"picture 2.0"

    in_hub(tmp_path, test)


def test_pictures_that_go_between_the_look_and_the_taking_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Store.with_recipe

    async def test(hub: Hub) -> None:
        async def then_deletes(store: Store, owner: str | None, recipe: str) -> JobRow | None:
            row = await plain(store, owner, recipe)
            if row is not None:
                await hub.jobs.delete(Job(row))
            return row

        monkeypatch.setattr(Store, "with_recipe", then_deletes)
        painter = Painter()
        for run in (1, 2, 3):
            job, picture = await drawn(hub, painter)
            assert (job.repeats, picture) == (False, f"picture {run}.0".encode())
            assert len(hub.stored()) == 1

    in_hub(tmp_path, test)


def test_identical_requests_at_once_share_one_run_and_later_one_repeat(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter(waits=True)
        jobs = await asyncio.gather(*(hub.jobs.submit(by(), painter) for _ in range(10)))
        assert len({job.row.id for job in jobs}) == 1
        painter.go.set()
        await asyncio.gather(*(answered(hub, job) for job in jobs))
        jobs = await asyncio.gather(*(hub.jobs.submit(by(), painter) for _ in range(10)))
        assert set(await asyncio.gather(*(answered(hub, job) for job in jobs))) == {b"picture 1.0"}
        assert all(job.repeats for job in jobs)
        assert painter.runs == 1

    in_hub(tmp_path, test)


def test_a_fresh_run_is_drawn_joins_one_that_is_being_drawn_and_answers_later_repeats(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        assert (await drawn(hub, painter))[1] == b"picture 1.0"
        assert (await drawn(hub, painter, fresh=True))[1] == b"picture 2.0"
        assert (await drawn(hub, painter))[1] == b"picture 2.0", "the newest one"
        left = await hub.jobs.submit(by(goes_on=True, fresh=True), painter)
        await until(lambda: left.ended)
        assert (await drawn(hub, painter, fresh=True))[1] == b"picture 4.0", "not what nobody took, either"
        waiting = Painter(waits=True)
        jobs = [await hub.jobs.submit(by(fresh=True), waiting) for _ in range(2)]
        waiting.go.set()
        assert {await answered(hub, job) for job in jobs} == {b"picture 1.0"}

    in_hub(tmp_path, test)


def test_a_new_key_repeats_and_an_old_one_leads_back_even_where_a_fresh_run_is_asked_for(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        await drawn(hub, painter)
        jobs = await asyncio.gather(*(hub.jobs.submit(by(key="k"), painter) for _ in range(5)))
        assert len({job.row.id for job in jobs}) == 1, "one key, one job"
        assert {await answered(hub, job) for job in jobs} == {b"picture 1.0"}
        assert jobs[0].repeats
        for fresh in (False, True):
            again, _ = await drawn(hub, painter, key="k", fresh=fresh)
            assert again.row.id == jobs[0].row.id
        with pytest.raises(IdempotencyKeyReuse):
            await hub.jobs.submit(by(fingerprint="other", key="k"), painter)
        assert painter.runs == 1
        assert (await drawn(hub, painter, key="another", fresh=True))[1] == b"picture 2.0"

    in_hub(tmp_path, test)


def test_a_repeat_needs_no_place_in_the_queue(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        await drawn(hub, Painter())
        waiting = Painter(waits=True)
        await hub.jobs.submit(ask(), waiting)
        with pytest.raises(QueueFull):
            await drawn(hub, Painter(), recipe="other", fingerprint="other")
        assert (await drawn(hub, Painter()))[0].repeats

    in_hub(tmp_path, test, max_running=1)


@pytest.mark.parametrize("error", [StorageFull("The hub's disk is full."), sqlite3.OperationalError("locked")])
def test_a_look_that_fails_is_no_worse_than_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        await drawn(hub, painter)
        failing(monkeypatch, Store, "with_recipe", error)
        assert (await drawn(hub, painter))[1] == b"picture 2.0"

    in_hub(tmp_path, test)
    assert "drawn anew" in caplog.text


def test_a_repeat_that_cannot_be_stored_has_failed_and_takes_only_its_own_names_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        first, _ = await drawn(hub, painter)
        with monkeypatch.context() as patch:
            failing(patch, Store, "add", StorageFull("The hub's disk is full."))
            with pytest.raises(StorageFull):
                await drawn(hub, painter)
        assert first.result is not None
        assert hub.stored() == first.result.files
        assert (await drawn(hub, painter))[0].repeats

    in_hub(tmp_path, test)


def test_a_repeat_that_is_cancelled_while_it_takes_its_files_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linking = threading.Event()

    async def test(hub: Hub) -> None:
        painter = Painter(images=3)
        await drawn(hub, painter)
        stored, plain = hub.stored(), Files._link_all

        def slowly(*arguments: Any) -> None:
            linking.set()
            time.sleep(0.1)
            plain(*arguments)

        monkeypatch.setattr(Files, "_link_all", slowly)
        job = await hub.jobs.submit(by(), painter)
        with hub.jobs.watching(job):
            await until(linking.is_set)
        await until(lambda: job.ended)
        assert job.row.status == "cancelled"
        assert hub.stored() == stored

    in_hub(tmp_path, test)


def test_a_repeat_that_nobody_took_goes_to_the_next_request(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter = Painter()
        await drawn(hub, painter)
        left = await hub.jobs.submit(by(goes_on=True), painter)
        await until(lambda: left.ended)
        assert (await drawn(hub, painter))[0].row.id == left.row.id
        assert (await drawn(hub, painter))[0].row.id != left.row.id

    in_hub(tmp_path, test)


def test_the_work_may_be_any_callable(tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        painter: Work = Painter()
        assert await answered(hub, await hub.jobs.submit(ask(output_format="webp"), painter)) == b"picture 1.0"
        (name,) = hub.stored()
        assert name.endswith(".webp")

    in_hub(tmp_path, test)
