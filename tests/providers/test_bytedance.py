"""ByteDance."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from volcenginesdkarkruntime import Ark
from volcenginesdkarkruntime.types.images import SequentialImageGenerationOptions

from hub.errors import InvalidRequest, ProviderFailed
from hub.manifest import RemoteManifest
from hub.providers.bytedance import adapter
from hub.remote.adapter import Answer, Link, Made, NotForThisModel
from hub.types import ImageRequest, Size, Usage
from tests.providers.protocols.bytedance import ByteDanceProtocol
from tests.providers.ready_made import READY_MADE, ask, mask, picture, ready_made, wish_for
from tests.providers.upstream import KEY, Upstream, raw, serving

S4 = "bytedance-seedream-4"


def body(file: str, n: int = 1, **request: Any) -> dict[str, Any]:
    found: dict[str, Any] = adapter.call(wish_for(adapter, ready_made(file), **request), n, 0).json
    return found


def streaming(upstream: Upstream, max_n: int = 1) -> RemoteManifest:
    manifest = upstream.protocol.manifest(upstream)
    manifest.remote.options["stream"], manifest.remote.max_n = True, max_n
    return manifest


@pytest.mark.parametrize("file", sorted(path.stem for path in READY_MADE.glob("bytedance-*[!o].toml")))
def test_every_ready_made_manifest_asks_for_what_its_model_takes(file: str) -> None:
    with serving(ByteDanceProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        for images in ((), (picture(),) * 14):
            for size in (None, Size(1000, 700), Size(1024, 1024), Size(9000, 300)):
                ask(upstream, ImageRequest(prompt="a cat", size=size, images=images), manifest)


def test_its_sdk_asks_the_same_and_understands_the_same_answer() -> None:
    with serving(ByteDanceProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", size=Size(3072, 2048), images=(picture(), picture(32, 32))))
        with Ark(base_url=upstream.url, api_key=KEY) as sdk:
            asked = upstream.work[0].json
            answer = sdk.images.generate(**asked)
        assert {name: value for name, value in upstream.work[1].json.items() if value is not None} == asked
    assert answer.data[0].size == "3072x2048"
    assert answer.usage.output_tokens == 24576
    assert result.usage == Usage(text_tokens=0, image_tokens=0, output_tokens=24576)
    assert result.encoded


def test_its_sdk_understands_the_same_stream() -> None:
    with serving(ByteDanceProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", n=2), streaming(upstream, 2))
        asked = upstream.work[0].json
        options = SequentialImageGenerationOptions(**asked.pop("sequential_image_generation_options"))
        with Ark(base_url=upstream.url, api_key=KEY) as sdk:
            events = list(sdk.images.generate(**asked, sequential_image_generation_options=options))
    assert [event.type.rpartition(".")[2] for event in events] == [*["partial_succeeded"] * 2, "completed"]
    assert len(result.images) == 2
    assert result.usage is not None
    assert result.usage.output_tokens == dict(events[-1].usage)["output_tokens"]


def test_of_a_stream_those_pictures_that_were_made_count() -> None:
    with serving(ByteDanceProtocol(refused=(1,))) as upstream:
        wish = ImageRequest(prompt="a cat", n=3, output_format="jpeg")
        result = ask(upstream, wish, streaming(upstream, 3))
    assert len(result.images) == 2
    assert result.warnings == ("n: ByteDance made 2 of 3 pictures",)


def test_a_size_in_pixels_and_the_manifests_options_are_sent() -> None:
    assert body(S4, size=Size(2048, 1024)) == {
        "model": "seedream-4-0-250828",
        "prompt": "a cat",
        "size": "2048x1024",
        "response_format": "b64_json",
        "watermark": False,
    }


def test_a_small_size_grows_to_what_the_model_draws_and_is_told() -> None:
    with serving(ByteDanceProtocol()) as upstream:
        wish = ImageRequest(prompt="a cat", size=Size(1024, 1024), output_format="jpeg")
        result = ask(upstream, wish, ready_made("bytedance-seedream-4.5", upstream))
    assert result.size == Size(1920, 1920)
    assert [each.partition(":")[0] for each in result.warnings] == ["size"]


def test_one_source_is_a_url_and_several_are_a_list_and_keep_their_shape() -> None:
    one = body(S4, images=(picture(image_format="JPEG"),))
    head, _, text = one["image"].partition(",")
    assert (head, base64.b64decode(text)) == ("data:image/jpeg;base64", picture(image_format="JPEG"))
    assert one["size"] == "2K"
    assert len(body(S4, images=(picture(), picture()))["image"]) == 2


def test_the_format_is_chosen_where_the_model_has_several_and_told_where_it_has_one() -> None:
    assert body("bytedance-seedream-5-lite")["output_format"] == "png"
    assert "output_format" not in body(S4)
    assert [each.param for each in wish_for(adapter, ready_made(S4)).notices] == ["output_format"]


def test_several_pictures_are_several_requests_unless_the_owner_wants_a_series() -> None:
    with serving(ByteDanceProtocol()) as upstream:
        assert len(ask(upstream, ImageRequest(prompt="a cat", n=3)).images) == 3
    assert [each.json.get("sequential_image_generation") for each in upstream.work] == [None] * 3
    asked = body(S4, n=3)
    assert (asked["sequential_image_generation"], asked["sequential_image_generation_options"]) == (
        "auto",
        {"max_images": 3},
    )


def test_seed_and_guidance_are_for_models_whose_manifest_names_them() -> None:
    manifest = ready_made(S4)
    assert [each.param for each in wish_for(adapter, manifest, seed=3, output_format="jpeg").notices] == ["seed"]
    manifest.remote.honours = ["seed", "guidance_scale"]
    asked = adapter.call(wish_for(adapter, manifest, seed=3, guidance_scale=2.5), 1, 0).json
    assert (asked["seed"], asked["guidance_scale"]) == (3, 2.5)


def test_a_parameter_that_it_never_takes_is_told_whatever_the_manifest_says() -> None:
    manifest = ready_made(S4)
    manifest.remote.honours = ["negative_prompt"]
    notices = wish_for(adapter, manifest, negative_prompt="rain", output_format="jpeg").notices
    assert [each.param for each in notices] == ["negative_prompt"]


def test_base64_may_stand_in_a_data_url() -> None:
    body = b'{"data": [{"b64_json": "data:image/png;base64,eA=="}]}'
    made = adapter.read(wish_for(adapter, ready_made(S4)), Answer(200, {}, body))
    assert isinstance(made, Made)
    assert made.pictures == [Link("data:image/png;base64,eA==")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_its_policy_withholds_is_told_as_that(stream: bool) -> None:
    with serving(ByteDanceProtocol(refused=(0,))) as upstream, pytest.raises(InvalidRequest) as caught:
        manifest = streaming(upstream) if stream else None
        ask(upstream, ImageRequest(prompt="a cat"), manifest)
    assert caught.value.code == "content_policy_violation"


def test_of_a_series_those_that_were_made_count() -> None:
    with serving(ByteDanceProtocol(refused=(0,))) as upstream:
        manifest = upstream.protocol.manifest(upstream, max_n=4)
        result = ask(upstream, ImageRequest(prompt="a cat", n=4, output_format="jpeg"), manifest)
    assert len(result.images) == 3
    assert result.warnings == ("n: ByteDance made 3 of 4 pictures",)


def test_an_error_in_a_stream_or_with_a_picture_is_a_failure_without_its_words() -> None:
    fault = b'{"type": "error", "error": {"code": "InternalServiceError", "message": "words"}}'
    wish = wish_for(adapter, ready_made(S4))
    with pytest.raises(ProviderFailed) as caught:
        adapter.event(wish, "error", fault)
    assert "words" not in caught.value.message
    with pytest.raises(ProviderFailed):
        adapter.read(wish, Answer(200, {}, b'{"data": [{"error": {"code": "InternalServiceError"}}]}'))
    with pytest.raises(ProviderFailed):
        adapter.event(wish, "", b"<html>")


def test_what_is_no_stream_is_read_as_a_whole() -> None:
    with serving(ByteDanceProtocol()) as upstream, pytest.raises(ProviderFailed):
        upstream.faults.append(raw(b"event: x\ndata: [DONE]\n\n", content_type="text/event-stream"))
        ask(upstream, ImageRequest(prompt="a cat"), streaming(upstream))


def test_its_errors_are_understood() -> None:
    policy = b'{"error": {"code": "InputTextSensitiveContentDetected.PolicyViolation", "message": "words"}}'
    assert adapter.refusal(Answer(400, {}, policy)).code == "content_policy_violation"
    overdue = b'{"error": {"code": "AccountOverdueError", "message": "words"}}'
    assert type(adapter.refusal(Answer(403, {}, overdue))) is NotForThisModel


def test_it_takes_no_mask() -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(S4, images=(picture(),), mask=mask())
    assert caught.value.param == "mask"
