"""What a request means to its pipeline: the arguments of the call, and what cannot be honoured."""

from __future__ import annotations

from typing import Any

from hub.engine.protocol import Generate, Notice
from hub.pipelines.auto import LoadedPipeline, to_mask, to_picture
from hub.types import Task

NO_PREVIEWS = Notice("partial_images", "this model's unfinished pictures cannot be shown; there are none")


class Refused(Exception):
    """The request cannot be honoured by this pipeline; `param` names what is at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message


CANNOT: dict[Task, tuple[str, str]] = {
    "text-to-image": ("image", "This model only edits pictures; give it one."),
    "image-to-image": ("image", "This model cannot edit pictures as a whole."),
    "inpainting": ("mask", "This model cannot change only a part of a picture."),
}
"""For tasks that a pipeline does not have: the parameter at fault, and the words."""

PICTURES = frozenset({"image", "mask_image", "control_image"})
"""Arguments without which a pipeline would draw something else than was asked for."""


SETTLED = {"use_resolution_binning": False, "clean_caption": False}
"""For pipelines that have them, unless the manifest says otherwise. They draw the size that we plan: their own binning
would resample or crop once more, unseen. And they would say, for each prompt, which packages clean it."""


def arguments_for(request: Generate, pipeline: LoadedPipeline) -> tuple[dict[str, Any], list[Notice]]:
    """The pipeline call's arguments, and notices of what the pipeline cannot honour.

    Raises Refused for a task that the model does not have, and for any notice when the request is strict.
    """
    if request.task not in pipeline.tasks:
        raise Refused(*CANNOT[request.task])
    if request.native.width % pipeline.multiple or request.native.height % pipeline.multiple:
        multiple = pipeline.multiple
        words = f"size: this model draws multiples of {multiple} pixels, {request.native} is none."
        raise Refused("size", f"{words} Its owner should write `multiple = {multiple}` into its manifest.")
    accepted = pipeline.accepts(request.task)
    wanted, notices = named_arguments(request, pipeline, accepted)
    if not PICTURES & set(wanted) <= accepted:
        raise Refused(*CANNOT[request.task])
    implied = {"width", "height"} if request.images else set()
    notices += [
        Notice(name, "this model's pipeline has no such parameter; it was not used")
        for name in wanted
        if name not in accepted and name not in implied
    ]
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        overflow = pipeline.prompt_overflow(text, request.arguments.get("max_sequence_length")) if text else 0
        if overflow:
            notices.append(Notice(name, f"too long for this model's text encoder; its last {overflow} tokens were cut"))
    if request.partial_images and pipeline.viewer is None:
        notices.append(NO_PREVIEWS)
    if notices and request.strict:
        raise Refused(notices[0].param, f"strict: {notices[0].message}.")
    return {name: value for name, value in wanted.items() if name in accepted}, notices


def named_arguments(
    request: Generate, pipeline: LoadedPipeline, accepted: frozenset[str]
) -> tuple[dict[str, Any], list[Notice]]:
    """What the request asks for, by the names that its pipeline's family gives it, and what the family has to drop."""
    usual = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "strength": request.strength,
        "width": request.native.width,
        "height": request.native.height,
    }
    settled = {name: value for name, value in SETTLED.items() if name in accepted}
    wanted = settled | request.arguments | {name: value for name, value in usual.items() if value is not None}
    unused = {}
    if pipeline.fixed_guidance and wanted.pop("guidance_scale", None) is not None:
        unused["guidance_scale"] = "this model was distilled to one guidance; it was not used"
    unused |= pipeline.family.adapt(wanted)
    wanted["images"] = [to_picture(each.data, each.width, each.height) for each in request.images]
    pipeline.family.place_images(request.task, wanted, accepted)
    if request.mask is not None:
        size = (request.native.width, request.native.height)
        wanted["mask_image"] = to_mask(request.mask, *size, pipeline.mask_cell)
    return wanted, [Notice(name, words) for name, words in unused.items()]
