"""LoRAs on the device thread: put into a model's shared modules, worn forward by forward, and taken out again.

PEFT's layers stand in the place of those that an active LoRA changes. Which LoRAs are active is set before each forward
and is part of what calls must have in common to share one. While none is, the model's own layers are in their places:
what is drawn without a LoRA is drawn as if there were none.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from msgspec import Struct

from hub.engine.arguments import Refused
from hub.engine.devices import use
from hub.engine.protocol import EngineModel, Generate, WornLora
from hub.loras import LoraFile
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loras import Patch, ReadLora, Wearable
from hub.receipt import DrawnLora

log = logging.getLogger("hub.worker")

MOST = 16
"""LoRAs that a model keeps, unless more are being drawn with."""
BUDGET = 2 * 1024**3
"""Bytes that they take, with the same proviso."""

Worn = tuple[tuple[str, float], ...]
"""What a module has active: PEFT's names of it, and how much of each."""

_serials = itertools.count()


class Adapter:
    """A LoRA that is loaded. `users` are those who draw with it."""

    def __init__(self, read: ReadLora) -> None:
        self.name = f"lora{next(_serials)}"
        self.sha256 = read.sha256
        self.bytes = read.bytes
        self.users: WeakSet[Outfit] = WeakSet()


def wardrobe_of(module: Any) -> Wardrobe:
    """The module's own: several models may have the module."""
    found = vars(module).setdefault("_wardrobe", Wardrobe())
    assert isinstance(found, Wardrobe)  # noqa: S101
    return found


class Outfit:
    """What a request draws with: while it is referenced, its LoRAs stay loaded."""

    def __init__(self, adapters: Sequence[Adapter], asked: Sequence[WornLora]) -> None:
        pairs = list(zip(adapters, asked, strict=True))
        self.worn: Worn = tuple(sorted((adapter.name, each.weight) for adapter, each in pairs if each.weight))
        self.told = tuple(DrawnLora(each.file.name, each.weight, adapter.sha256) for adapter, each in pairs)
        """For the receipt."""
        for adapter in adapters:
            adapter.users.add(self)


class Slot(Struct):
    """A place in a module where a LoRA changes what is computed: the model's `own` layer is there, or PEFT's."""

    parent: Any
    name: str
    own: Any
    layer: Any

    def show(self, layer: Any) -> None:
        """Puts one of the two there."""
        self.parent._modules[self.name] = layer  # as setattr does, in a tenth of the time: it stands before forwards

    def is_away(self, name: str) -> bool:
        """Whether the model's weights were moved while this LoRA was not active."""
        return bool(self.layer.lora_A[name].weight.device != self.own.weight.device)

    def bring(self, name: str) -> None:
        """Moves a LoRA to where the model's weights are."""
        for halves in (self.layer.lora_A, self.layer.lora_B):
            halves[name].to(self.own.weight.device)


class Wardrobe:
    """The LoRAs of one module, and which of them are active."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._adapters: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        """Those whose model is still there."""
        self._changed: dict[str, list[Slot]] = {}
        """By LoRA."""
        self.worn: Worn = ()

    def part_of(self, outfit: Outfit | None) -> Worn:
        """What of an outfit changes this module."""
        return tuple(each for each in outfit.worn if each[0] in self._changed) if outfit and self._changed else ()

    def wear(self, worn: Worn) -> None:
        """Makes these active and no others. Where none is, the module is as it was loaded."""
        if worn == self.worn:
            return
        self._strip(self.worn)
        self.worn = ()
        names = [name for name, _ in worn]
        try:
            for name, weight in worn:
                away = self._changed[name][0].is_away(name)
                for slot in self._changed[name]:
                    if away:
                        slot.bring(name)
                    slot.show(slot.layer)
                    slot.layer._active_adapter = names  # `set_adapter` walks through parameters
                    slot.layer.set_scale(name, weight)
        except BaseException:  # no memory left for one that has to follow its module
            self._strip(worn)
            raise
        self.worn = worn

    def _strip(self, worn: Worn) -> None:
        for name, _ in worn:
            for slot in self._changed[name]:
                slot.show(slot.own)

    def add(self, module: Any, adapter: Adapter, patches: Mapping[str, Patch]) -> None:
        """Takes a LoRA in, not active; its patches are those of this `module`. Where that fails nothing of it is
        left."""
        from peft import LoraConfig

        for gone in self._changed.keys() - self._adapters.keys():
            self.remove(gone)
        config = LoraConfig(inference_mode=True, init_lora_weights=False)
        self.wear(())
        try:
            with torch.inference_mode(False), torch.no_grad():
                for path, patch in patches.items():
                    self._put(module, adapter.name, path, patch, config)
        except BaseException:
            self.remove(adapter.name)
            raise
        self._changed[adapter.name] = [self._slots[path] for path in patches]
        self._adapters[adapter.name] = adapter

    def _put(self, module: Any, name: str, path: str, patch: Patch, config: Any) -> None:
        """PEFT's own way in matches names by patterns, asks every layer of the model and changes all of torch while it
        does; here the layers are known."""
        from peft.tuners.lora import Conv2d, Linear

        rank = int(patch.down.shape[0])
        slot = self._slots.get(path)
        with torch.device("meta"):  # nothing is allocated and no random number drawn for weights that come now
            if slot is None:
                above, _, last = path.rpartition(".")
                own = module.get_submodule(path)
                kind = Linear if isinstance(own, torch.nn.Linear) else Conv2d
                layer = kind(own, name, config, r=rank, lora_alpha=patch.alpha).eval()
                slot = self._slots[path] = Slot(module.get_submodule(above), last, own, layer)
            else:
                slot.layer.update_layer(name, rank, lora_alpha=patch.alpha, config=config)
        device = slot.own.weight.device
        for half, weight in ((slot.layer.lora_A, patch.down), (slot.layer.lora_B, patch.up)):
            half[name].weight = torch.nn.Parameter(weight.to(device), requires_grad=False)

    def remove(self, name: str) -> None:
        """Lets a LoRA go."""
        self.wear(())
        self._changed.pop(name, None)
        for path, slot in list(self._slots.items()):
            slot.layer._active_adapter = []  # what is active cannot be deleted without a warning
            slot.layer.delete_adapter(name)
            if not slot.layer.r:
                del self._slots[path]


class Adapters:
    """The LoRAs of one model. The least recently used goes first."""

    def __init__(self, pipeline: LoadedPipeline, most: int = MOST, budget: int = BUDGET) -> None:
        for module in pipeline.modules.values():
            wardrobe_of(module).wear(())  # it may be another model's, too
        self.wearable: Wearable = pipeline.wearable()
        self._most = most
        self._budget = budget
        self._kept: OrderedDict[tuple[str, str], Adapter] = OrderedDict()

    def wardrobe(self, module: Any) -> Wardrobe | None:
        """The module's; None where no LoRA can change it."""
        return wardrobe_of(module) if any(module is part for part in self.wearable.parts.values()) else None

    def missing(self, asked: Sequence[WornLora]) -> list[LoraFile]:
        """Those that have to be read."""
        return [each.file for each in asked if _key(each.file) not in self._kept]

    def outfit(self, asked: Sequence[WornLora]) -> Outfit:
        """What a request draws with; none of it is missing."""
        for each in asked:
            self._kept.move_to_end(_key(each.file))
        return Outfit([self._kept[_key(each.file)] for each in asked], asked)

    def put(self, file: LoraFile, read: ReadLora) -> None:
        """Loads what was read, whole or not at all."""
        if _key(file) in self._kept:
            return
        adapter = Adapter(read)
        try:
            for part, patches in read.patches.items():
                module = self.wearable.parts[part]
                wardrobe_of(module).add(module, adapter, patches)
        except BaseException:
            self._remove(adapter)
            raise
        self._kept[_key(file)] = adapter
        self._make_room()

    def _make_room(self) -> None:
        """All but the newest, which somebody waits for, and those that are being drawn with."""
        for key in list(self._kept)[:-1]:
            size = sum(adapter.bytes for adapter in self._kept.values())
            if len(self._kept) <= self._most and size <= self._budget:
                return
            if not self._kept[key].users:
                self._remove(self._kept.pop(key))

    def _remove(self, adapter: Adapter) -> None:
        for module in self.wearable.parts.values():
            wardrobe_of(module).remove(adapter.name)


class LoraRead(Struct):
    """The loader is done with a LoRA: `read`, or the `error` that it met."""

    pipeline: LoadedPipeline
    file: LoraFile
    read: ReadLora | None
    error: Exception | None


class Fitter:
    """The worker's: has LoRAs read on threads that end with it, while their requests wait here."""

    def __init__(self, device: torch.device, post: Callable[[LoraRead], None]) -> None:
        """`post`: takes what was read to the device thread, from any other."""
        self._device = device
        self._post = post
        self._adapters: WeakKeyDictionary[LoadedPipeline, Adapters] = WeakKeyDictionary()
        self._reading: dict[tuple[int, str, str], tuple[LoadedPipeline, LoraFile]] = {}
        """What is to be read, the first of it now."""
        self._waiting: dict[int, tuple[Generate, LoadedPipeline]] = {}

    def adapters(self, pipeline: LoadedPipeline) -> Adapters:
        """The model's; first asked for when it has just been loaded."""
        found = self._adapters.get(pipeline)
        if found is None:
            found = self._adapters[pipeline] = Adapters(pipeline)
        return found

    def ready(self, request: Generate, pipeline: LoadedPipeline) -> bool:
        """Whether all LoRAs of a request are there; else it waits until `take` gives it back. Raises Refused."""
        if not request.loras:
            return True
        adapters = self.adapters(pipeline)
        if not adapters.wearable.parts:
            raise Refused("loras", "This model's pipeline takes no LoRAs.")
        missing = adapters.missing(request.loras)
        idle = not self._reading
        for file in missing:
            self._reading.setdefault((id(pipeline), *_key(file)), (pipeline, file))
        if idle:
            self._read_next()
        if missing:
            self._waiting[request.id] = request, pipeline
        return not missing

    def outfit(self, request: Generate, pipeline: LoadedPipeline) -> Outfit | None:
        """What a request that is ready draws with; None for the model alone."""
        return self.adapters(pipeline).outfit(request.loras) if request.loras else None

    @property
    def busy(self) -> Counter[EngineModel]:
        """Requests that wait here, by model."""
        return Counter(request.model for request, _ in self._waiting.values())

    def forget(self, request_id: int) -> None:
        """Its client has gone."""
        self._waiting.pop(request_id, None)

    def take(self, done: LoraRead, *, held: bool = True) -> tuple[list[Generate], Exception | None]:
        """Loads what was read, if its model is still `held`; the requests that have waited for it, and the error that
        they end with."""
        self._reading.pop((id(done.pipeline), *_key(done.file)), None)
        self._read_next()
        error = done.error
        if done.read is not None and held:
            try:
                self.adapters(done.pipeline).put(done.file, done.read)
            except Exception as failed:  # no memory left, most likely: the model goes on without
                log.exception("the LoRA %s could not be loaded", done.file.name)
                error = failed
        if isinstance(error, Unsupported):
            error = Refused("loras", str(error))
        back = [
            request
            for request, pipeline in self._waiting.values()
            if pipeline is done.pipeline and _key(done.file) in [_key(lora.file) for lora in request.loras]
        ]
        for each in back:
            del self._waiting[each.id]
        return back, error

    def _read_next(self) -> None:
        for pipeline, file in self._reading.values():
            work = (pipeline, self.adapters(pipeline).wearable, file)
            threading.Thread(target=self._read, args=work, name="loader", daemon=True).start()
            return

    def _read(self, pipeline: LoadedPipeline, wearable: Wearable, file: LoraFile) -> None:
        """On a thread of its own, one LoRA at a time."""
        torch.set_grad_enabled(False)  # the switch is per thread
        torch.set_num_threads(1)  # so is this: a team of its own would make the device thread's wait longer
        try:
            use(self._device)  # and this
            read = wearable.read(file.name, file.path, file.identity)
            self._post(LoraRead(pipeline, file, read, None))
        except Exception as error:
            if not isinstance(error, Unsupported):
                log.exception("reading the LoRA %s failed", file.name)
            self._post(LoraRead(pipeline, file, None, error))


def _key(file: LoraFile) -> tuple[str, str]:
    return file.path, file.identity
