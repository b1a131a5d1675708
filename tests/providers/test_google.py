from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
from google import genai
from google.genai import types

from hub import providers
from hub.errors import InvalidRequest, NothingMade, ProviderBusy, ProviderFailed, ProviderKeyRefused
from hub.manifest import RemoteManifest
from hub.remote.adapter import Base64, Made, NotForThisModel
from hub.types import Size, Task, Usage
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
from tests.providers.upstream import KEY, answers, serving

GOOGLE = providers.adapter("google")
ANY = manifest_of("google", "gemini-nano-banana-2.1", max_images=14)
MODELS = ready_made("google")


def config_of(model: RemoteManifest = ANY, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = call_of(model, request(**changes)).json
    config: dict[str, Any] = body["generationConfig"]
    return config


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_what_the_ready_made_models_ask_is_understood_and_drawn_as_their_sizes_say(model: RemoteManifest) -> None:
    with serving(protocol("google")) as upstream:
        for size in (SQUARE, *(Size(*map(int, each.split("x"))) for each in model.remote.sizes[1::7])):
            result = made(upstream, request(size=size, seed=3), model)
            assert (result.size, result.warnings, result.seed) == (size, (), 3)
        assert made(upstream, request_for("image-to-image"), model).warnings == ()


def test_every_picture_is_a_call_of_its_own_with_its_own_seed_and_usages_add_up() -> None:
    with serving(protocol("google")) as upstream:
        result = made(upstream, request(n=3, seed=40, size=SQUARE))
    assert len(set(result.images)) == 3
    assert sorted(each.json["generationConfig"]["seed"] for each in upstream.work) == [40, 41, 42]
    assert result.usage == Usage(text_tokens=36, image_tokens=774, output_tokens=3360)
    assert len(result.encoded) == 3


def test_a_call_is_contents_and_a_configuration() -> None:
    source = png()
    call = call_of(ANY, request(images=(source, source), size=Size(2752, 1536), seed=5))
    picture = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(source).decode()}}
    assert call.url == "/models/gemini-nano-banana-2.1:generateContent"
    assert call.json == {
        "contents": [{"role": "user", "parts": [picture, picture, {"text": "a cat"}]}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"},
            "seed": 5,
        },
    }


def test_the_sdk_asks_the_same_in_the_same_way() -> None:
    asked: list[httpx2.Request] = []

    def keep(sent: httpx2.Request) -> httpx2.Response:
        asked.append(sent)
        return httpx2.Response(200, json={"candidates": []})

    options = types.HttpOptions(httpx_client=httpx2.Client(transport=httpx2.MockTransport(keep)))
    shape = types.ImageConfig(aspect_ratio="16:9", image_size="2K")
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5, image_config=shape)
    with genai.Client(api_key=KEY, http_options=options) as client:
        client.models.generate_content(model="gemini-nano-banana-2.1", contents=["a cat"], config=config)
    (theirs,) = asked
    ours = call_of(ANY, request(size=Size(2752, 1536), seed=5))
    assert json.loads(theirs.content) == ours.json
    assert theirs.url.path.endswith(ours.url)
    assert GOOGLE.headers(KEY).items() <= dict(theirs.headers).items()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, None),
        (SQUARE, {"aspectRatio": "1:1"}),
        (Size(512, 512), {"aspectRatio": "1:1"}),
        (Size(848, 1264), {"aspectRatio": "2:3"}),
        (Size(2048, 2048), {"aspectRatio": "1:1", "imageSize": "2K"}),
        (Size(5504, 3072), {"aspectRatio": "16:9", "imageSize": "4K"}),
        (Size(352, 2928), {"aspectRatio": "1:8"}),
    ],
)
def test_a_size_is_a_shape_and_one_of_three_tiers(size: Size | None, expected: dict[str, str] | None) -> None:
    assert config_of(size=size).get("imageConfig") == expected


def test_a_manifest_may_list_shapes_instead_of_sizes() -> None:
    model = manifest_of("google", aspect_ratios=["1:1", "16:9"])
    assert config_of(model, size=Size(1536, 1024))["imageConfig"] == {"aspectRatio": "16:9"}


def test_a_size_that_no_model_has_is_told_and_the_nearest_asked_for() -> None:
    model = next(each for each in MODELS if each.id == "google/gemini-2.5-flash-image")
    assert notices_of(model, request(size=Size(1536, 1024))) == [
        "size: google/gemini-2.5-flash-image draws no 1536x1024; 1248x832, the nearest, was asked for"
    ]


def test_a_manifests_options_reach_the_body_and_its_configuration() -> None:
    options = {"generationConfig": {"thinkingConfig": {"thinkingLevel": "HIGH"}}, "safetySettings": []}
    body: dict[str, Any] = call_of(manifest_of("google", options=options), request(seed=1)).json
    assert body["safetySettings"] == []
    assert body["generationConfig"] == {
        "responseModalities": ["IMAGE"],
        "seed": 1,
        "thinkingConfig": {"thinkingLevel": "HIGH"},
    }


def test_a_seed_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    with serving(protocol("google")) as upstream:
        error = error_of(upstream, request(seed=2**31))
        assert (type(error), error.param) == (InvalidRequest, "seed")
        assert upstream.asked == []


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


def test_what_is_not_known_there_is_told() -> None:
    told = notices_of(ANY, request(quality="high", negative_prompt="dogs", guidance_scale=3.0, num_inference_steps=9))
    assert [each.partition(":")[0] for each in told] == [
        "quality",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
    ]


# Answers


def read(body: Any) -> Made:
    found = GOOGLE.read(wish_of(ANY, request()), answer(body))
    assert isinstance(found, Made)
    return found


def candidate(*parts: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts)}, **further}]}


def test_drafts_and_words_are_no_pictures() -> None:
    draft = {"inlineData": {"mimeType": "image/png", "data": "ZHJhZnQ="}, "thought": True}
    found = read(candidate({"text": "here"}, draft, {"inlineData": {"mimeType": "image/png", "data": "cGljdHVyZQ=="}}))
    assert found == Made([Base64(b"cGljdHVyZQ==")])


def test_tokens_without_details_are_all_text_and_all_picture() -> None:
    body = candidate({"inlineData": {"data": "eA=="}}) | {
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 1290}
    }
    assert read(body).usage == Usage(text_tokens=7, image_tokens=0, output_tokens=1290)


@pytest.mark.parametrize(
    "body",
    [
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"promptFeedback": {"blockReason": "OTHER"}, "usageMetadata": {"promptTokenCount": 4}},
        {"candidates": [{"finishReason": "IMAGE_SAFETY"}]},
        candidate({"text": "I cannot draw that."}, finishReason="PROHIBITED_CONTENT"),
        candidate(finishReason="IMAGE_RECITATION"),
    ],
)
def test_what_is_blocked_is_the_callers_to_mend(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body)
    assert caught.value.code == "content_policy_violation"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"candidates": []},
        {"promptFeedback": {}},
        candidate({"text": "Which cat?"}, finishReason="STOP"),
        candidate(finishReason="NO_IMAGE"),
        candidate(finishReason="MAX_TOKENS"),
    ],
)
def test_an_answer_without_a_picture_may_have_cost(body: dict[str, Any]) -> None:
    with pytest.raises(ProviderFailed) as caught:
        read(body)
    assert caught.value.may_have_billed


def test_a_blocked_prompt_is_refused_over_the_wire() -> None:
    with serving(protocol("google")) as upstream:
        assert error_of(upstream, request(prompt="forbidden")).code == "content_policy_violation"


# Refusals


def test_a_wrong_key_is_a_400_there_and_the_owners_to_mend_here() -> None:
    with serving(protocol("google")) as upstream:
        upstream.faults.append(answers(401))
        assert isinstance(error_of(upstream, request()), ProviderKeyRefused)
        assert len(upstream.work) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "retry_after"),
    [
        (400, {"error": {"status": "INVALID_ARGUMENT", "details": [{"reason": "OTHER"}]}}, InvalidRequest, None),
        (400, {"error": {"status": "INVALID_ARGUMENT"}}, InvalidRequest, None),
        (400, {"error": {"status": "FAILED_PRECONDITION"}}, ProviderKeyRefused, None),
        (403, {"error": {"status": "PERMISSION_DENIED", "details": 3}}, NotForThisModel, None),
        (404, {"error": {"status": "NOT_FOUND"}}, NothingMade, None),
        (429, {"error": {"details": [{"retryDelay": "34.07s"}]}}, ProviderBusy, 35),
        (429, {"error": {"details": [{"retryDelay": "soon"}]}}, ProviderBusy, None),
        (429, {"error": {"details": [{"retryDelay": "1e999s"}]}}, ProviderBusy, None),
        (429, {"error": {}}, ProviderBusy, None),
        (503, {"error": {"status": "UNAVAILABLE"}}, ProviderBusy, None),
        (500, {"error": {"status": "INTERNAL"}}, ProviderFailed, None),
        (429, "no object", ProviderBusy, None),
    ],
)
def test_errors_are_told_by_what_they_mean(status: int, body: Any, kind: type, retry_after: int | None) -> None:
    error = GOOGLE.refusal(answer(body, status))
    assert (type(error), error.retry_after) == (kind, retry_after)


def test_a_header_tells_better_than_the_body_how_long_to_wait() -> None:
    body = {"error": {"details": [{"retryDelay": "34s"}]}}
    assert GOOGLE.refusal(answer(body, 429, retry_after="7")).retry_after == 7
