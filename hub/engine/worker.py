"""The worker process: `python -m hub.engine.worker --socket FD`. Started by the supervisor, never by hand.

Four kinds of thread. The reader takes frames off the socket; the device thread (this process's main one) owns every
model and runs the weave; the loader reads weights; the encoders turn pixels into files. They meet at one queue, the
inbox.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from hub.engine.arguments import Refused
from hub.engine.compiling import Compiler
from hub.engine.devices import Unusable, devices_here, memory_of, open_device, use, works
from hub.engine.halting import Halt
from hub.engine.jobs import Blocked, Job, failed_by
from hub.engine.meeting import MeetingPoint
from hub.engine.memo import Memo
from hub.engine.meter import Meter, meter_for, where_of
from hub.engine.protocol import (
    Cancel,
    CannotStart,
    EngineModel,
    Failed,
    FromWorker,
    Generate,
    Memory,
    Ping,
    Pong,
    Ready,
    pack,
    receive_frame,
    to_worker,
)
from hub.engine.skipping import Skipper
from hub.engine.streams import streams_for
from hub.engine.weave import Weave
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline, SharedMethod
from hub.pipelines.loading import load_pipeline
from hub.pipelines.parts import places_of
from hub.pipelines.weights import weights_hash

log = logging.getLogger("hub.worker")

ENCODERS = 2


def load(model: EngineModel, device: torch.device, hashes: Path | None) -> LoadedPipeline:
    """Loads what the frame says, once the files have been found to be what they should be. `hashes`: file for hashes
    of weights, which take time."""
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
    )
    pipeline.weights = weights
    return pipeline


class Loaded(Struct):
    """The loader is done with a model: `pipeline`, or the `error` that it met."""

    model: EngineModel
    pipeline: LoadedPipeline | None
    error: Exception | None


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
    ) -> None:
        self._connection = connection
        self._device = device
        self._sending = threading.Lock()
        self.inbox: queue.SimpleQueue[Generate | Cancel | Loaded] = queue.SimpleQueue()
        self.halt = Halt(lambda picture: self._pictures[picture][0].request.id)
        self._weave = Weave(max_batch, self._on_step, self._on_done, meter=meter, halt=self.halt, stay=1)
        self._memo = Memo()
        self._streams = streams_for(device)
        self._compiler = compiler
        self._hashes = hashes
        self._one_load = threading.Lock()
        self._encoders = ThreadPoolExecutor(ENCODERS, "encoder", use, (device,))
        self._models: dict[EngineModel, LoadedPipeline] = {}
        self._loading: dict[EngineModel, list[Generate]] = {}
        self._jobs: dict[int, Job] = {}
        self._pictures: dict[int, tuple[Job, int]] = {}
        self._next_picture = 0

    def send(self, message: FromWorker) -> None:
        """Writes a frame; from any thread. When the API process is gone, so is this one, without a word."""
        frame = pack(message)
        try:
            with self._sending:
                self._connection.sendall(frame)
        except ConnectionError:
            os._exit(0)

    def run(self) -> None:
        """The device thread's life: take what came in, run one forward, again. Never returns."""
        while True:
            self._take(block=not self._weave.busy)
            if self._weave.busy:
                self._weave.tick()

    def _take(self, *, block: bool) -> None:
        while True:
            try:
                message = self.inbox.get(block=block)
            except queue.Empty:
                return
            match message:
                case Generate():
                    self._admit(message)
                case Cancel():
                    self._cancel(message.id)
                case Loaded():
                    self._on_loaded(message)
                    self._tell_memory(message.model)
            block = False

    def _admit(self, request: Generate) -> None:
        pipeline = self._models.get(request.model)
        if pipeline is not None:
            self._start(request, pipeline)
        elif request.model in self._loading:
            self._loading[request.model].append(request)
        else:
            self._loading[request.model] = [request]
            # A thread that ends: while it lives, its own OpenMP team makes libgomp count more threads than cores,
            # and the device thread's forwards stop spinning at barriers (measured: 20 % slower, for good).
            threading.Thread(target=self._load, args=(request.model,), name="loader", daemon=True).start()

    def _load(self, model: EngineModel) -> None:
        """On a thread of its own, one model at a time."""
        torch.set_grad_enabled(False)  # the switch is per thread
        with self._one_load:
            log.info("loading %s", model.id)
            try:
                use(self._device)  # so is this
                self.inbox.put(Loaded(model, load(model, self._device, self._hashes), None))
            except Exception as error:
                log.exception("loading %s failed", model.id)
                self.inbox.put(Loaded(model, None, error))

    def _on_loaded(self, loaded: Loaded) -> None:
        waiting = self._loading.pop(loaded.model, [])
        if loaded.pipeline is None:
            message = f"The model's files could not be loaded ({type(loaded.error).__name__}); see the server's log."
            unusable = isinstance(loaded.error, Unsupported)
            if unusable:
                message = f"This model cannot be used here: {loaded.error}."
            for request in waiting:
                self.send(Failed(request.id, "unusable" if unusable else "failed", message))
            return
        for shared in loaded.pipeline.shared_methods():
            self._install(shared, loaded.model)
        for module in {id(shared.module): shared.module for shared in loaded.pipeline.shared_methods()}.values():
            self.halt.watch(module)
        self._models[loaded.model] = loaded.pipeline
        log.info("loaded %s on %s", loaded.model.id, self._device)
        for request in waiting:
            self._start(request, loaded.pipeline)

    def _install(self, shared: SharedMethod, model: EngineModel) -> None:
        """Makes the method a meeting point."""
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
            variant=f"{' compiled' if compiler else ''}{f' in {storage}' if storage else ''}",
        )

    def _tell_memory(self, tried: EngineModel) -> None:
        try:
            free = memory_of(self._device).free
        except RuntimeError:  # a device that is broken says so at the next forward, too
            log.exception("%s does not tell its memory", self._device)
            free = 0
        self.send(Memory(free, [model.id for model in self._models], tried.id))

    def _start(self, request: Generate, pipeline: LoadedPipeline) -> None:
        try:
            job = Job(request, pipeline, self.send, self._on_preview)
        except Exception as error:  # the device thread serves others, too
            if not isinstance(error, Refused):
                log.exception("%s failed", request.label or request.id)
            self.send(failed_by(request.id, error))
            return
        self._jobs[request.id] = job
        for index in range(len(request.seeds)):
            if request.id not in self._jobs:
                return  # an earlier picture failed at once and took the request with it
            number = self._next_picture
            self._next_picture += 1
            self._pictures[number] = (job, index)
            draw, steps, done = job.body(index)
            self._weave.start(number, draw, steps, request.owner, done)

    def _cancel(self, request_id: int) -> None:
        """Ends a request wherever it is: waiting for weights, in the weave, or at the encoders."""
        self.halt.forget(request_id)
        for waiting in self._loading.values():
            waiting[:] = [request for request in waiting if request.id != request_id]
        job = self._jobs.pop(request_id, None)
        if job is not None:
            job.outbox.close()
        for number in [n for n, (job, _) in self._pictures.items() if job.request.id == request_id]:
            del self._pictures[number]
            self._weave.cancel(number)

    def _on_step(self, number: int, done: int, total: int) -> None:
        job, index = self._pictures[number]
        news = job.stepped(index, done, total)
        if news is not None:
            self.send(news)

    def _on_done(self, number: int, outcome: Any) -> None:
        job, index = self._pictures.pop(number)
        if isinstance(outcome, BaseException):
            self._fail(job, outcome)
            self._cancel(job.request.id)
            return
        self._encoders.submit(self._encode, job, job.outbox.ticket(), index, outcome)

    def _on_preview(self, job: Job, index: int, partial: int, pixels: Any) -> None:
        self._encoders.submit(self._encode_preview, job, job.outbox.ticket(), index, partial, pixels)

    def _encode_preview(self, job: Job, ticket: int, index: int, partial: int, pixels: Any) -> None:
        """On an encoder's thread. It may be what the finished pictures had to wait for."""
        job.encode_preview(ticket, index, partial, pixels)
        self._clean_up(job)

    def _encode(self, job: Job, ticket: int, index: int, pixels: Any) -> None:
        """On an encoder's thread."""
        try:
            job.encode(ticket, index, pixels)
        except Exception as error:
            self._fail(job, error)
        self._clean_up(job)

    def _clean_up(self, job: Job) -> None:
        """A request that has its answer leaves nothing behind."""
        if job.outbox.closed:
            self.inbox.put(Cancel(job.request.id))

    def _fail(self, job: Job, error: BaseException) -> None:
        blocked = isinstance(error, Blocked)
        log.error("%s failed", job.request.label or job.request.id, exc_info=None if blocked else error)
        job.fail(error)
        if isinstance(error, torch.AcceleratorError) and not works(self._device):
            log.critical("%s is broken for this process, which ends; the next one tries it anew", self._device)
            os._exit(1)


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
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    name = "worker" if options.device == options.setting else f"worker {options.device}"
    logging.basicConfig(level=options.log_level.upper(), format=f"%(levelname)s {name}: %(message)s")
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
    worker = Worker(connection, device, options.max_batch, meter=meter, compiler=compiler, hashes=options.hashes)
    threading.Thread(target=_read_forever, args=(connection, worker), daemon=True).start()
    worker.send(Ready(str(device), devices))
    with torch.inference_mode():  # beyond no_grad: two per cent of a small model's step
        worker.run()


if __name__ == "__main__":
    main()
