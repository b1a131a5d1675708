"""openai_compatible against real servers, as processes: a second hub, and LiteLLM's proxy in front of a hub.

client → front hub → back hub, and client → front hub → LiteLLM → back hub. The back hub draws with the built-in model
and wants a key, which the front hub has in its file of credentials.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Iterator

import pytest
from openai import OpenAI
from PIL import Image

from tests.api.conftest import Event, as_file, call, data_url, from_base64, stream
from tests.conftest import ROOT, Server, run_server
from tests.real_servers import (
    BACK_KEY,
    PROMPT,
    WISH,
    WRONG_KEY,
    directly,
    expect_masked_edit,
    generate,
    pictures,
    start_front,
    write_credentials,
    write_manifest,
)

sys.path.insert(0, str(ROOT / "scripts"))

from benches.litellm_proxy import MASTER_KEY, CannotInstall, install, openai_model, proxying

NO_STREAM = "[remote.options]\nstream = false"


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("back"), HUB_API_KEYS=f"front:{BACK_KEY}") as server:
        yield server


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, back: Server) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("front")
    models, base = folder / "models", f"{back.url}/v1"
    write_manifest(models, "back", base, model="builtin", credentials="back")
    inline = '[remote.options]\nresponse_format = "b64_json"'
    write_manifest(models, "back-inline", base, model="builtin", credentials="back", more=inline)
    write_manifest(models, "back-wrong-key", base, model="builtin", credentials="wrong")
    write_manifest(models, "back-no-model", base, model="no-such-model", credentials="back")
    write_manifest(models, "back-gone", "http://127.0.0.1:9/v1", model="builtin", credentials="back")
    write_credentials(folder, back=BACK_KEY, wrong=WRONG_KEY)
    with start_front(folder) as server:
        yield server


@pytest.mark.parametrize("model", ["back", "back-inline"])
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_a_picture_is_what_the_back_hub_draws_byte_for_byte_as_link_or_base64(
    front: Server, back: Server, model: str, response_format: str
) -> None:
    answer = generate(front, model=model, response_format=response_format)
    (picture,) = pictures(answer)
    assert picture == base64.b64decode(directly(back)["data"][0]["b64_json"])
    assert answer.json["seed"] == 7
    assert "warnings" not in answer.json
    if response_format == "url":
        assert answer.json["data"][0]["url"].startswith(f"{front.url}/")


def test_several_pictures_have_seeds_one_after_the_other(front: Server, back: Server) -> None:
    answer = generate(front, n=3, response_format="b64_json")
    expected = [directly(back, seed=7 + index)["data"][0]["b64_json"] for index in range(3)]
    assert [each["b64_json"] for each in answer.json["data"]] == expected


def test_a_seed_that_the_back_hub_has_chosen_is_told_and_draws_the_same_again(front: Server) -> None:
    first = generate(front, seed=None, response_format="b64_json")
    again = generate(front, seed=first.json["seed"], response_format="b64_json")
    assert pictures(again) == pictures(first)


def test_formats_pass_through(front: Server) -> None:
    for output_format, name in (("jpeg", "JPEG"), ("webp", "WEBP")):
        answer = generate(front, output_format=output_format, output_compression=60, response_format="b64_json")
        (picture,) = pictures(answer)
        with Image.open(io.BytesIO(picture)) as opened:
            assert (opened.format, opened.size) == (name, (128, 128))
        assert answer.json["output_format"] == output_format


def test_an_edit_with_a_mask_changes_what_it_selects_and_nothing_else(front: Server) -> None:
    expect_masked_edit(front, "back")


def test_several_sources_and_openai_s_own_client_work(front: Server, back: Server) -> None:
    source = as_file(Image.new("RGB", (128, 128), "green"))
    with OpenAI(base_url=f"{front.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.images.edit(model="back", prompt=PROMPT, image=source, size="128x128", extra_body={"seed": 3})
    assert answer.data
    assert answer.data[0].b64_json
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))) as opened:
        assert opened.size == (128, 128)


@pytest.mark.parametrize("edits", [False, True])
def test_previews_arrive_while_the_back_hub_still_draws(front: Server, edits: bool) -> None:
    """The front hub passes each on at once: the first one is there long before the picture is."""
    body = WISH | {"model": "back", "stream": True, "partial_images": 2, "num_inference_steps": 60, "seed": 11}
    kind = "image_edit" if edits else "image_generation"
    if edits:
        body |= {"image": data_url(as_file(Image.new("RGB", (128, 128), "white"))), "strength": 1.0}
    with stream(front, body) as opened:
        assert opened.status == 200
        events: list[Event] = list(opened)
    names = [event.name for event in events]
    assert names == [f"{kind}.partial_image"] * 2 + [f"{kind}.completed"]
    assert [event.data["partial_image_index"] for event in events[:2]] == [0, 1]
    first, second, last = (event.at for event in events)
    assert first < second < last
    assert last - first > 0.25 * (last - opened.at)
    looks = [from_base64(event.data["b64_json"]) for event in events]
    assert len({look.tobytes() for look in looks}) == 3
    assert {look.size for look in looks} == {(128, 128)}


def test_a_stream_of_several_pictures_says_which_preview_is_whose(front: Server) -> None:
    body = WISH | {"model": "back", "stream": True, "partial_images": 1, "n": 2, "num_inference_steps": 10}
    with stream(front, body) as opened:
        events = list(opened)
    assert sorted(event.data["image_index"] for event in events[:2]) == [0, 1]
    assert [event.data["image_index"] for event in events[2:]] == [0, 1]
    assert [event.data["seed"] for event in events[2:]] == [7, 8]


def test_what_the_back_hub_refuses_is_a_400_that_names_the_parameter_and_none_of_its_words(front: Server) -> None:
    answer = generate(front, scheduler="NoSuchScheduler")
    assert answer.status == 400
    error = answer.json["error"]
    assert (error["code"], error["param"], error["type"]) == ("provider_refused", "scheduler", "invalid_request_error")
    assert "NoSuchScheduler" not in error["message"]


def test_what_the_back_hub_does_otherwise_is_a_warning_and_an_error_if_strict(front: Server) -> None:
    answer = generate(front, size="160x128")
    assert answer.status == 200
    assert any(warning.startswith("size: ") for warning in answer.json["warnings"])
    refused = generate(front, size="160x128", strict=True)
    assert refused.status == 400
    assert refused.json["error"]["param"] == "size"


def test_what_the_manifest_does_not_name_is_a_warning(front: Server) -> None:
    answer = generate(front, style="vivid")
    assert [warning.partition(":")[0] for warning in answer.json["warnings"]] == ["style"]


def test_a_model_that_the_back_hub_does_not_have_is_the_owner_s_to_mend(front: Server) -> None:
    answer = generate(front, model="back-no-model")
    assert (answer.status, answer.json["error"]["code"]) == (502, "provider_failed")
    assert "no-such-model" not in answer.body.decode()


def test_a_server_that_is_gone_is_told_in_time(front: Server) -> None:
    start = time.monotonic()
    answer = generate(front, model="back-gone")
    assert (answer.status, answer.json["error"]["code"]) == (503, "provider_unreachable")
    assert time.monotonic() - start < 15


def test_a_wrong_key_is_told_without_a_trace_of_it_anywhere(front: Server) -> None:
    for body in ({}, {"stream": True, "partial_images": 1}):
        answer = generate(front, model="back-wrong-key", **body)
        told = answer.body.decode()
        assert answer.status == 503 or "event: error" in told
        assert "provider_key_refused" in told
    seen = [told, call(f"{front.url}/v1/models").body.decode(), front.log.read_text()]
    seen += [path.read_bytes().decode("latin-1") for path in front.cache.rglob("*") if path.is_file()]
    assert "wrong/1" in front.log.read_text()  # the key's name is what the owner needs
    for key in (WRONG_KEY, BACK_KEY):
        assert not any(key in text for text in seen)


def test_a_job_of_a_remote_model_is_kept_like_any_other(front: Server, back: Server) -> None:
    answer = generate(front, "/v1/images/generations?async=true", seed=21)
    assert answer.status == 202
    place = front.url + answer.headers["location"]
    end = time.monotonic() + 60
    while (job := call(place).json)["status"] not in ("completed", "failed"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert job["status"] == "completed", job
    assert call(job["result"]["data"][0]["url"]).body == base64.b64decode(
        directly(back, seed=21)["data"][0]["b64_json"]
    )


# LiteLLM's proxy between the two. What it does otherwise than a hub (1.108.5): it knows no `response_format` for models
# of a server, answers with that server's own links, cannot stream images (it draws them, thrice, and fails), leaves out
# `seed` and `warnings`, and sets a model aside for some seconds when it has failed.


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory, back: Server) -> Iterator[Server]:
    """A front hub whose models are behind LiteLLM."""
    try:
        install()
    except CannotInstall:
        pytest.skip("LiteLLM cannot be installed here")
    folder, base = tmp_path_factory.mktemp("relayed"), f"{back.url}/v1"
    behind = [
        openai_model("painter", base, model="gpt-image-2", key=BACK_KEY),  # a name for which hubs answer with base64
        openai_model("streamer", base, model="gpt-image-1.5", key=BACK_KEY),
        openai_model("linker", base, model="builtin", key=BACK_KEY),
        openai_model("nobody", base, model="no-such-model", key=BACK_KEY),
        openai_model("stranger", base, model="gpt-image-2", key=WRONG_KEY),
    ]
    with proxying(tmp_path_factory.mktemp("litellm"), behind) as proxy:
        for name in ("painter", "streamer", "linker", "nobody", "stranger", "unlisted"):
            more = "" if name == "streamer" else NO_STREAM
            # LiteLLM passes a 401 of what is behind it on as its own: a key that stands for more would be left alone.
            named = "stranger" if name == "stranger" else "litellm"
            write_manifest(folder / "models", name, proxy.url, model=name, credentials=named, more=more)
        write_manifest(folder / "models", "outsider", proxy.url, model="painter", credentials="wrong")
        write_credentials(folder, litellm=MASTER_KEY, stranger=MASTER_KEY, wrong=WRONG_KEY)
        with start_front(folder) as server:
            yield server


@pytest.mark.slow
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_through_litellm_a_picture_is_what_the_back_hub_draws(
    relayed: Server, back: Server, response_format: str
) -> None:
    answer = generate(relayed, model="painter", n=2, response_format=response_format)
    expected = [base64.b64decode(each["b64_json"]) for each in directly(back, n=2)["data"]]
    assert pictures(answer) == expected
    assert answer.json["seed"] == 7
    assert answer.json["usage"]["output_tokens"] == 32  # as LiteLLM passes it on


@pytest.mark.slow
def test_through_litellm_an_edit_with_a_mask_changes_what_it_selects(relayed: Server) -> None:
    expect_masked_edit(relayed, "painter")


@pytest.mark.slow
def test_through_litellm_a_stream_has_no_previews_which_is_told_and_the_picture(relayed: Server) -> None:
    body = WISH | {"model": "painter", "stream": True, "partial_images": 2}
    with stream(relayed, body) as opened:
        (event,) = list(opened)
    assert event.name == "image_generation.completed"
    assert [warning.partition(":")[0] for warning in event.data["warnings"]] == ["partial_images"]
    refused = generate(relayed, model="painter", stream=True, partial_images=2, strict=True)
    assert (refused.status, refused.json["error"]["param"]) == (400, "partial_images")


@pytest.mark.slow
def test_a_stream_that_is_asked_of_litellm_all_the_same_is_an_error_and_no_endless_wait(relayed: Server) -> None:
    with stream(relayed, WISH | {"model": "streamer", "stream": True, "partial_images": 2}) as opened:
        (event,) = list(opened)
    assert event.name == "error"
    assert event.data["error"]["code"] == "provider_failed"
    assert event.at < 60


@pytest.mark.slow
def test_through_litellm_errors_keep_their_kind(relayed: Server) -> None:
    told = {}
    for model, more in (
        ("painter", {"scheduler": "NoSuchScheduler"}),
        ("unlisted", {}),
        ("nobody", {}),
        ("stranger", {}),
        ("outsider", {}),
        ("linker", {}),
    ):
        answer = generate(relayed, model=model, **more)
        told[model] = (answer.status, answer.json["error"]["code"], answer.json["error"]["param"])
        assert "LiteLLM" not in answer.body.decode()
    assert told == {
        "painter": (400, "provider_refused", "scheduler"),
        "unlisted": (400, "provider_refused", None),
        "nobody": (502, "provider_failed", None),
        "stranger": (503, "provider_key_refused", None),
        "outsider": (503, "provider_key_refused", None),
        "linker": (502, "provider_failed", None),  # the back hub's link: a private address that nobody has named
    }
    log = relayed.log.read_text()
    assert not any(key in log for key in (MASTER_KEY, WRONG_KEY, BACK_KEY))
