"""Qwen-Image: guidance is `true_cfg_scale`, and does nothing without a negative prompt, be it a blank one. The edit
models look at one picture, or at three (Edit-2509 and later)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hub.pipelines.families import ALL_TASKS, Arguments, Family, Unused, by_guidance
from hub.pipelines.suggested import Found, Suggested


def by_true_cfg(wanted: Arguments) -> Unused:
    """`guidance_scale` as the wire has it is this family's `true_cfg_scale`."""
    scale = wanted.pop("guidance_scale", None)
    if scale is not None:
        wanted["true_cfg_scale"] = scale
    unused = by_guidance(wanted, name="true_cfg_scale")
    if wanted.get("true_cfg_scale", 4.0) > 1:
        wanted["negative_prompt"] = wanted.get("negative_prompt") or " "
    return unused


def without_films(folder: str) -> dict[str, Any]:
    """The processor of the edit models where torchvision is missing: transformers wants it for films, which no
    picture needs."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
    from transformers.utils import is_torchvision_available

    source = Path(folder, "processor")
    if is_torchvision_available() or not source.is_dir():
        return {}
    pictures = Qwen2VLImageProcessorPil.from_pretrained(source, local_files_only=True)
    return {"processor": _processor(pictures, AutoTokenizer.from_pretrained(source, local_files_only=True))}


def _processor(pictures: Any, words: Any) -> Any:
    """A Qwen2VLProcessor for pictures and words, of the name that diffusers looks for. Its parts are told by the
    parameters of its `__init__`."""
    from transformers import ProcessorMixin, Qwen2VLProcessor

    class WithoutFilms(Qwen2VLProcessor):  # type: ignore[misc]  # untyped
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    WithoutFilms.__name__, WithoutFilms.__module__ = Qwen2VLProcessor.__name__, Qwen2VLProcessor.__module__
    return WithoutFilms(pictures, words, getattr(words, "chat_template", None))


def suggest(found: Found, *, native: int, steps: int = 50, largest: int | None = None) -> Suggested:
    """Its published shapes have about the area of 1328x1328, and sides up to 1664; edits are made at a million pixels.
    The guidance is `true_cfg_scale`."""
    usual = Suggested(native=native, multiple=found.packed(), min=512, max=largest, steps=steps, guidance=4.0)
    if found.named("lightning"):
        why = "By its name distilled to few steps without guidance."
        return usual.guess(why, steps=found.steps_named() or 8, guidance=1.0)
    return usual


FAMILIES = (
    Family(
        classes=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        adapt=by_true_cfg,
        tasks=ALL_TASKS,
        suggest=functools.partial(suggest, native=1328, largest=1664),
    ),
    Family(
        classes=("QwenImageEditPipeline", "QwenImageEditInpaintPipeline"),
        pipelines={"image-to-image": "QwenImageEditPipeline", "inpainting": "QwenImageEditInpaintPipeline"},
        images="reference",
        adapt=by_true_cfg,
        components=without_films,
        suggest=functools.partial(suggest, native=1024),
    ),
    Family(
        classes=("QwenImageEditPlusPipeline",),
        pipelines={"image-to-image": "QwenImageEditPlusPipeline"},
        images="reference",
        max_images=3,
        adapt=by_true_cfg,
        components=without_films,
        suggest=functools.partial(suggest, native=1024, steps=40),
    ),
)
