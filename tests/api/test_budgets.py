"""Money and time, from a client's request to what is told of it: a real hub, and a provider on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import KEYS, Answer, call
from tests.conftest import Server, run_server, wait_for
from tests.providers.protocols.openai import OpenAIProtocol
from tests.providers.upstream import KEY, Upstream, answers, cut, serving

MANIFEST = """
id = "painter"
name = "Painter"
description = "four cents a picture"
provider = "openai"
tasks = ["text-to-image"]
remote = {{ model = "gpt-image-2", base_url = "{url}", credentials = "openai", max_n = 10, leaves = true }}
defaults = {{ size = "1024x1024" }}
prices = {{ images = {{ "*/*" = 0.04 }} }}
"""

ALICE, BOB = ({"authorization": f"Bearer {key.partition(':')[2]}"} for key in KEYS.split(","))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with serving(OpenAIProtocol()) as running:
        yield running


@pytest.fixture
def hub(tmp_path: Path, upstream: Upstream) -> Iterator[Server]:
    """Bob may spend a dime; alice is the owner."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "painter.toml").write_text(MANIFEST.format(url=upstream.url))
    environ = {
        "HUB_API_KEYS": KEYS,
        "HUB_ADMIN_KEYS": "alice",
        "HUB_BUDGETS": "bob:0.1",
        "HUB_REMOTE_KEYS": "*",
        "HUB_MODELS_DIR": str(tmp_path / "models"),
        "OPENAI_API_KEY": KEY,
    }
    with run_server(tmp_path, ready=False, **environ) as running:
        yield running


def draw(hub: Server, who: dict[str, str] = BOB, **body: Any) -> Answer:
    wanted = {"model": "painter", "prompt": f"a cat {time.monotonic_ns()}", **body}
    return call(f"{hub.url}/v1/images/generations", wanted, **who)


def used(hub: Server, who: dict[str, str] = BOB, query: str = "by=key") -> Any:
    return call(f"{hub.url}/v1/usage?{query}", **who).json


def test_a_key_spends_its_budget_and_no_more_whoever_asks_at_once(hub: Server, upstream: Upstream) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: draw(hub), range(6)))
    assert sorted(each.status for each in found) == [200, 200, 402, 402, 402, 402]
    assert len(upstream.work) == 2
    refusal = next(each for each in found if each.status == 402)
    error = refusal.json["error"]
    assert (error["code"], error["param"], error["type"]) == ("budget_exceeded", None, "insufficient_quota")
    assert refusal.headers["x-should-retry"] == "false"
    told = used(hub, query="by=target")
    assert [(each["target"], each["requests"], each["cost_usd"]) for each in told["data"]] == [("painter", 2, 0.08)]
    assert told["budget"]["left_usd"] == 0.02
    assert draw(hub, ALICE).status == 200, "she has a budget of her own, which is none"


def test_a_request_of_more_pictures_than_are_paid_for_is_refused_whole(hub: Server, upstream: Upstream) -> None:
    assert draw(hub, n=3).status == 402
    assert upstream.work == []
    assert draw(hub, n=2).status == 200
    assert used(hub)["data"][0]["images"] == 2


def test_what_cannot_have_been_billed_is_given_back_and_what_may_have_been_is_not(
    hub: Server, upstream: Upstream
) -> None:
    upstream.faults.append(answers(400))
    assert draw(hub).status == 400
    assert used(hub)["data"] == []
    upstream.faults.append(cut(100))
    assert draw(hub).status == 502
    (bucket,) = used(hub)["data"]
    assert (bucket["requests"], bucket["images"], bucket["cost_usd"], bucket["estimated_usd"]) == (1, 0, 0.04, 0.04)


def test_what_the_machine_draws_itself_is_told_in_seconds_and_costs_nothing(server: Server) -> None:
    body = {"prompt": "a circle", "n": 2, "seed": 77, "num_inference_steps": 3, "size": "64x64"}
    assert call(f"{server.url}/v1/images/generations", {"model": "builtin", **body}).status == 200

    def buckets() -> list[Any]:
        found = call(f"{server.url}/v1/usage?by=key,model,target").json["data"]
        return [each for each in found if each["model"] == "builtin"]

    wait_for(lambda: bool(buckets()))
    (bucket,) = buckets()
    assert (bucket["key"], bucket["target"], bucket["cost_usd"]) == ("", "builtin", 0)
    assert bucket["images"] >= 2
    assert 0 < bucket["device_seconds"] < 60
