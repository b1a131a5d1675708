"""The owner's hand on the models, over HTTP: a hub of its own, whose models come and go."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import call
from tests.conftest import Server, run_server, wait_for
from tests.library.shelves import shelve, write_shelved

OWNER, GUEST = "sk-owner-0123456789abcdef", "sk-guest-0123456789abcdef"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, small_stable_diffusion: Path) -> Iterator[Server]:
    """With two models in weights_dir, `small`, and `doomed`, which one test removes."""
    folder = tmp_path_factory.mktemp("admin")
    for name in ("small", "doomed"):
        source = shelve(small_stable_diffusion, folder / "cache" / "weights", f"org/{name}")
        write_shelved(folder / "models", source, name)
    with run_server(folder, HUB_MODELS_DIR=str(folder / "models"), HF_ENDPOINT=NOWHERE) as running:
        yield running


def order(hub: Server, operation: str, **body: Any) -> dict[str, Any]:
    """Orders it and waits for the end; the task."""
    answer = call(f"{hub.url}/v1/admin/models/{operation}", body)
    assert answer.status == 202, answer.body
    task: dict[str, Any] = json.loads(answer.body)
    assert task["status"] == "in_progress"
    return followed(hub, task["id"])[-1]["task"]


def followed(hub: Server, task: str) -> list[dict[str, Any]]:
    """All events of a task, to its end."""
    events = []
    with urllib.request.urlopen(f"{hub.url}/v1/admin/tasks/{task}/events", timeout=60) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events += [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
    return events


def listed(hub: Server) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in json.loads(call(f"{hub.url}/v1/admin/models").body)["data"]}


def loaded(hub: Server) -> list[str]:
    held = json.loads(call(f"{hub.url}/v1/engine").body)
    return [model["id"] for device in held["devices"] for model in device["models"]]


def draw(hub: Server, model: str) -> int:
    body = {"prompt": "a cat", "model": model, "size": "64x64", "num_inference_steps": 1}
    return call(f"{hub.url}/v1/images/generations", body).status


def test_the_list_tells_size_origin_state_and_use(hub: Server) -> None:
    found = listed(hub)
    assert {"builtin", "small"} <= set(found)
    small = found["small"]
    assert (small["origin"], small["state"], small["loaded"], small["last_used_at"]) == (
        "huggingface", "ready", False, None,
    )  # fmt: skip
    assert small["bytes"] > 100_000
    assert "/" not in str(small).replace("org/small", ""), "no path of this machine"
    assert draw(hub, "small") == 200
    small = json.loads(call(f"{hub.url}/v1/admin/models/small").body)
    assert abs(small["last_used_at"] - time.time()) < 60
    wait_for(lambda: listed(hub)["small"]["loaded"])
    assert found["builtin"]["origin"] == "built-in"
    assert found["builtin"]["default"]


def test_a_model_is_verified_and_its_events_tell_how_far_it_is(hub: Server) -> None:
    started = json.loads(call(f"{hub.url}/v1/admin/models/verify", {"models": ["small"]}).body)
    events = followed(hub, started["id"])
    assert events[-1]["type"] == "task.completed"
    result = events[-1]["task"]["result"]
    assert (result["models"], result["faults"]) == (["small"], [])
    progress = events[-1]["task"]["progress"]
    assert progress["all_done"] == progress["all_total"] == result["bytes"]
    assert followed(hub, started["id"])[-1] == events[-1], "also for those who come later"


def test_a_removed_model_leaves_the_hub_its_memory_and_the_disk(hub: Server) -> None:
    assert draw(hub, "doomed") == 200
    wait_for(lambda: "doomed" in loaded(hub))
    done = order(hub, "remove", model="doomed")
    assert done["status"] == "completed"
    assert done["result"]["models"] == ["doomed"]
    assert draw(hub, "doomed") == 404
    wait_for(lambda: "doomed" not in loaded(hub), timeout=20)
    assert not (hub.cache / "weights" / "models--org--doomed").exists()


def test_a_name_counts_from_the_next_request_on(hub: Server) -> None:
    assert order(hub, "alias", name="dall-e-3", target="small")["result"]["target"] == "small"
    assert json.loads(call(f"{hub.url}/v1/models/dall-e-3").body)["root"] == "small"
    assert order(hub, "alias", name="dall-e-3", target=None)["status"] == "completed"
    assert json.loads(call(f"{hub.url}/v1/models/dall-e-3").body)["root"] == "builtin"


def test_what_no_model_uses_is_told_and_deleted(hub: Server) -> None:
    left = hub.cache / "weights" / "models--org--small" / "blobs" / ("a" * 64 + ".incomplete")
    left.write_bytes(b"123")
    assert order(hub, "gc", dry_run=True)["result"]["bytes"] == 3
    assert left.exists()
    assert order(hub, "gc")["result"]["bytes"] == 3
    assert not left.exists()


def test_weights_that_are_gone_are_a_503_and_the_model_is_back_with_them(hub: Server) -> None:
    place = hub.cache / "weights" / "models--org--small"
    assert draw(hub, "small") == 200
    aside = place.rename(place.with_name("aside"))
    assert draw(hub, "small") == 200, "what is in memory goes on"
    call(f"{hub.url}/v1/engine/unload", {"model": "small"})
    wait_for(lambda: "small" not in loaded(hub))
    answer = call(f"{hub.url}/v1/images/generations", {"prompt": "x", "model": "small"})
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"], error["param"]) == (503, "model_unusable", "model")
    assert "hub doctor" in error["message"]
    assert listed(hub)["small"]["state"] == "missing"
    aside.rename(place)
    wait_for(lambda: draw(hub, "small") == 200, timeout=30)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("pull", {}, 400, "missing_required_parameter"),
        ("pull", {"repo": "a/b", "colour": 1}, 400, "unknown_parameter"),
        ("pull", {"repo": "a/b", "revision": "../x"}, 400, "invalid_value"),
        ("remove", {"model": "nobody"}, 404, "model_not_found"),
        ("remove", {"model": "builtin"}, 409, "model_exists"),
        ("remove", {"model": "dall-e-2"}, 409, "model_exists"),
        ("verify", {"models": ["nobody"]}, 404, "model_not_found"),
        ("verify", {"models": []}, 400, "invalid_value"),
        ("alias", {"name": "x", "target": "nobody"}, 404, "model_not_found"),
        ("add", {"path": "nowhere"}, 404, "not_found"),
        ("add", {"path": "../outside"}, 400, "invalid_value"),
        ("add", {"path": "/etc"}, 400, "invalid_value"),
        ("add", {"path": "x\n"}, 400, "invalid_value"),
        ("export", {"models": ["builtin"], "bundle": "a.hubmodels\n"}, 400, "invalid_value"),
        ("add", {"path": "x", "config": "x/../../etc"}, 404, "model_not_found"),
        ("export", {"models": ["nobody"], "bundle": "a.hubmodels"}, 404, "model_not_found"),
        ("export", {"models": ["builtin"], "bundle": "../a.hubmodels"}, 400, "invalid_value"),
        ("export", {"models": ["builtin"], "bundle": "a.tar"}, 400, "invalid_value"),
        ("import", {"bundle": "nowhere.hubmodels"}, 404, "not_found"),
        ("import", {"bundle": "/etc/passwd"}, 400, "invalid_value"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    hub: Server, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    before = len(json.loads(call(f"{hub.url}/v1/admin/tasks").body)["data"])
    answer = call(f"{hub.url}/v1/admin/models/{path}", body)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code), answer.body
    assert len(json.loads(call(f"{hub.url}/v1/admin/tasks").body)["data"]) == before


def test_a_task_that_nobody_knows_is_a_404(hub: Server) -> None:
    for path in ("/v1/admin/tasks/task_x", "/v1/admin/tasks/task_x/events", "/v1/admin/models/nobody"):
        assert call(hub.url + path).status == 404


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = {"HUB_API_KEYS": f"owner:{OWNER},guest:{GUEST}", "HUB_ADMIN_KEYS": "owner", "HUB_OFFLINE": "1"}
    with run_server(tmp_path_factory.mktemp("keyed"), ready=False, **keys) as running:
        yield running


ROUTES = [
    *(("POST", f"/v1/admin/models/{name}") for name in ("pull", "add", "verify", "remove", "gc", "alias")),
    *(("POST", f"/v1/admin/models/{name}") for name in ("export", "import")),
    *(("GET", f"/v1/admin/{name}") for name in ("models", "models/builtin", "tasks", "tasks/x", "bundles")),
    ("GET", "/v1/admin/tasks/x/events"),
    ("DELETE", "/v1/admin/tasks/x"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_the_owners_keys_may(keyed: Server, method: str, path: str) -> None:
    for prefix in ("/v1", "/api"):
        url = keyed.url + prefix + path.removeprefix("/v1")
        body = {} if method == "POST" else None
        guest = call(url, body, method=method, authorization=f"Bearer {GUEST}")
        assert (guest.status, json.loads(guest.body)["error"]["code"]) == (403, "admin_required")
        assert call(url, body, method=method).status == 401
        owner = call(url, body, method=method, authorization=f"Bearer {OWNER}")
        assert owner.status not in (401, 403), owner.body


def test_the_documentation_lists_no_route_that_was_not_tried(keyed: Server) -> None:
    paths = json.loads(call(f"{keyed.url}/openapi/openapi.json").body)["paths"]
    told = {(method.upper(), path) for path, each in paths.items() for method in each if path.startswith("/v1/admin")}
    tried = {(method, path.replace("/x", "/{task_id}").replace("/builtin", "/{model}")) for method, path in ROUTES}
    assert told == tried


def test_an_offline_hub_fetches_nothing_and_says_so(keyed: Server) -> None:
    answer = call(f"{keyed.url}/v1/admin/models/pull", {"repo": "org/name"}, authorization=f"Bearer {OWNER}")
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "offline")
    assert answer.headers["x-should-retry"] == "false"
