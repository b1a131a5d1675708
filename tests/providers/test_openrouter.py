from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hub import providers
from hub.errors import (
    InvalidRequest,
    NoCredit,
    NothingMade,
    ProviderBusy,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
)
from hub.manifest import RemoteManifest
from hub.remote.adapter import Base64, Made, NotForThisModel, Partial
from hub.types import Preview, Size, Task, Usage
from tests.providers.protocols import protocol
from tests.providers.running import (
    SQUARE,
    answer,
    call_of,
    error_of,
    heard,
    made,
    manifest_of,
    notices_of,
    png,
    ready_made,
    request,
    request_for,
    wish_of,
)
from tests.providers.upstream import raw, serving

OPENROUTER = providers.adapter("openrouter")
FURTHER = ["quality", "seed", "output_format", "output_compression", "background", "partial_images"]
ANY = manifest_of("openrouter", max_images=4, max_n=4, honours=FURTHER)
SHAPES = manifest_of("openrouter", aspect_ratios=["1:1", "16:9"])
MODELS = ready_made("openrouter")


def body_of(model: RemoteManifest = ANY, n: int = 1, first: int = 0, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = call_of(model, request(**changes), n, first).json
    return body


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_what_the_ready_made_models_ask_is_understood(model: RemoteManifest) -> None:
    with serving(protocol("openrouter")) as upstream:
        for task in model.tasks:
            wanted = request_for(task, n=2, size=SQUARE, quality="high", seed=1, user="u", output_format="jpeg")
            result = made(upstream, wanted, model)
            assert (len(result.images), result.size) == (2, SQUARE)
        assert made(upstream, request(partial_images=2), model).cost == pytest.approx(0.04)


def test_the_cost_and_the_tokens_of_all_calls_add_up() -> None:
    with serving(protocol("openrouter")) as upstream:
        result = made(upstream, request(n=3, size=SQUARE))
        assert len(upstream.work) == 3
    assert result.cost == pytest.approx(0.12)
    assert result.usage == Usage(text_tokens=36, image_tokens=0, output_tokens=3870)
    assert (result.warnings, len(result.encoded)) == ((), 3)


def test_everything_reaches_the_body() -> None:
    wanted = {
        "quality": "hd",
        "output_format": "webp",
        "output_compression": 80,
        "background": "transparent",
        "user": "u",
    }
    call = call_of(ANY, request(size=Size(1536, 1024), seed=5, images=(png(),), **wanted), 2, 3)
    reference = call.json.pop("input_references")
    assert call.url == "/images"
    assert call.json == {
        "model": "painter",
        "prompt": "a cat",
        "n": 2,
        "size": "1536x1024",
        "quality": "high",
        "seed": 8,
        "output_format": "webp",
        "output_compression": 80,
        "background": "transparent",
        "user": "u",
    }
    assert [each["type"] for each in reference] == ["image_url"]
    assert reference[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_model_is_sent_nothing_that_its_manifest_does_not_name() -> None:
    wanted = {"quality": "high", "seed": 5, "output_format": "webp", "background": "opaque", "partial_images": 2}
    assert body_of(SHAPES, **wanted) == {"model": "painter", "prompt": "a cat"}
    assert [each.partition(":")[0] for each in notices_of(SHAPES, request(**wanted))] == [
        "quality",
        "seed",
        "partial_images",
    ]
    assert OPENROUTER.honoured(manifest_of("openrouter", honours=["seed", "strength"])) == {"size", "seed"}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, {}),
        (SQUARE, {"aspect_ratio": "1:1"}),
        (Size(2048, 2048), {"aspect_ratio": "1:1", "resolution": "2K"}),
        (Size(3840, 2160), {"aspect_ratio": "16:9", "resolution": "2K"}),
        (Size(5504, 3072), {"aspect_ratio": "16:9", "resolution": "4K"}),
    ],
)
def test_a_model_of_shapes_is_asked_for_a_shape_and_a_tier(size: Size | None, expected: dict[str, str]) -> None:
    assert body_of(SHAPES, size=size) == {"model": "painter", "prompt": "a cat", **expected}


def test_a_size_that_is_not_met_is_told() -> None:
    with serving(protocol("openrouter")) as upstream:
        assert made(upstream, request(size=Size(1920, 1080))).warnings == (
            "size: OpenRouter made 1376x768 instead of 1920x1080",
        )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_no_model_takes_a_mask(model: RemoteManifest) -> None:
    task: Task = "inpainting"
    with pytest.raises(InvalidRequest) as caught:
        wish_of(model, request_for(task))
    assert caught.value.param == "mask"


def test_a_background_is_only_for_models_that_have_one() -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish_of(SHAPES, request(background="transparent"))
    assert caught.value.param == "background"
    assert body_of(background="auto") == {"model": "painter", "prompt": "a cat"}


# Answers


def read(body: Any) -> Made:
    found = OPENROUTER.read(wish_of(ANY, request()), answer(body))
    assert isinstance(found, Made)
    return found


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (None, None),
        ({}, None),
        ({"cost": None}, None),
        ({"cost": 0.0}, 0.0),
        ({"cost": 0.05, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.04}}, 0.05),
        ({"cost": 0.002, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.04}}, 0.042),
        ({"cost": 0.002, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, 0.002),
        ({"cost": 0.002, "is_byok": True}, 0.002),
    ],
)
def test_the_cost_is_what_the_owner_pays_in_all(usage: Any, cost: float | None) -> None:
    found = read({"data": [{"b64_json": "eA=="}], "usage": usage})
    assert found.pictures == [Base64(b"eA==")]
    assert found.cost == (None if cost is None else pytest.approx(cost))


def test_an_answer_without_a_picture_may_have_cost() -> None:
    with serving(protocol("openrouter")) as upstream:
        upstream.faults.append(raw(b'{"created": 1, "data": []}'))
        error = error_of(upstream, request())
    assert isinstance(error, ProviderFailed)
    assert error.may_have_billed


# Streams


def stream_model() -> RemoteManifest:
    return next(each for each in MODELS if each.id == "openrouter/gpt-5-image")


def test_previews_arrive_and_no_more_than_were_asked_for() -> None:
    events, listen = heard()
    with serving(protocol("openrouter")) as upstream:
        result = made(upstream, request(partial_images=2, size=SQUARE), stream_model(), listen)
        assert upstream.work[0].json["stream"] is True
    previews = [each for each in events if isinstance(each, Preview)]
    assert [(each.index, each.partial) for each in previews] == [(0, 0), (0, 1)]
    assert (len(result.images), result.cost, result.warnings) == (1, pytest.approx(0.04), ())


def test_a_model_that_ignores_the_wish_for_a_stream_answers_as_ever() -> None:
    with serving(protocol("openrouter")) as upstream:
        upstream.faults.append(raw(msgspec.json.encode({"created": 1, "data": [{"b64_json": upstream.base64()}]})))
        assert len(made(upstream, request(partial_images=1), stream_model()).images) == 1


def test_a_stream_that_fails_may_have_cost() -> None:
    with serving(protocol("openrouter")) as upstream:
        error = error_of(upstream, request(prompt="failing", partial_images=1), stream_model())
    assert isinstance(error, ProviderFailed)
    assert error.may_have_billed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[DONE]", None),
        ({"type": "image_generation.text_chunk", "text": "<svg", "phase": "content"}, None),
        (
            {"type": "image_generation.partial_image", "b64_json": "eA==", "partial_image_index": 0},
            Partial(0, 0, Base64(b"eA==")),
        ),
        ({"type": "image_generation.partial_image", "b64_json": "eA==", "partial_image_index": 1}, None),
        ({"type": "image_generation.completed", "b64_json": "eA=="}, Made([Base64(b"eA==")])),
        ({"type": "something new", "b64_json": "eA=="}, None),
    ],
)
def test_events_tell_what_they_are_in_their_data(data: Any, expected: Partial | Made | None) -> None:
    raw = data if isinstance(data, bytes) else msgspec.json.encode(data)
    assert OPENROUTER.event(wish_of(ANY, request(partial_images=1)), "", raw) == expected


@pytest.mark.parametrize("data", [b"{", b"3", b"\xff", b'{"type": "error", "error": {"message": "secret words"}}'])
def test_other_events_are_failures(data: bytes) -> None:
    with pytest.raises(ProviderFailed) as caught:
        OPENROUTER.event(wish_of(ANY, request(partial_images=1)), "", data)
    assert "secret" not in caught.value.message
    assert caught.value.may_have_billed


# Refusals


def test_a_moderated_prompt_is_the_callers_to_mend_and_the_key_is_kept() -> None:
    with serving(protocol("openrouter")) as upstream:
        assert error_of(upstream, request(prompt="forbidden")).code == "content_policy_violation"
        assert len(upstream.work) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"code": 400, "message": "x"}}, InvalidRequest),
        (401, {"error": {"code": 401}}, ProviderKeyRefused),
        (402, {"error": {"code": 402}}, NoCredit),
        (403, {"error": {"code": 403, "metadata": {"reasons": "x"}}}, NotForThisModel),
        (403, {"error": {"code": 403, "metadata": {"reasons": []}}}, InvalidRequest),
        (404, {"error": {"code": 404}}, NothingMade),
        (413, {"error": {"code": 413}}, InvalidRequest),
        (429, {"error": {"code": 429}}, ProviderBusy),
        (500, {"error": {"code": 500}}, ProviderFailed),
        (502, {"error": {"code": 502}}, ProviderFailed),
        (524, {"error": {"code": 524}}, ProviderTimeout),
        (529, {"error": {"code": 529}}, ProviderBusy),
    ],
)
def test_errors_are_told_by_what_they_mean(status: int, body: Any, kind: type) -> None:
    assert type(OPENROUTER.refusal(answer(body, status))) is kind
