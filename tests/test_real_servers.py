"""openai_compatible against real servers, as processes: a second hub, and LiteLLM's proxy in front of a hub.

client → front hub → back hub, and client → front hub → LiteLLM → back hub. The back hub draws with the built-in model
and wants a key, which the front hub has in its file of credentials.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image, ImageChops

from tests.api.conftest import Answer, Event, as_file, call, data_url, from_base64, multipart, stream, upload
from tests.conftest import Server, run_server

BACK_KEY = "sk-canary-back-4d1f0c7a"
WRONG_KEY = "sk-canary-wrong-91be22d6"
HONOURS = '["seed", "num_inference_steps", "guidance_scale", "negative_prompt", "strength", "scheduler", "strict"]'
PROMPT = "a red circle on a white background"
WISH = {"prompt": PROMPT, "size": "128x128", "num_inference_steps": 3, "seed": 7}


def write_manifest(folder: Path, name: str, base_url: str, *, model: str, credentials: str, more: str = "") -> None:
    """A model of another server's."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(
        f'id = "{name}"\nname = "{name}"\ndescription = ""\nprovider = "openai_compatible"\n'
        'tasks = ["text-to-image", "image-to-image", "inpainting"]\n\n'
        f'[remote]\nmodel = "{model}"\nbase_url = "{base_url}"\ncredentials = "{credentials}"\n'
        f"honours = {HONOURS}\nmax_n = 10\nmax_images = 16\ntimeout = 60\n{more}\n"
    )


def start_front(folder: Path, **environ: str) -> Any:
    """A hub without keys, with the manifests in its folder `models`."""
    credentials = folder / "credentials.toml"
    credentials.touch(0o600)
    return run_server(folder, HUB_MODELS_DIR=str(folder / "models"), HUB_CREDENTIALS=str(credentials), **environ)


def write_credentials(folder: Path, **keys: str) -> None:
    path = folder / "credentials.toml"
    path.touch(0o600)
    path.write_text("".join(f'[{name}]\nkeys = ["{key}"]\n' for name, key in keys.items()))


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


def generate(server: Server, path: str = "/v1/images/generations", **body: Any) -> Answer:
    return call(server.url + path, WISH | {"model": "back"} | body)


def directly(back: Server, **body: Any) -> Any:
    """The back hub's own answer to the same wish."""
    told = WISH | {"model": "builtin", "response_format": "b64_json"} | body
    answer = call(f"{back.url}/v1/images/generations", told, authorization=f"Bearer {BACK_KEY}")
    assert answer.status == 200, answer.body
    return answer.json


def pictures(answer: Answer) -> list[bytes]:
    """In base64, or behind links of the server that was asked."""
    assert answer.status == 200, answer.body
    return [
        base64.b64decode(each["b64_json"]) if "b64_json" in each else call(each["url"]).body
        for each in answer.json["data"]
    ]


def edit(server: Server, *parts: Any, **fields: Any) -> Answer:
    texts = {**WISH, "model": "back", "response_format": "b64_json", **fields}
    form = multipart(*parts, *((name, str(value)) for name, value in texts.items()))
    kind = "multipart/form-data; boundary=----boundary7MA4YWxk"
    return call(f"{server.url}/v1/images/edits", form, content_type=kind)


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
    source = Image.new("RGB", (128, 128), "blue")
    mask = Image.new("RGBA", (128, 128), "black")
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    parts = [upload("image", as_file(source)), upload("mask", as_file(mask))]
    answer = edit(front, *parts, num_inference_steps=10, strength=1.0)
    (picture,) = pictures(answer)
    difference = ImageChops.difference(Image.open(io.BytesIO(picture)).convert("RGB"), source)
    assert difference.crop((0, 0, 60, 128)).getbbox() is None
    assert difference.crop((68, 0, 128, 128)).getbbox() is not None


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
