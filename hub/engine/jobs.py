"""A request on the worker's side: from its frame to pipeline calls, and from their tensors to encoded files."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import greenlet
import msgspec
import numpy as np
import torch
from PIL import Image

from hub.engine.admission import admit, words_for
from hub.engine.arguments import NO_PREVIEWS, Refused, arguments_for
from hub.engine.devices import out_of_memory
from hub.engine.loras import Outfit
from hub.engine.meeting import Budget, Run
from hub.engine.models import TooLittleMemory
from hub.engine.protocol import Failed, Finished, FromWorker, Generate, Notice, Previewed, Stepped
from hub.engine.receipts import facts_of, receipt_of
from hub.engine.residency import Residency
from hub.imaging.encode import Finisher
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.estimates import Estimate, watch_steps
from hub.pipelines.previews import preview_steps
from hub.pipelines.schedulers import UnknownScheduler
from hub.receipt import Receipt

log = logging.getLogger("hub.worker")

NEWS_INTERVAL = 0.1
"""Seconds between two words about a request's progress, at least, but for the first and the last."""


IN_TILES = Notice("size", "the device has too little memory for it at once; it was decoded in tiles, which may show")


class NotNumbers(ArithmeticError):
    """The picture has pixels that are no numbers: it would be a black one that looks like success."""


class Blocked(Exception):
    """The model's own safety checker hid the picture: diffusers would answer with a black one."""


class Outbox:
    """What a request still has to say, in the order of tickets, whichever encoder's thread is done first.

    A ticket is drawn when the work for a message begins; the message leaves when all earlier ones have, without a
    thread that waits for them. After `close` nothing leaves.
    """

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._drawn = self._next = 0
        self._ready: dict[int, Callable[[], FromWorker | None]] = {}
        self.closed = False

    def ticket(self) -> int:
        """The next place in the order. From the device thread."""
        self._drawn += 1
        return self._drawn - 1

    def put(self, ticket: int, message: Callable[[], FromWorker | None]) -> None:
        """Redeems a ticket, once. `message` is called when its turn has come; it may have nothing to say."""
        with self._lock:
            self._ready[ticket] = message
            while not self.closed and self._next in self._ready:
                said = self._ready.pop(self._next)()
                self._next += 1
                if said is not None:
                    self.closed = isinstance(said, Finished)
                    self._send(said)

    def close(self, last: FromWorker | None = None) -> None:
        """Says `last`, unless it is closed already, and then nothing more."""
        with self._lock:
            if not self.closed and last is not None:
                self._send(last)
            self.closed = True


OnPreview = Callable[["Job", int, int, Any], None]


class Job:
    """A request whose pictures are being made: counts steps, gathers encoded pictures, answers once."""

    def __init__(
        self,
        request: Generate,
        pipeline: LoadedPipeline,
        send: Callable[[FromWorker], None],
        on_preview: OnPreview,
        residency: Residency,
        *,
        outfit: Outfit | None = None,
    ) -> None:
        """`on_preview(job, picture, partial, pixels)` is called within a run, and should have `encode_preview` called
        on another thread. `residency` has the pipeline's weights; `outfit` are the LoRAs to draw with. Raises Refused
        where the pipeline cannot do what was asked, strictly or at all, and TooLittleMemory."""
        self.request = request
        self.outbox = Outbox(send)
        self._pipeline: LoadedPipeline | None = pipeline
        self._facts = facts_of(pipeline)
        self._residency = residency
        self._on_preview = on_preview
        self._outfit = outfit
        self._loras = outfit.told if outfit else ()
        self._images: list[bytes] = [b""] * len(request.seeds)
        self._made = 0
        self._told = -math.inf
        self._steps: dict[int, int] = {}
        self._arguments, self._notices = arguments_for(request, pipeline)
        if request.scheduler is not None:
            try:
                pipeline.own_copy(request.task, request.scheduler)
            except UnknownScheduler as error:
                raise Refused("scheduler", f"{error}.") from None
        needs = admit(request, pipeline, residency)
        self.budgets = [Budget(needs) for _ in request.seeds]
        """Of each picture."""
        self._viewer = pipeline.viewer if request.partial_images else None
        self._finisher = Finisher(
            request.output,
            request.output_format,
            request.output_compression,
            original=request.original,
            mask=request.original_mask,
        )

    def body(self, index: int) -> tuple[Callable[[], Any], Callable[[], int], Callable[[], int] | None]:
        """For picture `index`: the call that makes it, the number of its denoising steps once it runs, and of those
        that are done, which is told by its noise scheduler: some pipelines call their denoiser twice a step."""
        pipeline, outfit = self._pipeline, self._outfit
        assert pipeline is not None  # noqa: S101  # it is released when all is drawn
        own = pipeline.own_copy(self.request.task, self.request.scheduler)
        # Noise is drawn on the CPU: the same seed gives the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(self.request.seeds[index])
        arguments = {**self._arguments, "generator": generator, "output_type": "pt"}
        accepted = pipeline.accepts(self.request.task)
        done = 0

        def steps() -> int:
            return int(getattr(own, "_num_timesteps", 0) or self._steps_of(own))

        def draw() -> Any:
            if isinstance(run := greenlet.getcurrent(), Run):
                run.outfit = outfit
            try:
                result = own(**{name: value for name, value in arguments.items() if name in accepted})
            finally:  # the scheduler, its step and this job would keep one another, and the pictures, alive
                if hasattr(own, "scheduler"):
                    vars(own.scheduler).pop("step", None)
            if any(getattr(result, "nsfw_content_detected", None) or ()):
                raise Blocked
            return to_uint8(result.images[0])

        def stepped(number: int, estimate: Estimate) -> None:
            nonlocal done
            done = number
            if self._viewer is not None:
                self._look(index, done, steps(), estimate)

        if not hasattr(own, "scheduler"):
            return draw, steps, None
        watch_steps(own.scheduler, stepped)
        return draw, steps, lambda: done

    def _steps_of(self, own: Any) -> int:
        """Of a pipeline that does not count them: as many as its noise scheduler was set to, or was asked for."""
        timesteps = getattr(getattr(own, "scheduler", None), "timesteps", None)
        was_set = getattr(getattr(own, "scheduler", None), "num_inference_steps", None)
        return len(timesteps) if was_set and timesteps is not None else self.request.num_inference_steps

    def _look(self, index: int, done: int, steps: int, estimate: Estimate) -> None:
        """Within a run, after each step: shows the picture so far where a preview is due. Its failure is no failure
        of the picture."""
        due = preview_steps(self.request.partial_images, steps)
        if done not in due or self._viewer is None:
            return
        self._told = -math.inf  # who sees a preview wants to know of which step
        try:
            native = self.request.native
            latents = self._viewer.unfolded(estimate(), native.height, native.width)
            if latents is None:
                self._say_no_previews()
                return
            pixels = to_uint8(self._viewer.show(latents))
        except Exception:
            log.exception("%s: a preview failed; the picture goes on", self.request.label or self.request.id)
            return
        self._on_preview(self, index, due.index(done), pixels)

    def _say_no_previews(self) -> None:
        if NO_PREVIEWS not in self._notices:
            self._notices.append(NO_PREVIEWS)

    def stepped(self, index: int, done: int, total: int) -> Stepped | None:
        """Notes a picture's progress; returns the request's own, unless there was news of it a moment ago: whoever
        listens takes time from the cores that compute."""
        self._steps[index] = done
        step, steps = sum(self._steps.values()), total * len(self._images)
        now = time.monotonic()
        if not self.request.progress or (step < steps and now - self._told < NEWS_INTERVAL):
            return None
        self._told = now
        return Stepped(self.request.id, step, steps)

    def encode(self, ticket: int, index: int, pixels: Any) -> None:
        """Finishes picture `index` (uint8, height x width x 3); the last one answers the request.

        Runs on the encoders' threads, beside the next forward.
        """
        if self.outbox.closed:
            return
        self._images[index] = self._finisher.encode(pixels, self._text(index))

        def answer() -> Finished | None:
            self._made += 1
            if self._made < len(self._images):
                return None
            tiled = [IN_TILES] if any(budget.tiled for budget in self.budgets) else []
            seconds = sum(budget.seconds for budget in self.budgets)
            return Finished(self.request.id, self._images, [*self._notices, *tiled], seconds)

        self.outbox.put(ticket, answer)

    def encode_preview(self, ticket: int, index: int, partial: int, pixels: Any) -> None:
        """The same for a preview, which is finished like the picture. Its failure is logged and forgotten."""
        preview = None
        try:
            if not self.outbox.closed:
                image = self._finisher.encode(pixels, self._text(index))
                preview = Previewed(self.request.id, index, partial, image)
        except Exception:
            log.exception("%s: a preview could not be encoded", self.request.label or self.request.id)
        self.outbox.put(ticket, lambda: preview)

    def release(self) -> None:
        """Lets go of the model: nothing more is drawn. An encoder's thread may still have the job in its hands, and
        would keep a model that is unloaded."""
        self._pipeline = self._viewer = self._outfit = None

    def fail(self, error: BaseException) -> None:
        """Answers with a failure, unless the request has its answer."""
        if out_of_memory(error) and self._pipeline is not None:
            error = TooLittleMemory(words_for(self.request, self._pipeline, self._residency))
        if isinstance(error, NotNumbers) and self.request.loras:
            error = Refused("loras", "With these LoRAs the model produces no valid picture (its numbers overflow).")
        self.outbox.close(failed_by(self.request.id, error))

    @functools.cached_property
    def _receipt(self) -> Receipt:
        """The first picture's; of the others only the seed differs. Sources are hashed once, on an encoder's thread."""
        return receipt_of(self.request, self._facts, self._loras)

    def _text(self, index: int) -> dict[str, str]:
        seed = self.request.seeds[index]
        text = {"Software": "hub", "Model": self.request.model.id, "Seed": str(seed)}
        # EXIF, which the other formats have instead, holds less than a prompt may be long.
        if self.request.receipt and self.request.output_format == "png":
            receipt = msgspec.structs.replace(self._receipt, seed=seed)
            if self.budgets[index].tiled:
                receipt = msgspec.structs.replace(receipt, lossy={**receipt.lossy, "vae_tiling": True})
            text |= receipt.texts()
        return text


def failed_by(request_id: int, error: BaseException) -> Failed:
    """What a client may read of a failure: never the exception's own words, which can hold paths and addresses."""
    if isinstance(error, Refused):
        return Failed(request_id, "invalid", error.message, error.param)
    if isinstance(error, Blocked):
        return Failed(request_id, "blocked", "The model's safety checker hid the picture.", "prompt")
    if isinstance(error, TooLittleMemory):
        return Failed(request_id, "memory", str(error))
    if out_of_memory(error):
        return Failed(request_id, "memory", "The device has too little memory for what was asked. Unload other models.")
    if isinstance(error, NotNumbers):
        words = "The model produced no valid picture (its numbers overflowed)."
    else:
        words = f"The pipeline failed ({type(error).__name__}); the server's log has the details."
    return Failed(request_id, "failed", words)


def to_uint8(picture: Any) -> Any:
    """A pipeline's picture as a NumPy array (height x width x 3, uint8).

    Most give a tensor (3 x height x width, 0 to 1), scaled and rounded on the device, so that a quarter of the bytes
    travel; old ones a NumPy array (height x width x 3) or a Pillow picture. Raises NotNumbers for NaN or infinite
    pixels.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(picture).permute(2, 0, 1)
    if not torch.isfinite(picture).all():
        raise NotNumbers
    scaled = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
