from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hub.engine.protocol import EngineModel, Finished, Generate, Notice, Picture
from hub.engine.supervisor import Engine
from hub.errors import InvalidRequest, ModelUnusable
from hub.loras import Loras
from hub.manifest import DefaultsSection, LossySection, ModelManifest, PipelineSection, SizeSection
from hub.providers.local import LocalProvider
from hub.providers.local.plan import (
    MAX_REQUEST_PIXELS,
    plan_output,
    plan_prompt,
    plan_seeds,
    plan_steps,
    quality_notices,
    size_notices,
)
from hub.providers.local.sources import Sources
from hub.types import MAX_SEED, Accepted, Event, ImageRequest, ImageResult, OnEvent, Progress, Size


def manifest(**changes: Any) -> ModelManifest:
    return ModelManifest(
        **{
            "id": "small",
            "name": "Small",
            "description": "",
            "license": "",
            "path": "/weights/small",
            "tasks": ["text-to-image", "image-to-image"],
            "dtype": "bfloat16",
            "size": SizeSection(native="64x64", multiple=8, min=32, max=128, max_output=2048),
            "defaults": DefaultsSection(num_inference_steps=7, guidance_scale=5.0, strength=0.6, size="96x64"),
            "max_inference_steps": 50,
            "quality": {"low": 3, "medium": 6, "high": 12},
            "style": {"vivid": "bright colours"},
            **changes,
        }
    )


SMALL = manifest()
NO_LORAS = Loras(Path("nowhere"))
PLAIN = manifest(quality={}, style={})


def request(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a cat", **changes})


def picture(width: int = 64, height: int = 64, mode: str = "RGB", colour: Any = (255, 0, 0)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


class FakeEngine:
    """Keeps what it is asked for and answers with one picture per seed."""

    def __init__(self, *notices: Notice) -> None:
        self.asked: list[Generate] = []
        self.notices = list(notices)

    async def generate(self, job: Generate, on_event: OnEvent | None = None) -> Finished:
        self.asked.append(job)
        if on_event:
            on_event(Progress(step=1, steps=2))
        return Finished(1, [b"png%d" % seed for seed in job.seeds], self.notices, 2.5)


def run(wish: ImageRequest, model: ModelManifest = SMALL, *notices: Notice) -> tuple[Generate, ImageResult]:
    engine = FakeEngine(*notices)
    result = asyncio.run(LocalProvider(cast(Engine, engine), NO_LORAS).generate(model, wish))
    (job,) = engine.asked
    return job, result


def refused(wish: ImageRequest, model: ModelManifest = SMALL) -> InvalidRequest:
    """The error; the engine is not asked."""
    engine = FakeEngine()
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(LocalProvider(cast(Engine, engine), NO_LORAS).generate(model, wish))
    assert engine.asked == []
    return caught.value


def test_a_bare_request_gets_all_of_the_manifests_defaults() -> None:
    job, result = run(request(seed=5))
    assert job == Generate(
        id=0,
        model=EngineModel("small", "/weights/small", "bfloat16"),
        task="text-to-image",
        prompt="a cat",
        seeds=[5],
        native=Size(96, 64),
        output=Size(96, 64),
        num_inference_steps=7,
        guidance_scale=5.0,
        receipt=True,
    )
    assert result == ImageResult(images=(b"png5",), seed=5, size=Size(96, 64), quality="medium", device_seconds=2.5)


def test_a_models_pin_reaches_the_engine() -> None:
    job, _ = run(request(seed=5), model=msgspec.structs.replace(SMALL, device="cuda:1"))
    assert job.model == EngineModel("small", "/weights/small", "bfloat16", device="cuda:1")


def test_everything_that_is_asked_for_reaches_the_engine() -> None:
    wish = request(
        n=3,
        size=Size(640, 640),
        images=(picture(),),
        style="vivid",
        seed=10,
        num_inference_steps=20,
        guidance_scale=2.5,
        negative_prompt="dogs",
        strength=0.25,
    )
    job, result = run(wish)
    assert job == Generate(
        id=0,
        receipt=True,
        model=EngineModel("small", "/weights/small", "bfloat16"),
        task="image-to-image",
        prompt="a cat, bright colours",
        seeds=[10, 11, 12],
        native=Size(64, 64),
        output=Size(640, 640),
        num_inference_steps=20,
        guidance_scale=2.5,
        negative_prompt="dogs",
        strength=0.25,
        images=[Picture(64, 64, bytes((255, 0, 0)) * 64 * 64)],
    )
    assert result.images == (b"png10", b"png11", b"png12")
    assert result.warnings == ("size: small drew 64x64; the picture was resampled from that to 640x640",)


def test_the_caller_hears_that_the_request_is_accepted_and_then_how_far_it_is() -> None:
    seen: list[Event] = []
    wish = request(size=Size(80, 40), quality="hd", output_format="webp")
    asyncio.run(LocalProvider(cast(Engine, FakeEngine()), NO_LORAS).generate(SMALL, wish, seen.append))
    assert seen == [
        Accepted(size=Size(80, 40), quality="high", output_format="webp"),
        Progress(step=1, steps=2),
    ]


def test_what_the_engine_could_not_honour_comes_after_what_the_plan_could_not() -> None:
    wish = request(size=Size(1000, 1000))
    _, result = run(wish, SMALL, Notice("prompt", "too long"))
    assert [warning.partition(":")[0] for warning in result.warnings] == ["size", "prompt"]


def test_an_edit_without_strength_gets_the_manifests_and_a_drawing_none_at_all() -> None:
    assert run(request(images=(picture(),)))[0].strength == 0.6
    assert run(request(strength=0.3))[0].strength is None


def test_the_source_is_cropped_to_the_native_shape_as_raw_rgb() -> None:
    source = np.zeros((100, 300, 3), np.uint8)
    source[:, 100:200] = (0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(source).save(buffer, "PNG")
    job, _ = run(request(images=(buffer.getvalue(),), size=Size(64, 64)))
    middle = np.frombuffer(job.images[0].data, np.uint8).reshape(64, 64, 3)[8:56, 8:56]
    assert np.array_equal(middle, np.full((48, 48, 3), (0, 0, 255)))


def test_a_model_is_only_asked_for_the_tasks_of_its_manifest() -> None:
    draws, edits = manifest(tasks=["text-to-image"]), manifest(tasks=["image-to-image"])
    assert run(request(), draws)[0].task == "text-to-image"
    assert run(request(images=(picture(),)), edits)[0].task == "image-to-image"
    for wish, model in ((request(images=(picture(),)), draws), (request(), edits)):
        error = refused(wish, model)
        assert (error.param, error.code) == ("image", "unsupported_value")


def test_a_source_that_is_no_picture_is_refused_before_the_engine_is_asked() -> None:
    assert refused(request(images=(b"GIF89a",))).param == "image"


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"size": Size(1000, 1000)}, "size"),
        ({"style": "natural"}, "style"),
        ({"quality": "high", "num_inference_steps": 4}, "quality"),
        ({"strength": 0.5}, "strength"),
        ({"images": (picture(), picture())}, "image"),
        ({"images": (picture(mode="RGBA", colour=(0, 0, 0, 0)),)}, "image"),
        ({"images": (picture(128, 64),), "size": Size(64, 64)}, "image"),
    ],
)
def test_what_is_a_warning_is_an_error_where_the_request_is_strict(wish: dict[str, Any], param: str) -> None:
    _, result = run(request(**wish))
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(f"{param}: ")
    error = refused(request(**wish, strict=True))
    assert (error.param, error.code) == (param, "unsupported_value")
    assert error.message == f"strict: {result.warnings[0]}."


def test_a_strict_request_that_can_be_honoured_is_done_and_tells_the_engine_to_be_strict_too() -> None:
    assert run(request(strict=True))[0].strict
    assert not run(request())[0].strict


# Sizes


@pytest.mark.parametrize("size", [Size(16, 16), Size(2048, 2048), Size(16, 2048), Size(333, 77)])
def test_a_size_within_the_limits_is_the_size_of_the_answer(size: Size) -> None:
    assert plan_output(SMALL, request(size=size), None) == size
    assert plan_output(SMALL, request(size=size), Image.new("RGB", (99, 99))) == size


@pytest.mark.parametrize("size", [Size(15, 64), Size(64, 15), Size(2049, 64), Size(64, 2049), Size(99_999, 99_999)])
def test_a_size_beyond_the_limits_is_refused_with_the_limits(size: Size) -> None:
    error = refused(request(size=size))
    assert error.param == "size"
    assert "16 to 2048" in error.message


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ((100, 50), Size(100, 50)),
        ((2048, 2048), Size(2048, 2048)),
        ((4096, 2048), Size(2048, 1024)),
        ((3000, 4000), Size(1536, 2048)),
        ((2, 2), Size(16, 16)),
        ((16_384, 2), Size(2048, 16)),
    ],
)
def test_an_edit_without_size_is_as_large_as_its_source_within_the_limits(
    source: tuple[int, int], output: Size
) -> None:
    assert plan_output(SMALL, request(), Image.new("1", source)) == output


@pytest.mark.parametrize(("source", "output"), [((5000, 300), "2048x123"), ((8, 8), "16x16")])
def test_an_answer_that_cannot_have_its_sources_size_says_so_and_why(source: tuple[int, int], output: str) -> None:
    words = f"size: the image is {source[0]}x{source[1]} and the answer {output}: each side must be 16 to 2048 pixels"
    assert words in run(request(images=(picture(*source),)))[1].warnings
    assert refused(request(images=(picture(*source),), strict=True)).param == "size"
    asked = run(request(images=(picture(*source),), size=Size(64, 64)))[1].warnings
    assert not [warning for warning in asked if "each side" in warning]


def test_the_pixels_of_all_pictures_together_have_a_limit() -> None:
    at_most = MAX_REQUEST_PIXELS // (2048 * 2048)
    plan_output(SMALL, request(size=Size(2048, 2048), n=at_most), None)
    error = refused(request(size=Size(2048, 2048), n=at_most + 1))
    assert error.param == "size"
    assert "64 million" in error.message


# Steps, strength and guidance


@pytest.mark.parametrize(
    ("quality", "steps"),
    [
        (None, 7),
        ("low", 3),
        ("medium", 6),
        ("auto", 6),
        ("standard", 6),
        ("high", 12),
        ("hd", 12),
        ("xhigh", 12),
        ("max", 12),
    ],
)
def test_quality_chooses_the_manifests_steps(quality: Any, steps: int) -> None:
    assert run(request(quality=quality))[0].num_inference_steps == steps
    assert quality_notices(SMALL, request(quality=quality)) == []


@pytest.mark.parametrize("quality", ["low", "medium", "standard", "hd", "max"])
def test_a_quality_that_the_manifest_does_not_have_changes_nothing_and_is_told(quality: Any) -> None:
    wish = request(quality=quality)
    assert plan_steps(PLAIN, wish, Sources(None))[0] == 7
    assert str(*quality_notices(PLAIN, wish)) == f"quality: small has no quality '{quality}'; it was not used"


def test_auto_quality_is_never_a_notice() -> None:
    assert quality_notices(PLAIN, request(quality="auto")) == []
    assert quality_notices(SMALL, request(quality="auto", num_inference_steps=3)) == []


def test_steps_asked_for_win_over_quality_up_to_the_manifests_limit() -> None:
    assert plan_steps(SMALL, request(quality="low", num_inference_steps=50), Sources(None))[0] == 50
    error = refused(request(num_inference_steps=51))
    assert error.param == "num_inference_steps"
    assert "at most 50" in error.message


@pytest.mark.parametrize(("steps", "strength"), [(10, 0.09), (1, 0.99), (3, 0.33), (7, 0.1)])
def test_an_edit_that_would_not_get_a_single_step_is_refused(steps: int, strength: float) -> None:
    error = refused(request(images=(picture(),), num_inference_steps=steps, strength=strength))
    assert error.param == "strength"
    drawing = request(num_inference_steps=steps, strength=strength)
    assert plan_steps(SMALL, drawing, Sources(None)) == (steps, None)


@pytest.mark.parametrize(("steps", "strength"), [(10, 0.1), (1, 1.0), (3, 0.34), (2, 0.5)])
def test_an_edit_with_one_step_is_done(steps: int, strength: float) -> None:
    job, _ = run(request(images=(picture(),), num_inference_steps=steps, strength=strength))
    assert (job.num_inference_steps, job.strength) == (steps, strength)


def test_guidance_zero_is_not_taken_for_absent() -> None:
    assert run(request(guidance_scale=0.0))[0].guidance_scale == 0.0
    assert run(request())[0].guidance_scale == 5.0


# Seeds


@given(st.integers(0, MAX_SEED), st.integers(1, 10))
def test_picture_k_of_a_request_is_the_only_picture_of_one_with_seed_s_plus_k(seed: int, n: int) -> None:
    seeds = plan_seeds(request(seed=seed, n=n))
    assert len(set(seeds)) == n
    for k, each in enumerate(seeds):
        assert 0 <= each <= MAX_SEED
        assert each in (seed + k, seed + k - MAX_SEED - 1)
        assert plan_seeds(request(seed=each)) == [each]


def test_without_a_seed_each_request_gets_a_fresh_one_which_the_answer_tells() -> None:
    jobs = [run(request(n=2)) for _ in range(10)]
    assert len({job.seeds[0] for job, _ in jobs}) == 10
    for job, result in jobs:
        assert job.seeds == [result.seed, result.seed + 1]


def test_seed_zero_is_not_taken_for_absent() -> None:
    assert plan_seeds(request(seed=0, n=2)) == [0, 1]


# Style and sources


def test_style_adds_the_manifests_words_or_is_told() -> None:
    assert plan_prompt(SMALL, request()) == ("a cat", [])
    assert plan_prompt(SMALL, request(style="vivid")) == ("a cat, bright colours", [])
    prompt, (notice,) = plan_prompt(SMALL, request(style="natural"))
    assert prompt == "a cat"
    assert str(notice) == "style: small has no style 'natural'; it was not used"


def test_resampling_is_told_and_only_then() -> None:
    assert size_notices(SMALL, Size(64, 64), Size(64, 64)) == []
    assert [notice.param for notice in size_notices(SMALL, Size(64, 64), Size(64, 65))] == ["size"]


@pytest.mark.parametrize(
    ("source", "output", "cropped"),
    [
        ((64, 64), Size(640, 640), False),
        ((128, 64), Size(64, 32), False),
        ((1001, 667), Size(300, 200), False),  # the same shape but for rounding
        ((4096, 2731), Size(2048, 1366), False),
        ((128, 64), Size(64, 64), True),
        ((64, 128), Size(128, 64), True),
    ],
)
def test_a_source_of_another_shape_is_told_and_rounding_is_not(
    source: tuple[int, int], output: Size, cropped: bool
) -> None:
    notices = Sources(Image.new("1", source)).crop_notices(output)
    assert [str(notice) for notice in notices] == (
        [f"image: it was cropped from {source[0]}x{source[1]} to 64x64, the shape of {output}"]
        if cropped and output.width == output.height
        else [f"image: it was cropped from {source[0]}x{source[1]} to 64x32, the shape of {output}"]
        if cropped
        else []
    )


def test_further_sources_and_transparency_are_told() -> None:
    clear = picture(mode="RGBA", colour=(0, 0, 0, 0))
    _, result = run(request(images=(clear, picture(), picture())))
    assert [warning for warning in result.warnings if warning.startswith("image: ")] == [
        "image: only the first of 3 images was used",
        "image: its transparent parts were filled with white",
    ]


def test_an_alpha_channel_that_hides_nothing_is_not_worth_a_word() -> None:
    assert run(request(images=(picture(mode="RGBA", colour=(9, 9, 9, 255)),)))[1].warnings == ()


def test_all_sources_are_checked_and_their_sizes_told_though_one_is_used() -> None:
    _, result = run(request(images=(picture(96, 64), picture(30, 50), picture(8, 8))))
    assert result.sources == (Size(96, 64), Size(30, 50), Size(8, 8))
    assert run(request())[1].sources == ()
    error = refused(request(images=(picture(), b"GIF89a")))
    assert (error.param, error.code) == ("image", "invalid_image")


def test_format_compression_and_previews_reach_the_engine() -> None:
    job, _ = run(request(output_format="webp", output_compression=33, partial_images=2))
    assert (job.output_format, job.output_compression, job.partial_images) == ("webp", 33, 2)


def test_a_size_that_webp_cannot_hold_is_refused_for_webp_alone() -> None:
    huge = manifest(size=SizeSection(native="64x64", multiple=8, min=32, max=128, max_output=16_384))
    assert refused(request(size=Size(16_384, 16), output_format="webp"), huge).param == "size"
    assert run(request(size=Size(16_384, 16)), huge)[0].output == Size(16_384, 16)
    assert run(request(size=Size(16_383, 16), output_format="webp"), huge)[0].output == Size(16_383, 16)


# Masks and variations


INPAINTS = manifest(tasks=["text-to-image", "image-to-image", "inpainting"])
ONLY_INPAINTS = manifest(tasks=["inpainting"])


def mask_file(width: int = 64, height: int = 64, box: tuple[int, int, int, int] = (16, 16, 48, 48)) -> bytes:
    """Black with a white box."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return encoded(mask)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def grey(data: bytes | None, size: Size) -> np.ndarray:
    assert data is not None
    return np.frombuffer(data, np.uint8).reshape(size.height, size.width)


def test_a_mask_makes_it_inpainting_at_the_native_and_at_the_output_size() -> None:
    job, result = run(request(images=(picture(),), mask=mask_file(), size=Size(128, 128)), INPAINTS)
    assert (job.task, job.native, job.output) == ("inpainting", Size(128, 128), Size(128, 128))
    assert job.images[0].data == bytes((255, 0, 0)) * 128 * 128 == job.original
    for data in (job.mask, job.original_mask):
        found = grey(data, Size(128, 128))
        assert found[64, 64] == 255
        assert found[0:28].max() == 0, "what lies outside of the box stays, to the last level"
    assert result.warnings == ()


def test_a_mask_stays_on_its_place_of_the_picture_whatever_the_shape_of_the_canvas() -> None:
    """A red box on white, and a mask over exactly that box, through a canvas of another shape than the answer."""
    source = Image.new("RGB", (300, 100), "white")
    box = (30, 20, 90, 80)
    source.paste((255, 0, 0), box)
    wish = request(images=(encoded(source),), mask=mask_file(300, 100, box), size=Size(300, 100))
    square = manifest(
        tasks=["inpainting"], size=SizeSection(native="128x128", multiple=8, min=128, max=128, max_output=2048)
    )
    job, _ = run(wish, square)
    assert job.native == Size(128, 128)
    assert job.original == source.tobytes()
    assert job.original_mask == Image.open(io.BytesIO(mask_file(300, 100, box))).tobytes()
    native = np.frombuffer(job.images[0].data, np.uint8).reshape(128, 128, 3)
    red, selected = native[..., 1] < 128, grey(job.mask, job.native) > 128
    assert (red != selected).mean() < 0.01
    assert 0.05 < selected.mean() < 0.5


def test_a_resampled_mask_touches_nothing_far_from_its_edge() -> None:
    """Lanczos rings: a level or two of the new picture would show all around."""
    wish = request(images=(picture(512, 512),), mask=mask_file(512, 512, (128, 128, 384, 384)), size=Size(333, 333))
    job, _ = run(wish, INPAINTS)
    found = grey(job.original_mask, Size(333, 333))
    assert found[:80].max() == found[:, :80].max() == 0
    assert found[90:240, 90:240].min() == 255


def test_what_a_mask_selects_is_made_anew_unless_a_strength_is_given() -> None:
    assert run(request(images=(picture(),), mask=mask_file()), INPAINTS)[0].strength == 1.0
    assert run(request(images=(picture(),), mask=mask_file(), strength=0.4), INPAINTS)[0].strength == 0.4
    assert run(request(images=(picture(),)), INPAINTS)[0].strength == 0.6


def test_the_answer_of_an_inpainting_without_size_is_as_large_as_the_source() -> None:
    job, _ = run(request(images=(picture(200, 120),), mask=mask_file(200, 120)), INPAINTS)
    assert job.output == Size(200, 120)


def test_a_mask_without_an_image_or_for_a_model_that_cannot_is_refused_by_name() -> None:
    error = refused(request(mask=mask_file()), INPAINTS)
    assert (error.param, error.status) == ("mask", 400)
    assert "needs an image" in error.message
    error = refused(request(images=(picture(),), mask=mask_file()))
    assert (error.param, error.code) == ("mask", "unsupported_value")


def test_a_bad_mask_is_refused_before_the_engine_is_asked() -> None:
    for mask in (b"<html>", mask_file(64, 32), picture(colour=(0, 0, 0)), picture(colour=(99, 140, 99))):
        assert refused(request(images=(picture(),), mask=mask), INPAINTS).param == "mask"


def test_a_model_that_only_inpaints_wants_a_mask() -> None:
    assert run(request(images=(picture(),), mask=mask_file()), ONLY_INPAINTS)[0].task == "inpainting"
    error = refused(request(images=(picture(),)), ONLY_INPAINTS)
    assert (error.param, error.code) == ("mask", "unsupported_value")
    assert refused(request(), ONLY_INPAINTS).param == "image"


def test_a_mask_of_another_size_is_told_and_refused_where_the_request_is_strict() -> None:
    wish = {"images": (picture(),), "mask": mask_file(128, 128, (32, 32, 96, 96)), "size": Size(64, 64)}
    _, result = run(request(**wish), INPAINTS)
    assert result.warnings == ("mask: it is 128x128 and was resampled to 64x64, the size of the image",)
    error = refused(request(**wish, strict=True), INPAINTS)
    assert (error.param, error.code) == ("mask", "unsupported_value")


def cut_out(alpha: int = 0) -> bytes:
    """A red picture with a hole of a quarter of it, under which there is green."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 255, 0, alpha), (0, 0, 32, 32))
    return encoded(image)


def test_without_a_mask_an_images_own_holes_are_the_mask() -> None:
    job, result = run(request(images=(cut_out(),), size=Size(64, 64), strict=True), INPAINTS)
    assert job.task == "inpainting"
    selected = grey(job.original_mask, Size(64, 64))
    assert selected[:32, :32].min() == 255
    assert selected[32:].max() == selected[:, 32:].max() == 0
    assert result.warnings == ()
    assert job.images[0].data[:3] == b"\xff\xff\xff", "the pipeline never sees what lies under the hole"


@pytest.mark.parametrize(
    ("image", "changes", "model"),
    [
        (cut_out(), {"variation": True, "prompt": ""}, INPAINTS),
        (cut_out(), {}, SMALL),
        (cut_out(alpha=128), {}, INPAINTS),
    ],
)
def test_a_variation_a_model_without_masks_and_mere_glass_are_edited_as_a_whole_on_white(
    image: bytes, changes: dict[str, Any], model: ModelManifest
) -> None:
    job, result = run(request(images=(image,), size=Size(64, 64), **changes), model)
    assert (job.task, job.mask, job.original, job.original_mask) == ("image-to-image", None, None, None)
    assert result.warnings == ("image: its transparent parts were filled with white",)


def test_a_mask_file_wins_over_the_images_own_holes() -> None:
    wish = request(images=(cut_out(),), mask=mask_file(64, 64, (40, 40, 60, 60)), size=Size(64, 64))
    job, result = run(wish, INPAINTS)
    assert grey(job.original_mask, Size(64, 64))[:32, :32].max() == 0
    assert result.warnings == ("image: its transparent parts were filled with white",)


def test_a_soft_edge_of_a_hole_keeps_its_own_colour_and_not_the_white_that_was_laid_under_it() -> None:
    image = Image.new("RGBA", (64, 64), (200, 40, 10, 255))
    image.paste((200, 40, 10, 100), (0, 0, 32, 64))
    image.paste((0, 0, 0, 0), (0, 0, 16, 64))
    job, _ = run(request(images=(encoded(image),), size=Size(64, 64)), INPAINTS)
    assert job.original is not None
    kept = np.frombuffer(job.original, np.uint8).reshape(64, 64, 3).astype(int)
    assert np.abs(kept[:, 20:] - (200, 40, 10)).max() <= 2
    assert grey(job.original_mask, Size(64, 64))[0, 20] == 155


def test_a_variation_has_no_words_at_all() -> None:
    job, result = run(request(prompt="", images=(picture(),), variation=True))
    assert (job.task, job.prompt, job.strength) == ("image-to-image", "", 0.6)
    assert result.warnings == ()
    job, result = run(request(prompt="a dog", images=(picture(),), variation=True, style="vivid"))
    assert job.prompt == ""
    assert [warning.partition(":")[0] for warning in result.warnings] == ["prompt", "style"]


@pytest.mark.parametrize("steps", [1, 2, 3, 49])
def test_the_default_strength_leaves_at_least_one_step(steps: int) -> None:
    source = io.BytesIO()
    Image.new("RGB", (64, 64)).save(source, "PNG")
    model = msgspec.structs.replace(SMALL, defaults=msgspec.structs.replace(SMALL.defaults, strength=0.01))
    job, _ = run(ImageRequest(prompt="a", images=(source.getvalue(),), num_inference_steps=steps), model)
    assert job.strength is not None
    assert min(int(steps * job.strength), steps) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_what_the_owner_gave_quality_away_for_is_told_in_every_answer(strict: bool) -> None:
    lossy = LossySection(skip=0.1, vae="/weights/tiny", storage_dtype="float8_e4m3fn")
    job, result = run(request(strict=strict), manifest(lossy=lossy))
    assert (job.model.skip, job.model.decoder, job.model.storage_dtype) == (0.1, "/weights/tiny", "float8_e4m3fn")
    (warning,) = result.warnings
    assert warning.startswith("model: small is set up for speed at the cost of quality: steps expected to change less")
    assert warning.endswith("0.1 are skipped; a small decoder is used; the weights are kept in float8_e4m3fn")


def test_quantized_weights_are_told_too_and_loaded_as_the_manifest_says() -> None:
    lossy = LossySection(quantization="torchao:int8_weight_only")
    job, result = run(request(), manifest(lossy=lossy))
    assert job.model.quantization == "torchao:int8_weight_only"
    assert result.warnings[0].endswith("the weights are quantized by torchao:int8_weight_only")
    own = {"vae": "/weights/vae", "transformer": "/weights/flux-Q8_0.gguf"}
    job, result = run(request(), manifest(components=own))
    assert job.model.components == (("transformer", own["transformer"]), ("vae", own["vae"]))
    assert result.warnings[0].endswith("quality: transformer comes from a GGUF file")
    assert hash(job.model)


def test_a_manifest_has_its_denoiser_compiled() -> None:
    assert run(request(), manifest(pipeline=PipelineSection(compile=True)))[0].model.compile
    assert not run(request())[0].model.compile


@pytest.fixture
def few_words(tmp_path: Path) -> ModelManifest:
    """A model that knows four words."""
    (tmp_path / "words.json").write_text('{"meanings": {"kitty": "cat"}, "words": ["red", "bright", "colours"]}')
    return manifest(path=str(tmp_path), vocabulary="words.json")


def test_a_model_of_few_words_tells_what_it_understood_and_what_not(few_words: ModelManifest) -> None:
    job, result = run(request(prompt="a red kitty, dreaming", n=2, style="vivid", size=Size(64, 64)), few_words)
    assert job.prompt == "a red kitty, dreaming, bright colours", "the model itself gets all of it"
    assert result.revised_prompts == ("red cat bright colours",) * 2
    assert result.warnings == ("prompt: small does not know 'a', 'dreaming'; it looked past that",)


def test_words_that_a_model_does_not_know_are_refused_where_the_request_is_strict(few_words: ModelManifest) -> None:
    assert run(request(prompt="red kitty", strict=True, size=Size(64, 64)), few_words)[1].warnings == ()
    error = refused(request(prompt="red kitty", negative_prompt="blur", strict=True), few_words)
    assert (error.param, error.message) == (
        "negative_prompt",
        "strict: negative_prompt: small does not know 'blur'; it looked past that.",
    )


def test_of_many_unknown_words_some_are_told(few_words: ModelManifest) -> None:
    _, result = run(request(prompt=" ".join(f"w{at}" for at in range(30)) + " " + "x" * 900), few_words)
    assert result.revised_prompts == ()
    assert result.warnings[0].endswith("'w9' and 21 more words; it looked past that")


def test_a_list_of_words_that_cannot_be_read_is_the_owners_to_mend(few_words: ModelManifest) -> None:
    Path(few_words.path, "words.json").write_text("[]")
    with pytest.raises(ModelUnusable, match="The words that small knows cannot be read"):
        asyncio.run(LocalProvider(cast(Engine, FakeEngine()), NO_LORAS).generate(few_words, request()))
