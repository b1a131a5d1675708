from __future__ import annotations

from typing import Any

import pytest

from hub import providers
from hub.errors import InvalidRequest, NoCredit, NothingMade, ProviderBusy, ProviderFailed, ProviderKeyRefused
from hub.manifest import RemoteManifest
from hub.remote.adapter import Base64, Link, Made, NotForThisModel
from hub.types import Size, Task
from tests.providers.protocols import protocol
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

TOGETHER = providers.adapter("together")
ALL = ["num_inference_steps", "guidance_scale", "negative_prompt"]
ANY = manifest_of("together", max_n=4, max_images=4, formats=["png", "jpeg"], honours=ALL)
PLAIN = manifest_of("together", formats=["png", "jpeg"])
MODELS = ready_made("together")
EVERYTHING = {"num_inference_steps": 20, "guidance_scale": 4.5, "negative_prompt": "dogs", "seed": 7}


def body_of(model: RemoteManifest = ANY, n: int = 1, first: int = 0, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = call_of(model, request(**changes), n, first).json
    return body


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_what_the_ready_made_models_ask_is_understood(model: RemoteManifest) -> None:
    with serving(protocol("together")) as upstream:
        for task in model.tasks:
            wanted = request_for(task, n=2, size=SQUARE, **EVERYTHING)
            assert len(made(upstream, wanted, model).images) == 2
        result = made(upstream, request(size=SQUARE, output_format="jpeg"), model)
        assert (result.size, result.output_format, result.warnings) == (SQUARE, "jpeg", ())


def test_up_to_four_pictures_are_one_call_and_the_next_begin_with_their_own_seed() -> None:
    with serving(protocol("together")) as upstream:
        result = made(upstream, request(n=6, seed=10))
        assert sorted((each.json["n"], each.json["seed"]) for each in upstream.work) == [(2, 14), (4, 10)]
        assert (len(result.images), result.seed) == (6, 10)


def test_everything_reaches_the_body_by_its_name_there() -> None:
    call = call_of(ANY, request(size=Size(1280, 768), output_format="jpeg", **EVERYTHING), 3, 2)
    assert call.url == "/images/generations"
    assert call.json == {
        "model": "painter",
        "prompt": "a cat",
        "n": 3,
        "width": 1280,
        "height": 768,
        "seed": 9,
        "steps": 20,
        "guidance_scale": 4.5,
        "negative_prompt": "dogs",
        "output_format": "jpeg",
        "response_format": "base64",
    }


def test_what_a_manifest_does_not_name_is_left_out_and_told() -> None:
    body = body_of(PLAIN, **EVERYTHING)
    assert set(body) == {"model", "prompt", "n", "seed", "output_format", "response_format"}
    assert [each.partition(":")[0] for each in notices_of(PLAIN, request(**EVERYTHING))] == ALL
    assert TOGETHER.honoured(manifest_of("together", honours=["style", "guidance_scale"])) == {
        "size",
        "seed",
        "output_format",
        "guidance_scale",
    }


def test_sources_are_references_and_kontext_has_a_name_of_its_own_for_one() -> None:
    assert [each[:26] for each in body_of(images=(png(), png()))["reference_images"]] == [
        "data:image/png;base64,iVBO"
    ] * 2
    body = body_of(manifest_of("together", "black-forest-labs/FLUX.1-kontext-max"), images=(png(),))
    assert body["image_url"].startswith("data:image/png;base64,")
    assert "reference_images" not in body


def test_a_model_of_shapes_gets_one_instead_of_pixels() -> None:
    kontext = next(each for each in MODELS if "kontext" in each.id)
    body = body_of(kontext, size=Size(1920, 1080))
    assert (body["aspect_ratio"], "width" in body) == ("16:9", False)
    with serving(protocol("together")) as upstream:
        result = made(upstream, request(size=Size(1920, 1080)), kontext)
        assert result.warnings == ("size: Together AI made 1344x768 instead of 1920x1080",)


def test_a_size_out_of_bounds_is_told_and_the_nearest_asked_for() -> None:
    model = next(each for each in MODELS if each.id == "together/flux-2-pro")
    body = body_of(model, size=Size(4096, 4096))
    assert (body["width"], body["height"]) == (1920, 1920)
    assert notices_of(model, request(size=Size(4096, 4096))) == [
        "size: together/flux-2-pro draws no 4096x4096; 1920x1920, the nearest, was asked for"
    ]


def test_webp_is_not_made_there_and_png_is_asked_for() -> None:
    assert body_of(output_format="webp")["output_format"] == "png"
    assert notices_of(ANY, request(output_format="webp")) == [
        "output_format: together/painter makes no webp; it is png"
    ]
    with pytest.raises(InvalidRequest) as caught:
        wish_of(ANY, request(output_format="webp", strict=True))
    assert caught.value.param == "output_format"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
@pytest.mark.parametrize(
    ("task", "changes", "param"),
    [("inpainting", {}, "mask"), ("text-to-image", {"background": "transparent"}, "background")],
)
def test_what_no_model_can_do_is_refused_by_name(
    model: RemoteManifest, task: Task, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish_of(model, request_for(task, **changes))
    assert caught.value.param == param


def test_a_model_that_only_draws_takes_no_picture_and_others_no_more_than_they_can() -> None:
    for model in MODELS:
        count = model.remote.max_images + 1 if "image-to-image" in model.tasks else 1
        with pytest.raises(InvalidRequest) as caught:
            wish_of(model, request(images=(png(),) * count))
        assert caught.value.param == "image"


def test_pictures_come_in_base64_or_behind_links() -> None:
    body = {"id": "o", "data": [{"index": 0, "b64_json": "eA=="}, {"index": 1, "url": "https://api.together.ai/1"}]}
    found = TOGETHER.read(wish_of(ANY, request()), answer(body))
    assert isinstance(found, Made)
    assert found.pictures == [Base64(b"eA=="), Link("https://api.together.ai/1")]
    with serving(protocol("together")) as upstream:
        model = manifest_of("together", options={"response_format": "url"})
        assert made(upstream, request(n=2, size=SQUARE), model).size == SQUARE


def test_a_partners_model_that_the_account_does_not_allow_is_no_matter_of_the_key() -> None:
    with serving(protocol("together")) as upstream:
        error = error_of(upstream, request(prompt="partner"))
        assert (type(error), len(upstream.work)) == (NothingMade, 1)
        assert "allow" in error.message
        refused = error_of(upstream, request(prompt="forbidden"))
        assert (type(refused), refused.param) == (InvalidRequest, "prompt")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"type": "invalid_request_error", "param": "width"}}, InvalidRequest),
        (401, {"error": {"code": "invalid_api_key"}}, ProviderKeyRefused),
        (402, {"error": {"type": "insufficient_quota"}}, NoCredit),
        (403, {"error": {"type": "forbidden"}}, NotForThisModel),
        (403, {"error": {"type": "third_party_data_sharing_blocked"}}, NothingMade),
        (404, {"error": {"code": "model_not_available"}}, NothingMade),
        (429, {"error": {"type": "rate_limit"}}, ProviderBusy),
        (503, "no object", ProviderBusy),
        (500, {"error": {"type": "server_error"}}, ProviderFailed),
    ],
)
def test_errors_are_told_by_what_they_mean(status: int, body: Any, kind: type) -> None:
    assert type(TOGETHER.refusal(answer(body, status))) is kind
