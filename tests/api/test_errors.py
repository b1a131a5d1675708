"""Bad input and bad callers: the right status, OpenAI's envelope, and nothing of the hub's inside."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import time
from typing import Any

import openai
import psutil
import pytest

from hub.api.auth import foreign_host
from tests.api.conftest import Answer, call, generate
from tests.conftest import Server

INTERNAL = re.compile(rb"0x[0-9a-f]{6,}|Traceback|site-packages|/work|/root|/home|/tmp|\.py\b")


def check(answer: Answer, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The envelope is whole, and says nothing about the machine."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"].startswith("req_")
    assert not INTERNAL.search(answer.body), answer.body
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    return dict(error)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "  \n"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "x" * 32_001}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": -1}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"n": True}, "n"),
    ({"n": 10**30}, "n"),
    ({"model": 7}, "model"),
    ({"size": "1024"}, "size"),
    ({"size": "1024X1024"}, "size"),
    ({"size": "٢٥٦x٢٥٦"}, "size"),
    ({"size": "²x²"}, "size"),
    ({"size": " 256x256"}, "size"),
    ({"size": "256x256\n"}, "size"),
    ({"size": "-256x256"}, "size"),
    ({"size": "0x0"}, "size"),
    ({"size": "99999x99999"}, "size"),
    ({"size": "4096x4096", "n": 10}, "size"),
    ({"size": 256}, "size"),
    ({"size": ""}, "size"),
    ({"response_format": "png"}, "response_format"),
    ({"responseFormat": "png"}, "responseFormat"),
    ({"quality": "best"}, "quality"),
    ({"style": "noir"}, "style"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": True}, "seed"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 10**6}, "num_inference_steps"),
    ({"guidance_scale": "7"}, "guidance_scale"),
    ({"guidance_scale": -1}, "guidance_scale"),
    ({"strength": 0}, "strength"),
    ({"strength": 1.01}, "strength"),
    ({"negative_prompt": 3}, "negative_prompt"),
    ({"image": 3}, "image"),
    ({"image": []}, "image"),
    ({"image": [3]}, "image"),
    ({"image": "not base64!"}, "image"),
    ({"image": "/etc/passwd"}, "image"),
    ({"image": "file:///etc/passwd"}, "image"),
    ({"image": "http://127.0.0.1:1/x.png"}, "image"),
    ({"image": "http://169.254.169.254/latest/meta-data"}, "image"),
    ({"image": base64.b64encode(b"<svg/>").decode()}, "image"),
    ({"image": base64.b64encode(b"\x89PNG\r\n\x1a\nbroken").decode()}, "image"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream": True, "size": "7x7"}, "size"),
    ({"partial_images": 4}, "partial_images"),
    ({"background": "transparent"}, "background"),
    ({"output_format": "tiff"}, "output_format"),
    ({"output_format": "jpg"}, "output_format"),
    ({"output_format": "PNG"}, "output_format"),
    ({"output_compression": 101}, "output_compression"),
    ({"output_compression": -1}, "output_compression"),
    ({"on_disconnect": "stay"}, "on_disconnect"),
    ({"mask": 3}, "mask"),
    ({"mask": "/etc/passwd"}, "mask"),
    ({"image": ["AAAA"] * 17}, "image"),
    ({"strict": "true"}, "strict"),
    ({"user": "x" * 1025}, "user"),
    ({"api_base": "http://127.0.0.1:1"}, "api_base"),
    ({"__proto__": {}}, "__proto__"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_a_400_that_names_it(server: Server, fields: dict[str, Any], param: str) -> None:
    answer = generate(server, **{"prompt": "a red circle", "size": "64x64", **fields})
    check(answer, 400, param=param)


def test_the_codes_tell_unknown_missing_and_wrong_apart(server: Server) -> None:
    check(generate(server, prompt="a", frobnicate=1), 400, "unknown_parameter", "frobnicate")
    check(generate(server, n=1), 400, "missing_required_parameter", "prompt")
    check(generate(server, prompt="a", n="2"), 400, "invalid_type", "n")
    check(generate(server, prompt="a", n=11), 400, "invalid_value", "n")


PLAIN: list[tuple[dict[str, Any], str, str]] = [
    ({"n": "x"}, "n", "Invalid 'n': it must be an integer, not a string."),
    ({"n": [1]}, "n", "Invalid 'n': it must be an integer, not an array."),
    ({"n": 1.5}, "n", "Invalid 'n': it must be an integer, not a decimal number."),
    ({"n": True}, "n", "Invalid 'n': it must be an integer, not a boolean."),
    ({"n": 11}, "n", "Invalid 'n': it must be at most 10."),
    ({"n": 0}, "n", "Invalid 'n': it must be at least 1."),
    ({"size": 5}, "size", "Invalid 'size': it must be a string, not an integer."),
    ({"prompt": None}, "prompt", "Invalid 'prompt': it must be a string, not null."),
    ({"prompt": ""}, "prompt", "Invalid 'prompt': it must have at least 1 character."),
    ({"prompt": "x" * 32_001}, "prompt", "Invalid 'prompt': it must have at most 32000 characters."),
    ({"strength": 0}, "strength", "Invalid 'strength': it must be more than 0."),
    ({"strength": 2}, "strength", "Invalid 'strength': it must be at most 1."),
    ({"stream": "yes"}, "stream", "Invalid 'stream': it must be true or false, not a string."),
    ({"image": 3}, "image", "Invalid 'image': it must be a string or an array, not an integer."),
    ({"image": [3]}, "image", "Invalid 'image[0]': it must be a string, not an integer."),
    ({"image": []}, "image", "Invalid 'image': it must have at least 1 item."),
    ({"style": "noir"}, "style", "Invalid 'style': it must be one of vivid, natural."),
]


@pytest.mark.parametrize(("fields", "param", "words"), PLAIN, ids=lambda value: str(value)[:30])
def test_what_is_wrong_is_said_in_plain_words(server: Server, fields: dict[str, Any], param: str, words: str) -> None:
    assert check(generate(server, **{"prompt": "a", **fields}), 400, param=param)["message"] == words


def test_what_is_wrong_deep_in_a_body_is_said_in_plain_words(server: Server) -> None:
    def told(path: str, body: Any) -> str:
        return str(check(call(server.url + path, body), 400)["message"])

    assert told("/v1/images/generations", []) == "Invalid body: it must be an object, not an array."
    nested = {"prompt": "a", "images": [{"image_url": 3}]}
    assert told("/v1/images/edits", nested) == "Invalid 'images[0].image_url': it must be a string, not an integer."
    tagged = {"input": {"prompt": "a", "image": [{"type": "x" * 1000}]}}
    assert told("/api/v2/image", tagged) == "Invalid 'image[0].type': it must be one of file, url, local."


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"a"', b"{'prompt': 1}", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"NaN"],
)
def test_a_body_that_is_no_json_object_is_a_400(server: Server, body: bytes) -> None:
    check(call(f"{server.url}/v1/images/generations", body), 400)


@pytest.mark.parametrize("template", ['{"prompt": %s}', '{"prompt": "a", "x": %s}', "%s"])
def test_deep_nesting_is_a_400(server: Server, template: str) -> None:
    deep = template % ("[" * 200_000 + "]" * 200_000)
    check(call(f"{server.url}/v1/images/generations", deep.encode()), 400)


def test_a_number_out_of_range_is_a_400(server: Server) -> None:
    check(call(f"{server.url}/v1/images/generations", b'{"prompt": "a", "guidance_scale": 1e400}'), 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type_is_a_415(server: Server, kind: str) -> None:
    answer = call(f"{server.url}/v1/images/generations", b'{"prompt": "a"}', content_type=kind)
    check(answer, 415, "unsupported_media_type")


def test_an_oversize_body_is_a_413_and_is_not_read(server: Server) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**10))
    connection.endheaders()
    answer = connection.getresponse()
    check(Answer(answer.status, answer.headers, answer.read()), 413, "request_too_large")
    connection.close()


def test_unknown_paths_and_methods_have_the_envelope(server: Server) -> None:
    check(call(f"{server.url}/nothing/here"), 404, "not_found")
    check(call(f"{server.url}/v1/images/generations"), 405, "method_not_allowed")
    check(call(f"{server.url}/v1/images/generations", method="DELETE"), 405, "method_not_allowed")
    check(call(f"{server.url}/openapi/swagger"), 404, "not_found")


def test_what_the_wire_takes_without_effect_is_a_warning_and_with_strict_an_error(server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "128x128", "num_inference_steps": 1}
    for field, value in (("output_compression", 10), ("partial_images", 2), ("moderation", "low")):
        warnings = generate(server, **wish, **{field: value}).json["warnings"]
        assert [warning.partition(":")[0] for warning in warnings] == [field]
        check(generate(server, strict=True, **wish, **{field: value}), 400, "unsupported_value", field)


def test_a_wrong_choice_is_answered_with_the_right_ones(server: Server) -> None:
    error = check(generate(server, prompt="a", style="noir"), 400, "invalid_value", "style")
    assert "vivid, natural" in error["message"]
    assert "standard" in check(generate(server, prompt="a", quality="best"), 400, param="quality")["message"]


def test_an_unknown_model_is_a_404_with_near_names(server: Server, client: openai.OpenAI) -> None:
    error = check(generate(server, prompt="a", model="dall-e-4"), 404, "model_not_found", "model")
    assert "dall-e-3" in error["message"]
    check(generate(server, prompt="a", model="../../etc/passwd"), 404, "model_not_found", "model")
    check(generate(server, prompt="a", model="x\r\ny: z"), 404, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model="no-such-model", prompt="a")
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


def test_openais_client_reads_param_and_code_of_a_bad_size(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="dall-e-2", prompt="a", size="big")  # type: ignore[arg-type]
    assert caught.value.param == "size"
    assert caught.value.code == "invalid_value"


def test_a_wrong_or_missing_key_is_a_401(keyed_server: Server) -> None:
    client = openai.OpenAI(base_url=f"{keyed_server.url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.images.generate(model="dall-e-2", prompt="a")
    assert caught.value.code == "invalid_api_key"
    for headers in ({}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}, {"authorization": "Bearer é"}):
        answer = call(f"{keyed_server.url}/v1/models", **headers)
        check(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_each_key_works_and_no_prefix_of_one(keyed_server: Server) -> None:
    for key in ("sk-alice-1234567890", "sk-bob-1234567890"):
        assert call(f"{keyed_server.url}/v1/models", authorization=f"Bearer {key}").status == 200
    assert call(f"{keyed_server.url}/v1/models", authorization="Bearer sk-alice-123456789").status == 401


def test_every_route_but_the_public_ones_wants_a_key(keyed_server: Server) -> None:
    document = call(f"{keyed_server.url}/openapi/openapi.json", authorization="Bearer sk-bob-1234567890").json
    public = {"/health", "/ready", "/files/{signature}/{name}", "/__blocklet__.js", "/api/ai/models"}
    assert public < set(document["paths"])
    assert {"/v1/images/edits", "/v1/images/jobs/{job_id}", "/api/v2/image"} < set(document["paths"])
    for path, operations in document["paths"].items():
        for method in operations:
            url = keyed_server.url + re.sub(r"\{[^}]*\}", "x", path)
            answer = call(url, b"{}" if method == "post" else None, method=method.upper())
            assert (answer.status == 401) == (path not in public), path


def test_keys_are_in_no_answer_no_log_and_not_in_the_workers_environment(keyed_server: Server) -> None:
    call(f"{keyed_server.url}/v1/images/generations", b"{", authorization="Bearer sk-alice-1234567890")
    assert "sk-alice" not in keyed_server.log.read_text()
    for child in psutil.Process(keyed_server.process.pid).children(recursive=True):
        assert "sk-alice" not in str(child.environ())


def test_an_open_hub_refuses_foreign_hosts_and_foreign_pages(server: Server) -> None:
    url = f"{server.url}/v1/models"
    check(call(url, host="evil.example"), 403, "host_not_allowed")
    check(call(url, origin="http://evil.example"), 403, "host_not_allowed")
    check(call(url, origin="null"), 403, "host_not_allowed")
    check(call(url, sec_fetch_site="cross-site"), 403, "host_not_allowed")
    assert call(url, origin=server.url).status == 200


def test_a_foreign_host_is_named_with_what_to_set_and_a_strange_one_without(server: Server) -> None:
    def told(host: str) -> str:
        return str(check(call(f"{server.url}/v1/models", host=host), 403, "host_not_allowed")["message"])

    for host in ("Hub.example", "hub.example:9000", "localhost:1", "[fe80::1]:80"):
        assert f"'{host}' is none of them" in told(host)
        assert f"adds '{host.lower()}' to the setting allowed_hosts" in told(host)
    assert "x" * 100 + "'" in told("x" * 2000)
    for strange in ("x" * 2000, "x:y", "x:1:1"):
        assert "allowed_hosts" not in told(strange), "the setting would not take it"
    message = foreign_host(["a\x1b[31m\u202e"]).message
    assert "'a?[31m?' is none of them" in message
    assert "allowed_hosts" not in message


def raw(server: Server, *headers: str, method: str = "GET", path: str = "/v1/models") -> bytes:
    """What comes back for exactly these headers, on a connection of its own."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        lines = "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", "Connection: close", *headers))
        connection.sendall(f"{lines}\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_request_with_two_hosts_is_a_403_that_says_so(server: Server) -> None:
    own = f"Host: {server.url.removeprefix('http://')}"
    answer = raw(server, own, own)
    assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
    assert b"200 OK" not in answer


def test_the_openapi_document_says_that_unknown_fields_are_refused(server: Server) -> None:
    document = call(f"{server.url}/openapi/openapi.json").json
    body = document["paths"]["/v1/images/generations"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert "seed" in schema["properties"]


def test_a_slow_or_broken_body_does_not_hold_up_others(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        start = time.monotonic()
        assert call(f"{server.url}/health").status == 200
        assert time.monotonic() - start < 2


def test_json_of_every_error_is_valid(server: Server) -> None:
    answer = generate(server, prompt="a", **{'we"ird\u2028': 1})
    assert json.loads(answer.body)["error"]["param"] == 'we"ird\u2028'
