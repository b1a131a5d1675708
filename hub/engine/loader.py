"""Loads models into main memory, one after another, each on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import torch
from msgspec import Struct

from hub.engine.devices import use
from hub.engine.protocol import EngineModel, Generate, Load
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.headers import Damaged, read_safetensors
from hub.pipelines.loading import choose_dtype, load_pipeline
from hub.pipelines.parts import places_of
from hub.pipelines.variants import weights_in
from hub.pipelines.weights import weights_hash

log = logging.getLogger("hub.worker")

Request = Generate | Load
"""What makes a model be loaded."""
Known = Mapping[str, torch.nn.Module]
"""Modules that are in memory, by identity (see pipelines.sharing)."""


class Loaded(Struct):
    """The loader is done with a model: `pipeline`, or the `error` that it met."""

    model: EngineModel
    pipeline: LoadedPipeline | None
    error: Exception | None


class Loader:
    """What is to be loaded, and who waits for it. The device thread calls it."""

    def __init__(self, device: torch.device, done: Callable[[Loaded], None], hashes: Path | None) -> None:
        """`done` takes what a loader's thread gives. `hashes`: file for hashes of weights, which take time."""
        self._device = device
        self._done = done
        self._hashes = hashes
        self._waiting: dict[EngineModel, list[Request]] = {}
        self._current: EngineModel | None = None
        self._known: Known = {}
        self._unwanted: set[EngineModel] = set()

    @property
    def lent(self) -> list[torch.nn.Module]:
        """Modules that the model which is being loaded may take over: they must not go meanwhile."""
        return list(self._known.values())

    def add(self, request: Request) -> None:
        """Somebody waits for a model."""
        self._waiting.setdefault(request.model, []).append(request)
        if request.model != self._current:
            self._unwanted.discard(request.model)

    def next(self) -> EngineModel | None:
        """What is to be loaded now; None while something is, and where nothing is wanted any more."""
        if self._current is not None:
            return None
        self._waiting = {model: requests for model, requests in self._waiting.items() if requests}
        return next(iter(self._waiting), None)

    def start(self, model: EngineModel, known: Known) -> None:
        """Begins with what `next` has told."""
        self._current, self._known = model, known
        # A thread that ends: while it lives, its own OpenMP team makes libgomp count more threads than cores, and the
        # device thread's forwards stop spinning at barriers (measured: 20 % slower, for good).
        threading.Thread(target=self._load, args=(model, known), name="loader", daemon=True).start()

    def give_up(self, model: EngineModel, error: Exception) -> None:
        """Instead of `start`."""
        self._current = model
        self._done(Loaded(model, None, error))

    def take(self, loaded: Loaded) -> tuple[list[Request], bool]:
        """Those who wait for what was loaded, and whether it is to stay."""
        wanted = loaded.model not in self._unwanted
        self._unwanted.discard(loaded.model)
        self._current, self._known = None, {}
        return self._waiting.pop(loaded.model, []), wanted

    def forget(self, request_id: int) -> None:
        """A request that does not wait any more."""
        for waiting in self._waiting.values():
            waiting[:] = [request for request in waiting if request.id != request_id]

    def release(self, names: list[str] | None) -> Iterator[str]:
        """Models of these ids that are not to stay when they are loaded, whatever was asked before; tells which."""
        for model, requests in self._waiting.items():
            if names is None or model.id in names:
                self._unwanted.add(model)
                requests[:] = [
                    msgspec.structs.replace(each, pinned=False) if isinstance(each, Load) else each for each in requests
                ]
                yield model.id

    def _load(self, model: EngineModel, known: Known) -> None:
        torch.set_grad_enabled(False)  # the switch is per thread
        log.info("loading %s", model.id)
        try:
            use(self._device)  # so is this
            self._done(Loaded(model, load(model, self._device, self._hashes, known), None))
        except Exception as error:
            told = isinstance(error, Unsupported)
            log.error("loading %s failed%s", model.id, f": {error}" if told else "", exc_info=None if told else error)
            self._done(Loaded(model, None, error))


def loading_bytes(model: EngineModel, device: torch.device) -> int:
    """Main memory that the model's weights take, in the type that they are loaded in."""
    wide = choose_dtype(model.dtype, device).itemsize
    try:
        places = places_of(model.path, model.config, dict(model.components), model.decoder, model.variant)
        return sum(_bytes_in(file, wide) for place in places for file in _files_in(Path(place), model))
    except Exception as error:  # whatever is wrong with the files, loading them will tell
        log.info("the size of %s is not known: %r", model.id, error)
        return 0


def _files_in(place: Path, model: EngineModel) -> Iterator[Path]:
    """Of a model's folder the components' safetensors, without single files that lie beside."""
    if place.is_file():
        yield place
        return
    replaced = {name for name, _ in model.components} if str(place) == model.path else set()
    parts = place.glob("*/") if (place / "model_index.json").is_file() else [place]
    for part in parts:
        if part.name not in replaced:
            yield from (file for file in weights_in(part, model.variant) if file.is_file())


def _bytes_in(file: Path, wide: int) -> int:
    """Whole numbers and what is narrower than two bytes are loaded as they are."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size
    try:
        stored = {tensor.dtype for tensor in read_safetensors(file).values()}
    except Damaged:
        return size
    narrowest = 2 if stored & {"F16", "BF16"} else 4 if "F32" in stored else wide
    return size * wide // narrowest


def load(model: EngineModel, device: torch.device, hashes: Path | None, known: Known) -> LoadedPipeline:
    """Loads what the frame says into main memory, once the files have been found to be what they should be. `known`:
    modules that are loaded, by identity."""
    places = places_of(model.path, model.config, dict(model.components), model.decoder, model.variant)
    replaced = [name for name, _ in model.components]
    weights = weights_hash(places, hashes, dict(model.sha256), variant=model.variant, replaced=replaced)
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
        variant=model.variant,
        use=f"{model.compile} {model.skip}",
        hashes=hashes,
    )
    pipeline.weights = weights
    return pipeline
