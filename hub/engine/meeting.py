"""Meeting points: methods of shared modules where the calls of many requests wait for one another.

Called inside a run (a greenlet of the weave), a meeting point hands its call to the engine's loop and sleeps until
the loop gives it its part of a shared forward's output. Called from anywhere else it is the plain method. What a
text encoder has said before, it says without waiting.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import greenlet
from msgspec import Struct

from hub.engine.compiling import CompiledModule, Compiler
from hub.engine.memo import Memo
from hub.engine.merge import Layout, cut, joined, layout_of, merge, signature, split
from hub.engine.outputs import copied
from hub.engine.residency import Residency
from hub.engine.skipping import Skipper
from hub.engine.streams import Streams
from hub.pipelines.tiling import can_tile, in_tiles

if TYPE_CHECKING:
    import torch

    from hub.engine.loras import Outfit, Wardrobe, Worn

Place = tuple[int, str]
"""A module by its id, and the name of a method."""


class Budget(Struct):
    """What a picture takes of the device. Memory: bytes that a row `needs` beside the weights, by module and method,
    where that is known; and whether it went through a VAE `tiled`, for want of more. Time: `seconds`, so far."""

    needs: Mapping[Place, int] = {}
    tiled: bool = False
    seconds: float = 0.0


class Run(greenlet.greenlet):
    """The greenlet of one picture: meeting points may suspend it, back into the `loop` that made it.

    `steps()` tells how many denoising steps it has in all, and `done()` how many it has done; None where the pipeline
    cannot tell. `outfit`: the LoRAs that it draws with.
    """

    outfit: Outfit | None = None

    def __init__(
        self,
        body: Callable[[], Any],
        steps: Callable[[], int],
        done: Callable[[], int] | None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(body)
        self.loop = greenlet.getcurrent()
        self.steps = steps
        self.done = done
        self.budget = budget or Budget()


class Call:
    """One call that waits at a meeting point. `known_as` is its input's digest, where outputs are remembered; `worn`
    the LoRAs that are to be active."""

    __slots__ = ("arguments", "key", "known_as", "layout", "point", "worn")

    def __init__(
        self, point: MeetingPoint, arguments: dict[str, Any], known_as: bytes | None = None, worn: Worn = ()
    ) -> None:
        self.point = point
        self.worn = worn
        self.arguments = arguments
        self.known_as = known_as
        self.layout = layout_of(arguments)
        self.key: Hashable = (point, worn, signature(arguments, self.layout))


class MeetingPoint:
    """A module's method, replaced on the instance by one that waits for company."""

    def __init__(
        self,
        module: torch.nn.Module,
        method: str,
        *,
        denoising: bool = False,
        memo: Memo | None = None,
        streams: Streams | None = None,
        skipper: Skipper | None = None,
        compiler: Compiler | None = None,
        residency: Residency | None = None,
        variant: str = "",
        wardrobe: Wardrobe | None = None,
    ) -> None:
        """Installs itself. `denoising`: whether its calls belong to a denoising loop. `memo` remembers its outputs.
        `streams` compute parts of a large batch side by side. `skipper` leaves calls out.
        `compiler` compiles what comes often. `residency` has the module's weights. `variant` tells modules apart whose
        forwards take another time. `wardrobe` has the module's LoRAs."""
        self.denoising = denoising
        self.name = f"{type(module).__name__}-{_config_digest(module)}.{method}{variant}"
        """The same in every process that loads such a module: what is learned about its speed is kept under it."""
        self.module = module
        self.method = method
        self.residency = residency
        self._memo = memo
        self._streams = streams
        self._skipper = skipper
        self._wardrobe = wardrobe
        self._plain: Callable[..., Any] = getattr(module, method)
        self._signature = inspect.signature(self._plain)
        kinds = {parameter.kind for parameter in self._signature.parameters.values()}
        simple = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        self._names = tuple(self._signature.parameters) if simple else None
        compiles = compiler is not None and self._names is not None
        self._compiled = CompiledModule(module, self._own, self.name, compiler) if compiles and compiler else None
        setattr(module, method, self._meet)

    def _meet(self, *args: Any, **kwargs: Any) -> Any:
        run = greenlet.getcurrent()
        if not isinstance(run, Run):
            if self.residency is not None:
                self.residency.bring(self.module)
            self._wear(())
            return self._plain(*args, **kwargs)
        arguments = self._named(args, kwargs)
        worn = self._wardrobe.part_of(run.outfit) if self._wardrobe else ()
        told = {**arguments, "loras": worn} if worn else arguments
        known_as = self._memo.key(id(self.module), told) if self._memo else None
        known = self._memo.get(known_as) if self._memo and known_as else None
        if known is not None:
            return known
        call = Call(self, arguments, known_as, worn)
        if self._skipper is None:
            return run.loop.switch(call)
        output = self._skipper.expect(run, call.key)
        if output is None:
            output = run.loop.switch(call)
            self._skipper.note(run, output)
        return output

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, in the order of the parameters, as Signature.bind has them; but faster."""
        if self._names is not None:
            given = {**dict(zip(self._names, args, strict=False)), **kwargs}
            named = {name: given[name] for name in self._names if name in given}
            if len(named) == len(args) + len(kwargs):
                return named
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """One forward for calls of equal key; their outputs in the same order. A single call runs as it came, and
        of calls with the same input one runs for all."""
        if self._memo is None or any(call.known_as is None for call in calls):
            return self._forward(calls)
        unlike = {call.known_as: call for call in calls if call.known_as is not None}
        outputs = dict(zip(unlike, self._forward(list(unlike.values())), strict=True))
        for known_as, output in outputs.items():
            self._memo.put(known_as, output)
        return [copied(outputs[call.known_as]) for call in calls if call.known_as is not None]

    def _wear(self, worn: Worn) -> None:
        if self._wardrobe:
            self._wardrobe.wear(worn)

    def _forward(self, calls: Sequence[Call]) -> list[Any]:
        self._wear(calls[0].worn)
        arguments = [call.arguments for call in calls]
        layouts = [call.layout for call in calls]
        streams = self._streams if self._whole else None
        shares = streams.shares(sum(layout.rows for layout in layouts)) if streams else []
        if len(calls) == 1 and len(shares) < 2:
            return [self._call(arguments[0])]
        merged = merge(arguments, layouts) if len(calls) > 1 else dict(arguments[0])
        if streams is None or len(shares) < 2:
            return split(self._call(merged), layouts)
        ends = list(itertools.accumulate(shares, initial=0))
        parts = [cut(merged, arguments[0], layouts[0], slice(*ends[k : k + 2])) for k in range(len(shares))]
        outputs = streams.run([functools.partial(self._call, part) for part in parts])
        return split(joined(outputs, [Layout(share, layouts[0].ragged) for share in shares]), layouts)

    @property
    def can_tile(self) -> bool:
        """Whether the method can work in tiles."""
        return self.method in ("encode", "decode") and can_tile(self.module)

    @contextlib.contextmanager
    def in_tiles(self, call: Call) -> Iterator[None]:
        """A forward for this call works in tiles, where it can."""
        if not self.can_tile:
            yield
            return
        with in_tiles(self.module, self.method, next(iter(call.arguments.values()))):
            yield

    @property
    def _whole(self) -> bool:
        """Whether the module is all on the device: while its blocks come and go, one forward at a time runs, and as
        the module has it."""
        return self.residency is None or self.residency.whole(self.module)

    def _call(self, arguments: dict[str, Any]) -> Any:
        if self._compiled is None or not self._whole or (self._wardrobe and self._wardrobe.worn):
            return self._own(arguments)  # what was compiled knows no LoRA
        return self._compiled(arguments)

    def _own(self, arguments: dict[str, Any]) -> Any:
        # By position, as they came: a method that wraps another one may call its first parameter as it likes.
        bound = inspect.BoundArguments(self._signature, arguments)
        return self._plain(*bound.args, **bound.kwargs)


def is_meeting_point(module: torch.nn.Module, method: str) -> bool:
    """Whether the method has been made one."""
    return isinstance(getattr(getattr(module, method), "__self__", None), MeetingPoint)


def _config_digest(module: torch.nn.Module) -> str:
    config: Any = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    told = sorted(f"{key}={value!r}" for key, value in values.items() if not key.startswith("_"))
    return hashlib.blake2b("\n".join(told).encode(), digest_size=6).hexdigest()
