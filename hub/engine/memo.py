"""What text encoders have said: a prompt, negative prompt or empty one that comes again is not read again.

Exact: a call's whole input is its key, byte by byte, and its output is what the encoder gave. Kept in main memory
when it comes for the second time (most prompts never do, and copying costs), up to a budget; the least recently used
goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hub.engine.outputs import Unknown, mapped, tensors_of

BUDGET = 1024 * 1024 * 1024
"""Bytes. A CLIP prompt takes 0.1 MB, a large language model's with all its layers' states and scores 250 MB."""
SEEN = 4096
"""Keys that are remembered without their outputs."""


class Kept:
    """An output in main memory, of so many bytes."""

    def __init__(self, output: Any, size: int) -> None:
        self.bytes = size
        self._device = torch.device("cpu")
        self._output = mapped(output, self._keep)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._device = tensor.device  # one module's outputs lie on one device
        return tensor.to("cpu", copy=True)

    def output(self) -> Any:
        """A copy where it was made."""
        return mapped(self._output, lambda tensor: tensor.to(self._device, copy=True))


class Memo:
    """Outputs by inputs, for one worker's text encoders together."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._bytes = 0

    def key(self, owner: int, arguments: Mapping[str, Any]) -> bytes | None:
        """The `owner` (a module, by its id) and a digest of a call to it; None where an argument has no content to go
        by."""
        digest = hashlib.blake2b(digest_size=24)
        try:
            _feed(digest.update, dict(arguments))
        except Unknown:
            return None
        return owner.to_bytes(8) + digest.digest()

    def get(self, key: bytes) -> Any:
        """The output, the caller's own copy, on the device where it was made; None where it is not known."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found.output()

    def put(self, key: bytes, output: Any) -> None:
        """Keeps an output, unless its input is new, or it is of a kind that cannot be kept, or too large."""
        if key in self._kept:
            return
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            return
        try:
            size = _size(output)
        except Unknown:
            return
        if size > self._budget:
            return
        del self._seen[key]
        self._bytes += size
        self._kept[key] = Kept(output, size)
        while self._bytes > self._budget:
            self._bytes -= self._kept.popitem(last=False)[1].bytes

    def forget(self, owner: int) -> None:
        """What a module said that is no more."""
        begin = owner.to_bytes(8)
        for key in [key for key in self._kept if key.startswith(begin)]:
            self._bytes -= self._kept.pop(key).bytes
        for key in [key for key in self._seen if key.startswith(begin)]:
            del self._seen[key]


def _size(output: Any) -> int:
    """Bytes of its tensors. Raises Unknown for what cannot be kept."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(output))


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if torch.is_tensor(value):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        update(f"{type(value).__name__}{len(value)}".encode())
        for item in value:
            _feed(update, item)
    elif isinstance(value, dict):
        update(f"dict{len(value)}".encode())
        for key, item in value.items():
            update(repr(key).encode())
            _feed(update, item)
    elif isinstance(value, (int, float, str, bool, type(None), torch.dtype, torch.device)):
        update(f"{type(value).__name__}{value!r};".encode())
    else:
        raise Unknown
