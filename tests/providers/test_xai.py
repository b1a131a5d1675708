from __future__ import annotations

from typing import Any

import pytest

from hub import providers
from hub.errors import InvalidRequest, NothingMade, ProviderBusy, ProviderFailed, ProviderKeyRefused
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
from tests.providers.upstream import answers, serving

XAI = providers.adapter("xai")
RATIOS = ["1:1", "16:9", "9:16", "3:2"]
ANY = manifest_of("xai", "grok", max_images=5, max_n=10, aspect_ratios=RATIOS, honours=["quality"])
PLAIN = manifest_of("xai", "grok", max_n=10, aspect_ratios=RATIOS)
MODELS = ready_made("xai")
SECOND = next(each for each in MODELS if each.id == "xai/grok-imagine-image-2.0")


def body_of(model: RemoteManifest = ANY, n: int = 1, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = call_of(model, request(**changes), n).json
    return body


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_what_the_ready_made_models_ask_is_understood(model: RemoteManifest) -> None:
    with serving(protocol("xai")) as upstream:
        for ratio in model.remote.aspect_ratios:
            width, height = map(int, ratio.split(":"))
            wanted = request(size=Size(100 * width, 100 * height), quality="low", output_format="jpeg")
            result = made(upstream, wanted, model)
            assert result.size.width / result.size.height == pytest.approx(width / height, rel=0.02)
        for count in (1, model.remote.max_images):
            assert made(upstream, request(images=(png(),) * count, output_format="jpeg"), model).warnings == ()


def test_up_to_ten_pictures_are_one_call_whose_cost_is_told() -> None:
    with serving(protocol("xai")) as upstream:
        result = made(upstream, request(n=10, output_format="jpeg"))
        assert (len(result.images), len(upstream.work)) == (10, 1)
        assert result.cost == pytest.approx(0.6)
        assert result.output_format == "jpeg"
        assert result.seed is None


def test_a_drawing_is_json_with_a_shape_and_a_tier() -> None:
    call = call_of(ANY, request(size=Size(2048, 1152), quality="low", user="u"), 2)
    assert call.url == "/images/generations"
    assert call.json == {
        "model": "grok",
        "prompt": "a cat",
        "n": 2,
        "aspect_ratio": "16:9",
        "resolution": "2k",
        "quality": "low",
        "user": "u",
        "response_format": "b64_json",
    }


def test_what_nobody_asked_for_is_left_to_the_model() -> None:
    assert body_of() == {"model": "grok", "prompt": "a cat", "n": 1, "response_format": "b64_json"}


@pytest.mark.parametrize(("side", "tier"), [(512, "1k"), (1024, "1k"), (1536, "2k"), (2048, "2k"), (4096, "2k")])
def test_there_are_two_tiers(side: int, tier: str) -> None:
    assert body_of(size=Size(side, side))["resolution"] == tier


def test_an_edit_of_one_picture_keeps_its_shape_and_says_so() -> None:
    wanted = request(images=(png(),), size=Size(2048, 2048))
    call = call_of(ANY, wanted)
    assert call.url == "/images/edits"
    assert "aspect_ratio" not in call.json
    assert call.json["resolution"] == "2k"
    assert call.json["image"]["type"] == "image_url"
    assert call.json["image"]["url"].startswith("data:image/png;base64,iVBOR")
    assert notices_of(ANY, wanted) == ["size: xai/grok keeps the shape of the picture that it edits"]


def test_an_edit_of_several_has_the_shape_that_was_asked_for() -> None:
    wanted = request(images=(png(), png()), size=SQUARE)
    body: dict[str, Any] = call_of(ANY, wanted).json
    assert (len(body["images"]), "image" in body, body["aspect_ratio"]) == (2, False, "1:1")
    assert notices_of(ANY, wanted) == []


def test_the_best_quality_is_medium_and_that_is_told() -> None:
    assert body_of(quality="high")["quality"] == "medium"
    assert notices_of(ANY, request(quality="hd")) == ["quality: xai/grok has no high; it was asked for medium"]
    assert notices_of(ANY, request(quality="medium")) == []
    with serving(protocol("xai")) as upstream:
        result = made(upstream, request(quality="high"), SECOND)
        assert upstream.work[0].json["quality"] == "medium"
    assert result.quality == "medium"


def test_a_model_without_qualities_is_asked_for_none() -> None:
    assert "quality" not in body_of(PLAIN, quality="low")
    assert notices_of(PLAIN, request(quality="low")) == ["quality: xai/grok has no such parameter; it was not used"]


def test_a_manifest_cannot_claim_what_is_not_there() -> None:
    model = manifest_of("xai", honours=["seed", "quality", "negative_prompt"])
    assert XAI.honoured(model) == {"size", "quality"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"size": Size(1000, 300)}, "size"),
        ({"images": (png(),), "size": SQUARE}, "size"),
        ({"quality": "high"}, "quality"),
        ({"seed": 3}, "seed"),
        ({"output_format": "png"}, "output_format"),
    ],
)
def test_a_strict_request_is_refused_instead_of_told(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish_of(SECOND, request(**{"output_format": "jpeg", **changes}, strict=True))
    assert caught.value.param == param


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


# Answers


def read(body: Any) -> Made:
    found = XAI.read(wish_of(ANY, request()), answer(body))
    assert isinstance(found, Made)
    return found


def test_pictures_come_in_base64_or_a_data_url_or_behind_a_link() -> None:
    items = [{"b64_json": "eA=="}, {"b64_json": "data:image/jpeg;base64,eA=="}, {"url": "https://imgen.x.ai/1.jpg"}]
    assert read({"data": items}).pictures == [
        Base64(b"eA=="),
        Link("data:image/jpeg;base64,eA=="),
        Link("https://imgen.x.ai/1.jpg"),
    ]


def test_words_that_were_made_of_the_prompt_and_the_cost_are_told() -> None:
    found = read({"data": [{"b64_json": "eA==", "revised_prompt": "a fine cat"}], "usage": {"cost_in_usd_ticks": 1}})
    assert (found.revised_prompts, found.cost) == (["a fine cat"], 1e-10)
    assert read({"data": [{"b64_json": "eA=="}]}).cost is None
    assert read({"data": [{"b64_json": "eA=="}], "usage": {"cost_in_usd_ticks": "600000000"}}).cost == 0.06


def test_words_that_were_made_of_the_prompt_stay_with_their_pictures() -> None:
    moderated = {"respect_moderation": False, "revised_prompt": "a dog"}
    items = [{"b64_json": "eA=="}, moderated, {"b64_json": "eQ==", "revised_prompt": "a fine cat"}]
    assert read({"data": items}).revised_prompts == ["", "a fine cat"]
    assert read({"data": items[:1]}).revised_prompts == []


def test_links_are_downloaded_where_the_manifest_asks_for_them() -> None:
    model = manifest_of("xai", "grok-imagine-image", aspect_ratios=["1:1"], options={"response_format": "url"})
    with serving(protocol("xai")) as upstream:
        assert made(upstream, request(output_format="jpeg"), model).size == SQUARE


def test_what_was_moderated_is_blocked_or_missing() -> None:
    with serving(protocol("xai")) as upstream:
        assert error_of(upstream, request(prompt="half")).code == "content_policy_violation"
        result = made(upstream, request(prompt="half", n=3, output_format="jpeg"))
        assert (len(result.images), result.warnings) == (2, ("n: xAI made 2 of 3 pictures",))
        assert error_of(upstream, request(prompt="forbidden")).code == "content_policy_violation"


# Refusals


def test_a_wrong_key_is_a_400_there_and_the_owners_to_mend_here() -> None:
    with serving(protocol("xai")) as upstream:
        upstream.faults.append(answers(401))
        assert isinstance(error_of(upstream, request()), ProviderKeyRefused)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (
            400,
            {"code": "Client specified an invalid argument", "error": "Argument not supported: size"},
            InvalidRequest,
        ),
        (400, {"error": "Incorrect%20API%20key%20provided:%20ba***na."}, ProviderKeyRefused),
        (400, {"error": {"message": "x"}}, InvalidRequest),
        (400, "Incorrect API key provided", InvalidRequest),
        (403, {"error": "Your newly created team doesn't have any credits yet."}, NotForThisModel),
        (403, {"error": "Content violates usage guidelines: moderation"}, InvalidRequest),
        (404, {"error": "The model does not exist"}, NothingMade),
        (422, {"error": "Failed to deserialize the JSON body"}, InvalidRequest),
        (429, {"error": "Too many requests"}, ProviderBusy),
        (503, {"error": "moderation is down"}, ProviderBusy),
        (500, {"error": "x"}, ProviderFailed),
    ],
)
def test_errors_are_told_by_what_they_mean(status: int, body: Any, kind: type) -> None:
    assert type(XAI.refusal(answer(body, status))) is kind
