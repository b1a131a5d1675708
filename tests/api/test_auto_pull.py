"""Weights that are fetched by order of the owner, or because somebody asks for them; and carried by orders, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Answer, call
from tests.api.test_admin import draw, followed, listed, order
from tests.conftest import Server, run_server, wait_for
from tests.hugging_face import StandIn
from tests.library.shelves import most_fetched

REPO = "org/small"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def hugging_face(small_stable_diffusion: Path) -> Iterator[StandIn]:
    with StandIn() as running:
        running.add(REPO, small_stable_diffusion, licence="apache-2.0")
        yield running


def environment(folder: Path, hugging_face: StandIn, **more: str) -> dict[str, str]:
    (folder / "models").mkdir(exist_ok=True)
    return {"HUB_MODELS_DIR": str(folder / "models"), "HF_ENDPOINT": hugging_face.url, **more}


def ask(hub: Server) -> Answer:
    body = {"prompt": "a cat", "model": REPO, "size": "64x64", "num_inference_steps": 1}
    return call(f"{hub.url}/v1/images/generations", body)


def forget_weights(hub: Server) -> None:
    """They are gone, and not in memory."""
    shutil.rmtree(hub.cache / "weights")
    call(f"{hub.url}/v1/engine/unload", {"model": "*"})
    wait_for(lambda: listed(hub)[REPO]["state"] == "missing" and not listed(hub)[REPO]["loaded"])


@pytest.mark.slow
def test_orders_over_http_fetch_a_model_carry_it_and_bring_it_back(tmp_path: Path, hugging_face: StandIn) -> None:
    with run_server(tmp_path, **environment(tmp_path, hugging_face)) as hub:
        started = json.loads(call(f"{hub.url}/v1/admin/models/pull", {"repo": REPO}).body)
        events = followed(hub, started["id"])
        assert events[-1]["type"] == "task.completed", events[-1]
        task = events[-1]["task"]
        assert task["result"]["models"] == [REPO]
        assert task["progress"]["action"] == "download"
        assert draw(hub, REPO) == 200
        assert listed(hub)[REPO]["license"] == "apache-2.0"

        wrong = order(hub, "pull", repo="org/nothing")
        assert (wrong["status"], wrong["error"]["code"]) == ("failed", "repo_forbidden")

        bundled = order(hub, "export", models=[REPO], bundle="one.hubmodels")
        assert bundled["order"]["bundle"] == bundled["result"]["bundle"] == "one.hubmodels"
        found = json.loads(call(f"{hub.url}/v1/admin/bundles").body)["data"]
        assert [(each["bundle"], each["bytes"]) for each in found] == [("one.hubmodels", bundled["result"]["bytes"])]

        assert order(hub, "remove", model=REPO)["status"] == "completed"
        assert draw(hub, REPO) == 404
        assert order(hub, "import", bundle="one.hubmodels")["result"]["models"] == [REPO]
        assert draw(hub, REPO) == 200

        shutil.copytree(tmp_path / "cache" / "weights" / "models--org--small" / "snapshots", tmp_path / "copies")
        (only,) = (tmp_path / "copies").iterdir()
        only.rename(tmp_path / "models" / "mine")
        added = order(hub, "add", path="mine", license="mit")
        assert (added["status"], added["result"]["models"]) == ("completed", ["mine"]), added
        assert added["order"]["path"] == "mine"
        assert draw(hub, "mine") == 200


@pytest.mark.slow
def test_a_pull_that_is_cancelled_keeps_what_has_come_and_the_next_goes_on(
    tmp_path: Path, hugging_face: StandIn
) -> None:
    hugging_face.fault(UNET, "stall", at=1_000_000, seconds=120)
    with run_server(tmp_path, ready=False, **environment(tmp_path, hugging_face)) as hub:
        started = json.loads(call(f"{hub.url}/v1/admin/models/pull", {"repo": REPO}).body)
        again = json.loads(call(f"{hub.url}/v1/admin/models/pull", {"repo": REPO}).body)
        assert again["id"] == started["id"], "one that is at work already is not begun twice"
        blobs = tmp_path / "cache" / "weights" / "models--org--small" / "blobs"
        wait_for(lambda: most_fetched(blobs) >= 900_000)
        ended = json.loads(call(f"{hub.url}/v1/admin/tasks/{started['id']}", method="DELETE").body)
        assert ended["status"] == "cancelled"
        assert followed(hub, started["id"])[-1]["type"] == "task.cancelled"
        forgotten = json.loads(call(f"{hub.url}/v1/admin/tasks/{started['id']}", method="DELETE").body)
        assert forgotten["deleted"]
        assert call(f"{hub.url}/v1/admin/tasks/{started['id']}").status == 404
        assert REPO not in listed(hub)
        before = hugging_face.sent
        assert order(hub, "pull", repo=REPO)["status"] == "completed"
        whole = listed(hub)[REPO]["bytes"]
        assert hugging_face.sent - before < whole - 800_000


@pytest.mark.parametrize("mode", [pytest.param("refuse", marks=pytest.mark.slow), "wait"])
def test_a_request_has_missing_weights_fetched_where_the_owner_wants_that(
    tmp_path: Path, hugging_face: StandIn, mode: str
) -> None:
    with run_server(tmp_path, **environment(tmp_path, hugging_face, HUB_AUTO_PULL=mode)) as hub:
        assert order(hub, "pull", repo=REPO)["status"] == "completed"
        forget_weights(hub)
        hugging_face.fault(UNET, "stall", at=1_000_000, seconds=3)
        answer = ask(hub)
        if mode == "wait":
            assert answer.status == 200, answer.body
            return
        told = json.loads(answer.body)["error"]
        assert (answer.status, told["code"]) == (503, "model_loading")
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers.get("x-should-retry") != "false"
        wait_for(lambda: ask(hub).status == 200)


def test_without_the_owners_word_nothing_is_fetched(tmp_path: Path, hugging_face: StandIn) -> None:
    with run_server(tmp_path, **environment(tmp_path, hugging_face)) as hub:
        assert order(hub, "pull", repo=REPO)["status"] == "completed"
        forget_weights(hub)
        before = len(hugging_face.seen)
        answer = ask(hub)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "model_unusable")
        assert len(hugging_face.seen) == before


@pytest.mark.parametrize("mode", ["refuse", "wait"])
@pytest.mark.slow
def test_a_failed_fetch_is_told_and_not_begun_again_at_once(
    tmp_path: Path, small_stable_diffusion: Path, mode: str
) -> None:
    with StandIn() as own:
        own.add(REPO, small_stable_diffusion)
        with run_server(tmp_path, **environment(tmp_path, own, HUB_AUTO_PULL=mode)) as hub:
            assert order(hub, "pull", repo=REPO)["status"] == "completed"
            forget_weights(hub)
            own.fault(UNET, "status", at=404, times=99)
            wait_for(lambda: ask(hub).status != 503)
            answer = ask(hub)
            error: dict[str, Any] = json.loads(answer.body)["error"]
            assert (answer.status, error["code"]) == (404, "repo_not_found"), answer.body
            assert "127.0.0.1" not in error["message"]
            orders = json.loads(call(f"{hub.url}/v1/admin/tasks").body)["data"]
            assert [each["status"] for each in orders] == ["failed", "completed"]
