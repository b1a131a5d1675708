"""The folders: whether they are there, can be written and locked, on which disk, with how much room; and what pulls
that were cut off have left."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.library.layout import Weights
from hub.library.progress import as_bytes
from hub.library.writing import FULL
from hub.locks import Lock, alone_in
from hub.manifest import repo_folder

LITTLE, TOO_LITTLE = 5_000_000_000, 500_000_000
"""Bytes that should be free on a disk, and without which it is as good as full."""
FEW = 1000
"""Inodes, likewise: each picture is a file."""
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs"}
QUIET, AT_WORK = 10.0, 60.0
"""Seconds since a left-over was written last, within which somebody may be writing it still: where nobody holds the
repository's lock, and where that cannot be told."""
MOUNTS = Path("/proc/self/mountinfo")


class Place(Struct):
    """A folder that the settings name or imply; `at` is where it is, or will be made. `needed`: without writing there
    the hub cannot work. `must_be`: the hub does not start where it is not there. `writes`: what cannot be done where it
    cannot be written."""

    setting: str
    path: Path
    at: Path
    needed: bool
    must_be: bool
    writes: str


def places(case: Case) -> list[Place]:
    """All of them."""
    settings = case.settings
    pull = "models cannot be pulled or imported"

    def place(setting: str, path: Path, writes: str, *, needed: bool = False, must_be: bool = False) -> Place:
        return Place(setting, path, _existing(path), needed, must_be, writes)

    return [
        place("cache_dir", settings.cache_dir, "no picture can be stored", needed=True),
        place("weights_dir", settings.weights_folder, pull, needed=settings.auto_pull != "off"),
        place("models_dir", settings.owned_models, pull, must_be=settings.models_dir is not None),
        place("loras_dir", settings.loras_folder, "no LoRA can be added", must_be=settings.loras_dir is not None),
        place("bundles_dir", settings.bundles_folder, "the admin API can write no bundles"),
    ]


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def check(case: Case) -> Iterator[Finding]:
    """Each folder, and then the disks."""
    writable = []
    for place in places(case):
        if place.must_be and not place.path.is_dir():
            if place.setting != "models_dir":  # told with the manifests
                words = f"{place.path} is not a folder, and the hub does not start"
                yield problem("folders", place.setting, words, f"Make it (`mkdir -p {place.path}`), or correct it.")
            continue
        finding, usable = _try_out(place)
        yield finding
        if usable:
            writable.append(place)
    yield from _disks([place for place in writable if place.setting in ("cache_dir", "weights_dir", "bundles_dir")])
    yield from _files(case.settings.cache_dir / "files")
    yield from _left_over(case)


def _try_out(place: Place) -> tuple[Finding, bool]:
    """Writes small files there, locks and deletes them. The other answer: whether what is free there counts."""
    tell = problem if place.needed else warning
    there = f"{place.path}" if place.at == place.path else f"{place.path} (not there yet, and can be made)"
    if not place.at.is_dir():
        remedy = f"Remove the file, or set {place.setting} to a folder."
        return tell("folders", place.setting, f"{place.at} is a file, and no folder", remedy), False
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", suffix=".tmp", dir=place.at) as probe:
            locks = _write_and_lock(Path(probe))
    except OSError as error:
        if error.errno in FULL:  # told of the disk
            return ok("folders", place.setting, there), True
        words = f"{place.path} cannot be written ({os.strerror(error.errno or 0)}): {place.writes}"
        remedy = f"Let this user write there (`ls -ld {place.at}`, `mount`), or set {place.setting} to another folder."
        return tell("folders", place.setting, words, remedy), False
    kind = _file_system(place.at)
    remedy = f"Set {place.setting} to a folder on a local disk."
    if locks is not None:
        words = f"{place.path}: files cannot be locked there ({locks}; file system {kind or 'unknown'})"
        return tell("folders", place.setting, words, remedy), True
    if place.needed and kind in NETWORK:
        words = f"{place.path} is on a network share ({kind}), where SQLite's locks are not to be relied on"
        return warning("folders", place.setting, words, remedy), True
    return ok("folders", place.setting, there), True


def _write_and_lock(probe: Path) -> str | None:
    """Why nothing can be locked in this folder: by the locks that hubs have on a cache, and by SQLite's. Raises OSError
    where nothing can be written."""
    with (probe / "file").open("xb") as file:
        file.write(b"doctor\n" * 600)
        file.flush()
        os.fsync(file.fileno())
        try:
            with alone_in(probe):
                Lock(probe / "hub.lock").release()
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in FULL:
                raise
            return os.strerror(error.errno or 0)
    return None


def _file_system(place: Path) -> str | None:
    """Its kind, as Linux calls it; None elsewhere."""
    try:
        device = os.stat(place).st_dev  # noqa: PTH116
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in MOUNTS.read_text().splitlines():
            words = line.split()
            if words[2] == number:
                return words[words.index("-") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return None


def _disks(written: list[Place]) -> Iterator[Finding]:
    """What is free on each disk that is written to."""
    by_disk: dict[int, list[Place]] = {}
    for place in written:
        by_disk.setdefault(place.at.stat().st_dev, []).append(place)
    for there in by_disk.values():
        names = ", ".join(place.setting for place in there)
        subject, at = f"disk of {names}", there[0].at
        status = os.statvfs(at)
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        words = f"{as_bytes(free)} free of {as_bytes(total)} (at {at})"
        remedy = "Make room (`hub models gc` removes what no model needs), or set these folders to a larger disk."
        if free < TOO_LITTLE:
            yield problem("folders", subject, f"it is full: {words}", remedy)
        elif free < LITTLE:
            yield warning("folders", subject, words, remedy)
        else:
            yield ok("folders", subject, words)
        if status.f_files and status.f_favail < FEW:
            tell = warning if status.f_favail else problem
            words = f"{status.f_favail} more files can be made on it (inodes), of {status.f_files}"
            yield tell("folders", subject, words, "Delete many small files there, or set these folders elsewhere.")


def _files(folder: Path) -> Iterator[Finding]:
    """Where the pictures lie, within cache_dir: the hub makes it, where nothing is in the way."""
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            words = f"{folder} cannot be written, and the hub does not start"
            yield problem("folders", "cache_dir", words, f"Let this user write there (`ls -ld {folder}`).")
    elif os.path.lexists(folder):
        what = "a link that leads nowhere" if folder.is_symlink() and not folder.exists() else "no folder"
        words = f"{folder} is {what}, and the hub does not start"
        yield problem("folders", "cache_dir", words, f"Remove it (`rm {folder}`), or make what it should lead to.")


def _left_over(case: Case) -> Iterator[Finding]:
    """Downloads that were cut off, by repository."""
    weights, models = case.settings.weights_folder, case.models
    found: dict[str, list[Path]] = {}
    for file in weights.glob("models--*/**/*.incomplete"):
        found.setdefault(file.relative_to(weights).parts[0], []).append(file)
    ids = {repo_folder(model.source.repo): model.id for model in models if model.source}
    for folder, files in sorted(found.items()):
        held = _is_locked(weights, folder)
        states = [file.stat() for file in files if file.is_file()]
        quiet = time.time() - max((state.st_mtime for state in states), default=time.time())
        if held or quiet < (AT_WORK if held is None else QUIET):
            continue  # somebody is at it
        size = as_bytes(sum(state.st_blocks * 512 for state in states))
        name = ids.get(folder, folder.removeprefix("models--").replace("--", "/"))
        words = f"{len(states)} unfinished downloads, {size}, in {weights / folder}"
        remedy = (
            "`hub models gc` removes them. This hub is offline: import the model from a bundle (docs/air-gap.md)."
            if case.offline
            else f"`hub models pull {name}` goes on with them; `hub models gc` removes them."
        )
        yield warning("folders", name, words, remedy)


def _is_locked(weights: Path, folder: str) -> bool | None:
    """Whether somebody changes a repository now: a hub, or another program that shares the folder and locks each file.
    None where that cannot be told. What is locked here to see it is let go at once, and stands beside other such looks.
    """
    place = Weights(weights).lock_file(folder)
    try:
        for file in [*([place] if place.exists() else []), *(place.parent / folder).glob("*.lock")]:
            with file.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
