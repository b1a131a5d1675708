from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.errors import ConfigurationError, FileExpired, FileForbidden, NotFound, StorageFull
from hub.files import MEDIA_TYPES, ORPHAN_AGE, Files

NOON = 1_800_000_000.0
TTL = 60


class Clock:
    """A clock that goes only when it is set."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> Files:
    return Files(tmp_path, TTL, clock)


def save(files: Files, data: bytes = b"picture", **how: Any) -> tuple[str, str]:
    """Signature and name of a stored file that was linked at once."""
    name = asyncio.run(files.save(data, **how))
    return link(files, name), name


def link(files: Files, name: str) -> str:
    """The signature of a new link."""
    start, root, signature, linked = files.link(name).split("/")
    assert (start, root, linked) == ("", "files", name)
    return signature


def read(files: Files, signature: str, name: str) -> bytes:
    return asyncio.run(files.read(signature, name))


def listing(cache: Path) -> list[str]:
    return sorted(os.listdir(cache / "files"))


def test_what_was_saved_is_read_again_and_only_its_owner_may_read_it_on_disk(files: Files, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    signature, name = save(files, data)
    assert read(files, signature, name) == data
    assert listing(tmp_path) == [name]
    assert stat.S_IMODE((tmp_path / "files" / name).stat().st_mode) == 0o600


def test_no_two_files_have_one_name_and_no_signature_fits_another_file(files: Files) -> None:
    links = [save(files) for _ in range(20)]
    assert len(set(links)) == len({signature for signature, _ in links}) == len({name for _, name in links}) == 20
    with pytest.raises(FileForbidden):
        read(files, links[0][0], links[1][1])


def replaced(text: str, index: int) -> str:
    return text[:index] + ("0" if text[index] != "0" else "1") + text[index + 1 :]


def test_a_link_with_any_one_character_altered_is_forbidden(files: Files) -> None:
    signature, name = save(files)
    assert len(signature.split(".")[2]) >= 22, "128 bits in base64"
    for index in range(len(signature)):
        with pytest.raises(FileForbidden):
            read(files, replaced(signature, index), name)
    for index in range(len(name)):
        with pytest.raises(FileForbidden):
            read(files, signature, replaced(name, index))


def later(signature: str) -> str:
    """The same link with another end."""
    key, expires, mac = signature.split(".")
    return f"{key}.{int(expires) + 1}.{mac}"


FORGERIES: list[Callable[[str, str], tuple[str, str]]] = [
    lambda signature, name: ("", name),
    lambda signature, name: (".", name),
    lambda signature, name: (signature.partition(".")[0], name),
    lambda signature, name: (signature.partition(".")[0] + ".", name),
    lambda signature, name: (signature.partition(".")[2], name),
    lambda signature, name: (signature.rpartition(".")[2], name),
    lambda signature, name: (signature.rpartition(".")[0], name),
    lambda signature, name: (later(signature), name),
    lambda signature, name: (signature.replace(".1", ".01", 1), name),
    lambda signature, name: (signature.replace(".1", ".+1", 1), name),
    lambda signature, name: (signature.replace(".1", ".\u0661", 1), name),
    lambda signature, name: (signature, name.replace(".png", ".jpg")),
    lambda signature, name: (signature, name.replace(".png", ".webp")),
    lambda signature, name: (signature + "=", name),
    lambda signature, name: (signature + "A", name),
    lambda signature, name: (signature + "\n", name),
    lambda signature, name: (signature[:-1], name),
    lambda signature, name: (signature.swapcase(), name),
    lambda signature, name: (signature.replace(".", ".."), name),
    lambda signature, name: (f"{signature}.{signature}", name),
    lambda signature, name: (signature, name + "\n"),
    lambda signature, name: (signature, name + "\0"),
    lambda signature, name: (signature, "./" + name),
    lambda signature, name: (signature, "../files/" + name),
    lambda signature, name: (signature, name.upper()),
    lambda signature, name: (signature, name.replace(".png", "")),
    lambda signature, name: (signature, name.replace("-", "-0")),
    lambda signature, name: (signature, name.translate({ord("1"): "١", ord("8"): "٨"})),
    lambda signature, name: (signature, "../secret"),
    lambda signature, name: ("ключ.подпись", name),
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_link_is_forbidden(files: Files, forge: Callable[[str, str], tuple[str, str]]) -> None:
    signature, name = save(files)
    forged = forge(signature, name)
    assert forged != (signature, name)
    with pytest.raises(FileForbidden) as caught:
        read(files, *forged)
    assert caught.value.status == 403


NAMES = st.from_regex(r"[0-9a-f]{32}-[0-9]{1,12}\.(png|jpg|webp)", fullmatch=True) | st.text(max_size=80)
SIGNATURES = st.from_regex(r"[0-9a-f]{8}\.[0-9]{1,12}\.[\w-]{32}", fullmatch=True) | st.text(max_size=80)


@given(signature=SIGNATURES, name=NAMES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_nothing_made_up_is_ever_answered(files: Files, signature: str, name: str) -> None:
    with pytest.raises(FileForbidden):
        read(files, signature, name)


def test_a_link_of_another_hub_is_forbidden_even_for_the_same_file(files: Files, tmp_path: Path, clock: Clock) -> None:
    signature, name = save(files)
    other = Files(tmp_path / "other", TTL, clock)
    (tmp_path / "other" / "files" / name).write_bytes(b"theirs")
    with pytest.raises(FileForbidden):
        read(other, signature, name)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.999])
def test_a_link_is_good_until_the_very_second_it_ends(files: Files, clock: Clock, fraction: float) -> None:
    clock.time = NOON + fraction
    signature, name = save(files)
    end = int(NOON) + TTL
    for time, left in ((end - 1, 1), (end - 0.001, 1)):
        clock.time = time
        assert read(files, signature, name) == b"picture"
        assert files.seconds_left(signature) == left
    for time in (end, end + 1):
        clock.time = time
        assert files.seconds_left(signature) == 0
        with pytest.raises(FileExpired) as caught:
            read(files, signature, name)
        assert caught.value.status == 410


def test_an_altered_link_is_forbidden_and_not_expired_when_its_time_is_over(files: Files, clock: Clock) -> None:
    signature, name = save(files)
    clock.time += 10 * TTL
    with pytest.raises(FileForbidden):
        read(files, replaced(signature, 12), name)


def test_links_survive_a_restart_and_a_changed_ttl(files: Files, tmp_path: Path, clock: Clock) -> None:
    signature, name = save(files)
    again = Files(tmp_path, 1, clock)
    assert read(again, signature, name) == b"picture"
    clock.time += TTL - 1
    assert read(again, signature, name) == b"picture"


def test_a_file_that_is_gone_is_not_found(files: Files, tmp_path: Path) -> None:
    signature, name = save(files)
    (tmp_path / "files" / name).unlink()
    with pytest.raises(NotFound) as caught:
        read(files, signature, name)
    assert str(tmp_path) not in caught.value.message


def test_a_planted_symbolic_link_is_not_followed(files: Files, tmp_path: Path) -> None:
    signature, name = save(files)
    stored = tmp_path / "files" / name
    stored.unlink()
    stored.symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound):
        read(files, signature, name)


def test_the_secret_is_random_private_and_made_once(tmp_path: Path) -> None:
    Files(tmp_path / "a", TTL)
    Files(tmp_path / "b", TTL)
    first = (tmp_path / "a" / "secret").read_bytes()
    assert len(first) == 32
    assert first != (tmp_path / "b" / "secret").read_bytes()
    Files(tmp_path / "a", TTL)
    assert (tmp_path / "a" / "secret").read_bytes() == first
    assert sorted(os.listdir(tmp_path / "a")) == ["files", "secret"]


def test_the_secret_is_private_from_its_first_moment_and_made_so_where_it_was_not(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Files(tmp_path, TTL)
    finally:
        os.umask(before)
    secret = tmp_path / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.chmod(0o644)
    Files(tmp_path, TTL)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_racing_processes_agree_on_one_secret(tmp_path: Path) -> None:
    rounds = 40
    script = f"""
import sys
from pathlib import Path
from hub.files import Files
sys.stdin.readline()
for k in range({rounds}):
    print(Files(Path({str(tmp_path)!r}) / str(k), 60)._secret.hex())
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    first, second = (racer.communicate(timeout=60)[0].split() for racer in racers)
    assert first == second == [(tmp_path / str(k) / "secret").read_bytes().hex() for k in range(rounds)]
    assert len(set(first)) == rounds
    assert all(sorted(os.listdir(tmp_path / str(k))) == ["files", "secret"] for k in range(rounds))


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_secret_stops_the_start_and_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        Files(tmp_path, TTL)
    assert (tmp_path / "secret").read_bytes() == content


def test_a_cache_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cache_dir: .*cannot be used"):
        Files(tmp_path / "file" / "cache", TTL)


def test_the_sweep_takes_what_has_expired_and_nothing_else(files: Files, tmp_path: Path, clock: Clock) -> None:
    _, old = save(files)
    clock.time += 1
    _, young = save(files)
    clock.time = NOON + TTL
    assert files.sweep() == 1
    assert listing(tmp_path) == [young]
    clock.time += 1
    assert files.sweep() == 1
    assert listing(tmp_path) == []
    assert files.sweep() == 0
    assert old != young


def test_the_sweep_takes_old_left_overs_of_a_crash_but_not_what_is_being_written(
    files: Files, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "files"
    ages = {ORPHAN_AGE + 1: True, ORPHAN_AGE - 1: False, 0: False, -100: False}
    for number, age in enumerate(ages):
        part = folder / f"{number:032x}-1800000060.tmp"
        part.write_bytes(b"half")
        os.utime(part, (NOON - age, NOON - age))
    assert files.sweep() == 1
    assert listing(tmp_path) == [f"{number:032x}-1800000060.tmp" for number in (1, 2, 3)]


def test_the_sweep_leaves_the_files_of_others_alone(files: Files, tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "files"
    names = [
        ".gitkeep",
        "notes.txt",
        "notes.tmp",
        "mine-5.png",
        f"{'0' * 32}.png",
        f"{'A' * 32}-5.png",
        f"{'0' * 31}-5.png",
    ]
    for name in names:
        (folder / name).write_text("mine")
        os.utime(folder / name, (0, 0))
    (folder / "backup.tmp").mkdir()
    os.utime(folder / "backup.tmp", (0, 0))
    assert files.sweep() == 0
    assert listing(tmp_path) == sorted([*names, "backup.tmp"])


def test_a_folder_that_bears_a_files_name_does_not_stop_the_sweep(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (folder / f"{'0' * 32}-5.png").mkdir()
    for number in range(1, 20):
        (folder / f"{number:032x}-5.png").write_bytes(b"old")
    assert files.sweep() == 19
    assert listing(tmp_path) == [f"{'0' * 32}-5.png"]


def test_the_sweep_removes_a_planted_link_and_not_what_it_leads_to(files: Files, tmp_path: Path) -> None:
    (tmp_path / "files" / f"{'0' * 32}-5.png").symlink_to(tmp_path / "secret")
    assert files.sweep() == 1
    assert (tmp_path / "secret").is_file()


def test_the_sweeper_sweeps_at_once_and_ends_with_its_context(files: Files, tmp_path: Path, clock: Clock) -> None:
    save(files)
    clock.time += TTL

    async def main() -> None:
        async with asyncio.timeout(20), files.sweeping():
            while listing(tmp_path):
                await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_sweep_that_fails_is_tried_again(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def sweep() -> int:
        tries.append(1)
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(files, "sweep", sweep)
    monkeypatch.setattr("hub.files.SWEEP_INTERVAL", 0)

    async def main() -> None:
        async with asyncio.timeout(20), files.sweeping():
            while len(tries) < 3:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert "trying again" in caplog.text


def test_a_full_disk_is_a_clear_error_without_left_overs_and_smaller_files_still_go(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write in the middle of the file (EFBIG)."""
    script = f"""
import asyncio, os
from pathlib import Path
from hub.errors import StorageFull
from hub.files import Files
files = Files(Path({str(tmp_path)!r}), 60)
try:
    asyncio.run(files.save(bytes(3_000_000)))
except StorageFull as error:
    print(error.status, os.listdir({str(tmp_path / "files")!r}), {str(tmp_path)!r} in error.message)
_, _, signature, name = files.link(asyncio.run(files.save(b"small"))).split("/")
print(asyncio.run(files.read(signature, name)))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines() == ["507 [] False", "b'small'"], result.stderr


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whichever_step_of_a_save_fails_nothing_is_left_behind(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"hub.files.os.{call}", fail)
        with pytest.raises(OSError if number == errno.EIO else StorageFull):
            save(files)
    assert listing(tmp_path) == []
    assert read(files, *save(files)) == b"picture"


def test_a_picture_is_on_the_disk_before_its_name_is(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spied_fsync(descriptor: int) -> None:
        done.append(f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def spied_rename(source: Path, target: Path) -> None:
        assert not Path(target).exists()
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr("hub.files.os.fsync", spied_fsync)
    monkeypatch.setattr("hub.files.os.rename", spied_rename)
    save(files, bytes(1000))
    assert done == ["1000 bytes", "rename"]


def test_a_save_whose_caller_leaves_stores_the_whole_file_or_none(files: Files, tmp_path: Path) -> None:
    async def main() -> None:
        saving = asyncio.ensure_future(files.save(bytes(1_000_000)))
        await asyncio.sleep(0)
        saving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await saving

    asyncio.run(main())
    assert {(tmp_path / "files" / name).stat().st_size for name in listing(tmp_path)} <= {1_000_000}
    assert not list((tmp_path / "files").glob("*.tmp"))


def test_a_deleted_cache_is_made_again_and_an_absent_one_is_swept_in_peace(tmp_path: Path) -> None:
    """The cache's README says that all of it can be deleted at any time, a running hub's too."""
    files = Files(tmp_path / "cache", 60)
    shutil.rmtree(tmp_path / "cache")
    assert files.sweep() == 0
    signature, name = save(files)
    assert read(files, signature, name) == b"picture"
    again = Files(tmp_path / "cache", 60)
    assert asyncio.run(again.read(signature, name)) == b"picture", "the secret was written again, too"


def test_a_link_ends_before_its_file_which_can_be_linked_again(files: Files, tmp_path: Path, clock: Clock) -> None:
    signature, name = save(files, keep_until=NOON + 10 * TTL)
    assert signature.split(".")[1] == str(int(NOON) + TTL)
    clock.time += TTL
    assert files.sweep() == 0
    with pytest.raises(FileExpired):
        read(files, signature, name)
    again = link(files, name)
    assert again != signature
    assert read(files, again, name) == b"picture"
    assert files.seconds_left(again) == TTL
    with pytest.raises(FileExpired):
        read(files, signature, name)
    assert listing(tmp_path) == [name]


def test_no_link_outlives_its_file(files: Files, tmp_path: Path, clock: Clock) -> None:
    _, name = save(files, keep_until=NOON + 1.5 * TTL)
    clock.time += TTL
    signature = link(files, name)
    assert files.seconds_left(signature) == TTL / 2
    clock.time += TTL / 2
    with pytest.raises(FileExpired):
        read(files, signature, name)
    assert files.sweep() == 1
    assert listing(tmp_path) == []
    assert files.seconds_left(link(files, name)) == 0, "a link that is made too late is born dead"


def test_a_file_is_kept_at_least_as_long_as_its_link_is_good(files: Files, clock: Clock) -> None:
    for keep_until in (0, NOON, NOON + 1):
        signature, name = save(files, keep_until=keep_until)
        assert name.partition("-")[2] == f"{int(NOON) + TTL}.png"
        assert files.seconds_left(signature) == TTL


@pytest.mark.parametrize(("output_format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_name_ends_in_its_formats_extension_and_its_link_is_whole_in_the_path(
    files: Files, output_format: Any, extension: str
) -> None:
    signature, name = save(files, b"bytes", output_format=output_format)
    assert re.fullmatch(rf"[0-9a-f]{{32}}-[0-9]+\.{extension}", name)
    assert re.fullmatch(rf"/files/[0-9a-f]{{8}}\.[0-9]+\.[\w-]{{32}}/[0-9a-f-]+\.{extension}", files.link(name))
    assert read(files, signature, name) == b"bytes"
    assert MEDIA_TYPES[extension] == f"image/{output_format}"


def test_a_stored_file_is_read_held_and_deleted_by_its_name(files: Files, tmp_path: Path) -> None:
    names = [save(files, data)[1] for data in (b"one", b"two", b"three")]
    assert asyncio.run(files.exist(names))
    assert asyncio.run(files.read_stored(names[1])) == b"two"
    asyncio.run(files.delete(names[:2]))
    assert listing(tmp_path) == [names[2]]
    assert not asyncio.run(files.exist(names))
    assert asyncio.run(files.exist(names[2:]))
    asyncio.run(files.delete(names))  # two are gone already
    assert listing(tmp_path) == []
    with pytest.raises(NotFound) as caught:
        asyncio.run(files.read_stored(names[2]))
    assert str(tmp_path) not in caught.value.message


def test_a_deleted_file_is_not_found_by_its_link(files: Files) -> None:
    signature, name = save(files)
    asyncio.run(files.delete([name]))
    with pytest.raises(NotFound):
        read(files, signature, name)


def test_a_planted_fifo_does_not_block_a_reader(files: Files, tmp_path: Path) -> None:
    signature, name = save(files)
    stored = tmp_path / "files" / name
    stored.unlink()
    os.mkfifo(stored)
    with pytest.raises(NotFound):
        read(files, signature, name)
    assert not asyncio.run(files.exist([name]))


def test_the_seconds_left_of_no_signature_are_none(files: Files) -> None:
    assert files.seconds_left("x") == 0
    assert files.seconds_left("") == 0


def shared(files: Files, *names: str, **how: Any) -> list[str]:
    return asyncio.run(files.share(names, **how))


def test_a_shared_file_has_two_names_with_a_life_each_and_is_stored_once(
    files: Files, tmp_path: Path, clock: Clock
) -> None:
    _, old = save(files, keep_until=NOON + 100)
    (new,) = shared(files, old, keep_until=NOON + 200)
    assert (new[:32] != old[:32], new[32:]) == (True, f"-{int(NOON) + 200}.png")
    assert len({(tmp_path / "files" / name).stat().st_ino for name in (old, new)}) == 1
    clock.time = NOON + 100
    assert files.sweep() == 1
    assert asyncio.run(files.read(link(files, new), new)) == b"picture"
    asyncio.run(files.delete([new]))
    assert os.listdir(tmp_path / "files") == []


def test_where_one_of_several_is_gone_none_is_shared(files: Files, tmp_path: Path) -> None:
    names = [save(files)[1] for _ in range(3)]
    asyncio.run(files.delete(names[1:2]))
    with pytest.raises(NotFound):
        shared(files, *names)
    assert sorted(os.listdir(tmp_path / "files")) == sorted([names[0], names[2]])


def test_a_planted_link_is_not_shared(files: Files, tmp_path: Path) -> None:
    _, name = save(files)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "files" / name).unlink()
    (tmp_path / "files" / name).symlink_to(tmp_path / "secret.txt")
    with pytest.raises(NotFound):
        shared(files, name)
    assert os.listdir(tmp_path / "files") == [name]


@pytest.mark.parametrize("error", [errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP])
def test_where_no_second_name_can_be_had_the_file_is_copied(
    files: Files, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(error, "no")

    _, old = save(files)
    monkeypatch.setattr(os, "link", refuse)
    (new,) = shared(files, old)
    asyncio.run(files.delete([old]))
    assert asyncio.run(files.read_stored(new)) == b"picture"
    with pytest.raises(NotFound):
        shared(files, old)


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP])
def test_where_no_second_name_can_be_had_there_is_one_secret_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "link", refuse)
    signature, name = save(first := Files(tmp_path, TTL))
    assert read(Files(tmp_path, TTL), signature, name) == b"picture"
    shutil.rmtree(tmp_path)
    signature, name = save(first)
    assert read(Files(tmp_path, TTL), signature, name) == b"picture"
    assert sorted(os.listdir(tmp_path)) == ["files", "lock", "secret"]


DELETER = """
import shutil, sys, time
while True:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("what", ["cache", "cache/files"])
def test_pictures_are_stored_while_their_folder_is_deleted_again_and_again(tmp_path: Path, what: str) -> None:
    files = Files(tmp_path / "cache", 60)

    async def main() -> None:
        end = asyncio.get_running_loop().time() + 2
        while asyncio.get_running_loop().time() < end:
            names = await asyncio.gather(*(files.save(bytes(300_000)) for _ in range(3)))
            with contextlib.suppress(NotFound):
                assert await files.read_stored(names[0]) == bytes(300_000)
            with contextlib.suppress(NotFound):
                await files.share(names)
            files.sweep()

    with subprocess.Popen([sys.executable, "-c", DELETER, tmp_path / what]) as deleter:
        try:
            asyncio.run(main())
        finally:
            deleter.kill()
    name = asyncio.run(files.save(b"picture"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert read(Files(tmp_path / "cache", 60), link(files, name), name) == b"picture"


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_picture_that_is_deleted_while_it_is_written_is_written_again(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls: list[str] = []
    real: Callable[..., Any] = getattr(os, call)

    def deletes_first(*arguments: Any) -> None:
        if not calls:
            shutil.rmtree(tmp_path / "files")
        calls.append(call)
        real(*arguments)

    monkeypatch.setattr(f"hub.files.os.{call}", deletes_first)
    signature, name = save(files)
    assert read(files, signature, name) == b"picture"
    assert (len(calls), listing(tmp_path)) == (2, [name])


def test_a_folder_that_cannot_be_made_again_is_told_and_not_tried_for_ever(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.files.PATIENCE", 0.2)
    shutil.rmtree(tmp_path / "files")
    (tmp_path / "files").write_text("a file in its place")
    with pytest.raises(OSError):
        save(files)


def test_the_sweep_takes_what_killed_hubs_and_workers_have_left_beside_the_pictures(
    files: Files, tmp_path: Path, clock: Clock
) -> None:
    left = [f".{name}-{'0' * 16}.tmp" for name in ("secret", "hub.db", "weights.json", "saturation.1.json")]
    others = [".secret.tmp", "hub.db", ".notes-0.tmp", f"{'0' * 16}.tmp"]
    for name in [*left, *others]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (NOON, NOON))
    clock.time = NOON + ORPHAN_AGE
    assert files.sweep() == 0
    clock.time += 1
    assert files.sweep() == len(left)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "files", "secret"])


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small file system")
def test_a_cache_that_may_not_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        Files(disk / "cache", TTL)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for cache in (disk / "cache", disk / "other"):
            with pytest.raises(ConfigurationError, match=r"cache_dir: .*cannot be used: "):
                Files(cache, TTL)
    finally:
        subprocess.run(["umount", disk], check=True)
