"""fal."""

from __future__ import annotations

import base64
from typing import Any

import fal_client
import pytest
from fal_client.client import AppId

from hub.errors import HubError, InvalidRequest, ModelUnusable, ProviderBusy, ProviderKeyRefused
from hub.providers.fal import POLL, adapter
from hub.remote.adapter import Answer, Call, JobFailed, NotForThisModel, Pending
from hub.types import ImageRequest, Size
from tests.providers.protocols.fal import FalProtocol
from tests.providers.ready_made import READY_MADE, ask, give_up, left_and_right, mask, picture, ready_made, wish_for
from tests.providers.upstream import KEY, Reply, answers, raw, serving

POLICY = {"detail": [{"loc": ["body", "prompt"], "msg": "words", "type": "content_policy_violation"}]}


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.remote.caller.SHORTEST_POLL", 0.005)
    monkeypatch.setattr("hub.remote.caller.LONGEST_POLL", 0.01)


def call(file: str, n: int = 1, **request: Any) -> Call:
    return adapter.call(wish_for(adapter, ready_made(file), **request), n, 0)


@pytest.mark.parametrize("file", ["fal-flux-2-pro", "fal-flux-2", "fal-flux-pro-fill"])
def test_ready_made_manifests_ask_for_what_their_models_take(file: str) -> None:
    with serving(FalProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        for task in manifest.tasks:
            wish = ImageRequest(
                prompt="a cat",
                n=2,
                images=() if task == "text-to-image" else (picture(),) * manifest.remote.max_images,
                mask=mask() if task == "inpainting" else None,
                seed=3,
                num_inference_steps=20,
                guidance_scale=3.0,
                output_format="jpeg",
            )
            result = ask(upstream, wish, manifest)
            assert (len(result.images), result.seed) == (2, 3)
    assert not [each for each in upstream.asked if each.path.startswith("/pictures/")]  # nothing is left on its servers


def test_every_ready_made_manifest_names_a_field_for_all_that_it_takes() -> None:
    for path in READY_MADE.glob("fal-*.toml"):
        manifest = ready_made(path.stem)
        for task in manifest.tasks:
            images = () if task == "text-to-image" else (picture(),) * manifest.remote.max_images
            wish = wish_for(adapter, manifest, images=images, mask=mask() if task == "inpainting" else None)
            adapter.call(wish, manifest.remote.max_n, 0)


def test_its_sdk_asks_in_the_same_way_and_understands_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FalProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", n=2, seed=3, size=Size(768, 512)))
        ours = upstream.asked[:5]
        monkeypatch.setattr("fal_client.client.QUEUE_URL_FORMAT", f"{upstream.url}/")
        sdk = fal_client.SyncClient(key=KEY)
        handle = sdk.submit("fal-ai/flux-2", ours[0].json)
        states = list(handle.iter_events(interval=0.01))
        answer = handle.get(interval=0.01)
        handle.cancel()
        sdk._client.close()
    theirs = [each for each in upstream.asked if not each.path.startswith("/pictures/")][5:]
    ways = [(each.method, each.path.replace("request-1", "request-0")) for each in theirs]
    assert [(each.method, each.path) for each in ours] == ways[:4] + ways[5:6]
    assert theirs[0].json == ours[0].json
    assert [type(state).__name__ for state in states] == ["Queued", "InProgress", "Completed"]
    assert (answer["seed"], len(answer["images"])) == (result.seed, len(result.images)) == (3, 2)
    assert (theirs[-1].method, theirs[-1].path) == ("PUT", "/fal-ai/flux-2/requests/request-1/cancel")


def test_models_are_named_as_its_sdk_reads_them() -> None:
    for path in READY_MADE.glob("fal-*.toml"):
        remote = ready_made(path.stem).remote
        for name in (remote.model, *remote.models.values()):
            assert AppId.from_endpoint_id(name).owner == "fal-ai"


def test_a_size_is_an_object_and_steps_have_their_names() -> None:
    asked = call("fal-flux-2", n=2, size=Size(1024, 512), seed=1, num_inference_steps=20, guidance_scale=3.0)
    assert (asked.url, asked.json) == (
        "/fal-ai/flux-2",
        {
            "prompt": "a cat",
            "image_size": {"width": 1024, "height": 512},
            "seed": 1,
            "output_format": "png",
            "num_images": 2,
            "num_inference_steps": 20,
            "guidance_scale": 3.0,
            "sync_mode": True,
        },
    )


def test_an_edit_is_another_model_and_takes_one_picture_or_a_list() -> None:
    asked = call("fal-flux-2-pro", images=(picture(), picture()))
    assert (asked.url, len(asked.json["image_urls"])) == ("/fal-ai/flux-2-pro/edit", 2)
    asked = call("fal-flux-dev", images=(picture(),), strength=0.4)
    assert asked.url == "/fal-ai/flux/dev/image-to-image"
    assert asked.json["strength"] == 0.4
    head, _, text = asked.json["image_url"].partition(",")
    assert (head, base64.b64decode(text)) == ("data:image/png;base64", picture())


def test_in_a_mask_white_may_change() -> None:
    url = call("fal-flux-pro-fill", images=(picture(),), mask=mask()).json["mask_url"]
    assert left_and_right(base64.b64decode(url.partition(",")[2])) == (255, 0)


def test_what_a_model_does_not_take_is_told_by_name() -> None:
    notices = wish_for(adapter, ready_made("fal-flux-2-pro"), num_inference_steps=3, negative_prompt="dogs").notices
    assert [each.param for each in notices] == ["num_inference_steps", "negative_prompt"]
    with pytest.raises(InvalidRequest) as caught:
        call("fal-flux-schnell", images=(picture(),))
    assert caught.value.param == "image"


def test_a_manifest_that_names_no_field_for_what_it_promises_is_the_owners_to_mend() -> None:
    manifest = ready_made("fal-flux-dev")
    manifest.remote.max_images = 2
    for images, n in (((picture(), picture()), 1), ((picture(),), 2)):
        fields = {name: field for name, field in manifest.remote.fields.items() if name != "n"}
        manifest.remote.fields = fields
        with pytest.raises(ModelUnusable):
            adapter.call(wish_for(adapter, manifest, images=images), n, 0)


def test_a_manifest_without_fields_asks_as_most_models_there_want_it() -> None:
    manifest = ready_made("fal-flux-2")
    manifest.remote.fields = {}
    asked = adapter.call(wish_for(adapter, manifest, size=Size(512, 512), images=(picture(),), seed=1), 2, 0).json
    assert set(asked) == {"prompt", "image_size", "image_urls", "seed", "num_images", "output_format", "sync_mode"}


def test_pictures_that_the_safety_check_has_blackened_are_left_out_and_told() -> None:
    with serving(FalProtocol(flagged=(1,))) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", n=3))
    assert (len(result.images), result.warnings) == (2, ("n: fal made 2 of 3 pictures",))
    with serving(FalProtocol(flagged=(0,))) as upstream, pytest.raises(InvalidRequest) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.code == "content_policy_violation"


def test_where_the_owner_has_switched_the_safety_check_off_its_word_does_not_count() -> None:
    with serving(FalProtocol(flagged=(0,))) as upstream:
        manifest = upstream.protocol.manifest(upstream, options={"enable_safety_checker": False})
        assert len(ask(upstream, ImageRequest(prompt="a cat"), manifest).images) == 1


def test_a_result_that_is_an_error_is_told_as_what_it_is_and_asked_for_once() -> None:
    with serving(FalProtocol(ends=Reply(POLICY, 422))) as upstream, pytest.raises(InvalidRequest) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.code == "content_policy_violation"
    assert len(upstream.asked) == 5


@pytest.mark.parametrize(
    "words",
    [
        b'{"status": "COMPLETED", "response_url": "x", "error": "words", "error_type": "runner_error"}',
        b'{"status": "CANCELLED"}',
    ],
)
def test_a_request_that_the_queue_has_given_up_is_not_asked_for_again(words: bytes) -> None:
    with serving(FalProtocol()) as upstream, pytest.raises(JobFailed) as caught:
        upstream.faults.extend([lambda *_: False, raw(words)])
        ask(upstream, ImageRequest(prompt="a cat"))
    assert "words" not in caught.value.message
    assert len(upstream.asked) == 2


def test_whoever_goes_away_cancels_what_waits() -> None:
    with serving(FalProtocol()) as upstream:
        give_up(upstream, ImageRequest(prompt="a cat"), lambda: len(upstream.asked) >= 2)
    assert (upstream.asked[-1].method, upstream.asked[-1].path) == ("PUT", "/fal-ai/flux-2/requests/request-0/cancel")
    assert upstream.asked[-1].headers["authorization"] == f"Key {KEY}"
    assert not upstream.failures


def test_a_request_that_cannot_be_asked_for_any_more_is_cancelled() -> None:
    with serving(FalProtocol()) as upstream:
        upstream.faults.extend([lambda *_: False, *[answers(500)] * 5])
        with pytest.raises(HubError) as caught:
            ask(upstream, ImageRequest(prompt="a cat"), until=lambda: upstream.asked[-1].method == "PUT")
    assert caught.value.status == 502


def test_it_waits_where_it_was_told_to() -> None:
    wish = wish_for(adapter, ready_made("fal-flux-2"))
    queued = adapter.read(wish, Answer(200, {}, b'{"status": "IN_QUEUE", "status_url": "/s", "cancel_url": "/c"}'))
    assert queued == Pending(Call("/s", method="GET"), POLL, cancel=Call("/c", method="PUT"))
    assert isinstance(queued, Pending)
    going = adapter.read(wish, Answer(202, {}, b'{"status": "IN_PROGRESS", "response_url": "/r"}'))
    assert isinstance(going, Pending)
    assert going.since(queued) == queued
    assert adapter.read(wish, Answer(200, {}, b'{"status": "COMPLETED", "response_url": "/r"}')) == Pending(
        Call("/r", method="GET"), 0.0
    )


def test_its_errors_are_understood() -> None:
    kinds = [(401, ProviderKeyRefused), (403, NotForThisModel), (422, InvalidRequest), (429, ProviderBusy)]
    for status, kind in kinds:
        error = adapter.refusal(Answer(status, {}, b'{"detail": "words"}'))
        assert type(error) is kind
        assert "words" not in error.message
