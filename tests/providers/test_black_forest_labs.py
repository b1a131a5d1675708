"""Black Forest Labs."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from hub.errors import HubError, InvalidRequest, NoCredit
from hub.providers.black_forest_labs import adapter
from hub.remote.adapter import Answer, JobFailed, NotForThisModel, Pending
from hub.types import ImageRequest, Progress, Size
from tests.providers.protocols.black_forest_labs import BlackForestLabsProtocol
from tests.providers.ready_made import READY_MADE, ask, left_and_right, mask, picture, ready_made, wish_for
from tests.providers.upstream import answers, raw, serving


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.remote.caller.SHORTEST_POLL", 0.005)
    monkeypatch.setattr("hub.remote.caller.LONGEST_POLL", 0.01)


ALL = sorted(path.stem for path in READY_MADE.glob("black-forest-labs-*.toml"))


def body(file: str, **request: Any) -> dict[str, Any]:
    found: dict[str, Any] = adapter.call(wish_for(adapter, ready_made(file), **request), 1, 0).json
    return found


def test_a_picture_is_asked_for_until_it_is_ready_and_its_seed_and_cost_are_told() -> None:
    events: list[Any] = []
    with serving(BlackForestLabsProtocol()) as upstream:
        wish = ImageRequest(prompt="a cat", size=Size(768, 512), seed=3, output_format="webp")
        result = ask(upstream, wish, on_event=events.append)
    assert [each.path for each in upstream.asked[:3]] == ["/flux-2-pro", "/get_result", "/get_result"]
    assert upstream.asked[0].json == {
        "prompt": "a cat",
        "width": 768,
        "height": 512,
        "seed": 3,
        "output_format": "webp",
    }
    assert (result.size, result.seed, result.cost, result.warnings) == (Size(768, 512), 3, 0.03, ())
    assert Progress(step=40, steps=100) in events


def test_several_pictures_are_several_tasks_with_seeds_one_after_another() -> None:
    with serving(BlackForestLabsProtocol()) as upstream:
        result = ask(upstream, ImageRequest(prompt="a cat", n=3, seed=3))
    assert sorted(each.json["seed"] for each in upstream.work) == [3, 4, 5]
    assert (len(result.images), result.cost) == (3, 0.09)


@pytest.mark.parametrize("file", ALL)
def test_every_ready_made_manifest_asks_for_what_its_model_takes(file: str) -> None:
    with serving(BlackForestLabsProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        for task in manifest.tasks:
            images = () if task == "text-to-image" else (picture(),) * manifest.remote.max_images
            wish = ImageRequest(
                prompt="a cat",
                size=None if task == "inpainting" else Size(1000, 700),
                images=images,
                mask=mask() if task == "inpainting" else None,
                seed=3,
                num_inference_steps=20,
                guidance_scale=4.0,
            )
            ask(upstream, wish, manifest)


@pytest.mark.parametrize("file", [each for each in ALL if "fill" not in each])
def test_of_a_request_without_a_size_a_model_makes_what_its_manifest_says(file: str) -> None:
    with serving(BlackForestLabsProtocol()) as upstream:
        manifest = ready_made(file, upstream)
        result = ask(upstream, ImageRequest(prompt="a cat"), manifest)
    assert (str(result.size), result.warnings) == (manifest.defaults.size, ())


def test_a_model_that_takes_shapes_is_told_a_shape() -> None:
    asked = body("black-forest-labs-flux-3-image", size=Size(1920, 1080), seed=3)
    assert asked == {"prompt": "a cat", "aspect_ratio": "16:9", "resolution": "1k"}
    assert body("black-forest-labs-flux-kontext-pro", size=Size(512, 512))["aspect_ratio"] == "1:1"


def test_sources_are_numbered_and_of_flux_3_a_list() -> None:
    images = (picture(), picture(32, 32))
    texts = [base64.b64encode(each).decode() for each in images]
    asked = body("black-forest-labs-flux-2-pro", images=images)
    assert (asked["input_image"], asked["input_image_2"]) == tuple(texts)
    assert "width" not in asked  # the source's shape
    assert body("black-forest-labs-flux-3-image", images=images)["images"] == texts


def test_in_a_mask_for_fill_white_may_change() -> None:
    asked = body("black-forest-labs-flux-pro-1.0-fill", images=(picture(),), mask=mask())
    assert left_and_right(base64.b64decode(asked["mask"])) == (255, 0)
    assert base64.b64decode(asked["image"]) == picture()


def test_steps_and_guidance_reach_the_models_that_take_them_and_are_warned_about_elsewhere() -> None:
    wish: dict[str, Any] = {"num_inference_steps": 30, "guidance_scale": 4.0}
    asked = body("black-forest-labs-flux-2-flex", **wish)
    assert (asked["steps"], asked["guidance"]) == (30, 4.0)
    manifest = ready_made("black-forest-labs-flux-2-pro")
    assert [each.param for each in wish_for(adapter, manifest, **wish).notices] == list(wish)


@pytest.mark.parametrize(
    ("file", "request_", "param"),
    [
        ("black-forest-labs-flux-2-pro", {"images": (picture(),), "mask": mask()}, "mask"),
        ("black-forest-labs-flux-pro-1.1", {"images": (picture(),)}, "image"),
        ("black-forest-labs-flux-pro-1.0-fill", {}, "image"),
        ("black-forest-labs-flux-3-image", {"seed": 3, "strict": True}, "seed"),
        ("black-forest-labs-flux-2-klein-4b", {"images": (picture(),) * 5}, "image"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(file: str, request_: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(file, **request_)
    assert caught.value.param == param


@pytest.mark.parametrize("status", ["Request Moderated", "Content Moderated"])
@pytest.mark.parametrize("http", [200, 503])
def test_what_its_content_policy_forbids_is_told_as_that_and_not_asked_again(status: str, http: int) -> None:
    with serving(BlackForestLabsProtocol((http, status))) as upstream, pytest.raises(InvalidRequest) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.code == "content_policy_violation"
    assert len(upstream.asked) == 3


@pytest.mark.parametrize("ends", [(200, "Error"), (503, "Error"), (404, "Task not found")])
def test_a_task_that_has_failed_is_not_asked_for_again(ends: tuple[int, str]) -> None:
    with serving(BlackForestLabsProtocol(ends)) as upstream, pytest.raises(JobFailed) as caught:
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.may_have_billed
    assert len(upstream.asked) == 3


def test_a_question_that_fails_is_asked_again() -> None:
    with serving(BlackForestLabsProtocol()) as upstream:
        upstream.faults.extend([lambda *_: False, answers(500), raw(b"<html>")])
        result = ask(upstream, ImageRequest(prompt="a cat"))
    assert len(result.images) == 1
    assert len(upstream.work) == 1


def test_its_statuses_of_http_are_understood() -> None:
    kinds = {status: type(adapter.refusal(Answer(status, {}, b"{}"))) for status in (402, 403, 422)}
    assert kinds == {402: NoCredit, 403: NotForThisModel, 422: InvalidRequest}


def test_a_region_of_its_own_may_be_asked_with_the_key_and_no_other_host() -> None:
    wish = wish_for(adapter, ready_made("black-forest-labs-flux-2-pro"))
    told = adapter.read(
        wish, Answer(200, {}, b'{"id": "a", "polling_url": "https://api.eu2.bfl.ai/v1/get_result?id=a"}')
    )
    assert isinstance(told, Pending)
    assert adapter.sites == {"bfl.ai"}
    with serving(BlackForestLabsProtocol()) as upstream, pytest.raises(HubError) as caught:
        upstream.faults.append(raw(b'{"id": "a", "polling_url": "https://bfl.ai.example.com/v1/get_result?id=a"}'))
        ask(upstream, ImageRequest(prompt="a cat"))
    assert "not its own" in caught.value.message


def test_an_answer_that_says_nothing_of_where_to_ask_is_a_failure() -> None:
    with serving(BlackForestLabsProtocol()) as upstream, pytest.raises(HubError) as caught:
        upstream.faults.append(raw(b'{"id": "a"}'))
        ask(upstream, ImageRequest(prompt="a cat"))
    assert caught.value.status == 502
