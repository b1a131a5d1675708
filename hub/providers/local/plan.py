"""What the engine has to do for a request: the manifest's defaults filled in, sizes, steps and seeds planned, and
what cannot be honoured told. Pure, but for the decoding of pictures."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from hub.engine.protocol import EngineModel, Generate, Notice
from hub.errors import InvalidRequest, ModelUnusable
from hub.imaging.decode import fit, place
from hub.imaging.geometry import cropped_to, nearest_shape
from hub.manifest import MIN_OUTPUT, ModelManifest, parse_size
from hub.pipelines.families import family_at
from hub.providers.local.sources import Sources, read_sources
from hub.types import EFFORTS, MAX_SEED, ImageRequest, Size
from hub.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from PIL import Image

MAX_REQUEST_PIXELS = 64 * 1024 * 1024
MAX_WEBP_SIDE = 16_383


MOST_TOLD = 10
"""Of the words that a model does not know."""


class Plan(NamedTuple):
    """The engine's job, what of the request it does not honour, and the sizes of all source pictures and the mask;
    `understood`: the prompt in the model's own words, where it knows only some, else empty."""

    job: Generate
    notices: list[Notice]
    sources: tuple[Size, ...]
    understood: str = ""


def prepare(manifest: ModelManifest, request: ImageRequest) -> Plan:
    """What the engine has to do.

    Raises InvalidRequest for what the model cannot do, and when a strict request would not be honoured in full.
    """
    if request.loras and manifest.lossy.storage_dtype:
        words = f"loras: the weights of {manifest.id} are kept in {manifest.lossy.storage_dtype}, which takes no LoRAs."
        raise InvalidRequest(words, param="loras", code="unsupported_value")
    if request.size is None and request.default_size is not None:
        request = msgspec.structs.replace(request, size=request.default_size)
    family = family_at(manifest.folder)
    sources = read_sources(manifest, family, request)
    output = plan_output(manifest, request, sources.first)
    native = nearest_shape(output, manifest.size.shapes)
    steps, strength = plan_steps(manifest, request, sources)
    prompt, notices = plan_prompt(manifest, request)
    understood, unknown = plan_words(manifest, request, prompt)
    notices += unknown
    notices += size_notices(manifest, native, output) + quality_notices(manifest, request)
    notices += sources.notices
    if sources.first is not None:
        notices += limit_notices(manifest, request, Size(*sources.first.size), output)
    notices += sources.crop_notices(output)
    notices += unused_notices(request) + openai_notices(request)
    if request.strict and notices:
        raise InvalidRequest(f"strict: {notices[0]}.", param=notices[0].param, code="unsupported_value")
    notices += lossy_notices(manifest)
    mask, kept = sources.mask, sources.kept(output)
    job = Generate(
        id=0,
        label=request.label,
        owner=request.owner,
        model=engine_model(manifest),
        task=sources.task,
        prompt=prompt,
        seeds=plan_seeds(request),
        native=native,
        output=output,
        num_inference_steps=steps,
        guidance_scale=manifest.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        negative_prompt=request.negative_prompt,
        strength=strength,
        images=sources.pictures(native, output),
        mask=place(mask, native, output, is_mask=True).tobytes() if mask else None,
        original=kept.tobytes() if kept else None,
        original_mask=fit(mask, output, is_mask=True).tobytes() if mask else None,
        scheduler=request.scheduler,
        arguments=dict(manifest.pipeline.arguments),
        output_format=request.output_format,
        output_compression=request.output_compression,
        partial_images=request.partial_images,
        strict=request.strict,
    )
    return Plan(job, notices, sources.sizes, understood)


def engine_model(manifest: ModelManifest) -> EngineModel:
    """What of a manifest decides how its weights are loaded."""
    pipeline = manifest.pipeline
    options = tuple(sorted(pipeline.scheduler_options.items()))
    return EngineModel(
        manifest.id,
        manifest.path,
        manifest.dtype,
        pipeline.scheduler,
        options,
        device=manifest.device,
        compile=pipeline.compile,
        skip=manifest.lossy.skip,
        decoder=manifest.lossy.vae,
        storage_dtype=manifest.lossy.storage_dtype,
        keep_alive=manifest.keep_alive,
        config=pipeline.config,
        components=tuple(sorted(manifest.components.items())),
        quantization=manifest.lossy.quantization,
        sha256=tuple(sorted(manifest.sha256.items())),
        variant=pipeline.variant,
    )


def plan_output(manifest: ModelManifest, request: ImageRequest, source: Image.Image | None) -> Size:
    """The answer's size: as asked; else the source picture's, within the model's limits; else the default.

    Raises InvalidRequest for `size` out of the manifest's limits or too many pixels in one request.
    """
    largest = manifest.size.max_output
    if request.size is not None:
        output = request.size
        if (words := manifest.size.refused(output)) is not None:
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


def plan_steps(manifest: ModelManifest, request: ImageRequest, sources: Sources) -> tuple[int, float | None]:
    """Denoising steps and strength. The manifest's default strength is for edits of the whole picture: what a mask
    selects is made anew unless the request says otherwise, and what is only looked at has none.

    Raises InvalidRequest for more steps than the manifest allows, and for a strength that leaves an edit none.
    """
    if request.num_inference_steps is not None and request.num_inference_steps > manifest.max_inference_steps:
        words = f"num_inference_steps: {manifest.id} takes at most {manifest.max_inference_steps}."
        raise InvalidRequest(words, param="num_inference_steps")
    effort = EFFORTS[request.quality] if request.quality else None
    steps = (
        request.num_inference_steps
        or (manifest.quality.get(effort) if effort else None)
        or manifest.defaults.num_inference_steps
    )
    if sources.task == "text-to-image":
        return steps, None
    if sources.canvas is None:
        return steps, request.strength
    if request.strength is None:
        # Of few steps the default may leave none: then as much as one step takes (a little more, for the rounding).
        least = min(1.0, max(manifest.defaults.strength, 1.001 / steps))
        return steps, 1.0 if sources.mask is not None else least
    if int(steps * request.strength) < 1:
        share = f"{request.strength:g} of {steps} steps"
        words = f"strength: {share} is less than one step. Raise strength or num_inference_steps."
        raise InvalidRequest(words, param="strength")
    return steps, request.strength


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


def plan_words(manifest: ModelManifest, request: ImageRequest, prompt: str) -> tuple[str, list[Notice]]:
    """The prompt in the model's own words, for a model that knows only some, and which of the request's it does not
    know. Raises ModelUnusable where the list of its words cannot be read."""
    if manifest.vocabulary_file is None:
        return "", []
    try:
        vocabulary = read_vocabulary(manifest.vocabulary_file)
    except (OSError, ValueError):
        raise ModelUnusable(f"The words that {manifest.id} knows cannot be read.") from None
    read, unread = vocabulary.read(prompt), vocabulary.read(request.negative_prompt or "")
    notices = []
    for param, unknown in (("prompt", read.unknown), ("negative_prompt", unread.unknown)):
        if unknown:
            told = ", ".join(f"'{word[:40]}'" for word in unknown[:MOST_TOLD])
            more = f" and {len(unknown) - MOST_TOLD} more words" if len(unknown) > MOST_TOLD else ""
            notices.append(Notice(param, f"{manifest.id} does not know {told}{more}; it looked past that"))
    return read.text, notices


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
    if EFFORTS[request.quality] not in manifest.quality:
        return [Notice("quality", f"{manifest.id} has no quality '{request.quality}'; it was not used")]
    return []


def limit_notices(manifest: ModelManifest, request: ImageRequest, source: Size, output: Size) -> list[Notice]:
    """Says when an answer that was to have its source's size cannot have it."""
    if request.size is not None or source == output:
        return []
    words = f"the image is {source} and the answer {output}: each side must be {MIN_OUTPUT} to"
    return [Notice("size", f"{words} {manifest.size.max_output} pixels")]


def lossy_notices(manifest: ModelManifest) -> list[Notice]:
    """Says what the owner gave quality away for. Strict requests get it, too: nothing that they ask for is ignored."""
    words = manifest.lossy_words
    return [Notice("model", f"{manifest.id} is set up for speed at the cost of quality: {words}")] if words else []


def unused_notices(request: ImageRequest) -> list[Notice]:
    """Says which parameters have no effect beside the others."""
    if request.strength is not None and not request.images:
        return [Notice("strength", "it has no effect without an image to edit")]
    return []


def openai_notices(request: ImageRequest) -> list[Notice]:
    """Says which of OpenAI's parameters change nothing here. Raises InvalidRequest for transparent pictures."""
    if request.background == "transparent":
        words = "background: no model on this machine draws transparent pictures."
        raise InvalidRequest(words, param="background", code="unsupported_value")
    found = []
    if request.moderation == "low":
        found.append(Notice("moderation", "this hub does not moderate; it was not used"))
    if request.input_fidelity == "high":
        words = "local models have no such switch; lower `strength` to stay nearer"
        found.append(Notice("input_fidelity", words))
    return found
