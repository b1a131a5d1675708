"""Routes and remote models through the real server: who has served stands in the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import call, generate, stream
from tests.conftest import Server, run_server, wait_for
from tests.providers.protocols.openai import OpenAIProtocol
from tests.providers.upstream import KEY, Upstream, answers, serving
from tests.routes import write_credentials, write_local, write_remote, write_route

SETTINGS = """
remote_keys = ["alice"]
default_model = "image"
[budgets]
alice = 1.0
[api_keys]
alice = "sk-alice-1234567890"
bob = "sk-bob-1234567890"
"""
ALICE, BOB = ("Bearer sk-alice-1234567890", "Bearer sk-bob-1234567890")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with serving(OpenAIProtocol()) as upstream:
        yield upstream
        assert upstream.failures == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Server]:
    """`far` may be used by alice alone; `small` has no weights, and nobody waits for the engine."""
    folder = tmp_path_factory.mktemp("routes")
    models = folder / "models"
    write_local(models, weights=False)
    write_remote(models, "far", upstream.url)
    write_route(models, "small", "far", order="local-first")
    write_route(models, "far", name="only-far")
    settings = folder / "hub.toml"
    settings.write_text(SETTINGS)
    environment = {
        "HUB_MODELS_DIR": str(models),
        "HUB_CREDENTIALS": str(write_credentials(folder, "far")),
    }
    with run_server(folder, "--config", str(settings), ready=False, **environment) as running:
        yield running
        assert KEY not in running.log.read_text()


def ask(server: Server, authorization: str = ALICE, **body: object):  # type: ignore[no-untyped-def]
    return call(f"{server.url}/v1/images/generations", {"prompt": "a star", **body}, authorization=authorization)


def test_the_answer_names_who_has_served_and_why_not_the_first(server: Server) -> None:
    answer = ask(server, model="image")
    assert (answer.status, answer.headers["x-hub-target"]) == (200, "far")
    told = "target: served by far; small was left out: it has no weights on this machine"
    assert answer.json["warnings"] == [told]


def test_the_default_model_may_be_a_route(server: Server) -> None:
    assert ask(server).headers["x-hub-target"] == "far"


def test_a_route_whose_first_target_serves_warns_of_nothing(server: Server) -> None:
    answer = ask(server, model="only-far")
    assert answer.headers["x-hub-target"] == "far"
    assert "warnings" not in answer.json


def test_the_job_of_an_answer_names_it_too(server: Server) -> None:
    made = ask(server, model="image")
    job = call(f"{server.url}/v1/images/jobs/{made.headers['x-job-id']}", authorization=ALICE)
    assert (job.status, job.headers["x-hub-target"]) == (200, "far")
    assert job.json["result"]["warnings"] == made.json["warnings"]


def test_so_does_one_that_was_asked_for_as_a_job(server: Server) -> None:
    url = f"{server.url}/v1/images/generations?async=true"
    started = call(url, {"prompt": "a star", "model": "image"}, authorization=ALICE)
    assert started.status == 202
    where = server.url + started.headers["location"]
    wait_for(lambda: call(where, authorization=ALICE).json["status"] == "completed", 30)
    assert call(where, authorization=ALICE).headers["x-hub-target"] == "far"


def test_a_repeated_key_is_answered_with_the_same_target(server: Server, upstream: Upstream) -> None:
    body = {"prompt": "a star", "model": "image"}
    asked = len(upstream.work)
    for _ in range(2):
        answer = call(
            f"{server.url}/v1/images/generations", body, authorization=ALICE, idempotency_key="once-and-no-more"
        )
        assert answer.headers["x-hub-target"] == "far"
    assert answer.headers["x-hub-cache"] == "hit"
    assert len(upstream.work) == asked + 1


def test_a_seed_is_no_recipe_where_another_machine_draws(server: Server, upstream: Upstream) -> None:
    asked = len(upstream.work)
    for model in ("image", "far"):
        for _ in range(2):
            answer = ask(server, model=model, seed=5)
            assert answer.status == 200
            assert answer.headers["x-hub-cache"] is None
    assert len(upstream.work) == asked + 4


def test_a_streams_headers_name_the_target_only_where_no_other_one_can_serve(server: Server) -> None:
    for model, target in (("image", None), ("far", "far")):
        body = {"prompt": "a star", "model": model, "stream": True, "partial_images": 1}
        with stream(server, body, authorization=ALICE) as opened:
            assert (opened.status, opened.headers["x-hub-target"]) == (200, target)
            events = list(opened)
        assert [each.name for each in events] == ["image_generation.partial_image", "image_generation.completed"]
        assert bool(events[-1].data.get("warnings")) == (model == "image")


def test_a_key_that_may_not_leave_is_refused_with_what_to_set(server: Server, upstream: Upstream) -> None:
    asked = len(upstream.asked)
    answer = ask(server, BOB, model="only-far")
    assert answer.status == 403
    error = answer.json["error"]
    assert (error["code"], error["type"], error["param"]) == ("remote_not_allowed", "permission_error", "model")
    assert 'remote_keys = ["bob"]' in error["message"]
    assert (answer.headers["x-hub-target"], answer.headers["x-should-retry"]) == (None, "false")
    refused = ask(server, BOB, model="image")
    assert (refused.status, refused.json["error"]["code"]) == (503, "model_unusable")
    assert len(upstream.asked) == asked


def test_a_failure_names_what_was_tried_and_none_of_the_providers_words(server: Server, upstream: Upstream) -> None:
    upstream.faults.append(answers(500))
    answer = ask(server, model="image")
    assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
    assert answer.json["error"]["code"] == "provider_failed"
    message = answer.json["error"]["message"]
    assert "small has no weights on this machine; far failed (provider_failed)" in message
    assert "secret" not in message and KEY not in message and upstream.url not in json.dumps(answer.json)


def test_other_paths_name_the_target_too(server: Server) -> None:
    answer = generate(server, "/api/images/generations", prompt="a star")
    assert answer.status == 401
    answer = call(f"{server.url}/api/images/generations", {"prompt": "a star"}, authorization=ALICE)
    assert (answer.status, answer.headers["x-hub-target"]) == (200, "far")


def test_a_budget_that_is_spent_is_told_before_anything_is_asked(
    tmp_path: Path, upstream: Upstream, server: Server
) -> None:
    """`server` has a budget of a dollar; this one has less than a picture costs."""
    models = tmp_path / "models"
    write_local(models, weights=False)
    write_remote(models, "far", upstream.url)
    (tmp_path / "hub.toml").write_text('remote_keys = ["*"]\ndefault_model = "far"\n[budgets]\n"*" = 0.01\n')
    environment = {"HUB_MODELS_DIR": str(models), "HUB_CREDENTIALS": str(write_credentials(tmp_path, "far"))}
    with run_server(tmp_path, ready=False, **environment) as poor:
        asked = len(upstream.asked)
        answer = generate(poor, prompt="a star")
        assert (answer.status, answer.json["error"]["code"]) == (402, "budget_exceeded")
        assert answer.json["error"]["type"] == "insufficient_quota"
        assert len(upstream.asked) == asked
