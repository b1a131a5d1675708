"""AIGNE's own paths: discovery, its two ways to ask for pictures, catalogue and status."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.conftest import Answer, as_file, call, data_url, generate, picture
from tests.api.test_errors import check
from tests.conftest import Server, wait_for

DID = "z8ia3xzq2tMq8CRHfaXj1BTYJyYnEcHbqP8cJ"
SOURCE = as_file(Image.new("RGB", (128, 128), (30, 60, 220)))
PLURALS = ["/api/v1/image/generations", "/api/v2/image/generations"]
OPTIONS = {"size": "128x128", "num_inference_steps": 2}


def invoke(server: Server, options: dict[str, Any] | None = None, **wish: Any) -> Answer:
    body = {"prompt": "a red circle", "modelOptions": OPTIONS | (options or {})} | wish
    return call(f"{server.url}/api/v2/image", {"input": body, "agent": "$CHAT_MODEL", "options": {}})


def test_discovery_is_json_where_it_is_asked_for_and_else_a_script(server: Server, keyed_server: Server) -> None:
    expected = {"componentMountPoints": [{"did": DID, "mountPoint": "/"}]}
    for hub in (server, keyed_server):
        as_json = call(f"{hub.url}/__blocklet__.js?type=json")
        assert as_json.headers["content-type"].startswith("application/json")
        assert as_json.json == expected
        script = call(f"{hub.url}/__blocklet__.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert script.body.startswith(b"window.blocklet = ")
        assert json.loads(script.body.decode().partition(" = ")[2].rstrip().rstrip(";")) == expected


def test_the_javascript_clients_request_is_answered_in_its_shape(server: Server) -> None:
    answer = invoke(server, n=2, outputFileType="url")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json
    assert set(body) == {"images", "usage", "model", "seed", "warnings"}
    assert "creditPrefix" not in body
    assert set(body["usage"]) == {"inputTokens", "outputTokens"}
    assert body["usage"] == {"inputTokens": 3, "outputTokens": 32}
    assert body["warnings"] == []
    assert len(body["images"]) == 2
    for image in body["images"]:
        assert set(image) == {"type", "url", "mimeType", "filename"}
        assert image["type"] == "url"
        assert image["mimeType"] == "image/png"
        assert image["url"].startswith(f"{server.url}/files/")
        assert image["url"].endswith(image["filename"])
        assert picture(call(image["url"]).body).size == (128, 128)


def test_a_file_is_answered_as_a_file(server: Server) -> None:
    body = invoke(server, outputFileType="file", options={"outputFormat": "webp"}).json
    (image,) = body["images"]
    assert set(image) == {"type", "data", "mimeType", "filename"}
    assert (image["type"], image["mimeType"]) == ("file", "image/webp")
    assert image["filename"].endswith(".webp")
    assert base64.b64decode(image["data"], validate=True).startswith(b"RIFF")


def test_the_default_is_a_url(server: Server) -> None:
    for more in ({}, {"outputFileType": None}):
        assert [image["type"] for image in invoke(server, **more).json["images"]] == ["url"]


def test_the_disk_of_the_hub_is_neither_written_nor_read_for_a_client(server: Server, tmp_path: Path) -> None:
    check(invoke(server, outputFileType="local"), 400, "unsupported_value", "outputFileType")
    canary = tmp_path / "canary.png"
    canary.write_bytes(SOURCE)
    for path in (str(canary), os.path.relpath(canary), "/etc/passwd"):
        for image in ({"type": "local", "path": path}, {"type": "local", "path": path, "mimeType": "image/png"}):
            answer = invoke(server, image=[image])
            error = check(answer, 400, "unsupported_value", "image")
            assert path not in error["message"]
    check(invoke(server, image=[{"type": "file", "data": f"file://{canary}"}]), 400, "invalid_image", "image")
    check(invoke(server, image=[{"type": "url", "url": f"file://{canary}"}]), 400, "invalid_image", "image")
    check(invoke(server, image=[{"type": "url", "url": "http://127.0.0.1:1/a.png"}]), 400, "image_host_not_allowed")


def test_a_source_may_be_a_file_or_a_url(server: Server) -> None:
    link = generate(server, prompt="x", size="128x128", num_inference_steps=1).json["data"][0]["url"]
    encoded = base64.b64encode(SOURCE).decode()
    sources: list[dict[str, Any]] = [
        {"type": "file", "data": encoded, "mimeType": "image/png"},
        {"type": "file", "data": encoded, "filename": "a.png"},
        {"type": "url", "url": data_url(SOURCE)},
        {"type": "url", "url": link, "mimeType": "image/png"},
    ]
    options = {"strength": 0.1, "num_inference_steps": 12, "seed": 3}
    for number, source in enumerate(sources):
        body = invoke(server, options=options, image=[source]).json
        assert body["usage"]["inputTokens"] == 3 + 16, "the source counts"
        red, green, blue = picture(call(body["images"][0]["url"]).body).convert("RGB").getpixel((64, 64))
        assert number == 3 or blue > max(red, green) + 50, "it is still blue"
    two = invoke(server, options=options, image=sources[:2]).json
    assert [words.partition(":")[0] for words in two["warnings"]] == ["image"]
    assert invoke(server, image=[]).json["usage"]["inputTokens"] == 3
    assert invoke(server, image=None).json["usage"]["inputTokens"] == 3


BAD_INVOKES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": "2"}, "n"),
    ({"outputFileType": "path"}, "outputFileType"),
    ({"image": {"type": "file", "data": "AAAA"}}, "image"),
    ({"image": [{"type": "ftp", "url": "x"}]}, "image"),
    ({"image": [{"data": "AAAA"}]}, "type"),
    ({"image": [{"type": "file"}]}, "data"),
    ({"image": [{"type": "file", "data": "AAAA", "path": "/etc/passwd"}]}, "path"),
    ({"image": [{"type": "file", "data": "AAAA"}]}, "image"),
    ({"image": [{"type": "url", "url": "x"}] * 17}, "image"),
    ({"frobnicate": 1}, "frobnicate"),
    ({"modelOptions": {"frobnicate": 1}}, "frobnicate"),
    ({"modelOptions": {"numInferenceSteps": 0}}, "num_inference_steps"),
    ({"modelOptions": 3}, "modelOptions"),
    ({"modelOptions": {"numInferenceSteps": 2, "num_inference_steps": 3}}, "num_inference_steps"),
    ({"guidanceScale": 2, "modelOptions": {"guidance_scale": 3}}, "guidance_scale"),
    ({"modelOptions": {"stream": True}}, "stream"),
    ({"modelOptions": {"background": "transparent"}}, "background"),
    ({"size": "7x7"}, "size"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_INVOKES, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_an_error_that_the_client_can_read(server: Server, fields: dict[str, Any], param: str) -> None:
    body = {"input": {"prompt": "a red circle", "size": "128x128"} | fields}
    error = check(call(f"{server.url}/api/v2/image", body), 400, param=param)
    assert isinstance(error["message"], str)
    assert error["type"] == "invalid_request_error"


def test_a_body_without_input_or_that_is_no_json_is_a_400(server: Server) -> None:
    url = f"{server.url}/api/v2/image"
    check(call(url, {}), 400, "missing_required_parameter", "input")
    check(call(url, {"input": {}}), 400, "missing_required_parameter", "prompt")
    check(call(url, {"input": "a"}), 400, param="input")
    check(call(url, b"{"), 400, "invalid_json")
    check(call(url, b'{"input":' * 100_000), 400, "invalid_json")
    check(call(url, b'{"input": {"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), 400, "invalid_json")
    for path in PLURALS:
        check(call(server.url + path, {}), 400, "missing_required_parameter", "prompt")
        check(call(server.url + path, []), 400)


@pytest.mark.parametrize("model", ["aignehub/builtin", "openai/dall-e-3", "builtin", "dall-e-2", "hub/gpt-image-1"])
def test_an_id_may_name_a_provider_that_is_not_known_here(server: Server, model: str) -> None:
    body = invoke(server, options={"model": model}).json
    assert body["model"] == model.rpartition("/")[2]
    assert body["images"][0]["type"] == "url"
    other = call(server.url + PLURALS[1], {"prompt": "a", "model": model} | OPTIONS).json
    assert other["model"] == model.rpartition("/")[2]


def test_an_unknown_model_is_a_404_with_its_name(server: Server) -> None:
    for model in ("aignehub/none", "none", "/", "a/b/c"):
        check(invoke(server, options={"model": model}), 404, "model_not_found", "model")


@pytest.mark.parametrize("path", PLURALS)
def test_aigne_hubs_own_path_answers_base64_unless_a_url_is_asked_for(server: Server, path: str) -> None:
    wish = {"prompt": "a red circle", "n": 2} | OPTIONS
    body = call(server.url + path, wish).json
    assert set(body) == {"images", "data", "model", "usage", "seed", "warnings"}
    assert body["images"] == body["data"]
    assert len(body["data"]) == 2
    for image in body["images"]:
        assert set(image) == {"base64", "b64_json", "b64Json"}
        assert len(set(image.values())) == 1
        assert picture(base64.b64decode(image["base64"], validate=True)).size == (128, 128)
    for name in ("response_format", "responseFormat"):
        for value in ("base64", "b64_json"):
            assert "base64" in call(server.url + path, wish | {name: value}).json["data"][0]
        (first, _) = call(server.url + path, wish | {name: "url"}).json["images"]
        assert set(first) == {"url"}
        assert call(first["url"]).headers["content-type"] == "image/png"
    check(call(server.url + path, wish | {"response_format": "png"}), 400, param="response_format")


def test_camel_case_and_snake_case_mean_the_same(server: Server) -> None:
    snake = {"num_inference_steps": 3, "guidance_scale": 4.5, "negative_prompt": "blue", "output_format": "jpeg"}
    camel = {"numInferenceSteps": 3, "guidanceScale": 4.5, "negativePrompt": "blue", "outputFormat": "jpeg"}
    wish = {"prompt": "a red circle", "seed": 4, "size": "128x128"}
    made = [call(server.url + PLURALS[0], wish | names).json["data"] for names in (snake, camel)]
    assert made[0] == made[1]
    assert base64.b64decode(made[0][0]["base64"]).startswith(b"\xff\xd8\xff")
    check(call(server.url + PLURALS[0], wish | {"guidanceScale": 1, "guidance_scale": 2}), 400, param="guidance_scale")
    check(call(server.url + PLURALS[0], wish | {"guidanceScale": "high"}), 400, param="guidance_scale")
    check(call(server.url + PLURALS[0], wish | {"frobNicate": 1}), 400, "unknown_parameter", "frob_nicate")
    check(call(server.url + PLURALS[0], wish | {"stream": True}), 400, "unsupported_value", "stream")


def test_parameters_may_stand_beside_or_in_the_model_options(server: Server) -> None:
    beside = call(f"{server.url}/api/v2/image", {"input": {"prompt": "a", "seed": 6, **OPTIONS}}).json
    inside = call(f"{server.url}/api/v2/image", {"input": {"prompt": "a", "modelOptions": {"seed": 6, **OPTIONS}}}).json
    files = [call(body["images"][0]["url"]).body for body in (beside, inside)]
    assert files[0] == files[1]
    assert beside["seed"] == inside["seed"] == 6
    known = {"preferInputFileType": "url", "outputFileType": "url"}
    assert invoke(server, **known).status == 200
    assert invoke(server, options=known).status == 200


def test_the_catalogue_is_public_and_holds_every_id(server: Server, keyed_server: Server) -> None:
    ids = {each["id"] for each in call(f"{server.url}/v1/models").json["data"]}
    for hub in (server, keyed_server):
        for query in ("", "?type=image"):
            models = call(f"{hub.url}/api/ai/models{query}").json
            assert isinstance(models, list)
            assert {each["model"] for each in models} == ids
            for each in models:
                assert each["key"].endswith(f"/{each['model']}")
                assert each["type"] == "image"
                assert isinstance(each["input_credits_per_token"], str)
                assert isinstance(each["output_credits_per_token"], str)
                assert float(each["input_credits_per_token"]) == 0
                assert each["providerDisplayName"]
                assert set(each["status"]) == {"available"}
        assert call(f"{hub.url}/api/ai/models?type=chat").json == []


def test_the_status_tells_whether_a_model_answers_and_wants_a_key(server: Server, keyed_server: Server) -> None:
    for query in ("", "?model=builtin", "?model=aignehub/dall-e-3"):
        assert call(f"{server.url}/api/v2/status{query}").json == {"available": True}
    unknown = call(f"{server.url}/api/v2/status?model=none").json
    assert unknown["available"] is False
    assert "none" in unknown["error"]
    check(call(f"{keyed_server.url}/api/v2/status"), 401, "invalid_api_key")
    key = {"authorization": "Bearer sk-bob-1234567890"}
    wait_for(lambda: call(f"{keyed_server.url}/api/v2/status", **key).json == {"available": True})


def test_all_that_makes_pictures_wants_a_key(keyed_server: Server) -> None:
    for path in ("/api/v2/image", *PLURALS):
        error = check(call(keyed_server.url + path, {"prompt": "a"}), 401, "invalid_api_key")
        assert error["type"] == "authentication_error"
        check(call(keyed_server.url + path), 405 if path else 401)


def test_the_paths_of_aigne_have_job_ids_and_keys_of_their_own(server: Server) -> None:
    body = {"input": {"prompt": "a red heart", "modelOptions": OPTIONS}}
    answers = [call(f"{server.url}/api/v2/image", body, idempotency_key="aigne-1") for _ in range(2)]
    assert answers[0].headers["x-job-id"] == answers[1].headers["x-job-id"]
    names = [answer.json["images"][0]["filename"] for answer in answers]
    assert names[0] == names[1]
    check(call(server.url + PLURALS[0], {"prompt": "b"} | OPTIONS, idempotency_key="aigne-1"), 409)
