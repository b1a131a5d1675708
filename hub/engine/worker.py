"""The worker process: `python -m hub.engine.worker --socket FD`. Started by the supervisor, never by hand.

Four kinds of thread. The reader takes frames off the socket; the device thread (this process's main one) owns every
model and runs the weave; the loader reads weights; the encoders turn pixels into files. They meet at one queue, the
inbox.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from hub import offline

if __name__ == "__main__":
    gc.disable()  # it would look for garbage among the libraries' objects, while they are made: a fifth of the start
    if "--offline" in sys.argv:
        offline.forbid()  # before torch, and whatever that imports

import torch

from hub.engine.arguments import Refused
from hub.engine.compiling import Compiler
from hub.engine.devices import Unusable, devices_here, memory_of, open_device, out_of_memory
from hub.engine.jobs import failed_by
from hub.engine.loader import Loaded
from hub.engine.loras import Fitter, LoraRead, Wardrobe
from hub.engine.meeting import MeetingPoint, is_meeting_point
from hub.engine.memo import Memo
from hub.engine.meter import Meter, meter_for, where_of
from hub.engine.models import Models, TooLittleMemory
from hub.engine.pictures import Pictures
from hub.engine.protocol import (
    Cancel,
    CannotStart,
    DeviceMemory,
    EngineModel,
    Failed,
    FromWorker,
    Generate,
    Load,
    Memory,
    Ping,
    Pong,
    Ready,
    Settled,
    Unload,
    pack,
    receive_frame,
    to_worker,
)
from hub.engine.residency import Residency
from hub.engine.skipping import Skipper
from hub.engine.streams import streams_for
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline, SharedMethod

log = logging.getLogger("hub.worker")

WATCH = 2.0
"""Seconds between two looks at how much of the device other programs have left."""


QUIET = 0.05
"""Seconds without a request, after which the end of the last one is told: the next one does not have to wait for it."""


class Worker:
    """The device thread's state. Only that thread touches it, except for `send` and the inbox."""

    def __init__(
        self,
        connection: socket.socket,
        device: torch.device,
        max_batch: int,
        *,
        meter: Meter | None = None,
        compiler: Compiler | None = None,
        hashes: Path | None = None,
        keep_alive: float = -1,
        limit: int | None = None,
        reserve: int = 0,
    ) -> None:
        """`keep_alive` and `hashes`: see Models; `limit` and `reserve`: see Residency."""
        self._connection = connection
        self._device = device
        self._sending = threading.Lock()
        self.inbox: queue.SimpleQueue[Generate | Cancel | Load | Unload | Loaded | LoraRead] = queue.SimpleQueue()
        self._residency = Residency(device, limit, reserve)
        self._pictures = Pictures(
            device, max_batch, self.send, self._when_answered, residency=self._residency, meter=meter
        )
        self.halt = self._pictures.halt
        self._memo = Memo()
        self._models = Models(device, self._residency, self._memo, self.inbox.put, keep_alive=keep_alive, hashes=hashes)
        self._fitter = Fitter(device, self.inbox.put)
        self._streams = streams_for(device)
        self._compiler = compiler
        self._told: Memory | None = None
        self._untold = False
        self._looked = time.monotonic()

    def send(self, message: FromWorker) -> None:
        """Writes a frame; from any thread. When the API process is gone, so is this one, without a word."""
        frame = pack(message)
        try:
            with self._sending:
                self._connection.sendall(frame)
        except ConnectionError:
            os._exit(0)

    def _when_answered(self, request_id: int) -> None:
        """A request that has its answer leaves nothing behind. From any thread."""
        self.inbox.put(Cancel(request_id))

    def run(self) -> None:
        """The device thread's life: take what came in, run one forward, again. Never returns."""
        while True:
            came = self._take(block=not self._pictures.drawing)
            if came or time.monotonic() - self._looked >= WATCH:
                self._keep_house()
            if self._pictures.drawing:
                self._pictures.tick()

    def _take(self, *, block: bool) -> bool:
        """Whether anything came, or the time of something."""
        came = block
        while True:
            try:
                message = self.inbox.get(block=block, timeout=self._idle_for() if block else None)
            except queue.Empty:
                if block and self._untold:
                    self._tell_memory()
                return came
            came = True
            match message:
                case Generate() | Load():
                    self._admit(message)
                case Cancel():
                    self._cancel(message.id)
                case Unload():
                    for number in self._pictures.answered:  # they hold their models as long as they are there
                        self._cancel(number)
                    gone, later = self._models.release(message.models, self._busy)
                    self._tell_memory()
                    self.send(Settled(message.id, gone, later))
                case Loaded():
                    self._on_loaded(message)
                case LoraRead():
                    self._on_lora(message)
            block = False

    @property
    def _busy(self) -> Counter[EngineModel]:
        """Requests by model."""
        return self._pictures.busy + self._fitter.busy

    def _idle_for(self) -> float:
        """Seconds after which there is something to do, though nothing comes in."""
        return min(QUIET if self._untold else WATCH, self._models.next_due(self._busy))

    def _keep_house(self) -> None:
        """Between forwards: unloads what has been idle for long, and gives way to other programs."""
        busy = self._busy
        if self._models.expire(busy):
            self._tell_memory()
        now = time.monotonic()
        if now - self._looked >= WATCH:
            self._looked = now
            if self._models.give_way(self._residency.lacking(), busy):
                log.info("idle models have left %s, of which others have taken more", self._device)
            self._tell_memory()

    def _admit(self, request: Generate | Load) -> None:
        pipeline = self._models.get(request.model)
        if pipeline is not None:
            if isinstance(request, Load):
                self._models.keep(request.model)
            self._begin(request, pipeline)
            return
        self._models.wait_for(request, self._busy)

    def _begin(self, request: Generate | Load, pipeline: LoadedPipeline) -> None:
        if isinstance(request, Generate):
            self._start(request, pipeline)
            return
        if request.pinned is not None:
            self._models.pin(request.model.id, pinned=request.pinned)
        self._tell_memory(request.model)
        self.send(Settled(request.id, [request.model.id]))

    def _on_loaded(self, loaded: Loaded) -> None:
        error, waiting = loaded.error, self._models.take(loaded)
        if loaded.pipeline is not None:
            try:
                self._set_up(loaded.pipeline, loaded.model)
            except Exception as failed:  # too little of the device for what does not travel, most likely
                log.exception("%s cannot be set up", loaded.model.id)
                error = failed
        if error is None and loaded.pipeline is not None:
            log.info("loaded %s on %s", loaded.model.id, self._device)
            for request in waiting:
                self._begin(request, loaded.pipeline)
        else:
            loaded.pipeline = None
            self._models.discard(loaded.model)
            for request in waiting:
                self.send(_not_loaded(request.id, error))
        self._tell_memory(loaded.model)
        self._models.load_next(self._busy)

    def _set_up(self, pipeline: LoadedPipeline, model: EngineModel) -> None:
        """Makes the modules of a pipeline shared ones."""
        shared = list(pipeline.shared_methods())
        adapters = self._fitter.adapters(pipeline)  # before all else: modules are as they were loaded then
        travelling = {id(method.module) for method in shared}
        for module in pipeline.modules.values():
            self._residency.hold(module, travels=id(module) in travelling)
        pipeline.bring = self._residency.bring
        for method in shared:
            self._install(method, model, adapters.wardrobe(method.module))

    def _on_lora(self, done: LoraRead) -> None:
        requests, error = self._fitter.take(done, held=self._models.has(done.pipeline))
        for request in requests:
            if error is None:
                self._admit(request)
            else:
                self.send(failed_by(request.id, error))

    def _install(self, shared: SharedMethod, model: EngineModel, wardrobe: Wardrobe | None = None) -> None:
        """Makes the method a meeting point, unless another model, which has the module too, did."""
        if is_meeting_point(shared.module, shared.method):
            return
        if shared.method != "encode":  # once for a VAE
            self.halt.watch(shared.module)
        skipper = Skipper(model.skip) if model.skip and shared.denoising else None
        compiler = self._compiler if model.compile and shared.denoising else None
        storage = (model.storage_dtype or model.quantization) if shared.denoising else None
        # Weights that are cast layer by layer are changed by each forward: two at once would disturb each other, as
        # they would the caches that some VAEs keep. And compiled code brings its own threads.
        alone = not shared.denoising or compiler is not None or storage is not None
        MeetingPoint(
            shared.module,
            shared.method,
            denoising=shared.denoising,
            memo=self._memo if shared.reading else None,
            streams=None if alone else self._streams,
            skipper=skipper,
            compiler=compiler,
            residency=self._residency,
            variant=f"{' compiled' if compiler else ''}{f' in {storage}' if storage else ''}",
            wardrobe=wardrobe,
        )

    def _tell_memory(self, tried: EngineModel | None = None) -> None:
        """Tells what has changed. `tried`: the model that was just to be loaded."""
        self._untold = False
        try:
            device = memory_of(self._device)
        except RuntimeError:  # a device that is broken says so at the next forward, too
            log.exception("%s does not tell its memory", self._device)
            device = DeviceMemory(str(self._device), 0, 0)
        residency = self._residency
        told = Memory(
            device,
            residency.on_device,
            residency.limit,
            self._models.snapshot(self._busy),
            spare=self._models.spare(self._busy),
            uploads=residency.uploads,
            uploaded=residency.uploaded,
            tried=tried.id if tried else None,
        )
        if tried or told != self._told:
            self._told = told
            self.send(told)

    def _start(self, request: Generate, pipeline: LoadedPipeline) -> None:
        try:
            if self._fitter.ready(request, pipeline):  # else it comes again when its LoRAs are there
                self._pictures.start(request, pipeline, self._fitter.outfit(request, pipeline))
        except Exception as error:  # the device thread serves others, too
            if not isinstance(error, (Refused, TooLittleMemory)):
                log.exception("%s failed", request.label or request.id)
            self.send(failed_by(request.id, error))
            self._pictures.drop(request.id)

    def _cancel(self, request_id: int) -> None:
        """Ends a request wherever it is: waiting for weights, in the weave, or at the encoders."""
        self._fitter.forget(request_id)
        self._models.forget(request_id)
        request = self._pictures.drop(request_id)
        if request is not None:
            self._models.ended(request.model)
            self._untold = True


def _not_loaded(request_id: int, error: Exception | None) -> Failed:
    if isinstance(error, Unsupported):
        return Failed(request_id, "unusable", f"This model cannot be used here: {error}.")
    if isinstance(error, TooLittleMemory) or (error is not None and out_of_memory(error)):
        return failed_by(request_id, error)
    words = f"its files could not be loaded ({type(error).__name__}); the server's log has the details"
    return Failed(request_id, "unusable", f"This model cannot be used here: {words}.")


def _read_forever(connection: socket.socket, worker: Worker) -> None:
    """Feeds the inbox. When the API process is gone, so is this one, in whatever forward it is."""
    try:
        while (frame := receive_frame(connection)) is not None:
            message = to_worker.decode(frame)
            if isinstance(message, Ping):
                worker.send(Pong())
                continue
            if isinstance(message, Cancel):
                worker.halt.cancel(message.id)
            worker.inbox.put(message)
    except ConnectionError:
        pass  # it ended with something unread
    except (OSError, ValueError):
        log.exception("the connection to the API process broke")
    os._exit(0)


def main() -> None:
    """Says Ready, or why not, and works until the connection ends."""
    parser = argparse.ArgumentParser(prog="hub.engine.worker", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the connection, inherited")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--setting", default="auto", help="what the owner says about devices, for messages")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--learned", type=Path, help="file for what is learned about batch sizes")
    parser.add_argument("--compiled", type=Path, help="folder for compiled forwards")
    parser.add_argument("--hashes", type=Path, help="file for hashes of weights")
    parser.add_argument("--keep-alive", type=float, default=-1, help="seconds, for models that do not say")
    parser.add_argument("--limit", type=int, help="bytes of the device that may be used")
    parser.add_argument("--reserve", type=int, default=0, help="bytes of the device that are left to others")
    parser.add_argument("--offline", action="store_true", help="refuse to reach other machines")
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    name = "worker" if options.device == options.setting else f"worker {options.device}"
    logging.basicConfig(level=options.log_level.upper(), format=f"%(levelname)s {name}: %(message)s")
    gc.freeze()  # what was imported stays
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the supervisor decides
    connection = socket.socket(fileno=options.socket)
    connection.set_inheritable(False)
    try:
        device = open_device(options.device, options.setting)
        devices = devices_here(device)
    except Unusable as error:
        connection.sendall(pack(CannotStart(str(error))))
        raise SystemExit(2) from None
    meter = meter_for(device, options.max_batch, options.learned) if options.learned else None
    compiler = Compiler(options.compiled, device, where_of(device)) if options.compiled else None
    worker = Worker(
        connection,
        device,
        options.max_batch,
        meter=meter,
        compiler=compiler,
        hashes=options.hashes,
        keep_alive=options.keep_alive,
        limit=options.limit,
        reserve=options.reserve,
    )
    threading.Thread(target=_read_forever, args=(connection, worker), daemon=True).start()
    worker.send(Ready(str(device), devices))
    with torch.inference_mode():  # beyond no_grad: two per cent of a small model's step
        worker.run()


if __name__ == "__main__":
    main()
