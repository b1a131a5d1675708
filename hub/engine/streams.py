"""Parts of one forward's batch, computed side by side on the CPU, one core each.

A team of cores that shares each operation meets at a barrier after each, and small operations leave it waiting there;
cores with rows of their own never wait for one another (decision 0014). The rows of a denoiser's batch do not look at
each other, and its forward keeps nothing, so nothing changes but the speed. VAEs are another matter: some keep caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

LEAST = 3
"""Rows for each core, below which a team is as fast: weights are read once for each part."""


class Streams:
    """The cores of the device thread, which is one of them. Not thread-safe: that thread alone calls it."""

    def __init__(self, cores: int, least: int = LEAST) -> None:
        self._cores = cores
        self._least = least
        self._helpers = ThreadPoolExecutor(cores - 1, "stream", torch.set_num_threads, (1,))

    def shares(self, rows: int) -> list[int]:
        """How many rows each core should have; all in one where they are too few to share out."""
        if rows < self._cores * self._least:
            return [rows]
        return [rows // self._cores + (core < rows % self._cores) for core in range(self._cores)]

    def run(self, parts: Sequence[Callable[[], Any]]) -> list[Any]:
        """Their results, in order; the caller's thread computes the first. Raises what one of them raised, when all
        have ended."""
        # A team of one needs no barrier. The helpers never form another: libgomp would count more threads than cores.
        team = torch.get_num_threads()
        others: list[Future[Any]] = []
        torch.set_num_threads(1)
        try:
            others += [self._helpers.submit(_quietly, part) for part in parts[1:]]
            first = parts[0]()
        finally:
            wait(others)
            torch.set_num_threads(team)
        return [first, *(other.result() for other in others)]


def _quietly(part: Callable[[], Any]) -> Any:
    with torch.inference_mode():  # the switch is per thread
        return part()


def streams_for(device: torch.device) -> Streams | None:
    """For a CPU with several cores; None for anything else."""
    cores = torch.get_num_threads()
    return Streams(cores) if device.type == "cpu" and cores > 1 else None
