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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from msgspec import Struct

from hub.engine.devices import main_memory, use
from hub.engine.memo import Memo
from hub.engine.protocol import EngineModel, Generate, HeldModel, HeldModule, Load
from hub.engine.residency import Residency, free_caches
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from hub.pipelines.parts import places_of
from hub.pipelines.weights import size_of, weights_hash

log = logging.getLogger("hub.worker")

Request = Generate | Load
"""What makes a model be loaded."""

ROOM = 1.1
"""Main memory that should be free for loading, over the weights; those alone must be."""


class TooLittleMemory(Exception):
    """Something does not fit, and what would is told; clients may read the words."""


class Loaded(Struct):
    """The loader is done with a model: `pipeline`, or the `error` that it met."""

    model: EngineModel
    pipeline: LoadedPipeline | None
    error: Exception | None


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
        self._done = done
        self._keep_alive = keep_alive
        self._hashes = hashes
        self._one_load = threading.Lock()
        self._held: dict[EngineModel, Model] = {}
        self._loading: dict[EngineModel, list[Request]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def get(self, key: EngineModel) -> LoadedPipeline | None:
        """One that is in memory; it counts as used now."""
        model = self._held.get(key)
        if model is None:
            return None
        model.used, model.leaving = time.monotonic(), False
        return model.pipeline

    def wait_for(self, request: Request, busy: Mapping[EngineModel, int]) -> None:
        """Has a model loaded for the request, among others. Raises TooLittleMemory where there is no room."""
        key = request.model
        if key in self._loading:
            self._loading[key].append(request)
            return
        self._make_room(key, busy)
        self._loading[key] = [request]
        known = {
            identity: model.pipeline.modules[name]
            for model in self._held.values()
            for name, identity in model.pipeline.identities.items()
            if name in model.pipeline.modules
        }
        # A thread that ends: while it lives, its own OpenMP team makes libgomp count more threads than cores, and the
        # device thread's forwards stop spinning at barriers (measured: 20 % slower, for good).
        threading.Thread(target=self._load, args=(key, known), name="loader", daemon=True).start()

    def take(self, loaded: Loaded) -> list[Request]:
        """Takes what was loaded into the books; returns those who wait for it, or for the error."""
        if loaded.pipeline is not None:
            self._held[loaded.model] = Model(loaded.model, loaded.pipeline)
        return self._loading.pop(loaded.model, [])

    def forget(self, request_id: int) -> None:
        """A request that does not wait any more."""
        for waiting in self._loading.values():
            waiting[:] = [request for request in waiting if request.id != request_id]

    def ended(self, key: EngineModel) -> None:
        """A request for it has ended."""
        model = self._held.get(key)
        if model is not None:
            model.used = time.monotonic()

    def pin(self, name: str, *, pinned: bool) -> None:
        """Whether the models of this id stay, whatever their keep_alive."""
        for model in self._named([name]):
            model.pinned = pinned

    def release(self, names: list[str] | None, busy: Mapping[EngineModel, int]) -> tuple[list[str], list[str]]:
        """Unloads the models of these ids, or all; those that have work when that is done. Returns the ids of both."""
        ids = [model.key.id for model in self._named(names)]
        for model in self._named(names):
            model.pinned, model.leaving = False, True
        self.expire(busy)
        left = {key.id for key in self._held}
        return [each for each in ids if each not in left], [each for each in ids if each in left]

    def expire(self, busy: Mapping[EngineModel, int]) -> bool:
        """Unloads those whose time is over; whether there were any."""
        now = time.monotonic()
        over = [key for key, model in self._held.items() if self._due(model, busy) <= now]
        self._unload(over, "its time is over")
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
        return self._unload_oldest(wanted, busy) > 0

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
        need = size_of(Path(key.path), dict(key.components))
        self._unload_oldest(round(ROOM * need) - main_memory()[1], busy)
        free = main_memory()[1]
        if free < need:
            raise TooLittleMemory(
                f"Loading {key.id} takes about {gigabytes(need)} of main memory, and {gigabytes(free)} are free. "
                "Unload other models, or use one that is smaller."
            )

    def _unload_oldest(self, wanted: int, busy: Mapping[EngineModel, int]) -> int:
        """Unloads idle models that are not pinned, the least recently used first, until that many bytes are free."""
        idle = [key for key, model in self._held.items() if not busy.get(key) and not model.pinned]
        given = 0
        for key in sorted(idle, key=lambda key: self._held[key].used):
            if given >= wanted:
                break
            given += self._unload([key], "its memory is needed")
        return given

    def _unload(self, keys: list[EngineModel], why: str) -> int:
        """Returns the bytes of their weights that no other model has."""
        gone: dict[int, torch.nn.Module] = {}
        for key in keys:
            log.info("%s is unloaded: %s", key.id, why)
            gone |= {id(module): module for module in self._modules(key)}
            del self._held[key]
        kept = {id(module) for key in self._held for module in self._modules(key)}
        gone = {number: module for number, module in gone.items() if number not in kept}
        given = sum(self._residency.where(module)[0] for module in gone.values())
        for module in gone.values():
            self._residency.drop(module)
            self._memo.forget(id(module))
            del module  # the last name of it
        gone.clear()
        if keys:
            free_caches(self._device)
            _trim()
        return given

    def _load(self, key: EngineModel, known: Mapping[str, torch.nn.Module]) -> None:
        """On a thread of its own, one model at a time."""
        torch.set_grad_enabled(False)  # the switch is per thread
        with self._one_load:
            log.info("loading %s", key.id)
            try:
                use(self._device)  # so is this
                self._done(Loaded(key, load(key, self._device, self._hashes, known), None))
            except Exception as error:
                log.exception("loading %s failed", key.id)
                self._done(Loaded(key, None, error))


def load(
    model: EngineModel, device: torch.device, hashes: Path | None, known: Mapping[str, torch.nn.Module]
) -> LoadedPipeline:
    """Loads what the frame says into main memory, once the files have been found to be what they should be. `known`:
    modules that are loaded, by identity."""
    places = places_of(model.path, model.config, dict(model.components), model.decoder)
    weights = weights_hash(places, hashes, dict(model.sha256))
    pipeline = load_pipeline(
        model.path,
        model.dtype,
        device,
        scheduler=model.scheduler,
        scheduler_options=dict(model.scheduler_options),
        decoder=model.decoder,
        storage_dtype=model.storage_dtype,
        config=model.config,
        components=dict(model.components),
        quantization=model.quantization,
        known=known,
        variant=f"{model.compile} {model.skip}",
        hashes=hashes,
    )
    pipeline.weights = weights
    return pipeline


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _trim() -> None:
    """glibc keeps what was freed in pieces; a model's is worth giving back."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
