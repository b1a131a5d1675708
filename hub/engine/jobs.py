"""A request on the worker's side: from its frame to pipeline calls, and from their tensors to PNG bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from hub.engine.protocol import Failed, Finished, Generate, Notice
from hub.imaging.decode import fit
from hub.imaging.png import encode_png
from hub.pipelines.auto import LoadedPipeline, to_picture
from hub.types import Size


class Refused(Exception):
    """The request cannot be honoured by this pipeline; `param` names what is at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message


class Blocked(Exception):
    """The model's own safety checker hid the picture: diffusers would answer with a black one."""


class Job:
    """A request whose pictures are being made: counts steps, gathers encoded pictures, answers once."""

    def __init__(self, request: Generate, pipeline: LoadedPipeline, send: Callable[[Finished | Failed], None]) -> None:
        """Raises Refused where the pipeline cannot do what was asked, strictly or at all."""
        self.request = request
        self._pipeline = pipeline
        self._send = send
        self._images: list[bytes | None] = [None] * len(request.seeds)
        self._steps: dict[int, int] = {}
        self._answered = False
        self._lock = threading.Lock()
        self._arguments, self._notices = arguments_for(request, pipeline)

    def body(self, index: int) -> tuple[Callable[[], Any], Callable[[], int]]:
        """For picture `index`: the call that makes it, and the number of its denoising steps once it runs."""
        own = self._pipeline.own_copy(self.request.task)
        # Noise is drawn on the CPU: the same seed gives the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(self.request.seeds[index])
        arguments = {**self._arguments, "generator": generator, "output_type": "pt"}

        def steps() -> int:
            return int(getattr(own, "_num_timesteps", 0) or self.request.num_inference_steps)

        def draw() -> Any:
            result = own(**arguments)
            if any(getattr(result, "nsfw_content_detected", None) or ()):
                raise Blocked
            return to_uint8(result.images[0])

        return draw, steps

    def stepped(self, index: int, done: int, total: int) -> tuple[int, int]:
        """Notes a picture's progress; returns the request's own: steps done, steps in all."""
        self._steps[index] = done
        return sum(self._steps.values()), total * len(self._images)

    def encode(self, index: int, pixels: Any) -> None:
        """Resamples and encodes picture `index` (uint8, height x width x 3); the last one answers the request.

        Runs on the encoders' threads, beside the next forward.
        """
        png = encode_picture(pixels, self.request.output, self._text(index))
        with self._lock:
            self._images[index] = png
            images = [image for image in self._images if image is not None]
            if len(images) < len(self._images) or self._answered:
                return
            self._answered = True
        self._send(Finished(self.request.id, images, self._notices))

    def fail(self, error: BaseException) -> None:
        """Answers with a failure, once."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self._send(failed_by(self.request.id, error))

    def _text(self, index: int) -> dict[str, str]:
        return {"Software": "hub", "Model": self.request.model.id, "Seed": str(self.request.seeds[index])}


def failed_by(request_id: int, error: BaseException) -> Failed:
    """What a client may read of a failure: never the exception's own words, which can hold paths and addresses."""
    if isinstance(error, Refused):
        return Failed(request_id, "invalid", error.message, error.param)
    if isinstance(error, Blocked):
        return Failed(request_id, "blocked", "The model's safety checker hid the picture.", "prompt")
    if isinstance(error, torch.OutOfMemoryError):
        words = "The device ran out of memory. Ask for a smaller size or fewer pictures."
    elif isinstance(error, ArithmeticError):
        words = "The model produced no valid picture (its numbers overflowed)."
    else:
        words = f"The pipeline failed ({type(error).__name__}); the server's log has the details."
    return Failed(request_id, "failed", words)


def arguments_for(request: Generate, pipeline: LoadedPipeline) -> tuple[dict[str, Any], list[Notice]]:
    """The pipeline call's arguments, and notices of what the pipeline cannot honour.

    Raises Refused for a task that the model does not have, and for any notice when the request is strict.
    """
    if request.task not in pipeline.tasks:
        raise Refused("image", "This model cannot edit pictures.")
    wanted: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "strength": request.strength,
        "width": request.native.width,
        "height": request.native.height,
    }
    if request.image is not None:
        wanted["image"] = to_picture(request.image, request.native.width, request.native.height)
    accepted = pipeline.accepts(request.task)
    implied = {"width", "height"} if request.image is not None else set()
    arguments = {name: value for name, value in wanted.items() if value is not None and name in accepted}
    notices = [
        Notice(name, "this model's pipeline has no such parameter; it was not used")
        for name, value in wanted.items()
        if value is not None and name not in accepted and name not in implied
    ]
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        overflow = pipeline.prompt_overflow(text) if text else 0
        if overflow:
            notices.append(Notice(name, f"too long for this model's text encoder; its last {overflow} tokens were cut"))
    if notices and request.strict:
        raise Refused(notices[0].param, f"strict: {notices[0].message}.")
    return arguments, notices


def to_uint8(picture: torch.Tensor) -> Any:
    """A pipeline's picture (3 x height x width, 0 to 1) as a NumPy array (height x width x 3, uint8).

    Scaled and rounded on the device, so that a quarter of the bytes travel. Raises ArithmeticError for NaN or
    infinite pixels: they would become a black picture that looks like success.
    """
    if not torch.isfinite(picture).all():
        raise ArithmeticError("the model produced pixels that are not numbers")
    scaled = picture.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy()


def encode_picture(pixels: Any, output: Size, text: dict[str, str]) -> bytes:
    """PNG bytes of exactly the output size."""
    height, width = pixels.shape[:2]
    if (width, height) != (output.width, output.height):
        import numpy as np

        pixels = np.asarray(fit(Image.fromarray(pixels), output))
    return encode_png(pixels, text)
