"""The OpenAPI document: whole, true, and held against the running hub by schemathesis; and the files of its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from litestar import Litestar
from msgspec import Meta, Struct

from hub.api.described import Upload, as_events, as_json, as_multipart
from hub.api.docs import FOLDER, POLICY
from hub.api.openapi import document
from hub.api.params import EditImageForm
from hub.app import create_app
from hub.settings import load_settings
from tests.api.conftest import call
from tests.conftest import ROOT, Server

BODY_METHODS = {"post", "put", "patch"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Litestar:
    return create_app(load_settings(environ={}, cache_dir=str(tmp_path_factory.mktemp("cache"))))


@pytest.fixture(scope="module")
def made(app: Litestar) -> dict[str, Any]:
    return document(app)


def operations(made: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in made["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolve(made: dict[str, Any], reference: str) -> Any:
    here: Any = made
    for step in reference.removeprefix("#/").split("/"):
        here = here[step]
    return here


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere_and_every_component_is_used(made: dict[str, Any]) -> None:
    found = set(references(made))
    for reference in found:
        assert resolve(made, reference) is not None, reference
    for kind in ("schemas", "responses"):
        for name in made["components"][kind]:
            assert f"#/components/{kind}/{name}" in found, name


def test_every_error_is_the_envelope_and_carries_a_request_id(made: dict[str, Any]) -> None:
    for path, method, operation in operations(made):
        for code, listed in operation["responses"].items():
            answer = resolve(made, listed["$ref"]) if "$ref" in listed else listed
            assert "x-request-id" in answer["headers"], (path, code)
            if int(code) >= 400 and (path, code) != ("/ready", "503"):
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, (path, method, code)


def test_every_closed_operation_tells_what_the_guard_and_the_limits_answer(made: dict[str, Any]) -> None:
    for path, method, operation in operations(made):
        codes = set(operation["responses"])
        assert "500" in codes, path
        assert ({"401", "403", "429", "503"} <= codes) == (operation["security"] != []), path
        assert ("requestBody" in operation) == (method in BODY_METHODS), path
        if method in BODY_METHODS:
            assert {"400", "413", "415"} <= codes, path
        if "{" in path:
            assert "404" in codes, path


def test_errors_are_described_by_their_codes(made: dict[str, Any]) -> None:
    responses = made["components"]["responses"]
    assert "`model_not_found`" in responses["NotFound"]["description"]
    assert "`queue_full`" in responses["TooManyRequests"]["description"]
    assert "Retry-After" in responses["TooManyRequests"]["headers"]
    assert "WWW-Authenticate" in responses["Unauthorized"]["headers"]


def test_every_operation_has_a_summary_a_description_a_tag_and_an_id_of_its_own(made: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(made)]
    assert len(ids) == len(set(ids))
    for path, _, operation in operations(made):
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path


def test_answers_are_described_and_not_guessed(made: dict[str, Any]) -> None:
    """Litestar takes a handler that answers bytes for one that answers any string."""
    for path, method, operation in operations(made):
        good = {code: answer for code, answer in operation["responses"].items() if code < "400"}
        assert good, path
        for answer in good.values():
            content = answer.get("content", {}).get("application/json")
            assert content is None or content["schema"] not in ({}, {"type": "string"}), (path, method)
            assert answer["description"] != "Additional response", (path, method)


def test_a_body_that_refuses_unknown_fields_says_so(made: dict[str, Any]) -> None:
    body = made["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert body["required"] is True
    schema = resolve(made, body["content"]["application/json"]["schema"]["$ref"])
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 10}


def test_every_example_of_a_json_body_is_one_that_the_hub_takes(made: dict[str, Any], server: Server) -> None:
    tried = 0
    for path, _, operation in operations(made):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None or "/admin/" in path:  # their examples are of models that are nowhere here: test_admin.py
            continue
        body = content["example"]
        for steps in (body, body.get("input")):
            if steps is not None and "prompt" in steps:
                steps.update(size="64x64", num_inference_steps=1)
        answer = call(server.url + path, body)
        assert answer.status == 200, (path, answer.body)
        tried += 1
    assert tried == 11


def test_an_event_says_which_types_it_may_have(made: dict[str, Any]) -> None:
    types = {name: schema["properties"].get("type") for name, schema in made["components"]["schemas"].items()}
    for name, values in {
        "PartialImageEvent": {"image_generation.partial_image", "image_edit.partial_image"},
        "CompletedEvent": {"image_generation.completed", "image_edit.completed"},
        "JobEvent": {"job.progress", "job.completed", "job.failed", "job.cancelled"},
    }.items():
        assert set(types[name]["enum"]) == values
    for path, kinds in {
        "/v1/images/generations": {"PartialImageEvent", "CompletedEvent", "ErrorResponse"},
        "/v1/images/jobs/{job_id}/events": {"JobEvent", "PartialImageEvent", "ErrorResponse"},
    }.items():
        (operation,) = made["paths"][path].values()
        schema = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
        told = {each["$ref"].rpartition("/")[2] for each in schema["properties"]["data"]["contentSchema"]["anyOf"]}
        assert told == kinds


def test_what_the_hub_always_writes_is_required_in_its_answers(made: dict[str, Any]) -> None:
    assert set(made["components"]["schemas"]["Model"]["required"]) == {"id", "object", "created", "owned_by", "root"}
    assert made["components"]["schemas"]["Image"].get("required", []) == [], "url or b64_json"


def test_the_document_is_the_same_every_time(app: Litestar) -> None:
    again = create_app(app.state.hub.settings)
    assert json.dumps(document(app)) == json.dumps(document(app))
    assert json.dumps(document(again)) == json.dumps(document(app))


class Form(Struct, forbid_unknown_fields=True, kw_only=True):
    """A form's text fields."""

    prompt: str
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    quality: Literal["low", "high"] | None = None


class Holder(Struct):
    """It holds an object."""

    inner: Form


def test_a_form_is_its_structs_fields_and_its_files() -> None:
    content = as_multipart(Form, image=Upload(most=16), mask=Upload(required=False, media_types=["image/png"]))
    schema = content.schema
    assert content.media_type == "multipart/form-data"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 10}, "a form has no null"
    assert schema["properties"]["quality"] == {"type": "string", "enum": ["high", "low"]}
    assert schema["properties"]["image[]"]["maxItems"] == 16
    assert schema["properties"]["mask"] == {"type": "string", "format": "binary"}
    assert schema["allOf"] == [{"anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]}]
    assert content.encoding["mask"] == "image/png"
    assert set(content.encoding) == {"image", "image[]", "mask"}


def test_a_field_of_objects_is_json_in_a_form() -> None:
    fields = as_multipart(EditImageForm).schema["properties"]
    assert (fields["loras"]["type"], fields["loras"]["contentMediaType"]) == ("string", "application/json")
    assert fields["loras"]["contentSchema"]["items"] == {"$ref": "#/components/schemas/Lora"}
    assert "contentMediaType" not in fields["seed"]


def test_a_stream_is_described_by_one_of_its_events() -> None:
    content = as_events(Form, Holder)
    data = content.schema["properties"]["data"]
    assert content.media_type == "text/event-stream"
    assert [each["$ref"] for each in data["contentSchema"]["anyOf"]] == [
        "#/components/schemas/Form",
        "#/components/schemas/Holder",
    ]
    assert content.kinds == (Form, Holder)


def test_a_struct_is_described_by_a_reference() -> None:
    assert as_json(Form).schema == {"$ref": "#/components/schemas/Form"}


def test_a_closed_hub_shows_its_document_and_its_page_and_says_that_it_wants_a_key(keyed_server: Server) -> None:
    answer = call(f"{keyed_server.url}/openapi/openapi.json")
    assert answer.status == 200
    assert answer.json["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]
    assert answer.json["paths"]["/health"]["get"]["security"] == []
    assert answer.json["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert call(f"{keyed_server.url}/docs").status == 200
    assert b"sk-alice" not in answer.body
    assert str(keyed_server.cache).encode() not in answer.body


def test_an_open_hub_says_that_a_key_is_not_needed(server: Server) -> None:
    answer = call(f"{server.url}/openapi/openapi.json")
    assert answer.json["paths"]["/v1/models"]["get"]["security"] == [{}, {"bearer": []}]


PAGE = {
    "/docs": "text/html; charset=utf-8",
    "/docs/docs.js": "text/javascript; charset=utf-8",
    "/docs/docs.css": "text/css; charset=utf-8",
    "/docs/icon.svg": "image/svg+xml",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
}


@pytest.mark.parametrize(("path", "media_type"), PAGE.items())
def test_a_file_of_the_page_has_its_type_its_policy_and_an_entity_tag(
    server: Server, path: str, media_type: str
) -> None:
    answer = call(server.url + path)
    assert answer.status == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = call(server.url + path, if_none_match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    head = call(server.url + path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))
    assert head.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/docs/README.md",
        "/docs/index.html",
        "/docs/..%2f..%2fapp.py",
        "/docs/%2e%2e/%2e%2e/app.py",
        "/docs//etc/passwd",
        "/docs/swagger-ui.css/x",
        "/docs/swagger-ui.css%00",
    ],
)
def test_no_other_path_below_the_page_leads_to_a_file(server: Server, path: str) -> None:
    answer = call(server.url + path)
    assert answer.status == 404
    assert answer.json["error"]["code"] == "not_found"


def test_the_page_holds_no_inline_script_or_style_and_names_only_files_that_are_served() -> None:
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|style=|\bon\w+=|<script(?![^>]*\bsrc=)|https?:", page)
    for target in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert target in PAGE


def test_the_libraries_licence_and_notice_lie_beside_it() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"LICENSE.swagger-ui.txt", "NOTICE.swagger-ui.txt", "swagger-ui-bundle.js.LICENSE.txt"} <= names


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/builtin"])
def test_head_answers_as_get_does_without_the_body(server: Server, path: str) -> None:
    full, head = call(server.url + path), call(server.url + path, method="HEAD")
    assert (head.status, head.body) == (full.status, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == full.headers[name]


def test_options_and_405_name_every_method_of_a_path(server: Server) -> None:
    made = call(f"{server.url}/openapi/openapi.json").json
    for path, item in made["paths"].items():
        url = server.url + re.sub(r"\{[^}]*\}", "x", path)
        wanted = {method.upper() for method in item}
        asked = call(url, method="OPTIONS")
        assert asked.status == 204, path
        assert wanted <= set(asked.headers["allow"].split(", ")), path
        refused = call(url, b"{}", method="PATCH")
        assert refused.status == 405, path
        assert wanted <= set(refused.headers["allow"].split(", ")), path


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "fuzz.py"
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_few_fuzzed_requests_find_nothing() -> None:
    """The bounded run; scripts/fuzz is the long one."""
    result = fuzz("--only", "keyed", "--examples", "1", "--seconds", "5")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open", "keyed"])
def test_many_fuzzed_requests_find_nothing(kind: str) -> None:
    result = fuzz("--only", kind)
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_the_fuzzer_finds_a_promise_that_the_hub_does_not_keep(made: dict[str, Any], tmp_path: Path) -> None:
    """Whoever finds nothing must be able to find something."""
    wrong = msgspec.json.decode(msgspec.json.encode(made))
    wrong["components"]["schemas"]["Health"]["properties"]["status"] = {"type": "integer"}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    document = ["--document", str(tmp_path / "wrong.json")]
    result = fuzz("--only", "open", "--examples", "2", "--seconds", "10", *document, "--", "--include-path=/health")
    assert result.returncode == 1
    assert "Response violates schema" in result.stdout
    assert "to repeat: scripts/fuzz --only open" in result.stdout


def test_headers_are_promised_where_they_come(made: dict[str, Any]) -> None:
    """What becomes a job, or answers for one; no order of the owner's does."""
    found = {
        (method, path)
        for path, method, one in operations(made)
        for status, each in one["responses"].items()
        if status.startswith("2") and "x-hub-target" in each.get("headers", {})
    }
    kinds = ("generations", "edits", "variations")
    wanted = {("post", f"/{at}/images/{kind}") for at in ("v1", "api") for kind in kinds}
    wanted |= {("post", f"/api/{path}") for path in ("v2/image", "v1/image/generations", "v2/image/generations")}
    wanted |= {("get", f"/{at}/images/jobs/{{job_id}}") for at in ("v1", "api")}
    assert found == wanted
