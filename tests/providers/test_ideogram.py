"""Ideogram."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hub.errors import InvalidRequest, NoCredit, ProviderBusy
from hub.providers.ideogram import MAX_SEED, adapter
from hub.remote.adapter import Answer, Call, Made
from hub.types import ImageRequest, Size
from tests.providers.protocols.ideogram import IdeogramProtocol
from tests.providers.ready_made import READY_MADE, ask, left_and_right, mask, picture, ready_made, wish_for
from tests.providers.upstream import serving

V3, V4, V45 = "ideogram-ideogram-v3", "ideogram-ideogram-v4", "ideogram-ideogram-4-5"


def call(file: str, n: int = 1, **request: Any) -> Call:
    return adapter.call(wish_for(adapter, ready_made(file), n=n, **request), n, 0)


def fields(file: str, **request: Any) -> dict[str, str]:
    form = call(file, **request).form
    assert form is not None
    return dict(form.fields)


@pytest.mark.parametrize("file", sorted(path.stem for path in READY_MADE.glob("ideogram-*.toml")))
def test_every_ready_made_manifest_asks_for_what_its_model_takes(file: str) -> None:
    with serving(IdeogramProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        for task in manifest.tasks:
            wish = ImageRequest(
                prompt="a cat",
                n=2,
                size=None if task == "inpainting" else Size(1000, 700),
                images=() if task == "text-to-image" else (picture(),),
                mask=mask() if task == "inpainting" else None,
                quality="high",
                strength=0.3,
                seed=3,
            )
            assert len(ask(upstream, wish, manifest).images) == 2


def test_version_3_is_told_size_speed_seed_number_and_what_to_avoid() -> None:
    asked = fields(V3, n=4, size=Size(1024, 1024), quality="low", seed=7, negative_prompt="dogs")
    assert asked == {
        "prompt": "a cat",
        "resolution": "1024x1024",
        "rendering_speed": "TURBO",
        "negative_prompt": "dogs",
        "seed": "7",
        "num_images": "4",
    }


@pytest.mark.parametrize(("quality", "speed"), [("low", "TURBO"), ("auto", "DEFAULT"), ("hd", "QUALITY")])
def test_quality_is_a_speed(quality: Any, speed: str) -> None:
    assert fields(V3, quality=quality)["rendering_speed"] == speed


def test_a_size_that_it_does_not_draw_becomes_the_nearest_and_is_told() -> None:
    with serving(IdeogramProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", size=Size(1500, 500)), ready_made(V3, upstream))
    assert result.size == Size(1536, 512)
    assert result.warnings == ("size: ideogram/ideogram-v3 draws no 1500x500; 1536x512, the nearest, was asked for",)


def test_an_edit_is_a_remix_in_which_strength_is_the_opposite_of_weight() -> None:
    asked = call(V3, images=(picture(),), strength=0.2)
    assert asked.url == "/v1/ideogram-v3/remix"
    assert asked.form is not None
    assert dict(asked.form.fields)["image_weight"] == "80"
    assert [(name, kind) for name, _, _, kind in asked.form.files] == [("image", "image/png")]
    assert fields(V4, images=(picture(),), strength=1.0)["image_weight"] == "1"


def test_in_a_mask_black_may_change() -> None:
    for file, path in ((V3, "/v1/ideogram-v3/inpaint"), (V45, "/v2/image/generate/ideogram-4-5")):
        asked = call(file, images=(picture(),), mask=mask())
        assert asked.url == path
        assert asked.form is not None
        ((name, _, data, _),) = [each for each in asked.form.files if each[0] == "mask"]
        assert (name, left_and_right(data)) == ("mask", (0, 255))
        assert "size" not in dict(asked.form.fields)


def test_what_inpainting_does_not_take_is_told_and_refused_where_the_request_is_strict() -> None:
    wish: dict[str, Any] = {"images": (picture(),), "mask": mask(), "size": Size(1024, 1024), "negative_prompt": "dogs"}
    with serving(IdeogramProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", **wish), ready_made(V3, upstream))
    assert [each.partition(":")[0] for each in result.warnings] == ["size", "negative_prompt"]
    with pytest.raises(InvalidRequest) as caught:
        call(V3, **wish, strict=True)
    assert caught.value.param == "size"
    with pytest.raises(InvalidRequest):
        call(V45, images=(picture(),), mask=mask(), size=Size(1024, 1024), strict=True)


def test_version_4_takes_no_seed_and_one_picture_at_a_time() -> None:
    manifest = ready_made(V4)
    assert [each.param for each in wish_for(adapter, manifest, seed=3).notices] == ["seed"]
    assert fields(V4, size=Size(2048, 2048)) == {
        "text_prompt": "a cat",
        "resolution": "2048x2048",
        "rendering_speed": "DEFAULT",
    }
    assert manifest.remote.max_n == 1


def test_words_alone_go_to_the_latest_as_json_and_pictures_as_a_form() -> None:
    asked = call(V45, n=2, size=Size(2048, 2048), seed=1, quality="high")
    assert asked.json == {
        "prompt": "a cat",
        "size": "2048x2048",
        "quality": "high",
        "seed": 1,
        "num_images": 2,
    }
    asked = call(V45, images=(picture(), picture(image_format="JPEG")))
    assert asked.form is not None
    assert dict(asked.form.fields)["size"] == "source"
    assert [(name, kind) for name, _, _, kind in asked.form.files] == [
        ("images", "image/png"),
        ("images", "image/jpeg"),
    ]


def test_a_seed_that_it_does_not_take_is_refused_and_the_largest_wraps() -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(V3, seed=MAX_SEED + 1)
    assert caught.value.param == "seed"
    wish = wish_for(adapter, ready_made(V3), seed=MAX_SEED)
    asked = adapter.call(wish, 1, 8)
    assert asked.form is not None
    assert dict(asked.form.fields)["seed"] == "7"


def test_pictures_that_it_withholds_are_left_out_and_told() -> None:
    with serving(IdeogramProtocol(unsafe=(0, 2))) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", n=3, seed=10))
    assert len(result.images) == 1
    assert result.warnings == ("n: Ideogram made 1 of 3 pictures",)
    assert result.seed == 11
    assert result.revised_prompts == ("a cat, in a garden",)


def test_prompts_that_were_rewritten_stay_with_their_pictures() -> None:
    prompts = ["a cat", "a cat, in a garden", None]
    items = [{"url": f"https://x.example/{number}", "prompt": each} for number, each in enumerate(prompts)]
    items.insert(0, {"url": None, "prompt": "a dog", "is_image_safe": False})
    made = adapter.read(wish_for(adapter, ready_made(V3)), Answer(200, {}, json.dumps({"data": items}).encode()))
    assert isinstance(made, Made)
    assert (len(made.pictures), made.revised_prompts) == (3, ["", "a cat, in a garden", ""])


def test_a_request_of_which_all_is_withheld_is_against_its_policy() -> None:
    with serving(IdeogramProtocol(unsafe=(0,))) as upstream, pytest.raises(InvalidRequest) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.code == "content_policy_violation"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (422, InvalidRequest, "content_policy_violation"),
        (400, InvalidRequest, "provider_refused"),
        (402, NoCredit, "provider_key_refused"),
        (429, ProviderBusy, "provider_busy"),
    ],
)
def test_its_statuses_are_understood(status: int, kind: type[Exception], code: str) -> None:
    error = adapter.refusal(Answer(status, {}, b'{"error": "words"}'))
    assert (type(error), error.code) == (kind, code)
    assert "words" not in error.message


def test_strength_without_a_picture_is_told() -> None:
    notices = wish_for(adapter, ready_made(V3), strength=0.5).notices
    assert [str(each) for each in notices] == ["strength: there is no image; it was not used"]
