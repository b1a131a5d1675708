"""What torch finds on this machine to compute with, and how much memory that has. Belongs to the worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from hub.engine.protocol import DeviceMemory
from hub.pipelines.loading import choose_device

MEMORY = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


class Unusable(Exception):
    """A device that cannot be computed with: why, and what to do, in words for the owner that clients may see."""


def open_device(wanted: str, setting: str) -> torch.device:
    """The device called `wanted`, with its number, made this thread's own. `setting` is the owner's word for all
    devices. Raises Unusable."""
    try:
        device = choose_device(wanted)
    except RuntimeError:
        raise Unusable(why_not(wanted, setting)) from None
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    try:
        use(device)
        memory_of(device)
    except RuntimeError as error:  # it is there and broken, or another program's alone
        raise Unusable(f"{device} is there but cannot be used: {str(error).partition(chr(10))[0]}") from error
    return device


def use(device: torch.device) -> None:
    """What says just "cuda" means this one, on the thread that calls; otherwise it would set up a context, of hundreds
    of megabytes, on the first one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def works(device: torch.device) -> bool:
    """Whether the device still computes. After some errors a process cannot use a GPU again until it is restarted."""
    try:
        return bool(torch.ones(1, device=device).add_(1).item() == 2)
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or main memory, had too little. torch has no class of its own for the latter."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def devices_here(own: torch.device) -> list[DeviceMemory]:
    """The worker's own device, and for a CUDA device the others.

    What is free on those is not asked: the question would set up a context on each.
    """
    found = [memory_of(own)]
    if own.type == "cuda":
        for index in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(index).total_memory
            if index != own.index:
                found.append(DeviceMemory(f"cuda:{index}", total, total))
    return found


def memory_of(device: torch.device) -> DeviceMemory:
    """A device's memory. What torch keeps for reuse counts as free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceMemory(str(device), total, free + kept)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceMemory(str(device), total, max(0, total - torch.mps.current_allocated_memory()))
    return DeviceMemory(str(device), *main_memory())


def main_memory() -> tuple[int, int]:
    """The machine's, in all and available (where the latter is not told, all of it), or what a container may have of
    them.

    Read are /proc/meminfo, and for this process's control groups, and those around them, the limit and what is used
    of it: memory.max and memory.current (cgroup v2), or memory.limit_in_bytes and memory.usage_in_bytes (v1). The
    page cache that is given up first, inactive_file in memory.stat, counts as free.
    """
    try:
        lines = (line.split() for line in MEMORY.read_text().splitlines())
        told = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
        total, free = told["MemTotal:"], told["MemAvailable:"]
    except (OSError, ValueError, KeyError):
        total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in _limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _limits() -> Iterator[tuple[int, int]]:
    """The limit of each control group around this process that has one, and what is used of it."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A container often sees its own group as the root, under the path that the group has outside.
        inside = Path(path.strip("/"))
        for group in (root / each for each in (inside, *inside.parents) if ".." not in each.parts):
            try:
                limit = int((group / names[0]).read_text())
                used = int((group / names[1]).read_text())
            except (OSError, ValueError):  # not there, or "max": no limit
                continue
            yield limit, used - _told(group / "memory.stat", names[2])


def _told(source: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 where there is none."""
    try:
        return next(
            (int(words[1]) for words in map(str.split, source.read_text().splitlines()) if words[:1] == [name]), 0
        )
    except (OSError, ValueError, IndexError):
        return 0


def why_not(device: str, setting: str) -> str:
    """Why torch cannot compute on a device that the owner chose, or that was there at the start; and what to do."""
    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "mps":
        found = "no Apple GPU"
    elif count and index:
        found = f"only {', '.join(f'cuda:{number}' for number in range(count))}"
    else:
        found = "no CUDA device" + ("" if torch.version.cuda or torch.version.hip else " (this torch is built without)")
    if setting == "auto":
        return f"{device} was there when the hub started, but torch finds {found} now. Restart the hub without it."
    names = f" names {device}" if "," in setting else ""
    end = "Take it out of the list." if names else "Set it to auto or cpu."
    return f"HUB_DEVICE={setting} (`device` in hub.toml){names}, but torch finds {found} here. {end}"
