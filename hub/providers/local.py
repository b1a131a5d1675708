"""The local provider: fills in a manifest's defaults, plans sizes, and lets the engine run the pipeline."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hub.engine.protocol import EngineModel, Generate, Notice
from hub.engine.supervisor import Engine
from hub.errors import InvalidRequest
from hub.imaging.decode import Decoded, decode_image, place
from hub.imaging.geometry import nearest_shape, visible_part
from hub.registry import ModelManifest, parse_size
from hub.types import MAX_SEED, Accepted, Effort, ImageRequest, ImageResult, OnEvent, Quality, Size

if TYPE_CHECKING:
    from PIL import Image

DECODERS = 2
CROP_NOTED = 0.97
"""Cropping that leaves less than this part of a picture is told."""
MIN_OUTPUT = 16
MAX_REQUEST_PIXELS = 64 * 1024 * 1024

QUALITY: dict[Quality, Effort] = {
    "low": "low",
    "auto": "medium",
    "medium": "medium",
    "standard": "medium",
    "high": "high",
    "hd": "high",
    "xhigh": "high",
    "max": "high",
}
"""What the names of all model generations mean in a manifest."""


class LocalProvider:
    """Runs manifests with `provider = "local"` on this machine's engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Of their own, and few: big source pictures must not crowd out the files that other requests read and write.
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")

    async def generate(
        self, manifest: ModelManifest, request: ImageRequest, on_event: OnEvent | None = None
    ) -> ImageResult:
        """See `Provider`."""
        if request.images:
            loop = asyncio.get_running_loop()
            job, notices = await loop.run_in_executor(self._decoders, prepare, manifest, request)
        else:
            job, notices = prepare(manifest, request)
        if on_event:
            on_event(Accepted())
        finished = await self._engine.generate(job, on_event)
        warnings = tuple(str(notice) for notice in (*notices, *finished.notices))
        return ImageResult(
            images=tuple(finished.images),
            seed=job.seeds[0],
            size=job.output,
            quality=QUALITY[request.quality or "auto"],
            warnings=warnings,
        )


def prepare(manifest: ModelManifest, request: ImageRequest) -> tuple[Generate, list[Notice]]:
    """The engine's job, and what of the request it does not honour.

    Raises InvalidRequest for what the model cannot do, and when a strict request would not be honoured in full.
    """
    check_task(manifest, request)
    source = decode_image(request.images[0]) if request.images else None
    output = plan_output(manifest, request, source.picture if source else None)
    native = nearest_shape(output, manifest.size.shapes)
    steps, strength = plan_steps(manifest, request)
    prompt, notices = plan_prompt(manifest, request)
    notices += size_notices(manifest, native, output) + quality_notices(manifest, request)
    notices += source_notices(request, source, output) if source else []
    notices += unused_notices(manifest, request)
    if request.strict and notices:
        raise InvalidRequest(f"strict: {notices[0]}.", param=notices[0].param, code="unsupported_value")
    job = Generate(
        id=0,
        label=request.label,
        model=EngineModel(manifest.id, manifest.path, manifest.dtype),
        task="image-to-image" if source else "text-to-image",
        prompt=prompt,
        seeds=plan_seeds(request),
        native=native,
        output=output,
        num_inference_steps=steps,
        guidance_scale=plan_guidance(manifest, request),
        negative_prompt=request.negative_prompt,
        strength=strength if source else None,
        image=place(source.picture, native, output).tobytes() if source else None,
        strict=request.strict,
    )
    return job, notices


def check_task(manifest: ModelManifest, request: ImageRequest) -> None:
    """Raises InvalidRequest for a task that the manifest does not offer, even where the pipeline could do it."""
    if request.images and "image-to-image" not in manifest.tasks:
        words = f"image: {manifest.id} cannot edit pictures."
        raise InvalidRequest(words, param="image", code="unsupported_value")
    if not request.images and "text-to-image" not in manifest.tasks:
        words = f"image: {manifest.id} only edits pictures; give it one."
        raise InvalidRequest(words, param="image", code="unsupported_value")


def plan_output(manifest: ModelManifest, request: ImageRequest, source: Image.Image | None) -> Size:
    """The answer's size: as asked; else the source picture's, within the model's limits; else the default.

    Raises InvalidRequest for `size` out of the manifest's limits or too many pixels in one request.
    """
    largest = manifest.size.max_output
    if request.size is not None:
        output = request.size
        if not all(MIN_OUTPUT <= side <= largest for side in (output.width, output.height)):
            words = f"size: {output} is out of range; each side must be {MIN_OUTPUT} to {largest} pixels."
            raise InvalidRequest(words, param="size")
    elif source is not None:
        scale = min(1.0, largest / max(source.size))
        output = Size(*(max(MIN_OUTPUT, round(side * scale)) for side in source.size))
    else:
        output = parse_size(manifest.defaults.size)
    if output.width * output.height * request.n > MAX_REQUEST_PIXELS:
        raise InvalidRequest(
            f"size: {request.n} pictures of {output} are more than the {MAX_REQUEST_PIXELS >> 20} million pixels "
            "that one request may ask for. Ask for fewer or smaller ones.",
            param="size",
        )
    return output


def plan_steps(manifest: ModelManifest, request: ImageRequest) -> tuple[int, float]:
    """Denoising steps and strength.

    Raises InvalidRequest for more steps than the manifest allows, and where an edit would not get a single one.
    """
    if request.num_inference_steps is not None and request.num_inference_steps > manifest.max_inference_steps:
        words = f"num_inference_steps: {manifest.id} takes at most {manifest.max_inference_steps}."
        raise InvalidRequest(words, param="num_inference_steps")
    effort = QUALITY[request.quality] if request.quality else None
    steps = (
        request.num_inference_steps
        or (manifest.quality.get(effort) if effort else None)
        or manifest.defaults.num_inference_steps
    )
    strength = request.strength if request.strength is not None else manifest.defaults.strength
    if request.images and int(steps * strength) < 1:
        words = f"strength: {strength:g} of {steps} steps is less than one step. Raise strength or num_inference_steps."
        raise InvalidRequest(words, param="strength")
    return steps, strength


def plan_guidance(manifest: ModelManifest, request: ImageRequest) -> float:
    """The guidance scale asked for, else the manifest's."""
    return manifest.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale


def plan_seeds(request: ImageRequest) -> list[int]:
    """One seed per picture: picture k of a request with seed s is the only picture of one with seed s + k."""
    first = secrets.randbelow(2**32) if request.seed is None else request.seed
    return [(first + k) % (MAX_SEED + 1) for k in range(request.n)]


def plan_prompt(manifest: ModelManifest, request: ImageRequest) -> tuple[str, list[Notice]]:
    """The prompt with the style's words added."""
    if request.style is None:
        return request.prompt, []
    words = manifest.style.get(request.style)
    if words is None:
        return request.prompt, [Notice("style", f"{manifest.id} has no style '{request.style}'; it was not used")]
    return f"{request.prompt}, {words}", []


def size_notices(manifest: ModelManifest, native: Size, output: Size) -> list[Notice]:
    """Says when the model cannot draw the size itself, and when that costs a part of the picture."""
    if native == output:
        return []
    words = f"{manifest.id} drew {native}; the picture was resampled from that to {output}"
    visible = visible_part(native, output)
    if visible.width * visible.height < CROP_NOTED * native.width * native.height:
        words += f" and cropped: {visible} of it is left"
    return [Notice("size", words)]


def quality_notices(manifest: ModelManifest, request: ImageRequest) -> list[Notice]:
    """Says when quality changed nothing."""
    if request.quality is None or request.quality == "auto":
        return []
    if request.num_inference_steps is not None:
        return [Notice("quality", "num_inference_steps was given and decides alone; quality was not used")]
    if QUALITY[request.quality] not in manifest.quality:
        return [Notice("quality", f"{manifest.id} has no quality '{request.quality}'; it was not used")]
    return []


def source_notices(request: ImageRequest, source: Decoded, output: Size) -> list[Notice]:
    """Says what of the source pictures is not used."""
    notices = []
    if len(request.images) > 1:
        notices.append(Notice("image", f"only the first of {len(request.images)} images was used"))
    if source.transparent:
        notices.append(Notice("image", "its transparent parts were filled with white"))
    size = Size(*source.picture.size)
    visible = visible_part(size, output)
    if visible.width * visible.height < CROP_NOTED * size.width * size.height:
        notices.append(Notice("image", f"it was cropped from {size} to {visible}, the shape of {output}"))
    return notices


def unused_notices(manifest: ModelManifest, request: ImageRequest) -> list[Notice]:
    """Says which parameters have no effect beside the others."""
    notices = []
    if request.strength is not None and not request.images:
        notices.append(Notice("strength", "it has no effect without an image to edit"))
    if request.negative_prompt and plan_guidance(manifest, request) <= 1:
        notices.append(Notice("negative_prompt", "it has no effect where guidance_scale is 1 or less"))
    return notices
