"""A picture's receipt, as the worker knows it."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from hub import __version__
from hub.engine.protocol import Generate
from hub.pipelines.auto import LoadedPipeline
from hub.receipt import DrawnLora, Receipt


class Facts(Struct, frozen=True):
    """What a receipt has of the pipeline itself (see LoadedPipeline)."""

    weights: str
    scheduler: str | None
    dtype: str
    device: str


def facts_of(pipeline: LoadedPipeline) -> Facts:
    """For a receipt that is written when the pipeline may be gone."""
    return Facts(pipeline.weights, pipeline.scheduler, pipeline.dtype, pipeline.device)


def receipt_of(request: Generate, pipeline: Facts, loras: tuple[DrawnLora, ...] = ()) -> Receipt:
    """What the request's first picture follows from. `loras`: as they were read."""
    model = request.model
    lossy = {
        "skip": model.skip,
        "vae": model.decoder and Path(model.decoder).name,
        "storage_dtype": model.storage_dtype,
        "quantization": model.quantization,
    }
    return Receipt(
        model=model.id,
        weights=pipeline.weights,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seeds[0],
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        strength=request.strength,
        scheduler=request.scheduler or pipeline.scheduler,
        loras=loras,
        native=request.native,
        size=request.output,
        arguments=request.arguments,
        sources=tuple(hashlib.sha256(image.data).hexdigest() for image in request.images),
        mask=hashlib.sha256(request.mask).hexdigest() if request.mask is not None else None,
        dtype=pipeline.dtype,
        device=pipeline.device,
        lossy={name: value for name, value in lossy.items() if value is not None},
        versions=versions(),
    )


@functools.cache
def versions() -> dict[str, str]:
    """Of the programs that draw."""
    return {"hub": __version__, **{name: version(name) for name in ("torch", "diffusers", "transformers")}}
