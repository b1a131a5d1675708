"""What a provider's faults look like from the other side of a hub: status, headers, envelope, jobs, streams, and
OpenAI's own client, which repeats a request unless it is told not to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from tests.api.conftest import Answer, call, stream
from tests.conftest import Server, run_server, wait_for
from tests.providers import hubs
from tests.providers.protocols import protocol
from tests.providers.upstream import KEY, Fault, Upstream, answers, cut, dropped, raw, serving, slow

Hub = tuple[Server, Upstream]

FAULTS: dict[str, tuple[Fault, int, str, dict[str, str | None]]] = {
    "400": (answers(400), 400, "provider_refused", {"x-should-retry": None}),
    "401": (answers(401), 503, "provider_key_refused", {"x-should-retry": "false"}),
    "429": (answers(429, Retry_After="77"), 503, "provider_busy", {"retry-after": "77", "x-should-retry": None}),
    "500": (answers(500), 502, "provider_failed", {"x-should-retry": "false"}),
    "504": (answers(504), 504, "provider_timeout", {"x-should-retry": "false"}),
    "cut": (cut(100), 502, "provider_failed", {"x-should-retry": "false"}),
    "dropped": (dropped(), 502, "provider_failed", {"x-should-retry": "false"}),
    "HTML": (raw(b"<html>secret words</html>"), 502, "provider_failed", {"x-should-retry": "false"}),
    "slow": (slow(60), 504, "provider_timeout", {"x-should-retry": "false"}),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("remote")
    with serving(protocol("openai")) as upstream:
        manifest = upstream.protocol.manifest(upstream, timeout=2)
        # An id for each fault: one that fails again and again is left alone, and a refused key is not used again.
        names = [*FAULTS, "job", "stream", "early stream", "client", "good"]
        each = {_id(name): _with_key(manifest, name) for name in names}
        away = upstream.protocol.manifest(upstream, base_url="http://127.0.0.1:1")
        models = hubs.write(folder / "models", {**each, "away": away})
        keys = hubs.credentials(folder, test=KEY, **{_id(name): KEY for name in names})
        environ = {"HUB_MODELS_DIR": str(models), "HUB_CREDENTIALS": str(keys), "HUB_REMOTE_KEYS": "*"}
        with run_server(folder, ready=False, **environ) as server:
            yield server, upstream


def _id(name: str) -> str:
    return f"m-{name.replace(' ', '-')}".lower()


def _with_key(manifest: Any, name: str) -> Any:
    return msgspec.structs.replace(manifest, remote=msgspec.structs.replace(manifest.remote, credentials=_id(name)))


def ask(hub: Hub, name: str, fault: Fault | None = None, query: str = "", **body: Any) -> Answer:
    server, upstream = hub
    upstream.forget()
    if fault is not None:
        upstream.faults.append(fault)
    answer = call(f"{server.url}/v1/images/generations{query}", {"prompt": "a fox", "model": _id(name), **body})
    for secret in (KEY, "secret words", "127.0.0.1", "Traceback"):
        assert secret not in f"{answer.headers} {answer.body.decode('utf-8', 'replace')[:3000]}".replace(server.url, "")
    return answer


def check(error: Any, code: str) -> None:
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_in_the_envelope(hub: Hub, name: str) -> None:
    fault, status, code, headers = FAULTS[name]
    answer = ask(hub, name, fault)
    assert answer.status == status, answer.body
    check(answer.json["error"], code)
    assert {header: answer.headers.get(header) for header in headers} == headers
    assert len(hub[1].work) == 1


def test_a_provider_out_of_reach_is_told_at_once(hub: Hub) -> None:
    answer = call(f"{hub[0].url}/v1/images/generations", {"prompt": "x", "model": "away"})
    assert answer.status == 503
    check(answer.json["error"], "provider_unreachable")
    assert "x-should-retry" not in answer.headers


def test_a_job_keeps_its_error(hub: Hub) -> None:
    taken = ask(hub, "job", answers(500), "?async=true")
    assert taken.status == 202
    place = f"{hub[0].url}/v1/images/jobs/{taken.json['id']}"
    wait_for(lambda: call(place).json["status"] == "failed", timeout=20)
    check(call(place).json["error"], "provider_failed")
    assert len(hub[1].work) == 1


@pytest.mark.parametrize("fault", [answers(500), raw(b"data: {", content_type="text/event-stream")])
def test_a_stream_ends_with_its_error(hub: Hub, fault: Fault) -> None:
    server, upstream = hub
    upstream.forget()
    upstream.faults.append(fault)
    body = {"prompt": "a fox", "model": _id("stream"), "stream": True, "partial_images": 1}
    with stream(server, body) as events:
        if events.status != 200:  # it failed before anything could be streamed
            assert events.status == 502
            assert events.headers["x-should-retry"] == "false"
            return
        *_, last = events
    check(last.data["error"], "provider_failed")


def test_openais_client_does_not_pay_twice(hub: Hub) -> None:
    server, upstream = hub
    upstream.forget()
    upstream.faults.append(answers(500))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=3)
    with client, pytest.raises(openai.InternalServerError):
        client.images.generate(prompt="a fox", model=_id("client"))
    assert len(upstream.work) == 1


def test_after_all_that_it_serves(hub: Hub) -> None:
    for _ in range(3):
        answer = ask(hub, "good", response_format="b64_json")
        assert answer.status == 200
        assert answer.json["data"][0]["b64_json"] in hub[1].encoded
