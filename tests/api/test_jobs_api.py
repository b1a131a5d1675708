"""Jobs over HTTP: coming back for a picture, following it, cancelling it, and what a restart leaves."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.api.conftest import (
    Answer,
    Event,
    as_file,
    call,
    data_url,
    from_base64,
    generate,
    picture,
    send_form,
    stream,
    upload,
)
from tests.api.test_edits import SOURCE
from tests.api.test_errors import check
from tests.conftest import Server, run_server, status, wait_for

WISH = {"prompt": "a red circle on a white background", "size": "128x128", "num_inference_steps": 8}
LONG = WISH | {"num_inference_steps": 150, "n": 10}
ALICE = {"authorization": "Bearer sk-alice-1234567890"}
BOB = {"authorization": "Bearer sk-bob-1234567890"}

FIELDS = {
    *("id", "object", "kind", "model", "status", "created_at", "started_at", "completed_at", "expires_at"),
    *("queue_position", "step", "steps", "progress", "eta", "result", "error"),
}


def start(server: Server, body: dict[str, Any], path: str = "/v1/images/generations", **headers: str) -> str:
    """The id of a job that was taken."""
    answer = call(f"{server.url}{path}?async=true", body, **headers)
    assert answer.status == 202, answer.body
    return str(answer.json["id"])


def job(server: Server, job_id: str, **headers: str) -> Any:
    answer = call(f"{server.url}/v1/images/jobs/{job_id}", **headers)
    assert answer.status == 200, answer.body
    assert set(answer.json) == FIELDS
    return answer.json


def ended(server: Server, job_id: str, **headers: str) -> Any:
    wait_for(lambda: job(server, job_id, **headers)["status"] not in ("queued", "in_progress"), timeout=60)
    return job(server, job_id, **headers)


def is_gone(server: Server, job_id: str, **headers: str) -> bool:
    return call(f"{server.url}/v1/images/jobs/{job_id}", **headers).status == 404


@pytest.mark.parametrize("how", ["query", "header", "both", "one of several preferences"])
def test_a_job_is_taken_at_once_and_its_picture_fetched_later(server: Server, how: str) -> None:
    query = "?async=true" if how in ("query", "both") else ""
    headers = {} if how == "query" else {"prefer": "wait=10, Respond-Async" if "several" in how else "respond-async"}
    answer = call(f"{server.url}/v1/images/generations{query}", WISH | {"seed": None}, **headers)
    assert answer.status == 202
    body = answer.json
    assert set(body) == FIELDS
    assert (body["object"], body["kind"], body["model"]) == ("image.job", "image_generation", "dall-e-2")
    assert body["status"] in ("queued", "in_progress")
    assert (body["result"], body["error"], body["completed_at"]) == (None, None, None)
    assert answer.headers["location"] == f"/v1/images/jobs/{body['id']}"
    assert answer.headers["x-job-id"] == body["id"]
    assert answer.headers.get("preference-applied") == (None if how == "query" else "respond-async")
    done = ended(server, body["id"])
    assert (done["status"], done["error"], done["progress"], done["eta"]) == ("completed", None, 100, None)
    assert done["step"] == done["steps"] == 8
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] <= time.time() + 1
    assert 86_000 < done["expires_at"] - done["completed_at"] < 86_800
    assert set(done["result"]) == {"created", "data", "seed"}
    assert picture(call(done["result"]["data"][0]["url"]).body).size == (128, 128)
    again = call(f"{server.url}/api/images/jobs/{body['id']}").json
    assert again["status"] == "completed"
    assert call(again["result"]["data"][0]["url"]).status == 200


def test_a_jobs_result_is_the_answer_that_its_request_would_have_had(server: Server) -> None:
    wish = WISH | {"seed": 5, "model": "gpt-image-1", "n": 2, "size": "100x100", "output_format": "webp"}
    waited = generate(server, **wish).json
    result = ended(server, start(server, wish))["result"]
    assert {**result, "created": 0} == {**waited, "created": 0}
    assert set(result["data"][0]) == {"b64_json"}
    assert result["warnings"]


def test_edits_and_variations_become_jobs_too(server: Server) -> None:
    parts = [("num_inference_steps", "2"), upload("image", SOURCE)]
    for path, kind, more in (("edits", "image_edit", [("prompt", "x")]), ("variations", "image_variation", [])):
        answer = send_form(server, *parts, *more, path=f"/v1/images/{path}?async=1")
        assert (answer.status, answer.json["kind"]) == (202, kind)
        assert ended(server, answer.json["id"])["status"] == "completed"


def test_a_job_tells_how_far_it_is(server: Server) -> None:
    job_id = start(server, LONG)
    try:
        seen = []
        until = time.monotonic() + 20
        while len({each["step"] for each in seen if each["step"] > 1}) < 4 and time.monotonic() < until:
            seen.append(job(server, job_id))
            time.sleep(0.05)
        running = [each for each in seen if each["status"] == "in_progress"]
        assert len(running) >= 4
        for each in running:
            assert each["steps"] == 1500
            assert each["progress"] == 100 * each["step"] // 1500
            assert each["queue_position"] is None
            assert each["started_at"] >= each["created_at"]
        steps = [each["step"] for each in running]
        assert steps == sorted(steps)
        assert all(each["eta"] > 0 for each in running if each["step"] > 1)
        other = start(server, WISH)
        body = job(server, other)
        assert body["queue_position"] in ((1,) if body["status"] == "queued" else (None,))
    finally:
        call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE")
    assert ended(server, other)["status"] == "completed"


def follow(server: Server, job_id: str) -> list[Event]:
    with stream(server, path=f"/v1/images/jobs/{job_id}/events", method="GET") as opened:
        assert opened.status == 200
        assert opened.headers["content-type"].startswith("text/event-stream")
        return list(opened)


def test_a_job_is_followed_to_its_end_with_previews(server: Server) -> None:
    job_id = start(server, WISH | {"num_inference_steps": 30, "partial_images": 2})
    events = follow(server, job_id)
    names = [event.name for event in events]
    assert names[0] == "job.progress"
    assert names[-1] == "job.completed"
    assert names.count("image_generation.partial_image") == 2
    assert set(names[1:-1]) == {"job.progress", "image_generation.partial_image"}
    progress = [event.data["job"] for event in events if event.name == "job.progress"]
    assert all(each["result"] is None and each["id"] == job_id for each in progress)
    steps = [each["step"] for each in progress]
    assert steps == sorted(steps)
    assert 0 < steps[-1] <= 30
    final = events[-1].data["job"]
    assert (final["status"], final["progress"]) == ("completed", 100)
    drawn = np.asarray(picture(call(final["result"]["data"][0]["url"]).body), float)
    previews = [from_base64(event.data["b64_json"]) for event in events if "partial" in event.name]
    distances = [np.abs(np.asarray(each.convert("RGB"), float) - drawn).mean() for each in previews]
    assert distances[0] > distances[1]
    (last,) = follow(server, job_id)
    assert last.name == "job.completed"
    assert last.data["job"]["result"]["data"]


def test_leaving_a_jobs_events_changes_nothing(server: Server) -> None:
    job_id = start(server, WISH | {"num_inference_steps": 20})
    with stream(server, path=f"/v1/images/jobs/{job_id}/events", method="GET") as opened:
        next(iter(opened))
    assert ended(server, job_id)["status"] == "completed"


def test_a_completed_job_whose_pictures_are_gone_says_so_in_the_envelope(server: Server) -> None:
    job_id = start(server, WISH | {"response_format": "b64_json"})
    ended(server, job_id)
    newest = max((server.cache / "files").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    check(call(f"{server.url}/v1/images/jobs/{job_id}"), 404, "not_found")
    (event,) = follow(server, job_id)
    assert event.name == "error"
    assert event.data["error"]["code"] == "not_found"
    assert call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE").status == 200


def test_cancelling_a_running_job_frees_the_device_and_tells_all_that_wait(server: Server) -> None:
    wish = LONG | {"seed": 77}
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(generate, server, **wish) for _ in range(2)]
        time.sleep(0.5)
        job_id = start(server, wish)  # joins them
        followed = pool.submit(follow, server, job_id)
        wait_for(lambda: job(server, job_id)["step"] > 3, timeout=30)
        begin = time.monotonic()
        answer = call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE")
        assert (answer.status, answer.json["status"], answer.json["result"]) == (200, "cancelled", None)
        assert generate(server, **(WISH | {"num_inference_steps": 1})).status == 200
        assert time.monotonic() - begin < 3
        for each in waiting:
            check(each.result(), 409, "job_cancelled")
            assert each.result().headers["x-job-id"] == job_id
            assert each.result().headers["x-should-retry"] == "false"
        events = followed.result()
    assert events[-1].name == "job.cancelled"
    assert events[-1].data["job"]["status"] == "cancelled"
    body = job(server, job_id)
    assert (body["status"], body["error"], body["result"], body["eta"]) == ("cancelled", None, None, None)
    begin = time.monotonic()
    assert generate(server, **(wish | {"num_inference_steps": 2, "n": 1})).status == 200
    assert time.monotonic() - begin < 3


def test_deleting_a_finished_job_deletes_its_pictures(server: Server) -> None:
    job_id = start(server, WISH | {"n": 2})
    urls = [item["url"] for item in ended(server, job_id)["result"]["data"]]
    assert [call(url).status for url in urls] == [200, 200]
    answer = call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE")
    assert answer.json == {"id": job_id, "object": "image.job", "deleted": True}
    assert [call(url).status for url in urls] == [404, 404]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        check(call(f"{server.url}/v1/images/jobs/{job_id}{path}", method=method), 404, "not_found", "job_id")
    assert job_id not in [each["id"] for each in call(f"{server.url}/v1/images/jobs").json["data"]]
    for url in urls:
        assert not (server.cache / "files" / url.rpartition("/")[2]).exists()


def test_a_deleted_result_is_not_handed_to_the_next_identical_request(server: Server) -> None:
    wish = WISH | {"seed": 991}
    job_id = start(server, wish)
    wait_for(lambda: call(f"{server.url}/v1/images/jobs?limit=1").json["data"][0]["status"] == "completed")
    call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE")
    again = generate(server, **wish)
    assert again.headers["x-job-id"] != job_id
    assert call(again.json["data"][0]["url"]).status == 200


def test_the_list_is_newest_first_and_without_results(server: Server) -> None:
    ids = []
    for _ in range(3):
        ids.append(start(server, WISH | {"num_inference_steps": 1}))
        ended(server, ids[-1])
    listed = call(f"{server.url}/v1/images/jobs").json
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"][:3]] == ids[::-1]
    assert len(listed["data"]) <= 20
    assert all(set(each) == FIELDS and each["result"] is None for each in listed["data"])
    times = [each["created_at"] for each in listed["data"]]
    assert times == sorted(times, reverse=True)
    assert [each["id"] for each in call(f"{server.url}/api/images/jobs?limit=1").json["data"]] == ids[2:]
    assert len(call(f"{server.url}/v1/images/jobs?limit=100").json["data"]) >= 3
    for limit in ("0", "101", "-1", "1.5", "x", "", "٣", "9" * 400, "0000000019999", "000000001" + "0" * 30):
        check(call(f"{server.url}/v1/images/jobs?limit={limit.replace('٣', '%D9%A3')}"), 400, param="limit")
    check(call(f"{server.url}/v1/images/jobs?limit=1&limit=2"), 400, param="limit")
    for name in ("after", "order", "Limit"):
        error = check(call(f"{server.url}/v1/images/jobs?limit=1&{name}=x"), 400, "unknown_parameter", name)
        assert error["message"] == f"Unknown parameter: '{name}'."


def test_every_request_for_images_tells_its_jobs_id(server: Server) -> None:
    answer = generate(server, **WISH)
    body = job(server, answer.headers["x-job-id"])
    assert (body["status"], body["kind"]) == ("completed", "image_generation")
    assert body["result"]["seed"] == answer.json["seed"]
    failed = generate(server, prompt="x", image="AAAA")
    check(failed, 400, "invalid_image", "image")
    body = job(server, failed.headers["x-job-id"])
    assert (body["status"], body["error"]) == ("failed", failed.json["error"])
    assert "x-job-id" not in generate(server, prompt="x", n=0).headers


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"n": 11}, 400, "n"),
    ({"size": "7x7"}, 400, "size"),
    ({"image": "AAAA"}, 400, "image"),
    ({"image": data_url(as_file(picture(SOURCE).resize((1, 1))))}, 400, "image"),
    ({"strict": True, "size": "100x100"}, 400, "size"),
    ({"model": "none"}, 404, "model"),
]


@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=lambda value: str(value)[:30])
def test_what_is_wrong_with_a_job_is_told_at_once(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    check(call(f"{server.url}/v1/images/generations?async=true", WISH | fields), status, param=param)


def test_stream_and_async_exclude_each_other_and_async_is_true_or_false(server: Server) -> None:
    url = f"{server.url}/v1/images/generations"
    check(call(f"{url}?async=true", WISH | {"stream": True}), 400, param="stream")
    preferred = call(url, WISH | {"stream": True}, prefer="respond-async")
    assert (preferred.status, preferred.headers.get("content-type")) == (200, "text/event-stream; charset=utf-8")
    for value in ("", "yes", "True", "2", "null"):
        check(call(f"{url}?async={value}", WISH), 400, param="async")
    for query in ("async=true&async=false", "async=false&async=true", "async=true&async=true"):
        check(call(f"{url}?{query}", WISH), 400, param="async")
    assert call(f"{url}?async=false", WISH, prefer="respond-async").status == 200
    assert call(url, WISH, prefer="return=minimal").status == 200
    other = call(f"{url}?async=true", WISH, prefer="return=minimal")
    assert (other.status, other.headers.get("preference-applied")) == (202, None)


def post(server: Server, body: dict[str, Any], *headers: tuple[str, str]) -> Answer:
    """A request whose headers may repeat."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    data = json.dumps(body).encode()
    connection.putrequest("POST", "/v1/images/generations")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *headers):
        connection.putheader(name, value)
    connection.endheaders(data)
    try:
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "preferences",
    [
        ["wait=10", "respond-async"],
        ["respond-async", "wait=10"],
        ["respond-async;q=1"],
        ["return=minimal; x, Respond-Async ; q=1"],
    ],
)
def test_every_prefer_header_counts_with_or_without_parameters(server: Server, preferences: list[str]) -> None:
    answer = post(server, WISH | {"num_inference_steps": 1}, *[("Prefer", each) for each in preferences])
    assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")


def test_what_only_holds_the_word_is_no_preference_for_a_job(server: Server) -> None:
    for other in ("x;respond-async", "respond-asynchronously", "x=respond-async"):
        assert post(server, WISH | {"num_inference_steps": 1}, ("Prefer", other)).status == 200


def test_two_different_idempotency_keys_are_a_400_and_one_sent_twice_is_one(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 1}
    error = check(
        post(server, wish, ("Idempotency-Key", "two-1"), ("Idempotency-Key", "two-2")), 400, param="idempotency_key"
    )
    assert "different keys" in error["message"]
    same = [post(server, wish, *[("Idempotency-Key", "two-3")] * count) for count in (2, 1)]
    assert [answer.status for answer in same] == [200, 200]
    assert same[0].headers["x-job-id"] == same[1].headers["x-job-id"]


def test_a_job_of_another_key_is_not_found(keyed_server: Server) -> None:
    wait_for(lambda: call(f"{keyed_server.url}/ready").status == 200)
    job_id = start(keyed_server, WISH | {"num_inference_steps": 60}, **ALICE)
    url = f"{keyed_server.url}/v1/images/jobs/{job_id}"
    for _ in range(2):  # while it runs, and when it is done
        for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
            check(call(url + path, method=method, **BOB), 404, "not_found")
            check(call(url + path, method=method), 401, "invalid_api_key")
        listed = call(f"{keyed_server.url}/v1/images/jobs?limit=100", **BOB).json["data"]
        assert job_id not in [each["id"] for each in listed]
        assert job_id in [each["id"] for each in call(f"{keyed_server.url}/v1/images/jobs", **ALICE).json["data"]]
        assert job(keyed_server, job_id, **ALICE)["status"] != "cancelled"
        assert ended(keyed_server, job_id, **ALICE)["status"] == "completed"
    assert call(url, method="DELETE", **ALICE).json["deleted"]


def left(server: Server, body: dict[str, Any], path: str = "/v1/images/generations", **headers: str) -> str:
    """The id of the newest job after a client has sent a request and left it as soon as it ran."""
    before = {each["id"] for each in call(f"{server.url}/v1/images/jobs?limit=100").json["data"]}

    def newest() -> set[str]:
        listed = call(f"{server.url}/v1/images/jobs?limit=100").json["data"]
        return {each["id"] for each in listed if each["step"] > 0} - before

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    named = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    connection.request("POST", path, json.dumps(body), named)
    wait_for(lambda: len(newest()) == 1, timeout=20)
    (job_id,) = newest()
    connection.close()
    return job_id


SLOW = WISH | {"num_inference_steps": 40}


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({}, {}, "cancelled"),
        ({"on_disconnect": "cancel"}, {}, "cancelled"),
        ({"on_disconnect": "finish"}, {}, "completed"),
        ({}, {"idempotency_key": "leaves"}, "completed"),
        ({"on_disconnect": "cancel"}, {"idempotency_key": "leaves and means it"}, "cancelled"),
    ],
    ids=["default", "cancel", "finish", "key", "key and cancel"],
)
def test_what_happens_when_a_client_leaves_is_its_own_choice(
    server: Server, fields: dict[str, Any], headers: dict[str, str], status: str
) -> None:
    key = {name: value.replace(" ", "-") for name, value in headers.items()}
    done = ended(server, left(server, SLOW | fields, **key))
    assert done["status"] == status
    if status == "completed":
        assert [call(item["url"]).status for item in done["result"]["data"]] == [200]


def end(server: Server, how: signal.Signals) -> None:
    """Ends the server's process; a killed one's worker too, which would end by itself a little later."""
    workers = psutil.Process(server.process.pid).children(recursive=True)
    os.kill(server.process.pid, how)
    server.process.wait(30)
    if how == signal.SIGKILL:
        for worker in workers:
            if worker.is_running():
                worker.kill()


def test_jobs_outlive_the_hub_and_what_it_had_not_finished_has_failed(tmp_path: Path) -> None:
    """Killed, then ended in order; the owner's setting says that a client that leaves cancels nothing."""
    ids: dict[str, str] = {}
    with run_server(tmp_path, HUB_ON_DISCONNECT="finish") as first:
        ids["done"] = start(first, WISH | {"seed": 3})
        before = ended(first, ids["done"])["result"]
        ids["left"] = left(first, SLOW)
        assert ended(first, ids["left"])["status"] == "completed"
        ids["killed"] = start(first, LONG, idempotency_key="killed")
        wait_for(lambda: job(first, ids["killed"])["step"] > 0)
        end(first, signal.SIGKILL)
    with run_server(tmp_path, ready=False) as second:
        body = job(second, ids["killed"])
        assert (body["status"], body["error"]["code"], body["result"]) == ("failed", "hub_restarted", None)
        assert body["error"]["type"] == "server_error"
        assert body["created_at"] <= body["started_at"] <= body["completed_at"]
        (event,) = follow(second, ids["killed"])
        assert event.name == "job.failed"
        after = job(second, ids["done"])["result"]
        name = before["data"][0]["url"].rpartition("/")[2]
        assert after["seed"] == before["seed"] == 3
        assert after["data"][0]["url"].rpartition("/")[2] == name
        assert after["data"][0]["url"].startswith(second.url)
        assert picture(call(after["data"][0]["url"]).body).size == (128, 128)
        assert len(job(second, ids["left"])["result"]["data"]) == 1
        listed = [each["id"] for each in call(f"{second.url}/v1/images/jobs").json["data"]]
        assert listed == [ids["killed"], ids["left"], ids["done"]]
        ids["again"] = start(second, LONG, idempotency_key="killed")
        assert ids["again"] != ids["killed"], "a key whose job failed runs anew"
        end(second, signal.SIGTERM)
    with run_server(tmp_path, ready=False) as third:
        body = job(third, ids["again"])
        assert (body["status"], body["error"]["code"]) == ("failed", "hub_restarted")
        assert body["completed_at"] is not None
        assert call(f"{third.url}/v1/images/jobs/{ids['again']}", method="DELETE").json["deleted"]
        assert is_gone(third, ids["again"])
        end(third, signal.SIGKILL)  # it would wait for its starting engine


def test_more_jobs_than_the_queue_takes_are_a_429_and_a_cancelled_one_makes_room(tmp_path: Path) -> None:
    """While the engine starts, all that comes in waits."""
    with run_server(tmp_path, ready=False, HUB_MAX_QUEUE="3") as server:
        url = f"{server.url}/v1/images/generations?async=true"
        with stream(server, WISH | {"stream": True}) as opened:
            assert (opened.status, status(f"{server.url}/ready")) == (200, 503), "the headers do not wait for it"
        wait_for(lambda: job(server, opened.headers["x-job-id"])["status"] == "cancelled")
        answers = [call(url, WISH) for _ in range(5)]
        assert [answer.status for answer in answers] == [202] * 3 + [429] * 2
        for answer in answers[3:]:
            check(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) > 0
        ids = [answer.json["id"] for answer in answers[:3]]
        bodies = [job(server, job_id) for job_id in ids]
        assert [body["queue_position"] for body in bodies] == [1, 2, 3]
        assert {body["status"] for body in bodies} == {"queued"}
        assert call(f"{server.url}/v1/images/jobs/{ids[0]}", method="DELETE").json["status"] == "cancelled"
        assert [job(server, job_id)["queue_position"] for job_id in ids] == [None, 1, 2]
        assert call(url, WISH).status == 202
        assert call(url, WISH).status == 429
        end(server, signal.SIGKILL)  # it would wait for its starting engine


def test_the_ids_of_jobs_cannot_be_guessed_from_one_another(server: Server) -> None:
    ids = [generate(server, **(WISH | {"num_inference_steps": 1})).headers["x-job-id"] for _ in range(4)]
    numbers = [int(each.removeprefix("job_"), 16) for each in ids]
    assert all(len(each) == 28 for each in ids)
    assert all(abs(one - other) > 2**64 for one, other in itertools.combinations(numbers, 2))
    for guess in ("job_", "job_" + "0" * 24, "x", "job_%00", "..%2f..%2fsecret", "job_" + "a" * 4000):
        answer = call(f"{server.url}/v1/images/jobs/{guess}")
        assert answer.status in (400, 404, 414)
