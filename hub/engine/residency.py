"""Where the weights of shared modules are: on the device, or in main memory until it is their turn.

A module comes to the device when a forward needs it, and stays there until another one needs the room: the one that
was used longest ago goes first. So requests that wait for one module share its upload, whoever's they are. Of a module
that does not fit whole, the first blocks stay, and the others pass through what is left, one at a time.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from hub.engine.devices import memory_of
from hub.engine.held import Held, Part, settle, with_blocks

log = logging.getLogger("hub.worker")

GROWTH = 128 * 1024 * 1024
"""Bytes that other programs take and give back without needing more."""
SMALL = 32 * 1024 * 1024
"""Bytes that a machine is not asked for before they are used."""


class Residency:
    """All modules of one device thread, which alone changes anything."""

    def __init__(self, device: torch.device, limit: int | None = None, reserve: int = 0) -> None:
        """`limit`: bytes of the device that weights and what is computed with them may take; None for what is there.
        `reserve`: bytes that should be free for other programs, when these take more than they did.

        On a CPU modules lie in main memory and nothing travels, unless there is a limit: then they are copied to a
        part of it of that size, as if it were a device of its own.
        """
        self.device = device
        self.limit = limit
        self._reserve = reserve
        self.moves = device.type != "cpu" or limit is not None
        self._taken: int | None = None
        self.uploads = 0
        """How many times a module had to be brought, in whole or in part."""
        self.uploaded = 0
        """Bytes of them."""
        self._held: dict[int, Held] = {}
        self._clock = itertools.count(1)

    def hold(self, module: torch.nn.Module, *, travels: bool = True) -> None:
        """Takes over a module that lies in main memory. Known ones are known already. What is no plain parameter
        (buffers, quantized weights) is put on the device at once, and stays; so is all of one that does not travel.

        Raises torch.OutOfMemoryError where that does not fit.
        """
        if id(module) in self._held:
            return
        held = Held(module, travels=travels)
        self._taken = None
        if self.moves:
            self._make_room(held, held.fixed)
            settle(module, self.device, travels=travels)
            self._leave(held.parts)
            for block, part in with_blocks(module, held):
                block.register_forward_pre_hook(self._arrival(held, part))
        self._held[id(module)] = held

    def drop(self, module: torch.nn.Module) -> None:
        """Forgets a module that nobody uses any more."""
        self._held.pop(id(module), None)

    def whole(self, module: torch.nn.Module) -> bool:
        """Whether all of it was there for its latest forward, and not block after block."""
        held = self._held.get(id(module))
        return held is None or held.whole

    def least(self, module: torch.nn.Module) -> int:
        """Bytes of its weights that must be on the device at once, beside what is there for good."""
        held = self._held.get(id(module))
        return held.least if held is not None and self.moves else 0

    def in_main(self, module: torch.nn.Module) -> int:
        """Bytes of main memory that would be free without it."""
        held = self._held.get(id(module))
        if held is None:
            return 0
        there = held.here_bytes if self.device.type == "cpu" else 0
        return there + sum(part.in_main for part in held.parts)

    def to_main(self, coming: int) -> int:
        """Bytes that would have to leave a GPU for main memory, and have no place there yet, if so many came."""
        if self.device.type == "cpu":
            return 0
        parts = [part for held in list(self._held.values()) for part in held.parts]
        homeless = sum(part.bytes for part in parts if part.here and part.home is None)
        return min(homeless, max(0, coming - self._room()))

    def where(self, module: torch.nn.Module) -> tuple[int, int]:
        """Bytes of its weights, and of those on the device."""
        held = self._held.get(id(module))
        return (held.bytes, held.here_bytes) if held else (0, 0)

    @property
    def on_device(self) -> int:
        """Bytes of weights that are there."""
        return sum(held.here_bytes for held in list(self._held.values()))

    def lacking(self) -> int:
        """Bytes that are missing of the reserve, if other programs have taken more since the last time that something
        was brought to the device: while they have not, nobody needs what is there."""
        memory = memory_of(self.device)
        taken = memory.total - memory.free - self.on_device
        if self._taken is None or taken < self._taken:
            self._taken = taken
        return max(0, self._reserve - memory.free) if taken > self._taken + GROWTH else 0

    @property
    def capacity(self) -> int:
        """Bytes that weights and forwards could have if all of it were given to them now."""
        may_leave = sum(held.travelled for held in list(self._held.values())) if self.moves else 0
        return self._room() + may_leave

    def away(self, module: torch.nn.Module) -> bool:
        """Whether another module would have to leave so that this one can come."""
        held = self._held.get(id(module))
        if held is None or not self.moves:
            return False
        return held.missing > 0 and held.missing + held.workspace > self._room()

    def rows(self, module: torch.nn.Module, need: int, capacity: int) -> int:
        """The most rows that a forward has memory for, where each takes `need` bytes of the `capacity`; one at
        least."""
        held = self._held.get(id(module))
        weights = held.bytes - held.fixed if held is not None and self.moves else 0
        return max(1, (capacity - weights) // need)

    def bring(self, module: torch.nn.Module, workspace: int = 0, *, lean: bool = False) -> bool:
        """Puts a module on the device, and leaves `workspace` bytes for what it computes. False where that cannot be;
        as much as possible was done then. `lean`: of its blocks only one at a time is there, whatever fits.

        Raises torch.OutOfMemoryError where the device has less than it said.
        """
        held = self._held.get(id(module))
        if held is None:
            return True
        held.used, held.workspace, held.lean = next(self._clock), workspace, lean and bool(held.blocks)
        if not self.moves:
            return workspace < SMALL or workspace <= self._room()
        if self.limit is None and not held.missing:
            held.whole = True
            return True  # the allocator knows best
        self._make_room(held, held.missing + workspace)
        held.whole = not held.lean and held.missing + workspace <= self._room()
        if held.whole:
            self._load([part for part in held.parts if not part.here])
            return True
        self._thin_out(held, held.rest.bytes * (not held.rest.here) + workspace)
        self._load([held.rest] if not held.rest.here else [])
        return held.least + workspace <= self._room() + held.travelled

    def lighten(self, module: torch.nn.Module) -> None:
        """After the device ran out of memory in the module's forward: all others leave, and its own blocks."""
        for held in self._held.values():
            if self.moves:
                self._leave(held.parts if held.module is not module else held.blocks)
        free_caches(self.device)

    def make_way(self, wanted: int, busy: Callable[[torch.nn.Module], bool]) -> int:
        """Has modules that are not `busy` leave, the least recently used first, until that many bytes have been given
        back; tells how many."""
        given = 0
        for held in self._oldest_first():
            if given >= wanted:
                break
            if self.moves and not busy(held.module):
                given += held.travelled
                self._leave(held.parts)
        if given:
            free_caches(self.device)
        return given

    def _room(self) -> int:
        """Bytes that are free for weights and what is computed with them."""
        free = memory_of(self.device).free
        return free if self.limit is None else min(free, self.limit - self.on_device)

    def _oldest_first(self) -> list[Held]:
        return sorted((held for held in self._held.values() if held.travelled), key=lambda held: held.used)

    def _make_room(self, wanting: Held, wanted: int) -> None:
        for held in self._oldest_first():
            if wanted <= self._room():
                return
            if held is not wanting:
                self._leave(held.parts)

    def _thin_out(self, held: Held, wanted: int) -> None:
        """Its last blocks leave, as far as that helps."""
        for block in reversed(held.blocks):
            if wanted + (0 if block.here else block.bytes) <= self._room():
                return
            self._leave([block])

    def _leave(self, parts: Iterable[Part]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for part in parts:
                if part.here:
                    part.leave(self.device)

    def _load(self, parts: list[Part]) -> None:
        if not parts:
            return
        wanted = sum(held.bytes - held.fixed for held in self._held.values())
        stays = self.limit is None and wanted <= self.capacity
        self.uploads += 1
        self._taken = None
        with torch.inference_mode(False), torch.no_grad():
            for part in parts:
                part.arrive(self.device, stays=stays)
                self.uploaded += part.bytes

    def _arrival(self, held: Held, part: Part) -> Callable[..., None]:
        """What is called before a block's forward. Of those that pass through, the one that was used last makes room:
        it is needed last."""

        def arrive(*_: Any) -> None:
            if not part.here:
                for block in _before(held, part):
                    if not held.lean and part.bytes + held.workspace <= self._room():
                        break
                    self._leave([block])
                with torch.inference_mode(False), torch.no_grad():
                    part.arrive(self.device, stays=False)
                self.uploaded += part.bytes
            held.latest = part

        return arrive


def free_caches(device: torch.device) -> None:
    """Gives back what Python and the device's allocator keep for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _before(held: Held, part: Part) -> Iterator[Part]:
    """Blocks that are there and may leave for `part`: the latest, and further back."""
    if held.latest is not None and held.latest.here and held.latest is not part:
        yield held.latest
    at = held.blocks.index(part)
    for block in [*reversed(held.blocks[:at]), *reversed(held.blocks[at + 1 :])]:
        if block.here:
            yield block
