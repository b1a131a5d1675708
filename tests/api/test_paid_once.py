"""What costs money is not paid for again where a client gives up waiting and comes again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.api.conftest import Answer, call
from tests.conftest import Server, run_server, wait_for
from tests.providers import hubs
from tests.providers.protocols import protocol
from tests.providers.upstream import KEY, Upstream, serving, slow

Hub = tuple[Server, Upstream]
SLOW = 4.0


@pytest.fixture(scope="module")
def serving_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("paid")
    with serving(protocol("openai")) as upstream:
        models = hubs.write(folder / "models", {"painter": upstream.protocol.manifest(upstream)})
        (models / "way.toml").write_text(
            'id = "way"\nname = "Way"\ndescription = ""\norder = "listed"\n[[targets]]\nmodel = "painter"\n'
        )
        environ = {
            "HUB_MODELS_DIR": str(models),
            "HUB_CREDENTIALS": str(hubs.credentials(folder, test=KEY)),
            "HUB_REMOTE_KEYS": "*",
        }
        with run_server(folder, ready=False, **environ) as server:
            yield server, upstream


@pytest.fixture
def hub(serving_hub: Hub) -> Hub:
    """With a provider that takes its time."""
    serving_hub[1].forget()
    serving_hub[1].faults.extend([slow(SLOW)] * 4)
    return serving_hub


def ask(hub: Hub, prompt: str, model: str = "painter", **headers: str) -> Answer:
    return call(f"{hub[0].url}/v1/images/generations", {"prompt": prompt, "model": model}, **headers)


def given_up(hub: Hub, prompt: str, model: str = "painter", retries: int = 0, **more: object) -> None:
    """OpenAI's client asks, and leaves after a while each time; the hub has heard of it."""
    client = openai.OpenAI(base_url=f"{hub[0].url}/v1", api_key="any", timeout=0.6, max_retries=retries)
    with client, pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt=prompt, model=model, extra_body=more)
    time.sleep(0.4)


@pytest.mark.parametrize("model", ["painter", "way"])
def test_a_client_that_times_out_and_tries_again_is_paid_for_once(hub: Hub, model: str) -> None:
    given_up(hub, f"a fox of {model}", model, retries=2)
    assert len(hub[1].work) == 1
    answer = ask(hub, f"a fox of {model}", model)
    assert answer.status == 200
    assert call(answer.json["data"][0]["url"]).body == hub[1].made[0]
    assert len(hub[1].work) == 1
    hub[1].faults.clear()
    again = ask(hub, f"a fox of {model}", model)
    assert again.headers["x-job-id"] != answer.headers["x-job-id"], "it was given out once"
    assert len(hub[1].work) == 2


def test_a_picture_that_was_finished_when_nobody_waited_goes_to_the_next_identical_request(hub: Hub) -> None:
    given_up(hub, "a wolf")
    listed = f"{hub[0].url}/v1/images/jobs?limit=1"
    wait_for(lambda: call(listed).json["data"][0]["status"] == "completed", timeout=20)
    begin = time.monotonic()
    assert ask(hub, "a wolf").status == 200
    assert time.monotonic() - begin < 1
    assert len(hub[1].work) == 1


def test_two_that_wait_for_the_same_are_two_pictures(hub: Hub) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(hub, "a hare"), range(2)))
    assert [answer.status for answer in answers] == [200, 200]
    assert len({answer.headers["x-job-id"] for answer in answers}) == 2
    assert len(hub[1].work) == 2


def test_the_first_of_two_is_found_again_while_the_second_is_waited_for(hub: Hub) -> None:
    with ThreadPoolExecutor(2) as pool:
        leaves = pool.submit(given_up, hub, "an owl")
        wait_for(lambda: len(hub[1].work) == 1, timeout=10)
        stays = pool.submit(ask, hub, "an owl")
        wait_for(lambda: len(hub[1].work) == 2, timeout=10)
        leaves.result()
        again = ask(hub, "an owl")
        assert again.headers["x-job-id"] != stays.result().headers["x-job-id"]
    assert len(hub[1].work) == 2


def test_who_says_cancel_or_no_store_or_asks_for_a_job_is_not_joined(hub: Hub) -> None:
    given_up(hub, "a mole", on_disconnect="cancel")
    log = hub[0].log
    wait_for(lambda: "its work is cancelled" in log.read_text(), timeout=10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, hub, "a mole", cache_control="no-store")
        jobs = [
            call(f"{hub[0].url}/v1/images/generations?async=true", {"prompt": "a newt", "model": "painter"}).json["id"]
            for _ in range(2)
        ]
        assert jobs[0] != jobs[1]
        assert waiting.result().status == 200
    wait_for(lambda: len(hub[1].work) == 4, timeout=10)
