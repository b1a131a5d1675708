"""What torch finds on this machine to compute with, and how much memory that has. Belongs to the worker."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hub.engine.protocol import DeviceMemory
from hub.pipelines.loading import choose_device

MEMORY = Path("/proc/meminfo")


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
    """The machine's, in all and available; where the latter is not told, all of it."""
    try:
        lines = (line.split() for line in MEMORY.read_text().splitlines())
        told = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
        return told["MemTotal:"], told["MemAvailable:"]
    except (OSError, ValueError, KeyError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total


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
