"""The local provider: fills in a manifest's defaults, plans sizes, and lets the engine run the pipeline."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from hub.engine.protocol import EngineModel, Generate, Notice
from hub.engine.supervisor import Engine
from hub.errors import InvalidRequest
from hub.imaging.decode import Decoded, decode_image, fit, place
from hub.imaging.geometry import cropped_to, nearest_shape
from hub.imaging.masks import mask_of_alpha, read_mask, without_white
from hub.registry import ModelManifest, parse_size
from hub.types import MAX_SEED, Accepted, Effort, ImageRequest, ImageResult, OnEvent, Quality, Size

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

DECODERS = 2
MIN_OUTPUT = 16
MAX_REQUEST_PIXELS = 64 * 1024 * 1024
MAX_WEBP_SIDE = 16_383

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


class Edit(NamedTuple):
    """The source of an edit: the picture, its mask if only a part of it may change ("L", of its size, 255 = may
    change), the picture's alpha where the mask is made of that, and what of the sources is not used."""

    picture: Image.Image
    mask: Image.Image | None
    alpha: Image.Image | None
    notices: list[Notice]

    def kept(self, output: Size) -> Image.Image:
        """The picture at the answer's size, of which the mask's other part stays."""
        picture = fit(self.picture, output)
        return without_white(picture, fit(self.alpha, output, is_mask=True)) if self.alpha else picture


class Plan(NamedTuple):
    """The engine's job, what of the request it does not honour, and the sizes of all source pictures and the mask."""

    job: Generate
    notices: list[Notice]
    sources: tuple[Size, ...]


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
            job, notices, sources = await loop.run_in_executor(self._decoders, prepare, manifest, request)
        else:
            job, notices, sources = prepare(manifest, request)
        quality = QUALITY[request.quality or "auto"]
        try:
            if on_event:
                on_event(Accepted(size=job.output, quality=quality, output_format=job.output_format))
        except Exception:
            log.exception("an event callback failed")
            on_event = None
        finished = await self._engine.generate(job, on_event)
        warnings = tuple(str(notice) for notice in (*notices, *finished.notices))
        return ImageResult(
            images=tuple(finished.images),
            seed=job.seeds[0],
            size=job.output,
            quality=quality,
            sources=sources,
            warnings=warnings,
        )


def prepare(manifest: ModelManifest, request: ImageRequest) -> Plan:
    """What the engine has to do.

    Raises InvalidRequest for what the model cannot do, and when a strict request would not be honoured in full.
    """
    check_task(manifest, request)
    first, sources = read_sources(request)
    edit = plan_edit(manifest, request, first) if first else None
    mask = edit.mask if edit else None
    sources += (size_of(request.mask),) if request.mask is not None else ()
    output = plan_output(manifest, request, edit.picture if edit else None)
    native = nearest_shape(output, manifest.size.shapes)
    steps, strength = plan_steps(manifest, request, inpainting=mask is not None)
    prompt, notices = plan_prompt(manifest, request)
    notices += size_notices(manifest, native, output) + quality_notices(manifest, request)
    if edit:
        source = Size(*edit.picture.size)
        notices += edit.notices + limit_notices(manifest, request, source, output) + crop_notices(source, output)
    notices += unused_notices(manifest, request)
    if request.strict and notices:
        raise InvalidRequest(f"strict: {notices[0]}.", param=notices[0].param, code="unsupported_value")
    job = Generate(
        id=0,
        label=request.label,
        model=EngineModel(manifest.id, manifest.path, manifest.dtype),
        task="inpainting" if mask else "image-to-image" if edit else "text-to-image",
        prompt=prompt,
        seeds=plan_seeds(request),
        native=native,
        output=output,
        num_inference_steps=steps,
        guidance_scale=plan_guidance(manifest, request),
        negative_prompt=request.negative_prompt,
        strength=strength if edit else None,
        image=place(edit.picture, native, output).tobytes() if edit else None,
        mask=place(mask, native, output, is_mask=True).tobytes() if mask else None,
        original=edit.kept(output).tobytes() if edit and mask else None,
        original_mask=fit(mask, output, is_mask=True).tobytes() if mask else None,
        output_format=request.output_format,
        output_compression=request.output_compression,
        partial_images=request.partial_images,
        strict=request.strict,
    )
    return Plan(job, notices, sources)


def check_task(manifest: ModelManifest, request: ImageRequest) -> None:
    """Raises InvalidRequest for a task that the manifest does not offer, even where the pipeline could do it."""
    code = "unsupported_value"
    if request.mask is not None and not request.images:
        raise InvalidRequest("mask: it needs an image, whose part it selects.", param="mask")
    if request.mask is not None and "inpainting" not in manifest.tasks:
        raise InvalidRequest(f"mask: {manifest.id} cannot change only a part of a picture.", param="mask", code=code)
    if request.images and not {"image-to-image", "inpainting"} & set(manifest.tasks):
        raise InvalidRequest(f"image: {manifest.id} cannot edit pictures.", param="image", code=code)
    if not request.images and "text-to-image" not in manifest.tasks:
        raise InvalidRequest(f"image: {manifest.id} only edits pictures; give it one.", param="image", code=code)


def read_sources(request: ImageRequest) -> tuple[Decoded | None, tuple[Size, ...]]:
    """The first source picture, and the sizes of all. Each is decoded, so that none is taken unchecked."""
    first = decode_image(request.images[0]) if request.images else None
    further = [decode_image(data).size for data in request.images[1:]]
    return first, (first.size, *further) if first else ()


def size_of(mask: bytes) -> Size:
    """The size of a mask file that was read without complaint: its own, not the picture's to which it was resampled."""
    from PIL import Image

    with Image.open(io.BytesIO(mask)) as picture:
        return Size(*picture.size)


def plan_edit(manifest: ModelManifest, request: ImageRequest, source: Decoded) -> Edit:
    """Which part of the source may change: what the mask says, or its own alpha, or all of it.

    Raises InvalidRequest for a bad mask, and where the model can only change a part and none is selected.
    """
    notices = []
    if len(request.images) > 1:
        notices.append(Notice("image", f"only the first of {len(request.images)} images was used"))
    if request.mask is None and not request.variation and "inpainting" in manifest.tasks:
        own = mask_of_alpha(source.alpha)
        if own is not None:
            return Edit(source.picture, own.picture, source.alpha, notices)
    if source.transparent:
        notices.append(Notice("image", "its transparent parts were filled with white"))
    if request.mask is None:
        if "image-to-image" not in manifest.tasks:
            words = f"mask: {manifest.id} only changes the part of a picture that a mask selects; give it one."
            raise InvalidRequest(words, param="mask", code="unsupported_value")
        return Edit(source.picture, None, None, notices)
    mask = read_mask(request.mask, source.size)
    notices += [Notice("mask", mask.remark)] if mask.remark else []
    return Edit(source.picture, mask.picture, None, notices)


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
    if request.output_format == "webp" and max(output.width, output.height) > MAX_WEBP_SIDE:
        raise InvalidRequest(f"size: webp pictures have at most {MAX_WEBP_SIDE} pixels a side.", param="size")
    if output.width * output.height * request.n > MAX_REQUEST_PIXELS:
        raise InvalidRequest(
            f"size: {request.n} pictures of {output} are more than the {MAX_REQUEST_PIXELS >> 20} million pixels "
            "that one request may ask for. Ask for fewer or smaller ones.",
            param="size",
        )
    return output


def plan_steps(manifest: ModelManifest, request: ImageRequest, *, inpainting: bool = False) -> tuple[int, float]:
    """Denoising steps and strength. The manifest's default strength is for edits of the whole picture: what a mask
    selects is made anew unless the request says otherwise.

    Raises InvalidRequest for more steps than the manifest allows, and for a strength that leaves an edit none.
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
    if request.strength is None:
        # Of few steps the default may leave none: then as much as one step takes (a little more, for the rounding).
        return steps, 1.0 if inpainting else min(1.0, max(manifest.defaults.strength, 1.001 / steps))
    strength = request.strength
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
    """The prompt with the style's words added. A variation has none, and the style's words alone would be one."""
    if request.variation:
        ignored = [Notice("prompt", "a variation follows its image alone; it was not used")] if request.prompt else []
        ignored += [Notice("style", "a variation has no prompt to add it to; it was not used")] if request.style else []
        return "", ignored
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
    left = cropped_to(native, output)
    return [Notice("size", f"{words} and cropped: {left} of it is left" if left else words)]


def quality_notices(manifest: ModelManifest, request: ImageRequest) -> list[Notice]:
    """Says when quality changed nothing."""
    if request.quality is None or request.quality == "auto":
        return []
    if request.num_inference_steps is not None:
        return [Notice("quality", "num_inference_steps was given and decides alone; quality was not used")]
    if QUALITY[request.quality] not in manifest.quality:
        return [Notice("quality", f"{manifest.id} has no quality '{request.quality}'; it was not used")]
    return []


def limit_notices(manifest: ModelManifest, request: ImageRequest, source: Size, output: Size) -> list[Notice]:
    """Says when an answer that was to have its source's size cannot have it."""
    if request.size is not None or source == output:
        return []
    words = f"the image is {source} and the answer {output}: each side must be {MIN_OUTPUT} to"
    return [Notice("size", f"{words} {manifest.size.max_output} pixels")]


def crop_notices(source: Size, output: Size) -> list[Notice]:
    """Says when the answer's shape costs a part of the source picture."""
    left = cropped_to(source, output)
    return [Notice("image", f"it was cropped from {source} to {left}, the shape of {output}")] if left else []


def unused_notices(manifest: ModelManifest, request: ImageRequest) -> list[Notice]:
    """Says which parameters have no effect beside the others."""
    notices = []
    if request.strength is not None and not request.images:
        notices.append(Notice("strength", "it has no effect without an image to edit"))
    if request.negative_prompt and plan_guidance(manifest, request) <= 1:
        notices.append(Notice("negative_prompt", "it has no effect where guidance_scale is 1 or less"))
    return notices
