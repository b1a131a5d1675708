"""What is in memory, over HTTP and from the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import call
from tests.conftest import Server, run_server, wait_for
from tests.test_cli import hub

KEY = "sk-owner-1234567890"


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("owned"), HUB_API_KEYS=f"owner:{KEY}", HUB_KEEP_ALIVE="600") as server:
        yield server


def ask(server: Server, path: str, body: Any = None) -> Any:
    answer = call(f"{server.url}{path}", body, authorization=f"Bearer {KEY}")
    assert answer.status == 200, answer.body
    return answer.json


def models(server: Server) -> dict[str, Any]:
    (device,) = ask(server, "/v1/engine")["devices"]
    return {model["id"]: model for model in device["models"]}


def test_a_model_is_loaded_pinned_told_and_unloaded(owned: Server) -> None:
    ask(owned, "/v1/engine/unload", {"model": "*"})
    assert models(owned) == {}
    start = time.time()
    (device,) = ask(owned, "/v1/engine/load", {"model": "dall-e-3", "pinned": True})["devices"]
    assert (device["device"], device["status"]) == ("cpu", "ok")
    assert device["memory"]["total"] > device["memory"]["free"] > 0
    (loaded,) = device["models"]
    assert loaded["id"] == "builtin", "an alias is its model"
    assert (loaded["pinned"], loaded["expires_at"], loaded["requests"]) == (True, None, 0)
    assert start - 2 <= loaded["loaded_at"] <= time.time() + 2
    assert {module["name"] for module in loaded["modules"]} == {"text_encoder", "unet", "vae"}
    assert {module["where"] for module in loaded["modules"]} == {"device"}
    assert loaded["bytes"] == sum(module["bytes"] for module in loaded["modules"]) > 1e7
    ask(owned, "/api/engine/load", {"model": "builtin", "pinned": False})
    unpinned = models(owned)["builtin"]
    assert unpinned["keep_alive"] == -1, "as its manifest says"
    assert ask(owned, "/api/engine/unload", {"model": "dall-e-2"}) == {
        "object": "engine.unloaded",
        "unloaded": ["builtin"],
        "busy": [],
    }
    wait_for(lambda: models(owned) == {})


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("load", {"model": "nope"}, 404, "model"),
        ("unload", {"model": "nope"}, 404, "model"),
        ("load", {}, 400, "model"),
        ("load", {"model": 1}, 400, "model"),
        ("load", {"model": "builtin", "pinned": "yes"}, 400, "pinned"),
        ("unload", {"models": []}, 400, "models"),
        ("unload", {}, 400, "model"),
        ("unload", {"model": None}, 400, "model"),
        ("unload", {"model": "builtin", "all": True}, 400, "all"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(owned: Server, path: str, body: Any, status: int, param: str) -> None:
    answer = call(f"{owned.url}/v1/engine/{path}", body, authorization=f"Bearer {KEY}")
    assert (answer.status, answer.json["error"]["param"]) == (status, param)


def test_without_a_key_nothing_is_told_or_done(owned: Server) -> None:
    assert call(f"{owned.url}/v1/engine").status == 401
    assert call(f"{owned.url}/v1/engine/unload", {"model": "*"}).status == 401


def test_the_command_line_does_the_same(owned: Server, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = hub("engine", *arguments, "--url", owned.url, cwd=tmp_path, HUB_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("unload", "--all")
    assert "no model is loaded" in run("status")
    assert run("load", "dall-e-3") == "dall-e-3 is loaded.\n"
    shown = run("status")
    assert "builtin  " in shown
    assert "unet" in shown
    run("pin", "builtin")
    assert "pinned" in run("status")
    run("unpin", "builtin")
    assert "pinned" not in run("status")
    assert '"object": "engine"' in run("status", "--json")
    assert run("unload", "builtin") == "builtin is unloaded.\n"
    assert run("unload", "builtin") == "builtin was not loaded.\n"


def test_the_command_line_says_what_is_wrong(owned: Server, tmp_path: Path) -> None:
    told = {
        ("status", "--url", owned.url): "API key",
        ("load", "nope", "--url", owned.url, "--key", KEY): "'nope' does not exist",
        ("status", "--url", "http://127.0.0.1:9"): "no hub answers at http://127.0.0.1:9",
        ("status", "--url", "nonsense"): "no hub answers",
        ("unload", "--url", owned.url): "Name a model, or give --all, and not both",
    }
    for arguments, words in told.items():
        done = hub("engine", *arguments, cwd=tmp_path)
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr
