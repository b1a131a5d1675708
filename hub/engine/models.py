"""The models that a worker has in memory: loaded when they are asked for, unloaded when they have been idle.

Between two requests a model stays for its `keep_alive`, unless its owner has pinned it, or another one needs the main
memory that it takes. Equal modules of several models (the same weights, used in the same way) are loaded once.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from hub.engine.devices import main_memory
from hub.engine.loader import Loaded, Loader, Request, loading_bytes
from hub.engine.memo import Memo
from hub.engine.protocol import EngineModel, HeldModel, HeldModule
from hub.engine.residency import Residency, free_caches
from hub.pipelines.auto import LoadedPipeline

log = logging.getLogger("hub.worker")


class TooLittleMemory(Exception):
    """Something does not fit, and what would is told; clients may read the words."""


class Model:
    """One in memory. Times are of the monotonic clock."""

    def __init__(self, key: EngineModel, pipeline: LoadedPipeline) -> None:
        self.key = key
        self.pipeline = pipeline
        self.since = self.used = time.monotonic()
        self.pinned = False
        self.leaving = False
        """Whether it is to be unloaded as soon as it has nothing to do."""


class Models:
    """All of one device thread, which alone calls it."""

    def __init__(
        self,
        device: torch.device,
        residency: Residency,
        memo: Memo,
        done: Callable[[Loaded], None],
        *,
        keep_alive: float = -1,
        hashes: Path | None = None,
    ) -> None:
        """`done` takes what a loader's thread gives. `keep_alive`: seconds for models that do not say, below 0 for
        ever. `hashes`: file for hashes of weights, which take time."""
        self._device = device
        self._residency = residency
        self._memo = memo
        self._loader = Loader(device, done, hashes)
        self._keep_alive = keep_alive
        self._held: dict[EngineModel, Model] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def get(self, key: EngineModel) -> LoadedPipeline | None:
        """One that is in memory; it counts as used now."""
        model = self._held.get(key)
        if model is None:
            return None
        model.used = time.monotonic()
        return model.pipeline

    def wait_for(self, request: Request, busy: Mapping[EngineModel, int]) -> None:
        """Has a model loaded for the request, which waits with others."""
        self._loader.add(request)
        self.load_next(busy)

    def load_next(self, busy: Mapping[EngineModel, int]) -> None:
        """Begins with the next load, if none runs. After `take`, when what was taken is in its place."""
        key = self._loader.next()
        if key is None:
            return
        try:
            self._make_room(key, busy)
        except TooLittleMemory as error:
            self._loader.give_up(key, error)
            return
        known = {
            identity: model.pipeline.modules[name]
            for model in self._held.values()
            for name, identity in model.pipeline.identities.items()
            if name in model.pipeline.modules
        }
        self._loader.start(key, known)

    def take(self, loaded: Loaded) -> list[Request]:
        """Takes what was loaded into the books; returns those who wait for it, or for the error."""
        lent = self._loader.lent
        requests, wanted = self._loader.take(loaded)
        if loaded.pipeline is not None:
            model = self._held[loaded.model] = Model(loaded.model, loaded.pipeline)
            model.leaving = not wanted
        self._drop_unless_held(lent)
        return requests

    def has(self, pipeline: LoadedPipeline) -> bool:
        """Whether it is still in memory, as far as the books say."""
        return any(model.pipeline is pipeline for model in self._held.values())

    def spare(self, busy: Mapping[EngineModel, int]) -> int:
        """Bytes of the device that idle models hold, and can give back."""
        held = {id(m): self._residency.where(m)[1] for key in self._idle(busy) for m in self._modules(key)}
        return sum(held.values())

    def discard(self, key: EngineModel) -> None:
        """One that could not be loaded, or put in its place."""
        if key in self._held:
            self._unload([key], "it could not be set up")
        else:
            free_caches(self._device)

    def forget(self, request_id: int) -> None:
        """A request that does not wait any more."""
        self._loader.forget(request_id)

    def ended(self, key: EngineModel) -> None:
        """A request for it has ended."""
        model = self._held.get(key)
        if model is not None:
            model.used = time.monotonic()

    def keep(self, key: EngineModel) -> None:
        """One that was to be unloaded when it has nothing to do stays after all."""
        if key in self._held:
            self._held[key].leaving = False

    def pin(self, name: str, *, pinned: bool) -> None:
        """Whether the models of this id stay, whatever their keep_alive."""
        for model in self._named([name]):
            model.pinned = pinned

    def release(self, names: list[str] | None, busy: Mapping[EngineModel, int]) -> tuple[list[str], list[str]]:
        """Unloads the models of these ids, or all; those that have work, or are being loaded, as soon as they have
        none. Returns the ids of both."""
        ids = self._let_go(names)
        later = set(self._loader.release(names))
        self.expire(busy)
        later |= {key.id for key in self._held if key.id in ids}
        return [each for each in ids if each not in later], sorted(later)

    def _let_go(self, names: list[str] | None) -> list[str]:
        for model in self._named(names):
            model.pinned, model.leaving = False, True
        return [model.key.id for model in self._named(names)]

    def expire(self, busy: Mapping[EngineModel, int]) -> bool:
        """Unloads those whose time is over; whether there were any."""
        now = time.monotonic()
        over = [key for key, model in self._held.items() if self._due(model, busy) <= now]
        self._unload(over, "it was asked to go, or its time is over")
        return bool(over)

    def next_due(self, busy: Mapping[EngineModel, int]) -> float:
        """Seconds until one's time is over, if nothing happens; infinite where that is never."""
        due = min((self._due(model, busy) for model in self._held.values()), default=math.inf)
        return max(0.0, due - time.monotonic())

    def give_way(self, wanted: int, busy: Mapping[EngineModel, int]) -> bool:
        """Frees that much of the device, as far as models without work have it: those that travel go to main memory,
        of a CPU's they are unloaded. Whether there was anything to free."""
        if wanted <= 0:
            return False
        used = {id(module) for key in busy if busy[key] for module in self._modules(key)}
        if self._residency.moves:
            return self._residency.make_way(wanted, lambda module: id(module) in used) > 0
        enough = main_memory()[1] + wanted
        return self._unload_oldest(lambda: enough - main_memory()[1], busy)

    def snapshot(self, busy: Mapping[EngineModel, int]) -> list[HeldModel]:
        """What the owner is told."""
        apart = time.time() - time.monotonic()
        return [
            HeldModel(
                id=model.key.id,
                since=model.since + apart,
                used=model.used + apart,
                keep_alive=self._keep_alive_of(model),
                pinned=model.pinned,
                busy=busy.get(model.key, 0),
                modules=[
                    HeldModule(name, type(module).__name__, *self._residency.where(module))
                    for name, module in model.pipeline.modules.items()
                ],
            )
            for model in self._held.values()
        ]

    def _named(self, names: list[str] | None) -> Iterator[Model]:
        return (model for model in self._held.values() if names is None or model.key.id in names)

    def _modules(self, key: EngineModel) -> list[torch.nn.Module]:
        model = self._held.get(key)
        return list(model.pipeline.modules.values()) if model else []

    def _keep_alive_of(self, model: Model) -> float:
        return self._keep_alive if model.key.keep_alive is None else model.key.keep_alive

    def _due(self, model: Model, busy: Mapping[EngineModel, int]) -> float:
        if busy.get(model.key):
            return math.inf
        if model.leaving:
            return 0.0
        keep_alive = self._keep_alive_of(model)
        return math.inf if model.pinned or keep_alive < 0 else model.used + keep_alive

    def _make_room(self, key: EngineModel, busy: Mapping[EngineModel, int]) -> None:
        need = loading_bytes(key, self._device)
        free = main_memory()[1]
        if free + self._in_main(self._idle(busy)) >= need:  # else it would be in vain
            self._unload_oldest(lambda: need + need // 10 + self._residency.to_main(need) - main_memory()[1], busy)
            need += self._residency.to_main(need)
            free = main_memory()[1]
        if free < need:
            raise TooLittleMemory(
                f"Loading {key.id} takes about {gigabytes(need)} of main memory, and {gigabytes(free)} are free. "
                "Unload other models, or use one that is smaller."
            )

    def _unload_oldest(self, missing: Callable[[], int], busy: Mapping[EngineModel, int]) -> bool:
        """Unloads idle models that are not pinned, the least recently used first, until no bytes are `missing`;
        whether there were any."""
        gone = []
        for key in self._idle(busy):
            if missing() <= 0:
                break
            gone.append(key)
            self._unload([key], "its memory is needed")
        return bool(gone)

    def _idle(self, busy: Mapping[EngineModel, int]) -> list[EngineModel]:
        """Those that may be unloaded for others, the least recently used first."""
        idle = [key for key, model in self._held.items() if not busy.get(key) and not model.pinned]
        return sorted(idle, key=lambda key: self._held[key].used)

    def _in_main(self, keys: list[EngineModel]) -> int:
        return sum({id(m): self._residency.in_main(m) for key in keys for m in self._modules(key)}.values())

    def _unload(self, keys: list[EngineModel], why: str) -> None:
        modules: list[torch.nn.Module] = []
        for key in keys:
            log.info("%s is unloaded: %s", key.id, why)
            modules += self._modules(key)
            del self._held[key]
        self._drop_unless_held(modules)
        modules.clear()
        if keys:
            free_caches(self._device)
            _trim()

    def _drop_unless_held(self, modules: list[torch.nn.Module]) -> None:
        kept = {id(module) for key in self._held for module in self._modules(key)}
        kept |= {id(module) for module in self._loader.lent}
        for module in modules:
            if id(module) not in kept:
                self._residency.drop(module)
                self._memo.forget(id(module))


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _trim() -> None:
    """glibc keeps what was freed in pieces; a model's is worth giving back."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
