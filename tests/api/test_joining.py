"""Identical requests share one run, and an Idempotency-Key leads back to its answer."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from tests.api.conftest import Answer, as_file, call, data_url, generate, send_form, upload
from tests.api.test_errors import check
from tests.api.test_jobs_api import ALICE, BOB, ended, left, start
from tests.conftest import Server, wait_for

WISH = {"prompt": "a red circle on a white background", "size": "128x128", "num_inference_steps": 15}
SOURCE = as_file(Image.new("RGB", (128, 128), "white"))


def at_once(*calls: Any) -> list[Answer]:
    """Sent together, from as many threads."""
    barrier = threading.Barrier(len(calls))

    def send(each: Any) -> Answer:
        barrier.wait()
        answer: Answer = each()
        return answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(send, calls))


def ids(answers: list[Answer]) -> list[str]:
    assert {answer.status for answer in answers} == {200}, [answer.body[:300] for answer in answers]
    return [answer.headers["x-job-id"] for answer in answers]


def test_identical_seeded_requests_in_flight_make_one_picture(server: Server) -> None:
    answers = at_once(*[lambda: generate(server, seed=11, **WISH)] * 4)
    assert len(set(ids(answers))) == 1
    names = {answer.json["data"][0]["url"].rpartition("/")[2] for answer in answers}
    assert len(names) == 1
    assert all(call(answer.json["data"][0]["url"]).status == 200 for answer in answers)
    assert generate(server, seed=11, **WISH).headers["x-job-id"] != ids(answers)[0], "it is no cache"


def test_requests_without_a_seed_or_with_any_difference_make_their_own(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 6}
    answers = at_once(
        *[lambda: generate(server, **wish)] * 3,
        lambda: generate(server, seed=1, **wish),
        lambda: generate(server, seed=2, **wish),
        lambda: generate(server, seed=1, n=2, **wish),
        lambda: generate(server, seed=1, user="someone", **wish),
        lambda: generate(server, seed=1, negative_prompt="blue", **wish),
    )
    assert len(set(ids(answers))) == len(answers)
    assert len({answer.json["seed"] for answer in answers[:3]}) == 3


def test_the_same_body_on_another_path_is_answered_as_that_path_does(server: Server) -> None:
    """Under /v1 a gpt-image model answers with base64, under /api with a link, also where both are in flight."""
    wish = WISH | {"seed": 12, "model": "gpt-image-1"}
    answers = at_once(
        *[lambda: generate(server, "/v1/images/generations", **wish)] * 2,
        *[lambda: generate(server, "/api/images/generations", **wish)] * 2,
    )
    assert [set(answer.json["data"][0]) for answer in answers] == [{"b64_json"}] * 2 + [{"url"}] * 2
    assert len(set(ids(answers))) == 2


@pytest.mark.parametrize("as_text", [False, True])
def test_edits_of_different_pictures_in_flight_are_different(server: Server, as_text: bool) -> None:
    wish = [("prompt", "x"), ("seed", "4"), ("num_inference_steps", "12"), ("response_format", "b64_json")]
    wish.append(("strength", "0.3"))
    pictures = [as_file(Image.new("RGB", (128, 128), colour)) for colour in ("red", "red", "blue")]

    def edit(data: bytes) -> Answer:
        part = ("image", base64.b64encode(data)) if as_text else upload("image", data)
        return send_form(server, *wish, part)

    answers = at_once(*[lambda data=data: edit(data) for data in pictures])
    numbers = ids(answers)
    assert numbers[0] == numbers[1] != numbers[2]
    made = [answer.json["data"][0]["b64_json"] for answer in answers]
    assert made[0] == made[1] != made[2]


def test_a_picture_and_a_mask_are_not_two_pictures(server: Server) -> None:
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    wish = [("prompt", "x"), ("seed", "5"), ("num_inference_steps", "12")]
    first, second = upload("image", SOURCE), as_file(mask)
    answers = at_once(
        lambda: send_form(server, *wish, first, upload("mask", second)),
        lambda: send_form(server, *wish, first, upload("image", second)),
    )
    assert len(set(ids(answers))) == 2
    assert "warnings" not in answers[0].json
    assert answers[1].json["warnings"]


def test_different_keys_never_share(keyed_server: Server) -> None:
    wait_for(lambda: call(f"{keyed_server.url}/ready").status == 200)
    url = f"{keyed_server.url}/v1/images/generations"
    wish = WISH | {"seed": 13}
    answers = at_once(*[lambda: call(url, wish, **ALICE)] * 2, *[lambda: call(url, wish, **BOB)] * 2)
    numbers = ids(answers)
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]
    keyed = [call(url, WISH | {"num_inference_steps": 1}, idempotency_key="same", **owner) for owner in (ALICE, BOB)]
    assert len(set(ids(keyed))) == 2
    check(call(url, WISH | {"n": 2}, idempotency_key="same", **BOB), 409, "idempotency_key_reuse")


def test_one_of_two_that_share_may_leave(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 50, "seed": 14}
    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(generate, server, **wish)
        time.sleep(0.2)
        job_id = left_when_shared(server, wish)
        answer = stays.result()
    assert answer.status == 200
    assert answer.headers["x-job-id"] == job_id


def left_when_shared(server: Server, wish: dict[str, Any]) -> str:
    """A second client joins the newest job and leaves it while it runs."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/images/generations", json.dumps(wish), {"content-type": "application/json"})
    newest = call(f"{server.url}/v1/images/jobs?limit=1").json["data"][0]
    assert newest["status"] in ("queued", "in_progress")
    time.sleep(0.2)
    connection.close()
    return str(newest["id"])


def test_concurrent_requests_with_one_idempotency_key_are_one_run(server: Server) -> None:
    answers = at_once(*[lambda: call(f"{server.url}/v1/images/generations", WISH, idempotency_key="k-1")] * 5)
    assert len(set(ids(answers))) == 1
    assert len({answer.json["seed"] for answer in answers}) == 1


def test_a_replay_is_the_same_answer_with_links_that_work(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 2, "n": 2, "size": "100x100"}
    for more in ({"response_format": "b64_json"}, {}):
        url, key = f"{server.url}/v1/images/generations", f"k-2-{len(more)}"
        first = call(url, wish | more, idempotency_key=key)
        again = call(url, wish | more, idempotency_key=key)
        assert len(set(ids([first, again]))) == 1
        if more:
            assert again.body == first.body
            continue
        names = [[item["url"].rpartition("/")[2] for item in answer.json["data"]] for answer in (first, again)]
        assert names[0] == names[1]
        assert first.json | {"data": []} == again.json | {"data": []}
        files = [[call(item["url"]).body for item in answer.json["data"]] for answer in (first, again)]
        assert files[0] == files[1]
        assert all(file.startswith(b"\x89PNG") for file in files[0])


def test_a_key_may_be_replayed_as_a_job_and_a_job_as_an_answer(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 2}
    job_id = start(server, wish, idempotency_key="k-3")
    ended(server, job_id)
    answer = call(f"{server.url}/v1/images/generations", wish, idempotency_key="k-3")
    assert ids([answer]) == [job_id]
    replayed = call(f"{server.url}/v1/images/generations?async=true", wish, idempotency_key="k-3")
    assert (replayed.status, replayed.json["status"]) == (202, "completed")
    assert replayed.json["result"]["data"]


def test_a_key_with_another_body_is_a_409_that_is_not_tried_again(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 2}
    url = f"{server.url}/v1/images/generations"
    assert call(url, wish, idempotency_key="k-4").status == 200
    for other in (wish | {"n": 2}, wish | {"prompt": "another"}, wish | {"seed": 1}, wish | {"user": "x"}):
        answer = call(url, other, idempotency_key="k-4")
        check(answer, 409, "idempotency_key_reuse")
        assert answer.headers["x-should-retry"] == "false"
    form = send_form(server, ("prompt", "x"), upload("image", SOURCE), idempotency_key="k-4")
    check(form, 409, "idempotency_key_reuse")
    assert call(url, wish, idempotency_key="k-4").status == 200


def test_a_key_whose_request_failed_can_be_used_again(server: Server) -> None:
    url = f"{server.url}/v1/images/generations"
    check(call(url, WISH | {"image": "AAAA"}, idempotency_key="k-5"), 400, "invalid_image")
    assert call(url, WISH | {"num_inference_steps": 1}, idempotency_key="k-5").status == 200


@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 256, "é", "tab\tbed"])
def test_a_bad_key_is_a_400(server: Server, key: str) -> None:
    header = key.encode().decode("latin-1")
    answer = call(f"{server.url}/v1/images/generations", WISH, idempotency_key=header)
    check(answer, 400, param="idempotency_key")


def test_a_key_of_the_greatest_length_is_taken(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 1}
    answers = [call(f"{server.url}/v1/images/generations", wish, idempotency_key="~" * 255) for _ in range(2)]
    assert len(set(ids(answers))) == 1


def test_openais_client_sends_a_key_with_its_extra_headers(client: OpenAI) -> None:
    made = [
        client.images.generate(
            model="dall-e-2",
            prompt="a red circle",
            size="256x256",
            response_format="b64_json",
            extra_headers={"Idempotency-Key": "k-6"},
            extra_body={"num_inference_steps": 2},
        )
        for _ in range(2)
    ]
    assert made[0].data[0].b64_json == made[1].data[0].b64_json


def aigne(server: Server, **more: Any) -> Answer:
    body = {"input": {"prompt": "a red star", "size": "128x128", "modelOptions": {"num_inference_steps": 15}}}
    body["input"] |= more
    return call(f"{server.url}/api/v2/image", body)


def test_identical_requests_of_aignes_client_are_one_run_without_a_seed(server: Server) -> None:
    answers = at_once(*[lambda: aigne(server)] * 4)
    assert len(set(ids(answers))) == 1
    assert len({answer.json["images"][0]["filename"] for answer in answers}) == 1
    assert aigne(server).headers["x-job-id"] != ids(answers)[0]


def test_aignes_client_that_asks_for_another_type_of_file_gets_that(server: Server) -> None:
    answers = at_once(
        lambda: aigne(server, seed=1, outputFileType="file"),
        lambda: aigne(server, seed=1, outputFileType="url"),
        lambda: aigne(server, seed=1),
    )
    assert [answer.json["images"][0]["type"] for answer in answers] == ["file", "url", "url"]
    numbers = ids(answers)
    assert numbers[1] == numbers[2] != numbers[0]


def test_aignes_client_that_leaves_and_comes_again_gets_the_picture_that_was_made_meanwhile(server: Server) -> None:
    wish = {"prompt": "a blue ring", "size": "128x128", "num_inference_steps": 25}
    body = {"input": {"prompt": wish["prompt"], "modelOptions": {"size": "128x128", "numInferenceSteps": 25}}}
    job_id = left(server, body, path="/api/v2/image")
    assert ended_without_taking(server, job_id) == "completed"
    begin = time.monotonic()
    answer = call(f"{server.url}/api/v2/image", body)
    assert answer.headers["x-job-id"] == job_id
    assert time.monotonic() - begin < 1
    assert call(answer.json["images"][0]["url"]).status == 200
    assert call(f"{server.url}/api/v2/image", body).headers["x-job-id"] != job_id, "it was given out once"


def ended_without_taking(server: Server, job_id: str) -> str:
    """A job's last status, by the list, which holds no results."""

    def status() -> str:
        listed = call(f"{server.url}/v1/images/jobs?limit=100").json["data"]
        return str(next(each["status"] for each in listed if each["id"] == job_id))

    wait_for(lambda: status() not in ("queued", "in_progress"), timeout=30)
    return status()


def test_a_client_that_left_a_seeded_request_with_finish_gets_it_by_asking_again(server: Server) -> None:
    wish = WISH | {"seed": 15, "on_disconnect": "finish", "image": data_url(SOURCE), "strength": 0.9}
    job_id = left(server, wish)
    assert ended_without_taking(server, job_id) == "completed"
    assert ids([generate(server, **wish)]) == [job_id]


def test_streams_of_identical_requests_share_one_run_and_a_replayed_one_is_its_end_alone(server: Server) -> None:
    wish = WISH | {"seed": 16, "stream": True, "partial_images": 1, "num_inference_steps": 16}
    first, second = at_once(*[lambda: generate(server, **wish)] * 2)
    assert len(set(ids([first, second]))) == 1
    for answer in (first, second):
        names = [line for line in answer.body.decode().splitlines() if line.startswith("event: ")]
        assert names[-1] == "event: image_generation.completed"
    assert first.body.splitlines()[-2] == second.body.splitlines()[-2], "the same picture, to the last byte"
    keyed = [
        call(f"{server.url}/v1/images/generations", wish | {"num_inference_steps": 4}, idempotency_key="k-7")
        for _ in range(2)
    ]
    assert len(set(ids(keyed))) == 1
    assert keyed[0].body.count(b"event: ") == 2
    assert keyed[1].body.count(b"event: ") == 1
    assert keyed[0].body.splitlines()[-2] == keyed[1].body.splitlines()[-2]
