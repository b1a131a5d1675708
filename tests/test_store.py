from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import random
import secrets
import shutil
import signal
import sqlite3
import stat
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub import database, migrations
from hub.errors import ConfigurationError, StorageFull
from hub.locks import ALONE, Lock, alone_in, told_by_locks
from hub.store import JobRow, Store
from tests.conftest import ROOT

NOON = 1_800_000_000.0
RESTARTED = b'{"code":"hub_restarted"}'
HEAD = migrations.HEAD
NEXT = f"{int(HEAD) + 1:04}"


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_job(**changes: Any) -> JobRow:
    plain: dict[str, Any] = {
        "id": f"job_{secrets.token_hex(12)}",
        "owner": None,
        "kind": "image_generation",
        "model": "dall-e-2",
        "status": "queued",
        "created_at": NOON,
        "expires_at": NOON + 3600,
        "rendering": b'{"prompt": "a cat"}',
    }
    return JobRow(**plain | changes)


def run(
    cache: Path, work: Callable[[Store], Coroutine[Any, Any, Any]], clock: Callable[[], float] = lambda: NOON
) -> Any:
    """One life of a hub, as far as its store goes."""

    async def live() -> Any:
        store = Store(cache, clock)
        async with store.running(RESTARTED):
            return await work(store)

    return asyncio.run(live())


async def nothing(store: Store) -> None:
    pass


async def touch(store: Store) -> JobRow:
    job = new_job()
    await store.add(job)
    return job


def raw(cache: Path, statement: str, *parameters: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(cache / "hub.db", timeout=10)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def assert_sound(cache: Path) -> None:
    assert raw(cache, "PRAGMA integrity_check") == [("ok",)]


@contextlib.contextmanager
def process(cache: Path, work: str) -> Iterator[subprocess.Popen[str]]:
    """A real process with a running store. `work` is the body of a coroutine; what it prints comes line by line."""
    script = f"""
import asyncio, random, secrets, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hub import migrations
from tests.test_store import NOON, RESTARTED, Store, new_job

async def live():
    cache = Path(sys.argv[1])
    store = Store(cache)
    async with store.running(RESTARTED):
{textwrap.indent(textwrap.dedent(work).strip(), " " * 8)}

asyncio.run(live())
"""
    command = [sys.executable, "-u", "-W", "error", "-c", script, str(cache)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


WORKS_ON_A_JOB = """
    job = new_job(status="in_progress")
    await store.add(job)
    print(job.id)
    await asyncio.sleep(60)
"""


def test_a_job_is_what_was_stored_and_outlives_its_process(tmp_path: Path) -> None:
    job = new_job(
        owner="ann", idempotency_key="k", fingerprint="f", status="completed", started_at=NOON + 1.25, step=3, steps=9
    )
    job.result, job.rendering = os.urandom(1000), bytes(range(256))
    run(tmp_path, lambda store: store.add(job))
    assert run(tmp_path, lambda store: store.get(job.id)) == job
    assert run(tmp_path, lambda store: store.get("job_unknown")) is None


def test_saving_changes_what_may_change_and_nothing_else(tmp_path: Path) -> None:
    job = new_job(owner="ann")
    later = new_job(
        id=job.id,
        owner="eve",
        rendering=b"other",
        status="failed",
        expires_at=NOON + 9,
        started_at=NOON + 1,
        completed_at=NOON + 2,
        step=4,
        steps=5,
        result=b"r",
        error=b"e",
    )

    async def work(store: Store) -> JobRow | None:
        await store.add(job)
        await store.save(later)
        await store.save(new_job())  # was deleted meanwhile: no error, and it stays deleted
        return await store.get(job.id)

    later.owner, later.rendering = job.owner, job.rendering
    assert run(tmp_path, work) == later
    assert raw(tmp_path, "SELECT count(*) FROM jobs") == [(1,)]


def test_an_idempotency_key_finds_its_owners_newest_job_that_has_not_expired(tmp_path: Path, clock: Clock) -> None:
    jobs = {
        name: new_job(idempotency_key="key", **changes)
        for name, changes in {
            "old": {"owner": "ann"},
            "new": {"owner": "ann", "created_at": NOON + 1, "expires_at": NOON + 10},
            "middle": {"owner": "ann", "created_at": NOON + 0.5},
            "open": {"owner": None, "created_at": NOON + 5},
        }.items()
    }

    async def work(store: Store) -> None:
        for job in jobs.values():
            await store.add(job)
        assert await store.with_idempotency_key("ann", "key") == jobs["new"]
        assert await store.with_idempotency_key(None, "key") == jobs["open"]
        assert await store.with_idempotency_key("eve", "key") is None
        assert await store.with_idempotency_key("ann", "other") is None
        clock.time = NOON + 10
        assert await store.with_idempotency_key("ann", "key") == jobs["middle"]

    run(tmp_path, work, clock)


def test_a_recipe_finds_its_owners_newest_completed_job_that_has_not_expired(tmp_path: Path, clock: Clock) -> None:
    done = {"recipe": "r", "status": "completed", "owner": "ann"}
    jobs = {
        name: new_job(**done | changes)
        for name, changes in {
            "old": {},
            "new": {"created_at": NOON + 1, "expires_at": NOON + 10},
            "middle": {"created_at": NOON + 0.5},
            "open": {"owner": None, "created_at": NOON + 5},
            "another": {"recipe": "other", "created_at": NOON + 6},
            "none": {"recipe": None, "created_at": NOON + 6},
            **{
                status: {"status": status, "created_at": NOON + 7}
                for status in ("queued", "in_progress", "failed", "cancelled")
            },
        }.items()
    }

    async def work(store: Store) -> None:
        assert await store.with_recipe("ann", "r") is None
        assert not (tmp_path / "hub.db").exists(), "looking makes no database"
        for job in jobs.values():
            await store.add(job)
        assert await store.with_recipe("ann", "r") == jobs["new"]
        assert await store.with_recipe(None, "r") == jobs["open"]
        assert await store.with_recipe("eve", "r") is None
        assert await store.with_recipe("ann", "unknown") is None
        clock.time = NOON + 10
        assert await store.with_recipe("ann", "r") == jobs["middle"]
        await store.delete(jobs["middle"].id)
        assert await store.with_recipe("ann", "r") == jobs["old"]

    run(tmp_path, work, clock)


@pytest.mark.parametrize("owner", [None, "ann"])
def test_looking_for_a_recipe_uses_the_index_whatever_else_is_stored(tmp_path: Path, owner: str | None) -> None:
    statements: list[str] = []

    async def work(store: Store) -> None:
        await store.add(new_job(owner=owner, recipe="r", status="completed"))
        await store._do(lambda database: database.raw.set_trace_callback(statements.append))
        assert await store.with_recipe(owner, "r") is not None

    run(tmp_path, work)
    (statement,) = [each for each in statements if each.startswith("SELECT")]
    (plan,) = raw(tmp_path, f"EXPLAIN QUERY PLAN {statement}")
    assert "USING INDEX jobs_by_recipe (recipe=? AND owner=?)" in plan[3], plan


def test_an_owners_jobs_are_listed_newest_first_without_those_that_have_expired(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        jobs = [new_job(owner="ann", created_at=NOON + number) for number in range(5)]
        others = [new_job(owner="eve"), new_job(owner=None), new_job(owner="ann", expires_at=NOON)]
        for job in [*jobs, *others]:
            await store.add(job)
        assert await store.newest("ann", 3) == jobs[:1:-1]
        assert await store.newest(None, 3) == [others[1]]
        assert await store.newest("bob", 3) == []

    run(tmp_path, work)


def test_a_deleted_job_is_gone_and_the_others_are_not(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.delete("job_unknown")
        first, second = await touch(store), await touch(store)
        await store.delete(first.id)
        assert await store.get(first.id) is None
        assert await store.get(second.id) == second

    run(tmp_path, work)


def test_what_has_expired_is_deleted_and_its_ids_are_told(tmp_path: Path, clock: Clock) -> None:
    short, long = new_job(status="completed", expires_at=NOON + 5), new_job(status="completed")
    still_runs = new_job(status="in_progress", expires_at=NOON + 5)

    async def work(store: Store) -> None:
        for job in (short, long, still_runs):
            await store.add(job)
        assert await store.delete_expired() == []
        clock.time = NOON + 5
        assert await store.delete_expired() == [short.id]
        assert await store.delete_expired() == []
        assert await store.get(short.id) is None
        assert await store.get(long.id) == long
        assert await store.get(still_runs.id) == still_runs, "its end will say anew how long it is kept"

    run(tmp_path, work, clock)


def test_text_that_looks_like_sql_is_text(tmp_path: Path) -> None:
    evil = "x'; DROP TABLE jobs; --"
    job = new_job(owner=evil, model=evil, idempotency_key=evil, rendering=evil.encode())

    async def work(store: Store) -> None:
        await store.add(job)
        assert await store.get(evil) is None
        assert await store.with_idempotency_key(evil, evil) == job

    run(tmp_path, work)


def test_an_id_is_given_once_and_the_refusal_does_not_tell_the_prompt(tmp_path: Path) -> None:
    job = new_job()

    async def work(store: Store) -> None:
        await store.add(job)
        with pytest.raises(sqlite3.IntegrityError) as refusal:
            await store.add(job)
        assert "a cat" not in str(refusal.value)

    run(tmp_path, work)


def test_only_its_owner_may_read_the_database_and_its_log(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await touch(store)
        for name in ("hub.db", "hub.db-wal", "hub.db-shm"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name

    run(tmp_path, work)
    (tmp_path / "hub.db").chmod(0o644)
    run(tmp_path, nothing)
    assert stat.S_IMODE((tmp_path / "hub.db").stat().st_mode) == 0o600


def test_at_the_end_the_log_is_in_the_file_and_no_lock_is_left(tmp_path: Path) -> None:
    run(tmp_path, touch)
    assert sorted(os.listdir(tmp_path)) == ["hub.db", "instances", ALONE]
    assert os.listdir(tmp_path / "instances") == []
    with (tmp_path / ALONE).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_idle_hub_makes_no_database_and_imports_no_sqlalchemy(tmp_path: Path) -> None:
    idle = """
        await store.delete_expired()
        await store.fail_orphans(RESTARTED)
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "alembic"}))
    """
    with process(tmp_path, idle) as child:
        assert line(child) == "[]"
    assert not (tmp_path / "hub.db").exists()
    run(tmp_path, lambda store: store.add(new_job(status="completed", expires_at=time.time() + 99)))
    with process(tmp_path, idle) as child:
        assert line(child) == "[]"


def test_a_database_at_head_is_used_without_alembic(tmp_path: Path) -> None:
    run(tmp_path, touch)
    with process(tmp_path, "await store.add(new_job()); print('alembic' in sys.modules)") as child:
        assert line(child) == "False"


def test_the_store_is_used_only_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not running"):
        asyncio.run(Store(tmp_path).get("job_x"))
    assert os.listdir(tmp_path) == []


def test_storing_a_job_takes_a_fraction_of_a_millisecond(tmp_path: Path) -> None:
    async def work(store: Store) -> list[float]:
        await touch(store)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            await touch(store)
            times.append(time.perf_counter() - start)
        return times

    median = statistics.median(run(tmp_path, work))
    print(f"insert and commit: {median * 1e6:.0f} us")  # noqa: T201 - shown by pytest -s
    assert median < 0.02


# Hubs that die, and siblings


def test_the_jobs_of_a_killed_hub_fail_when_the_next_one_starts(tmp_path: Path) -> None:
    with process(tmp_path, WORKS_ON_A_JOB) as child:
        job_id = line(child)
        child.kill()
        child.wait()
    finished = new_job(status="completed")

    async def look(store: Store) -> None:
        job = await store.get(job_id)
        assert job is not None
        assert (job.status, job.error, job.completed_at) == ("failed", RESTARTED, NOON)
        await store.add(finished)
        assert await store.fail_orphans(b"again") == 0

    run(tmp_path, look)
    assert run(tmp_path, lambda store: store.get(finished.id)).status == "completed"
    assert os.listdir(tmp_path / "instances") == []


def test_unfinished_jobs_of_a_hub_that_ended_in_order_fail_too(tmp_path: Path) -> None:
    job = run(tmp_path, touch)
    assert run(tmp_path, lambda store: store.get(job.id)).status == "failed"


def test_the_jobs_of_a_living_sibling_go_on_and_fail_once_it_is_dead(tmp_path: Path) -> None:
    with process(tmp_path, WORKS_ON_A_JOB) as child:
        job_id = line(child)

        async def watch(store: Store) -> None:
            own = await touch(store)
            assert await store.fail_orphans(RESTARTED) == 0
            assert (await store.get(job_id)).status == "in_progress"  # type: ignore[union-attr]
            child.kill()
            child.wait()
            assert await store.fail_orphans(RESTARTED) == 1
            assert (await store.get(job_id)).status == "failed"  # type: ignore[union-attr]
            assert (await store.get(own.id)).status == "queued"  # type: ignore[union-attr]

        run(tmp_path, watch)


def locks(folder: Path) -> tuple[set[str], set[str]]:
    return told_by_locks(folder)


def test_a_lock_is_never_seen_without_its_holder_and_what_is_left_of_one_goes(tmp_path: Path) -> None:
    name = "0123456789abcdef"
    (tmp_path / f"{name}.lock").touch()  # somebody put a file there
    left = tmp_path / f"{name}.lock-{name}.tmp"
    left.touch()  # a hub was killed while it made its lock
    (tmp_path / "notes.txt").touch()
    lock = Lock(tmp_path / f"{name}.lock")
    assert locks(tmp_path) == ({name}, set())
    assert sorted(os.listdir(tmp_path)) == [f"{name}.lock", "notes.txt"]
    lock.release()
    assert locks(tmp_path) == (set(), {name})
    assert locks(tmp_path) == (set(), set()), "its file is gone: nothing is known any more"
    assert os.listdir(tmp_path) == ["notes.txt"]


COUNTER = """
import pathlib, sys, time
from hub.locks import alone_in
folder, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for _ in range(rounds):
    with alone_in(folder):
        count = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""


def counted(folder: Path, *before: str, rounds: int = 100) -> int:
    """What three processes count to, each of which reads the number and writes the next one where it is alone."""
    (folder / "count").write_text("0")
    command = [*before, sys.executable, "-c", COUNTER, str(folder), str(rounds)]
    running = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    return int((folder / "count").read_text())


def test_one_hub_at_a_time_is_alone_in_a_folder_although_the_file_that_it_locks_is_deleted(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(counted, tmp_path)
        while not counting.done():
            (tmp_path / ALONE).unlink(missing_ok=True)
            time.sleep(0.002)
        assert counting.result() == 300


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_one_hub_at_a_time_is_alone_where_folders_cannot_be_locked_as_on_network_shares(tmp_path: Path) -> None:
    """strace has each flock(2) of the folder itself fail as NFS fails those of descriptors that are not written by."""
    folder = tmp_path / "cache"
    folder.mkdir()
    refusing = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(folder), "-e", "trace=flock"]
    refusing += ["-e", "inject=flock:error=EBADF"]
    assert counted(folder, *refusing) == 300
    work = """
import asyncio, pathlib, sys
from hub.store import Store
from tests.test_store import new_job
async def live():
    store = Store(pathlib.Path(sys.argv[1]))
    async with store.running(b"{}"):
        job = new_job(status="completed")
        await store.add(job)
        assert await store.get(job.id) == job
asyncio.run(live())
"""
    command = [*refusing, sys.executable, "-c", work, str(folder)]
    running = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [each.wait(60) for each in running] == [0, 0]
    assert len(raw(folder, "SELECT id FROM jobs")) == 2
    assert_sound(folder)


def test_a_lock_on_a_file_that_was_deleted_while_it_was_waited_for_does_not_count(tmp_path: Path) -> None:
    with (tmp_path / ALONE).open("w") as old, ThreadPoolExecutor(1) as pool:
        fcntl.flock(old, fcntl.LOCK_EX)

        def wait() -> int:
            with alone_in(tmp_path):
                return (tmp_path / ALONE).stat().st_ino

        waiting = pool.submit(wait)
        time.sleep(0.2)
        assert not waiting.done()
        (tmp_path / ALONE).unlink()
        fcntl.flock(old, fcntl.LOCK_UN)
        assert waiting.result(10) != os.fstat(old.fileno()).st_ino


def test_while_one_looks_whether_others_live_a_new_lock_is_made_again(tmp_path: Path) -> None:
    """The file is there for an instant before it is locked; who looks just then deletes it."""
    end = time.monotonic() + 1

    def look() -> None:
        while time.monotonic() < end:
            locks(tmp_path)

    looker = threading.Thread(target=look)
    looker.start()
    made = 0
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # the store tries again
            lock = Lock(tmp_path / "0123456789abcdef.lock")
            made += 1
            assert lock.in_place()
            lock.release(delete=True)
    looker.join()
    assert made > 20


def test_the_jobs_of_a_living_hub_go_on_although_its_lock_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes its lock anew within a beat, without anything to store; the sibling that starts before waits."""
    with process(tmp_path, WORKS_ON_A_JOB) as child:
        job_id = line(child)
        shutil.rmtree(tmp_path / "instances")

        async def watch(store: Store) -> None:
            assert await store.fail_orphans(RESTARTED) == 0
            assert (await store.get(job_id)).status == "in_progress"  # type: ignore[union-attr]
            end = time.monotonic() + 20
            while len(list((tmp_path / "instances").glob("*.lock"))) < 2:
                assert time.monotonic() < end, "the living hub has not made its lock again"
                await asyncio.sleep(0.05)
            monkeypatch.setattr("hub.store.GRACE", 0)
            assert await store.fail_orphans(RESTARTED) == 0

        run(tmp_path, watch)


def test_the_jobs_of_a_dead_hub_whose_lock_was_deleted_fail_by_themselves_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.store.BEAT", 0.05)
    monkeypatch.setattr("hub.store.GRACE", 0.5)
    with process(tmp_path, WORKS_ON_A_JOB) as child:
        job_id = line(child)
        child.kill()
        child.wait()
    shutil.rmtree(tmp_path / "instances")

    async def watch(store: Store) -> None:
        start = time.monotonic()
        assert (await store.get(job_id)).status == "in_progress"  # type: ignore[union-attr]
        while (await store.get(job_id)).status == "in_progress":  # type: ignore[union-attr]
            assert time.monotonic() < start + 20
            await asyncio.sleep(0.02)
        assert time.monotonic() - start > 0.4

    run(tmp_path, watch)


MIXED = """
    mine = []
    for number in range(250):
        choice = random.random()
        if choice < 0.4 or not mine:
            mine.append(new_job(idempotency_key=f"k{number % 7}", expires_at=time.time() + random.choice([-1, 99])))
            await store.add(mine[-1])
        elif choice < 0.7:
            job = random.choice(mine)
            job.step += 1
            await store.save(job)
        elif choice < 0.8:
            await store.get(random.choice(mine).id)
        elif choice < 0.9:
            await store.with_idempotency_key(None, f"k{number % 7}")
        elif choice < 0.95:
            await store.delete_expired()
        else:
            await store.fail_orphans(RESTARTED)
    for job in mine:
        stored = await store.get(job.id)
        assert stored == job or job.expires_at < time.time(), (stored, job)
    print("done")
"""


def test_two_hubs_that_share_a_new_cache_do_mixed_work_without_errors(tmp_path: Path) -> None:
    with process(tmp_path, MIXED) as one, process(tmp_path, MIXED) as other:
        assert [one.wait(60), other.wait(60)] == [0, 0]
        assert [line(one), line(other)] == ["done", "done"]
    assert_sound(tmp_path)


def test_the_database_is_sound_after_kill_9_at_any_moment(tmp_path: Path) -> None:
    writes = """
        print("writing")
        while True:
            job = new_job(rendering=secrets.token_bytes(random.randrange(20_000)))
            await store.add(job)
            print(job.id)
            job.step = 1
            await store.save(job)
            await store.delete_expired()
    """
    rng = random.Random(1)
    for _ in range(8):
        with process(tmp_path, writes) as child:
            assert line(child) == "writing"
            time.sleep(rng.uniform(0, 0.5))
            child.send_signal(signal.SIGKILL)
            assert child.stdout is not None
            told = child.stdout.read().split()
        if not (tmp_path / "hub.db").exists():
            continue
        run(tmp_path, nothing)
        assert_sound(tmp_path)
        complete = told[:-1]  # the last line may be cut off
        if complete:
            stored = {found for (found,) in raw(tmp_path, "SELECT id FROM jobs")}
            assert set(complete) <= stored, "what was told as stored is stored"
    assert not list(tmp_path.glob("*.damaged*"))


# The cache is deleted, damaged, full


@pytest.mark.parametrize(
    "delete",
    [
        shutil.rmtree,
        lambda cache: (cache / "hub.db").unlink(),
        lambda cache: [path.unlink() for path in cache.glob("hub.db-*")],
        lambda cache: shutil.rmtree(cache / "instances"),
        lambda cache: os.truncate(cache / "hub.db", 0),
    ],
    ids=["all", "the file", "the log", "the locks", "what is in the file"],
)
def test_the_cache_may_be_deleted_while_the_hub_runs(tmp_path: Path, delete: Callable[[Path], Any]) -> None:
    cache = tmp_path / "cache"

    async def work(store: Store) -> None:
        await touch(store)
        delete(cache)
        await store.get("job_x")
        job = await touch(store)
        job.step = 7
        await store.save(job)
        assert await store.get(job.id) == job
        assert store._database is not None
        assert store._database.in_place()
        (lock,) = (path.stem for path in (cache / "instances").glob("*.lock"))
        assert lock == store._id

    run(cache, work)
    assert_sound(cache)
    run(cache, nothing)


@pytest.mark.parametrize("sibling", [False, True])
def test_where_the_log_alone_is_deleted_the_hubs_own_jobs_are_not_forgotten(tmp_path: Path, sibling: bool) -> None:
    """Nor does it write its log, which it alone has, into a file to which a sibling has written with another one."""

    async def work(store: Store) -> None:
        jobs = [await touch(store) for _ in range(30)]
        for path in tmp_path.glob("hub.db-*"):
            path.unlink()
        if sibling:
            with process(tmp_path, "await store.add(new_job()); print('added')") as child:
                assert line(child) == "added"
                assert child.wait(20) == 0
        assert await store.get(jobs[7].id) == jobs[7]
        assert len(raw(tmp_path, "SELECT * FROM jobs")) == 30

    run(tmp_path, work)
    assert_sound(tmp_path)
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_new_database_never_gets_the_log_of_the_one_before(tmp_path: Path) -> None:
    """SQLite cannot tell whose log it finds, and would write its pages into the new file."""

    async def work(store: Store) -> None:
        jobs = [await touch(store) for _ in range(30)]
        kept = (tmp_path / "hub.db-wal").read_bytes()
        (tmp_path / "hub.db").unlink()
        assert (tmp_path / "hub.db-wal").read_bytes() == kept
        assert await store.get(jobs[0].id) is None
        job = await touch(store)
        assert await store.newest(None, 99) == [job]
        assert_sound(tmp_path)

    run(tmp_path, work)
    assert_sound(tmp_path)


def test_the_end_of_a_job_is_kept_although_its_row_was_deleted_with_the_cache(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        ended, deleted, other = await touch(store), await touch(store), await touch(store)
        await store.delete(deleted.id)
        shutil.rmtree(tmp_path / "cache")
        ended.status, deleted.status, ended.result = "completed", "completed", b"{}"
        await store.save(ended)
        await store.save(deleted)
        assert await store.newest(None, 9) == [ended]
        await store.save(other)
        assert await store.get(other.id) == other

    run(tmp_path / "cache", work)
    assert [state for (state,) in raw(tmp_path / "cache", "SELECT status FROM jobs ORDER BY status")] == [
        "completed",
        "failed",
    ], "the one that was still unfinished when the hub ended has failed"


def test_a_row_that_was_stored_although_an_error_was_told_is_stored_once(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await touch(store)
        job = new_job()
        raw(tmp_path, "CREATE TABLE told (number INTEGER)")
        database = store._database
        assert database is not None

        class Broken:
            """The disk fails just after the commit, once."""

            def execute(self, *what: Any) -> Any:
                connection.execute(*what)
                database.raw = connection
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error

        connection, database.raw = database.raw, Broken()  # type: ignore[assignment]
        await store.add(job)
        assert await store.get(job.id) == job

    run(tmp_path, work)


def test_a_running_hub_without_a_database_makes_none_for_its_housekeeping(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await touch(store)
        shutil.rmtree(tmp_path / "cache")
        assert await store.delete_expired() == []
        assert await store.fail_orphans(RESTARTED) == 0
        assert not (tmp_path / "cache" / "hub.db").exists()

    run(tmp_path / "cache", work)


def test_closing_a_deleted_database_leaves_the_log_of_the_new_one(tmp_path: Path) -> None:
    async def work(first: Store) -> None:
        await touch(first)
        shutil.rmtree(tmp_path / "cache")
        second = Store(tmp_path / "cache")
        async with second.running(RESTARTED):
            job = await touch(second)
            assert await first.get(job.id) == job  # closes the old one, opens the new one
            await touch(first)
            assert await second.get(job.id) == job

    run(tmp_path / "cache", work)
    assert_sound(tmp_path / "cache")
    assert len(raw(tmp_path / "cache", "SELECT * FROM jobs")) == 2


DELETER = """
import shutil, sys, time
while True:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_deleting_the_cache_again_and_again_under_load_is_survived(tmp_path: Path, seconds: float) -> None:
    cache = tmp_path / "cache"
    works = """
        print("working")
        end = time.time() + 3
        while time.time() < end:
            job = new_job()
            await store.add(job)
            job.step += 1
            await store.save(job)
            await store.get(job.id)
            await store.delete_expired()
        print("done")
    """
    with process(cache, works) as one, process(cache, works) as other:
        assert [line(one), line(other)] == ["working", "working"]
        with subprocess.Popen([sys.executable, "-c", DELETER, cache, str(seconds)]) as deleter:
            while one.poll() is None or other.poll() is None:
                time.sleep(0.05)
            deleter.kill()
        assert [one.returncode, other.returncode] == [0, 0]
        assert [line(one), line(other)] == ["done", "done"]
    run(cache, touch)
    assert_sound(cache)


def spoil(cache: Path) -> None:
    """Overwrites all pages but the first: the file still opens."""
    size = (cache / "hub.db").stat().st_size
    with (cache / "hub.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def fill_with_foreign_data(cache: Path) -> None:
    (cache / "hub.db").unlink()
    raw(cache, "CREATE TABLE jobs (other INTEGER)")


@pytest.mark.parametrize(
    "damage",
    [lambda cache: (cache / "hub.db").write_bytes(b"no database " * 999), spoil, fill_with_foreign_data],
    ids=["no database", "spoilt pages", "a foreign database"],
)
def test_a_damaged_file_is_set_aside_and_work_goes_on(
    tmp_path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        run(tmp_path, touch)
        damage(tmp_path)
        damaged = (tmp_path / "hub.db").read_bytes()
        caplog.clear()
        job = run(tmp_path, touch)
        assert f"set aside as hub.db.damaged-{number}" in caplog.text
        assert (tmp_path / f"hub.db.damaged-{number}").read_bytes() == damaged
        assert raw(tmp_path, "SELECT id FROM jobs") == [(job.id,)]


def test_a_file_damaged_while_it_is_open_is_set_aside(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for _ in range(50):
            await store.add(new_job(rendering=os.urandom(3000)))
        raw(tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")  # all pages are in the file
        spoil(tmp_path)
        job = await touch(store)
        assert await store.get(job.id) == job

    run(tmp_path, work)
    assert_sound(tmp_path)
    assert (tmp_path / "hub.db.damaged-1").exists()


def test_a_file_without_write_permission_or_a_folder_in_its_place_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cache_dir: .*file cannot be used: "):
        run(tmp_path / "file", nothing)
    (tmp_path / "cache" / "hub.db").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"cache_dir: .*cache cannot be used: hub.db: unable to open"):
        run(tmp_path / "cache", nothing)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hub.locks.fcntl.flock", refuse)
    with pytest.raises(ConfigurationError, match=r"cache_dir: .* cannot lock files\. Set cache_dir to"):
        run(tmp_path, nothing)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_full_disk_is_told_as_such_reading_goes_on_and_so_does_writing_afterwards(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk. The process is apart, since the limit is for all of it."""
    work = """
        import resource, signal
        from hub.errors import StorageFull
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        first = new_job()
        await store.add(first)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            while True:
                await store.add(new_job(rendering=secrets.token_bytes(20_000)))
        except StorageFull as error:
            print(error.message)
        assert await store.get(first.id) == first
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await store.add(new_job(rendering=secrets.token_bytes(20_000)))
        print("wrote again")
    """
    with process(tmp_path, work) as child:
        assert line(child) == "The hub's disk is full; the job could not be stored."
        assert line(child) == "wrote again"
        assert child.wait(20) == 0
    assert_sound(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small file system")
def test_a_disk_without_room_is_told_as_such_also_when_the_database_is_made(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:

        async def work(store: Store) -> None:
            filler = disk / "filler"
            filler.write_bytes(bytes(256 * 1024 - 16 * 1024))
            with pytest.raises(StorageFull):
                await touch(store)
            filler.unlink()
            job = await touch(store)
            with pytest.raises(StorageFull):
                for _ in range(99):
                    await store.add(new_job(rendering=os.urandom(10_000)))
            assert await store.get(job.id) == job

        run(disk, work)
        assert_sound(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


# Versions


ADDS_A_COLUMN = """
import sqlalchemy as sa
from alembic import op

revision = "{next}"
down_revision = "{head}"


def upgrade():
    op.add_column("jobs", sa.Column("colour", sa.Text, server_default="red"))
    {then}
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes this hub one with a revision more."""

    def release(then: str = "pass") -> Path:
        folder = tmp_path / "migrations"
        shutil.copytree(migrations.FOLDER, folder, dirs_exist_ok=True)
        (folder / "versions" / f"v{NEXT}_colour.py").write_text(ADDS_A_COLUMN.format(head=HEAD, next=NEXT, then=then))
        monkeypatch.setattr(migrations, "FOLDER", folder)
        monkeypatch.setattr(migrations, "HEAD", NEXT)
        return folder

    return release


def test_the_migrations_make_the_table_that_the_store_uses_and_head_is_their_newest(tmp_path: Path) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    run(tmp_path, touch)
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.db")) as database:
        names = {name for _, name, *_ in database.execute("PRAGMA table_info(jobs)")}
        indices = {name for _, name, *_ in database.execute("PRAGMA index_list(jobs)")}
    assert names == {*JobRow.__struct_fields__, "hub"}
    assert {"jobs_by_expiry", "jobs_by_owner", "jobs_by_idempotency_key", "jobs_by_recipe"} < indices
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_a_database_of_the_first_revision_keeps_its_jobs_which_have_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(status="completed", idempotency_key="k")
    with monkeypatch.context() as first:
        first.setattr(migrations, "HEAD", "0001")
        database.open_database(tmp_path / "hub.db").close()
    values = {name: value for name, value in msgspec.structs.asdict(job).items() if name != "recipe"} | {"hub": "x"}
    marks = ", ".join("?" * len(values))
    raw(tmp_path, f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", *values.values())

    async def work(store: Store) -> None:
        assert await store.get(job.id) == job
        assert await store.with_idempotency_key(None, "k") == job
        again = new_job(status="completed", recipe="r")
        await store.add(again)
        assert await store.with_recipe(None, "r") == again

    run(tmp_path, work)
    assert raw(tmp_path, "SELECT version_num FROM alembic_version") == [(HEAD,)]


def test_an_older_database_is_migrated_with_its_jobs_and_stays_as_a_copy(
    tmp_path: Path, next_version: Callable[..., Path]
) -> None:
    cache = tmp_path / "cache"
    job = new_job(status="completed")
    run(cache, lambda store: store.add(job))
    next_version()
    assert run(cache, lambda store: store.get(job.id)) == job
    assert raw(cache, "SELECT colour FROM jobs") == [("red",)]
    copy = cache / f"hub.db.before-{NEXT}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as before:
        assert before.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        assert before.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
    assert sorted(os.listdir(cache)) == ["hub.db", f"hub.db.before-{NEXT}", "instances", ALONE]


def test_a_migration_that_fails_changes_nothing_and_is_told(tmp_path: Path, next_version: Callable[..., Path]) -> None:
    cache = tmp_path / "cache"
    run(cache, touch)
    next_version('op.execute("SELECT * FROM missing")')
    with pytest.raises(ConfigurationError, match=r"hub.db: no such table: missing"):
        run(cache, nothing)
    assert raw(cache, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert "colour" not in raw(cache, "SELECT sql FROM sqlite_master WHERE name = 'jobs'")[0][0]


def test_a_hub_killed_while_it_migrates_leaves_the_old_database(
    tmp_path: Path, next_version: Callable[..., Path]
) -> None:
    cache = tmp_path / "cache"
    job = new_job(status="completed")
    run(cache, lambda store: store.add(job))
    folder = next_version('import os; os.kill(os.getpid(), 9) if "HUB_TEST_KILL" in os.environ else None')
    script = (
        "import asyncio, sys; from pathlib import Path; from hub import migrations; from tests import test_store as t\n"
        f"migrations.FOLDER, migrations.HEAD = Path(sys.argv[2]), {NEXT!r}\n"
        "t.run(Path(sys.argv[1]), t.nothing)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, cache, folder], cwd=ROOT, env={**os.environ, "HUB_TEST_KILL": "1"}
    )
    assert killed.returncode == -signal.SIGKILL
    assert raw(cache, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert_sound(cache)
    assert run(cache, lambda store: store.get(job.id)) == job
    assert raw(cache, "SELECT version_num FROM alembic_version") == [(NEXT,)]


def test_a_newer_database_is_refused_untouched_with_words_that_say_what_to_do(
    tmp_path: Path, next_version: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context():
        next_version()
        run(cache, touch)
    monkeypatch.undo()
    before = (cache / "hub.db").read_bytes()
    with pytest.raises(ConfigurationError, match=r"made by a newer hub .*Update this hub, or delete the file"):
        run(cache, nothing)
    assert (cache / "hub.db").read_bytes() == before


def test_two_hubs_that_start_at_once_migrate_once(tmp_path: Path, next_version: Callable[..., Path]) -> None:
    cache = tmp_path / "cache"
    run(cache, touch)
    next_version()
    failures: list[BaseException] = []

    def start() -> None:
        try:
            run(cache, touch)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(raw(cache, "SELECT * FROM jobs")) == 5


def test_alembic_does_not_chatter_in_the_hubs_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, touch)
    assert caplog.text == ""
