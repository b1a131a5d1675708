"""Which pictures of a request reach the engine, as what, by the family of the model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hub.errors import InvalidRequest
from hub.manifest import DefaultsSection, ModelManifest, SizeSection
from hub.providers.local.plan import prepare
from hub.providers.local.sources import REFERENCE_PIXELS
from hub.types import ImageRequest, Size

ALL = ["text-to-image", "image-to-image", "inpainting"]
LOOKS, DRAWS_ALONG = "Flux2KleinPipeline", "StableDiffusionControlNetPipeline"


def manifest(folder: Path, class_name: str, tasks: list[Any] = ALL) -> ModelManifest:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return ModelManifest(
        id="small",
        name="",
        description="",
        license="",
        path=str(folder),
        tasks=tasks,
        size=SizeSection(native="64x64", multiple=16, min=64, max=64, max_output=2048),
        defaults=DefaultsSection(num_inference_steps=4, size="64x64"),
    )


def picture(width: int = 64, height: int = 64, colour: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def mask() -> bytes:
    image = Image.new("L", (64, 64))
    image.paste(255, (16, 16, 48, 48))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def wish(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a", "size": Size(64, 64), **changes})


def test_pictures_to_look_at_keep_their_own_shapes_and_are_all_used(tmp_path: Path) -> None:
    plan = prepare(manifest(tmp_path, LOOKS), wish(images=(picture(200, 100), picture(30, 50))))
    assert [(each.width, each.height) for each in plan.job.images] == [(200, 100), (30, 50)]
    assert (plan.job.task, plan.job.strength, plan.notices) == ("image-to-image", None, [])


def test_a_huge_picture_to_look_at_is_shrunk(tmp_path: Path) -> None:
    plan = prepare(manifest(tmp_path, LOOKS), wish(images=(picture(4000, 2000),)))
    (only,) = plan.job.images
    assert only.width * only.height <= REFERENCE_PIXELS * 1.001
    assert abs(only.width / only.height - 2) < 0.01


def test_more_pictures_than_a_family_uses_are_told(tmp_path: Path) -> None:
    plan = prepare(manifest(tmp_path, LOOKS), wish(images=(picture(),) * 12))
    assert len(plan.job.images) == 10
    assert [str(notice) for notice in plan.notices] == ["image: only the first 10 of 12 images were used"]


def test_with_a_mask_the_first_is_repainted_and_the_others_are_looked_at(tmp_path: Path) -> None:
    plan = prepare(manifest(tmp_path, LOOKS), wish(images=(picture(), picture(20, 30)), mask=mask()))
    assert plan.job.task == "inpainting"
    assert [(each.width, each.height) for each in plan.job.images] == [(64, 64), (20, 30)]


def test_one_picture_of_a_controlnet_is_its_map(tmp_path: Path) -> None:
    plan = prepare(manifest(tmp_path, DRAWS_ALONG), wish(images=(picture(128, 128),)))
    assert (plan.job.task, plan.job.strength) == ("text-to-image", None)
    assert [(each.width, each.height) for each in plan.job.images] == [(64, 64)]


def test_of_two_pictures_of_a_controlnet_the_first_is_repainted_along_the_second(tmp_path: Path) -> None:
    images = (picture(colour=(255, 0, 0)), picture(colour=(0, 0, 255)))
    plan = prepare(manifest(tmp_path, DRAWS_ALONG), wish(images=images))
    assert plan.job.task == "image-to-image"
    assert plan.job.strength == 0.8
    assert [each.data[:3] for each in plan.job.images] == [b"\xff\0\0", b"\0\0\xff"]
    assert prepare(manifest(tmp_path, DRAWS_ALONG), wish(images=images, mask=mask())).job.task == "inpainting"


@pytest.mark.parametrize(
    ("asked", "param"),
    [({}, "image"), ({"images": 1, "mask": True}, "image"), ({"mask": True}, "mask")],
)
def test_a_controlnet_without_its_map_is_refused_by_name(tmp_path: Path, asked: dict[str, Any], param: str) -> None:
    images = (picture(),) * asked.get("images", 0)
    with pytest.raises(InvalidRequest) as caught:
        prepare(manifest(tmp_path, DRAWS_ALONG), wish(images=images, mask=mask() if asked.get("mask") else None))
    assert caught.value.param == param
