"""Replicate."""

from __future__ import annotations

from typing import Any

import pytest
import replicate

from hub.errors import InvalidRequest, NoCredit, ProviderBusy, ProviderKeyRefused
from hub.providers.replicate import AT_ONCE, adapter
from hub.remote.adapter import Answer, Call, JobFailed, Made
from hub.types import ImageRequest, Progress, Size
from tests.providers.protocols.replicate import VERSION, ReplicateProtocol
from tests.providers.ready_made import READY_MADE, ask, give_up, mask, picture, ready_made, wish_for
from tests.providers.running import manifest_of
from tests.providers.upstream import KEY, raw, serving


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.remote.caller.SHORTEST_POLL", 0.005)
    monkeypatch.setattr("hub.remote.caller.LONGEST_POLL", 0.01)


def call(file: str, n: int = 1, **request: Any) -> Call:
    return adapter.call(wish_for(adapter, ready_made(file), **request), n, 0)


@pytest.mark.parametrize("file", ["replicate-flux-2-pro", "replicate-flux-dev"])
def test_ready_made_manifests_ask_for_what_their_models_take(file: str) -> None:
    with serving(ReplicateProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        for images in ((), (picture(),) * manifest.remote.max_images):
            wish = ImageRequest(
                prompt="a cat",
                n=2,
                images=images,
                seed=3,
                strength=0.5 if images else None,
                num_inference_steps=20,
                guidance_scale=3.0,
                output_format="jpeg",
                output_compression=90,
            )
            result = ask(upstream, wish, manifest)
            assert (len(result.images), result.output_format) == (2, "jpeg")


def test_every_ready_made_manifest_names_a_field_for_all_that_it_takes() -> None:
    for path in READY_MADE.glob("replicate-*.toml"):
        manifest = ready_made(path.stem)
        for task in manifest.tasks:
            images = () if task == "text-to-image" else (picture(),) * manifest.remote.max_images
            asked = adapter.call(wish_for(adapter, manifest, images=images), manifest.remote.max_n, 0)
            assert asked.url == f"/models/{manifest.remote.model}/predictions"


def test_a_quick_picture_comes_with_the_first_answer() -> None:
    with serving(ReplicateProtocol(at_once=True)) as upstream:
        assert len(ask(upstream, ImageRequest(prompt="a cat")).images) == 1
    assert [each.path.rpartition("/")[0] for each in upstream.asked] == [
        "/models/black-forest-labs/flux-2-pro",
        "/pictures",
    ]
    assert upstream.asked[0].headers["prefer"] == AT_ONCE


def test_a_slow_one_is_asked_for_and_its_progress_told() -> None:
    events: list[Any] = []
    with serving(ReplicateProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", size=Size(768, 512), seed=4), on_event=events.append)
    assert [each.path for each in upstream.asked[1:3]] == ["/predictions/p0"] * 2
    assert Progress(step=50, steps=100) in events
    assert (result.size, result.seed, result.warnings) == (Size(768, 512), 4, ())


def test_its_sdk_asks_the_same_and_understands_the_same_answers() -> None:
    with serving(ReplicateProtocol()) as upstream:
        ask(upstream, ImageRequest(prompt="a cat", images=(picture(),)))
        ours = upstream.asked[0]
        sdk = replicate.Client(api_token=KEY, base_url=upstream.url)
        prediction = sdk.models.predictions.create(("black-forest-labs", "flux-2-pro"), ours.json["input"], wait=5)
        theirs = next(each for each in upstream.asked if each.path == f"/v1{ours.path}")
        assert (theirs.json, theirs.headers["prefer"]) == (ours.json, ours.headers["prefer"])
        prediction.reload()
        assert prediction.progress.percentage == 0.5
        prediction.reload()
        assert (prediction.status, prediction.output[:4]) == ("succeeded", "http")
        prediction.cancel()
        sdk._client.close()
    cancelled = upstream.asked[-1]
    assert (cancelled.method, cancelled.path) == ("POST", "/v1/predictions/p1/cancel")


def test_a_size_in_pixels_is_a_custom_shape() -> None:
    asked = call("replicate-flux-2-pro", size=Size(1024, 768), seed=1)
    assert asked.json == {
        "input": {
            "prompt": "a cat",
            "aspect_ratio": "custom",
            "width": 1024,
            "height": 768,
            "seed": 1,
            "output_format": "png",
        }
    }


def test_a_model_that_takes_shapes_is_told_the_nearest() -> None:
    asked = call("replicate-flux-dev", n=2, size=Size(1920, 1080), num_inference_steps=20, output_format="jpeg")
    assert asked.json["input"] == {
        "prompt": "a cat",
        "aspect_ratio": "16:9",
        "num_outputs": 2,
        "output_format": "jpg",
        "output_quality": 100,
        "num_inference_steps": 20,
    }


def test_the_best_quality_is_told_too_since_a_lower_one_is_the_models_default() -> None:
    manifest = ready_made("replicate-flux-2-pro")
    asked = [
        adapter.call(wish_for(adapter, manifest, output_format=output_format, output_compression=compression), 1, 0)
        for output_format, compression in (("jpeg", 100), ("webp", 30), ("png", 100))
    ]
    assert [each.json["input"].get("output_quality") for each in asked] == [100, 30, None]


def test_an_edit_without_a_size_keeps_its_sources_shape() -> None:
    asked = call("replicate-flux-2-pro", images=(picture(), picture())).json["input"]
    assert (asked["aspect_ratio"], len(asked["input_images"])) == ("match_input_image", 2)
    assert asked["input_images"][0].startswith("data:image/png;base64,")
    asked = call("replicate-flux-dev", images=(picture(),), strength=0.3).json["input"]
    assert (asked["image"][:10], asked["prompt_strength"]) == ("data:image", 0.3)
    assert "aspect_ratio" not in asked  # it does so by itself, and has no word for it


def test_a_manifest_of_ones_own_says_whether_its_model_has_a_word_for_the_sources_shape() -> None:
    manifest = manifest_of("replicate", fields={"aspect_ratio": "shape", "image": "image"})
    assert "shape" not in adapter.call(wish_for(adapter, manifest, images=(picture(),)), 1, 0).json["input"]
    manifest.remote.source_ratio = "as_source"
    assert adapter.call(wish_for(adapter, manifest, images=(picture(),)), 1, 0).json["input"]["shape"] == "as_source"
    assert "shape" not in adapter.call(wish_for(adapter, manifest), 1, 0).json["input"]


def test_a_certain_version_is_asked_for_by_its_id() -> None:
    with serving(ReplicateProtocol()) as upstream:
        manifest = ready_made("replicate-flux-dev", upstream)
        manifest.remote.model += f":{VERSION}"
        assert len(ask(upstream, ImageRequest(prompt="a cat", n=2), manifest).images) == 2
    assert upstream.asked[0].path == "/predictions"


def test_what_a_model_does_not_take_is_told_by_name() -> None:
    manifest = ready_made("replicate-flux-1.1-pro")
    assert [each.param for each in wish_for(adapter, manifest, guidance_scale=3.0).notices] == ["guidance_scale"]
    for request, param in (({"images": (picture(),)}, "image"), ({"images": (picture(),), "mask": mask()}, "mask")):
        with pytest.raises(InvalidRequest) as caught:
            call("replicate-flux-1.1-pro", **request)
        assert caught.value.param == param


@pytest.mark.parametrize(
    "words",
    [
        "NSFW content detected. Try running it again, or try a different prompt.",
        "The input or output was flagged as sensitive. Please try again with different inputs. (E005)",
    ],
)
def test_what_a_model_refuses_by_its_policy_is_told_as_that(words: str) -> None:
    with serving(ReplicateProtocol(("failed", words))) as upstream, pytest.raises(InvalidRequest) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.code == "content_policy_violation"
    assert len(upstream.asked) == 3


@pytest.mark.parametrize("ends", [("failed", "CUDA out of memory"), ("canceled", None)])
def test_a_prediction_that_has_failed_is_not_asked_for_again(ends: tuple[str, str | None]) -> None:
    with serving(ReplicateProtocol(ends)) as upstream, pytest.raises(JobFailed) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert "CUDA" not in caught.value.message
    assert caught.value.may_have_billed
    assert len(upstream.asked) == 3


def test_whoever_goes_away_cancels_the_prediction() -> None:
    with serving(ReplicateProtocol()) as upstream:
        give_up(upstream, ImageRequest(prompt="a cat"), lambda: len(upstream.asked) >= 2)
    assert upstream.jobs["p0"]["status"] == "canceled"
    assert upstream.asked[-1].headers["authorization"] == f"Bearer {KEY}"
    assert not upstream.failures


def test_of_an_output_that_was_removed_there_is_no_picture() -> None:
    wish = wish_for(adapter, ready_made("replicate-flux-2-pro"))
    assert adapter.read(wish, Answer(200, {}, b'{"status": "succeeded", "output": null}')) == Made([])


def test_a_picture_may_come_in_a_data_url() -> None:
    with serving(ReplicateProtocol()) as upstream:
        url = f"data:image/png;base64,{upstream.base64(512, 512)}"
        upstream.faults.append(raw(f'{{"status": "succeeded", "output": ["{url}"]}}'.encode(), 201))
        assert ask(upstream, ImageRequest(prompt="a cat", size=Size(512, 512))).size == Size(512, 512)


def test_its_errors_are_understood() -> None:
    kinds = [(401, ProviderKeyRefused), (402, NoCredit), (422, InvalidRequest), (429, ProviderBusy)]
    for status, kind in kinds:
        error = adapter.refusal(Answer(status, {}, b'{"detail": "words"}'))
        assert type(error) is kind
        assert "words" not in error.message
