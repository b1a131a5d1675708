"""A module's weights in parts that travel between a device and main memory.

While a parameter is away, one number stands in its place on the device, with its shape, dtype and device: pipelines
look at these. It is NaN, so that a forward which got past the residency could not be taken for a good one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch

from hub.engine.devices import main_memory
from hub.engine.halting import blocks_of


class Part:
    """Parameters that travel together: a block of a module, or what is in no block.

    `home` are their tensors in main memory: kept while they are away, and as long as they may have to leave again.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.bytes = self._bytes()
        """Of all of them, in the type that they had when they came or left last."""
        self.here = True
        self.home: list[torch.Tensor] | None = None

    def _bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.parameters)

    @property
    def in_main(self) -> int:
        """Bytes of main memory that they take."""
        return sum(each.numel() * each.element_size() for each in self.home or ())

    def leave(self, device: torch.device) -> None:
        """To main memory."""
        pairs = zip(self.home or self.parameters, self.parameters, strict=True)
        if self.home is None or any(home.dtype != each.dtype for home, each in pairs):
            self.home = [_to_main(each.data) for each in self.parameters]
        for each in self.parameters:
            each.data = _stand_in(each.data, device)
        self.here = False
        self.bytes = self._bytes()

    def arrive(self, device: torch.device, *, stays: bool) -> None:
        """To the device. `stays`: it need not leave soon, and what is in main memory is given up. Raises
        torch.OutOfMemoryError, and is away then."""
        assert self.home is not None  # noqa: S101  # it has left before
        # Some are cast while they are away: what stands for them is, and tells to what.
        pairs = zip(self.home, self.parameters, strict=True)
        moved = [_to_device(tensor, device, each.dtype) for tensor, each in pairs]
        for each, tensor in zip(self.parameters, moved, strict=True):
            each.data = tensor
        self.here = True
        self.bytes = self._bytes()
        if stays:
            self.home = None
        elif device.type == "cuda" and 2 * self.bytes < main_memory()[1]:
            self.home = [_pinned(tensor) for tensor in self.home]


class Held:
    """A module whose parts travel. `fixed`: bytes of what does not (buffers, quantized weights). `whole`: all of it
    fits at once, as far as was known when it was last needed. `lean`: as little of it as can be is there at once."""

    def __init__(self, module: torch.nn.Module, *, travels: bool = True) -> None:
        self.module = module
        self.rest, self.blocks = _parts(module) if travels else (Part(()), [])
        moving = {id(each) for part in self.parts for each in part.parameters}
        tensors = {id(each): each for each in [*module.parameters(), *module.buffers()]}
        stays = [each for key, each in tensors.items() if key not in moving]
        self.fixed = sum(each.numel() * each.element_size() for each in stays)
        self.used = 0
        self.whole = True
        self.lean = False
        self.workspace = 0
        self.latest: Part | None = None

    @property
    def parts(self) -> list[Part]:
        """In the order in which a forward needs them."""
        return [self.rest, *self.blocks]

    @property
    def bytes(self) -> int:
        """Of all its weights and buffers."""
        return self.fixed + sum(part.bytes for part in self.parts)

    @property
    def travelled(self) -> int:
        """Bytes on the device that may leave."""
        return sum(part.bytes for part in self.parts if part.here)

    @property
    def here_bytes(self) -> int:
        """Bytes on the device."""
        return self.fixed + self.travelled

    @property
    def missing(self) -> int:
        """Bytes that are not there."""
        return self.bytes - self.here_bytes

    @property
    def least(self) -> int:
        """Bytes that have to come for a forward: the rest, and the largest block."""
        return self.rest.bytes + max((block.bytes for block in self.blocks), default=0)


def with_blocks(module: torch.nn.Module, held: Held) -> Iterator[tuple[torch.nn.Module, Part]]:
    """Each block, and the part that holds its parameters."""
    by_parameter = {id(each): part for part in held.blocks for each in part.parameters}
    for block in blocks_of(module):
        for part in {id(found): found for each in block.parameters() if (found := by_parameter.get(id(each)))}.values():
            yield block, part


def _parts(module: torch.nn.Module) -> tuple[Part, list[Part]]:
    """What is in no block, and each block; a parameter that belongs to two of them belongs to none."""
    seen: dict[int, int] = {}
    blocks = [{id(each): each for each in block.parameters() if _plain(each)} for block in blocks_of(module)]
    for block in blocks:
        for key in block:
            seen[key] = seen.get(key, 0) + 1
    own = [[each for key, each in block.items() if seen[key] == 1] for block in blocks]
    rest = {id(each): each for each in module.parameters() if _plain(each) and seen.get(id(each), 0) != 1}
    return Part(rest.values()), [Part(block) for block in own if block]


def _plain(parameter: torch.nn.Parameter) -> bool:
    """Whether it is no more than its numbers: quantised weights carry scales along, each kind in its own way."""
    return type(parameter) is torch.nn.Parameter and type(parameter.data) is torch.Tensor


def settle(module: torch.nn.Module, device: torch.device, *, travels: bool = True) -> None:
    """Puts what does not travel on the device."""

    def settled(tensor: torch.Tensor) -> torch.Tensor:
        leaves = travels and isinstance(tensor, torch.nn.Parameter) and _plain(tensor)
        return tensor if leaves else tensor.to(device)

    with torch.inference_mode(False), torch.no_grad():
        module._apply(settled)  # type: ignore[no-untyped-call]


def _to_main(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.device.type == "cpu" else tensor.to("cpu")


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """In memory that the machine does not move, from which a GPU reads several times as fast."""
    try:
        return tensor if tensor.is_pinned() else tensor.pin_memory()
    except RuntimeError:  # the machine lets us pin no more
        return tensor


def _to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if device.type == "cpu":
        return tensor.to(dtype, copy=True)
    return tensor.to(device, dtype, non_blocking=device.type == "cuda")


@functools.cache
def _one(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    floating = dtype.is_floating_point
    one = torch.full((), float("nan") if floating else 0, dtype=torch.float32 if floating else dtype)
    return one.to(device, dtype)


def _stand_in(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return _one(device, tensor.dtype).expand(tensor.shape)
