from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from hub import providers
from hub.errors import InvalidRequest, NoCredit, NothingMade, ProviderBusy, ProviderFailed, ProviderKeyRefused
from hub.manifest import RemoteManifest
from hub.remote.adapter import Base64, Form, Made, NotForThisModel
from hub.types import Size
from tests.providers.protocols import protocol
from tests.providers.protocols.stability import SIZES
from tests.providers.running import (
    SQUARE,
    answer,
    call_of,
    error_of,
    made,
    manifest_of,
    notices_of,
    png,
    ready_made,
    request,
    request_for,
    wish_of,
)
from tests.providers.upstream import serving

STABILITY = providers.adapter("stability")
RATIOS = ["1:1", "16:9"]
LARGE = manifest_of("stability", "sd3.5-large", aspect_ratios=RATIOS, formats=["png", "jpeg"])
ULTRA = manifest_of("stability", "ultra", aspect_ratios=RATIOS)
MODELS = ready_made("stability")


def form_of(model: RemoteManifest = LARGE, **changes: Any) -> tuple[str, dict[str, str], list[str]]:
    call = call_of(model, request(**changes))
    assert isinstance(call.form, Form)
    return call.url, dict(call.form.fields), [field for field, *_ in call.form.files]


def test_a_manifests_options_are_written_as_its_api_reads_them() -> None:
    options = {"style_preset": "anime", "tiled": True, "weight": 0.5}
    assert form_of(manifest_of("stability", "core", options=options))[1].items() >= {
        ("style_preset", "anime"),
        ("tiled", "true"),
        ("weight", "0.5"),
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_what_the_ready_made_models_ask_is_understood(model: RemoteManifest) -> None:
    everything = {"negative_prompt": "dogs", "guidance_scale": 5.0, "strength": 0.5, "seed": 9, "size": SQUARE}
    with serving(protocol("stability")) as upstream:
        for task in model.tasks:
            assert made(upstream, request_for(task), model).warnings == ()
            result = made(upstream, request_for(task, **everything, output_format="jpeg"), model)
            assert (result.seed, result.output_format) == (9, "jpeg")
        for ratio in model.remote.aspect_ratios:
            size = Size(*SIZES[ratio])
            assert made(upstream, request(size=size), model).size == size


def test_every_picture_is_a_call_of_its_own_with_its_own_seed() -> None:
    with serving(protocol("stability")) as upstream:
        result = made(upstream, request(n=3, seed=40, size=SQUARE))
        assert sorted(each.fields["seed"] for each in upstream.work) == ["40", "41", "42"]
    assert (len(set(result.images)), result.seed, len(result.encoded)) == (3, 40, 3)


def test_the_seed_that_was_drawn_is_told_for_one_picture_and_for_several_it_would_be_wrong() -> None:
    with serving(protocol("stability")) as upstream:
        assert made(upstream, request()).seed == 1234567
        assert made(upstream, request(n=2)).seed is None


def test_a_drawing_of_the_large_family_names_its_model() -> None:
    wanted = {
        "size": Size(1600, 900),
        "seed": 7,
        "negative_prompt": "dogs",
        "guidance_scale": 4.5,
        "output_format": "jpeg",
    }
    assert form_of(**wanted) == (
        "/generate/sd3",
        {
            "prompt": "a cat",
            "model": "sd3.5-large",
            "mode": "text-to-image",
            "aspect_ratio": "16:9",
            "negative_prompt": "dogs",
            "cfg_scale": "4.5",
            "seed": "7",
            "output_format": "jpeg",
        },
        [],
    )


def test_other_services_have_a_path_each() -> None:
    assert form_of(ULTRA) == ("/generate/ultra", {"prompt": "a cat", "output_format": "png"}, [])
    assert form_of(manifest_of("stability", "core"))[0] == "/generate/core"
    options = {"style_preset": "anime"}
    assert form_of(manifest_of("stability", "core", options=options))[1]["style_preset"] == "anime"


def test_an_edit_has_a_strength_and_no_shape_and_says_so() -> None:
    url, fields, files = form_of(images=(png(),), size=SQUARE, strength=0.25)
    assert (url, files, fields["mode"], fields["strength"]) == ("/generate/sd3", ["image"], "image-to-image", "0.25")
    assert "aspect_ratio" not in fields
    assert notices_of(LARGE, request(images=(png(),), size=Size(1000, 300))) == [
        "size: stability/sd3.5-large keeps the shape of the picture that it edits"
    ]
    assert form_of(ULTRA, images=(png(),))[1]["strength"] == "0.8"


def test_a_strength_without_a_picture_is_told() -> None:
    assert notices_of(LARGE, request(strength=0.5)) == ["strength: there is no image; it was not used"]
    assert "strength" not in form_of(strength=0.5)[1]


def test_a_manifest_may_send_inpainting_elsewhere_and_what_is_not_taken_there_is_told() -> None:
    model = manifest_of("stability", "sd3.5-large", models={"inpainting": "inpaint"}, formats=["png"])
    wanted = request_for("inpainting", strength=0.5, guidance_scale=4.0, negative_prompt="dogs")
    call = call_of(model, wanted)
    assert call.form is not None
    assert (call.url, dict(call.form.fields)) == (
        "/edit/inpaint",
        {"prompt": "a cat", "negative_prompt": "dogs", "output_format": "png"},
    )
    assert [each.partition(":")[0] for each in notices_of(model, wanted)] == ["guidance_scale", "strength"]
    with serving(protocol("stability")) as upstream:
        assert made(upstream, request_for("inpainting"), model).size == Size(64, 64)


def test_an_inpainting_sends_a_mask_whose_white_changes() -> None:
    model = next(each for each in MODELS if each.id == "stability/inpaint")
    call = call_of(model, request_for("inpainting", seed=3))
    assert call.url == "/edit/inpaint"
    assert call.form is not None
    assert dict(call.form.fields) == {"prompt": "a cat", "seed": "3", "output_format": "png"}
    image, mask = call.form.files
    assert (image[0], image[2], image[3]) == ("image", png(), "image/png")
    assert (mask[0], mask[3]) == ("mask", "image/png")
    drawn = Image.open(io.BytesIO(mask[2]))
    assert (drawn.getpixel((0, 0)), drawn.getpixel((63, 0))) == (0, 255)
    with serving(protocol("stability")) as upstream:
        assert made(upstream, request_for("inpainting"), model).size == Size(64, 64)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ultra", {"size", "strength", "seed", "negative_prompt", "output_format"}),
        ("core", {"size", "seed", "negative_prompt", "output_format"}),
        ("inpaint", {"seed", "negative_prompt", "output_format"}),
        ("sd3.5-medium", {"size", "strength", "guidance_scale", "seed", "negative_prompt", "output_format"}),
        ("sd3.5-large-turbo", {"size", "strength", "seed", "output_format"}),
        ("sd3.5-flash", {"size", "strength", "seed", "output_format"}),
    ],
)
def test_services_differ_in_what_they_honour(model: str, expected: set[str]) -> None:
    assert STABILITY.honoured(manifest_of("stability", model)) == expected


def test_a_model_that_was_distilled_has_no_guidance_and_that_is_told() -> None:
    turbo = manifest_of("stability", "sd3.5-large-turbo")
    wanted = {"guidance_scale": 3.0, "negative_prompt": "dogs"}
    assert {"cfg_scale", "negative_prompt"}.isdisjoint(form_of(turbo, **wanted)[1])
    assert [each.partition(":")[0] for each in notices_of(turbo, request(**wanted))] == [
        "guidance_scale",
        "negative_prompt",
    ]


def test_a_seed_of_0_is_a_random_one_there_and_a_large_one_is_refused() -> None:
    assert notices_of(LARGE, request(seed=0)) == ["seed: Stability AI takes 0 for a random one"]
    with serving(protocol("stability")) as upstream:
        error = error_of(upstream, request(seed=2**32 - 1))
        assert (type(error), error.param, upstream.asked) == (InvalidRequest, "seed", [])
        assert made(upstream, request(seed=0)).seed == 1234567


@pytest.mark.parametrize(
    ("model", "changes", "param"),
    [
        ("stability/stable-image-core", {"images": (png(),)}, "image"),
        ("stability/stable-image-ultra", {"images": (png(),), "mask": png(transparent=True)}, "mask"),
        ("stability/sd3.5-large", {"images": (png(), png())}, "image"),
        ("stability/inpaint", {}, "image"),
        ("stability/inpaint", {"images": (png(),)}, "mask"),
        ("stability/sd3.5-medium", {"background": "transparent"}, "background"),
        ("stability/sd3.5-medium", {"output_format": "webp", "strict": True}, "output_format"),
        ("stability/sd3.5-medium", {"seed": 0, "strict": True}, "seed"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(model: str, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish_of(next(each for each in MODELS if each.id == model), request(**changes))
    assert caught.value.param == param


# Answers


def test_an_answer_is_a_picture_in_base64_with_its_seed() -> None:
    body = {"image": "eA==", "finish_reason": "SUCCESS", "seed": 42}
    assert STABILITY.read(wish_of(LARGE, request()), answer(body)) == Made([Base64(b"eA==")], seed=42)


@pytest.mark.parametrize("body", [{}, {"image": None, "finish_reason": "SUCCESS"}])
def test_an_answer_without_a_picture_may_have_cost(body: dict[str, Any]) -> None:
    with pytest.raises(ProviderFailed) as caught:
        STABILITY.read(wish_of(LARGE, request()), answer(body))
    assert caught.value.may_have_billed


def test_a_filtered_picture_and_a_moderated_prompt_are_the_callers_to_mend() -> None:
    with serving(protocol("stability")) as upstream:
        for prompt in ("filtered", "forbidden"):
            assert error_of(upstream, request(prompt=prompt)).code == "content_policy_violation"
        assert len(upstream.work) == 2


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"name": "bad_request", "errors": ["seed: must be"]}, InvalidRequest),
        (401, {"name": "unauthorized"}, ProviderKeyRefused),
        (402, {"name": "payment_required"}, NoCredit),
        (403, {"name": "forbidden"}, NotForThisModel),
        (403, {"name": "content_moderation"}, InvalidRequest),
        (404, {"name": "not_found"}, NothingMade),
        (413, {"name": "payload_too_large"}, InvalidRequest),
        (422, {"name": "unprocessable_entity"}, InvalidRequest),
        (429, {"name": "rate_limit_exceeded"}, ProviderBusy),
        (500, {"name": "internal_error"}, ProviderFailed),
    ],
)
def test_errors_are_told_by_what_they_mean(status: int, body: Any, kind: type) -> None:
    assert type(STABILITY.refusal(answer(body, status))) is kind
