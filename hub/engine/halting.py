"""Ends a forward that nobody waits for any more, between two blocks of its module.

Cancelled runs leave when the forward that they are in is over. That takes seconds where the model is large and the
device small; where a forward computes for cancelled runs alone, it is not finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


class Halted(BaseException):
    """Raised within a module's forward. Not an Exception: neither pipelines nor modules may take it for theirs."""


class Halt:
    """Which requests are cancelled, and for which pictures the device computes."""

    def __init__(self, request_of: Callable[[int], int]) -> None:
        """`request_of` tells a picture's request; asked within a forward."""
        self._request_of = request_of
        self._cancelled: set[int] = set()
        self._running: Sequence[int] = ()

    def cancel(self, request: int) -> None:
        """This request's pictures are not wanted any more. From any thread."""
        self._cancelled.add(request)

    def forget(self, request: int) -> None:
        """Its pictures are gone. From the device thread."""
        self._cancelled.discard(request)

    @contextlib.contextmanager
    def during(self, pictures: Sequence[int]) -> Iterator[None]:
        """A forward for these pictures. From the device thread."""
        self._running = pictures
        try:
            yield
        finally:
            self._running = ()

    def check(self, *_: Any) -> None:
        """Raises Halted where no picture of this forward is wanted."""
        if not (self._cancelled and self._running):
            return
        if all(self._request_of(picture) in self._cancelled for picture in self._running):
            raise Halted

    def watch(self, module: torch.nn.Module) -> None:
        """Has the module's forwards check before each of its blocks."""
        for block in blocks_of(module):
            block.register_forward_pre_hook(self.check)


def blocks_of(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of its outermost lists: few enough to ask each time, and each a small part of a forward."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from _members(child)
        else:
            yield from blocks_of(child)


def _members(blocks: torch.nn.ModuleList) -> Iterator[torch.nn.Module]:
    for block in blocks:
        if isinstance(block, torch.nn.ModuleList):  # which is never called itself
            yield from _members(block)
        elif block is not None:  # VAEs have such gaps
            yield block
