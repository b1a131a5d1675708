"""Meeting points: methods of shared modules where the calls of many requests wait for one another.

Called inside a run (a greenlet of the weave), a meeting point hands its call to the engine's loop and sleeps until
the loop gives it its part of a shared forward's output. Called from anywhere else it is the plain method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import greenlet

from hub.engine.merge import layout_of, merge, signature, split

if TYPE_CHECKING:
    import torch


class Run(greenlet.greenlet):
    """The greenlet of one picture: meeting points may suspend it, back into the `loop` that made it."""

    def __init__(self, body: Callable[[], Any]) -> None:
        super().__init__(body)
        self.loop = greenlet.getcurrent()


class Call:
    """One call that waits at a meeting point."""

    __slots__ = ("bound", "key", "layout", "point")

    def __init__(self, point: MeetingPoint, bound: inspect.BoundArguments) -> None:
        self.point = point
        self.bound = bound
        self.layout = layout_of(bound.arguments)
        self.key: Hashable = (point, signature(bound.arguments, self.layout))


class MeetingPoint:
    """A module's method, replaced on the instance by one that waits for company."""

    def __init__(self, module: torch.nn.Module, method: str, *, denoising: bool) -> None:
        """Installs itself. `denoising`: whether each call is one step of a denoising loop."""
        self.denoising = denoising
        self._plain: Callable[..., Any] = getattr(module, method)
        self._signature = inspect.signature(self._plain)
        setattr(module, method, self._meet)

    def _meet(self, *args: Any, **kwargs: Any) -> Any:
        run = greenlet.getcurrent()
        if not isinstance(run, Run):
            return self._plain(*args, **kwargs)
        return run.loop.switch(Call(self, self._signature.bind(*args, **kwargs)))

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """One forward for calls of equal key; their outputs in the same order. A single call runs as it came."""
        if len(calls) == 1:
            bound = calls[0].bound
            return [self._plain(*bound.args, **bound.kwargs)]
        layouts = [call.layout for call in calls]
        merged = merge([call.bound.arguments for call in calls], layouts)
        bound = inspect.BoundArguments(self._signature, merged)
        return split(self._plain(*bound.args, **bound.kwargs), layouts)
