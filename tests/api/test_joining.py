"""Identical requests share one run, an Idempotency-Key leads back to its answer, and what was drawn with a seed is not
drawn again."""

from __future__ import annotations

import base64
import http.client
import json
import random
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI
from PIL import Image

from hub.api.params import CreateImageRequest, EditImageRequest, Wanted, of_edit, of_generation
from tests.api.conftest import Answer, as_file, call, data_url, generate, send_form, stream, upload
from tests.api.test_errors import check
from tests.api.test_jobs_api import ALICE, BOB, end, ended, follow, left, start
from tests.conftest import ROOT, Server, run_server, wait_for

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
    assert {answer.headers.get("x-hub-cache") for answer in answers} == {None}
    again = generate(server, seed=11, **WISH)
    assert again.headers["x-job-id"] != ids(answers)[0], "what is asked for later is a job of its own"
    assert again.headers["x-hub-cache"] == "hit"


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


# Repeats of what is finished

QUICK = {"prompt": "a green star", "size": "128x128", "num_inference_steps": 2}
SEEDS = iter(range(5000, 9000))


def ask(server: Server, body: dict[str, Any], query: str = "", **headers: str) -> Answer:
    answer = call(f"{server.url}/v1/images/generations{query}", body, **headers)
    assert answer.status in (200, 202), answer.body
    return answer


def is_hit(answer: Answer) -> bool:
    told = answer.headers.get("x-hub-cache")
    assert told in (None, "hit")
    return told is not None


def drawn(server: Server, **more: Any) -> tuple[dict[str, Any], Answer]:
    """A wish with a seed of its own, and its first answer."""
    wish = QUICK | {"seed": next(SEEDS)} | more
    answer = ask(server, wish)
    assert not is_hit(answer)
    return wish, answer


def name_of(answer: Answer) -> str:
    return str(answer.json["data"][0]["url"].rpartition("/")[2])


def test_a_repeat_is_a_new_job_with_the_same_pictures_under_names_of_their_own(server: Server) -> None:
    wish, first = drawn(server, n=2, size="100x100", model="gpt-image-1", response_format="url")
    again = ask(server, wish)
    assert is_hit(again)
    assert again.headers["x-job-id"] != first.headers["x-job-id"]
    assert again.json | {"data": [], "created": 0} == first.json | {"data": [], "created": 0}
    assert again.json["warnings"], "those of the pictures are told again"
    assert again.json["usage"]["output_tokens"] > 0
    assert {item["url"] for item in again.json["data"]}.isdisjoint(item["url"] for item in first.json["data"])
    pictures = [[call(item["url"]).body for item in answer.json["data"]] for answer in (first, again)]
    assert pictures[0] == pictures[1]
    assert pictures[0][0] != pictures[0][1]
    job = call(f"{server.url}/v1/images/jobs/{again.headers['x-job-id']}").json
    assert (job["status"], job["progress"], job["started_at"], job["steps"]) == ("completed", 100, None, 0)
    assert 86_000 < job["expires_at"] - job["completed_at"] < 86_800


def test_what_one_mode_and_path_has_drawn_answers_in_every_other(server: Server) -> None:
    wish, first = drawn(server)
    picture = call(first.json["data"][0]["url"]).body
    encoded = base64.b64encode(picture).decode()
    other = call(f"{server.url}/api/images/generations", wish | {"response_format": "b64_json"})
    assert (is_hit(other), other.json["data"]) == (True, [{"b64_json": encoded}])

    with stream(server, wish | {"stream": True}) as opened:
        assert opened.headers["x-hub-cache"] == "hit"
        (event,) = opened
    assert (event.name, event.data["b64_json"]) == ("image_generation.completed", encoded)

    taken = ask(server, wish, "?async=true")
    assert (taken.status, is_hit(taken), taken.json["status"]) == (202, True, "completed")
    assert call(taken.json["result"]["data"][0]["url"]).body == picture
    (last,) = follow(server, taken.json["id"])
    assert last.name == "job.completed"
    assert ask(server, wish, "?async=true").json["id"] != taken.json["id"], "its answer held the result"

    body = {"input": {"prompt": wish["prompt"], "modelOptions": {k: v for k, v in wish.items() if k != "prompt"}}}
    aignes = call(f"{server.url}/api/v2/image", body)
    assert is_hit(aignes)
    assert call(aignes.json["images"][0]["url"]).body == picture
    named = ask(server, wish | {"model": "builtin"}, "?async=1")
    assert (is_hit(named), named.json["model"]) == (True, "builtin")


def test_a_stream_that_asks_for_previews_is_answered_at_once_without(server: Server) -> None:
    wish = QUICK | {"seed": next(SEEDS), "num_inference_steps": 12, "stream": True, "partial_images": 2}
    names = []
    for _ in range(2):
        with stream(server, wish) as opened:
            names.append([event.name.rpartition(".")[2] for event in opened])
    assert names == [["partial_image", "partial_image", "completed"], ["completed"]]


def test_edits_and_variations_repeat_with_the_same_source_and_with_no_other(server: Server) -> None:
    sources = [as_file(Image.new("RGB", (128, 128), colour)) for colour in ("red", "blue")]
    parts = [("seed", str(next(SEEDS))), ("num_inference_steps", "3"), ("strength", "0.7")]
    edit = [*parts, ("prompt", "x")]
    for path, fields in (("edits", edit), ("variations", parts)):
        told = [
            is_hit(send_form(server, *fields, upload("image", source), path=f"/v1/images/{path}"))
            for source in (sources[0], sources[0], sources[1], sources[1])
        ]
        assert told == [False, True, False, True]
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    masked = [*edit, upload("image", sources[0]), upload("mask", as_file(mask))]
    assert [is_hit(send_form(server, *masked)) for _ in range(2)] == [False, True]


def test_a_source_behind_a_url_is_looked_at_anew_each_time(server: Server) -> None:
    _, made = drawn(server)
    wish = QUICK | {"seed": next(SEEDS), "image": made.json["data"][0]["url"], "num_inference_steps": 4}
    assert [is_hit(ask(server, wish)) for _ in range(2)] == [False, False]
    call(f"{server.url}/v1/images/jobs/{made.headers['x-job-id']}", method="DELETE")
    check(call(f"{server.url}/v1/images/generations", wish), 400, param="image")


OTHERS: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": None},
    {"n": 2},
    {"size": "128x64"},
    {"prompt": "a green  star"},
    {"output_format": "webp"},
    {"quality": "low"},
    {"style": "vivid"},
    {"num_inference_steps": 3},
    {"guidance_scale": 2.5},
    {"negative_prompt": "blue"},
    {"user": "someone else"},
    {"strict": True},
    {"image": data_url(SOURCE), "num_inference_steps": 4},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: str(other)[:30])
def test_what_differs_in_anything_that_is_drawn_is_drawn(server: Server, other: dict[str, Any]) -> None:
    wish, _ = drawn(server)
    assert not is_hit(ask(server, wish | other))
    assert is_hit(ask(server, wish))


def test_without_a_seed_every_request_is_drawn(server: Server) -> None:
    answers = [ask(server, QUICK) for _ in range(3)]
    assert not any(is_hit(answer) for answer in answers)
    assert len({answer.json["seed"] for answer in answers}) == 3
    keyed = [ask(server, QUICK, idempotency_key=f"unseeded-{k}") for k in range(2)]
    assert not any(is_hit(answer) for answer in keyed)
    assert is_hit(ask(server, QUICK, idempotency_key="unseeded-0")), "a replay draws nothing either"


def test_a_new_idempotency_key_with_the_same_wish_is_a_repeat(server: Server) -> None:
    wish, first = drawn(server)
    answers = at_once(*[lambda: ask(server, wish, idempotency_key="r-1")] * 4)
    assert all(is_hit(answer) for answer in answers)
    (job_id,) = set(ids(answers))
    assert job_id != first.headers["x-job-id"]
    assert ids([ask(server, wish, idempotency_key="r-1", cache_control="no-cache")]) == [job_id], "a key is a promise"


def test_the_pictures_of_one_key_never_answer_another(keyed_server: Server) -> None:
    wait_for(lambda: call(f"{keyed_server.url}/ready").status == 200)
    wish = QUICK | {"seed": next(SEEDS)}
    assert [is_hit(ask(keyed_server, wish, **owner)) for owner in (ALICE, BOB, ALICE, BOB)] == [
        *(False, False),
        *(True, True),
    ]


def test_deleting_one_job_leaves_the_pictures_of_its_repeats(server: Server) -> None:
    wish, first = drawn(server)
    second, third = ask(server, wish), ask(server, wish)
    for gone in (first, third):
        assert call(f"{server.url}/v1/images/jobs/{gone.headers['x-job-id']}", method="DELETE").json["deleted"]
        assert call(gone.json["data"][0]["url"]).status == 404
        assert call(second.json["data"][0]["url"]).status == 200
    assert is_hit(ask(server, wish))


def test_a_picture_whose_file_is_gone_is_drawn_and_repeated_from_then_on(server: Server) -> None:
    wish, first = drawn(server)
    (server.cache / "files" / name_of(first)).unlink()
    again = ask(server, wish)
    assert not is_hit(again)
    assert call(again.json["data"][0]["url"]).status == 200
    assert is_hit(ask(server, wish))


def test_what_failed_or_was_cancelled_is_drawn(server: Server) -> None:
    wish = QUICK | {"seed": next(SEEDS), "num_inference_steps": 60}
    job_id = start(server, wish)
    assert call(f"{server.url}/v1/images/jobs/{job_id}", method="DELETE").json["status"] == "cancelled"
    wish["num_inference_steps"] = 60
    assert [is_hit(ask(server, wish)) for _ in range(2)] == [False, True]
    for _ in range(2):
        bad = call(f"{server.url}/v1/images/generations", wish | {"size": "7x7"})
        check(bad, 400, param="size")
        assert "x-hub-cache" not in bad.headers


@pytest.mark.parametrize("header", ["no-cache", "max-age=0, No-Cache", "private,no-cache", "no-store"])
def test_cache_control_asks_for_a_fresh_run(server: Server, header: str) -> None:
    wish, first = drawn(server)
    fresh = ask(server, wish, cache_control=header)
    assert not is_hit(fresh)
    assert call(fresh.json["data"][0]["url"]).status == 200
    call(f"{server.url}/v1/images/jobs/{first.headers['x-job-id']}", method="DELETE")
    assert is_hit(ask(server, wish)) == (header != "no-store"), "what is not to be stored answers nobody else"
    if header == "no-store":
        call(f"{server.url}/v1/images/jobs?limit=1")
        assert call(f"{server.url}/v1/images/jobs/{fresh.headers['x-job-id']}").json["status"] == "completed"


@pytest.mark.parametrize("header", ["max-age=0", "no-transform", "", "x-no-cache", "only-if-cached"])
def test_other_directives_change_nothing(server: Server, header: str) -> None:
    wish, _ = drawn(server)
    assert is_hit(ask(server, wish, cache_control=header))


def test_fresh_runs_at_once_share_one_and_unstored_ones_do_not(server: Server) -> None:
    wish = WISH | {"seed": next(SEEDS)}
    for header, runs in (("no-cache", 1), ("no-store", 3)):
        answers = at_once(*[lambda header=header: ask(server, wish, cache_control=header)] * 3)
        assert len(set(ids(answers))) == runs
        assert not any(is_hit(answer) for answer in answers)


def test_files_that_go_at_any_moment_are_drawn_or_plainly_missed(server: Server) -> None:
    wishes = [QUICK | {"seed": next(SEEDS), "num_inference_steps": 1, "response_format": "b64_json"} for _ in range(2)]
    stop, rng = threading.Event(), random.Random(1)

    def delete() -> None:
        while not stop.is_set():
            for path in list((server.cache / "files").glob("*.png")):
                path.unlink(missing_ok=True)
            time.sleep(rng.uniform(0, 0.01))

    deleter = threading.Thread(target=delete)
    deleter.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            sent = [
                pool.submit(call, f"{server.url}/v1/images/generations", wishes[number % 2]) for number in range(60)
            ]
            answers = [each.result() for each in sent]
    finally:
        stop.set()
        deleter.join()
    assert {answer.status for answer in answers} <= {200, 404}
    for answer in answers:
        if answer.status == 404:
            check(answer, 404, "not_found")
        else:
            assert base64.b64decode(answer.json["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_a_repeat_is_answered_within_milliseconds(server: Server) -> None:
    """The bound leaves room for busy machines, but not for a packet that waits for the last one's acknowledgement
    (40 ms)."""
    wish, _ = drawn(server, size="256x256")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    for response_format in ("url", "b64_json"):
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            body = json.dumps(wish | {"response_format": response_format})
            connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - begin)
            assert (answer.status, answer.headers["x-hub-cache"]) == (200, "hit")
        print(f"a repeat, {response_format}: {1e3 * statistics.median(times):.1f} ms")  # noqa: T201 - shown by pytest -s
        assert statistics.median(times) < 0.03
    connection.close()


def own_model(folder: Path) -> Path:
    """The built-in model as another one, whose files may be changed."""
    (folder / "own" / "weights").mkdir(parents=True)
    for path in (ROOT / "models" / "builtin").rglob("*"):
        copy = folder / "own" / "weights" / path.relative_to(ROOT / "models" / "builtin")
        if path.is_dir():
            copy.mkdir()
        else:
            copy.symlink_to(path)
    text = (ROOT / "models" / "builtin.toml").read_text().partition("aliases = [")
    (folder / "own" / "own.toml").write_text(
        text[0].replace('id = "builtin"', 'id = "own"').replace('path = "builtin"', 'path = "weights"')
        + "aliases = ["
        + text[2]
    )
    return folder / "own"


@pytest.mark.slow
def test_a_repeat_outlives_the_hub_and_ends_with_another_model_device_or_setting(tmp_path: Path) -> None:
    """Where the engine has not started yet, a request that needs it is seen to wait."""
    wish = QUICK | {"seed": next(SEEDS), "model": "mine"}
    models = own_model(tmp_path)
    usual = {"HUB_MODELS_DIR": str(models), "HUB_ALIASES": "mine:own"}
    with run_server(tmp_path, **usual) as server:
        ask(server, wish)
        end(server, signal.SIGKILL)

    def repeats(**environ: str) -> bool:
        with run_server(tmp_path, ready=False, **{**usual, **environ}) as server:
            answer = ask(server, wish, "?async=true", prefer="respond-async")
            assert answer.json["status"] == ("completed" if is_hit(answer) else "queued")
            end(server, signal.SIGKILL)
            return is_hit(answer)

    assert repeats()
    assert not repeats(HUB_ALIASES="mine:builtin")
    assert not repeats(HUB_DEVICE="cpu")
    assert not repeats(HUB_REUSE_RESULTS="false")
    assert repeats()
    changed = next(path for path in (models / "weights").rglob("*.safetensors"))
    data = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(data)
    assert not repeats()


@pytest.mark.slow
def test_a_repeat_ends_with_the_jobs_time_to_live(tmp_path: Path) -> None:
    with run_server(tmp_path, HUB_JOB_TTL="3", HUB_FILE_TTL="1") as server:
        wish, _ = drawn(server)
        time.sleep(2)
        assert is_hit(ask(server, wish))
        time.sleep(2)
        assert is_hit(ask(server, wish)), "each one keeps the picture for its own time"
        time.sleep(3.2)
        assert not is_hit(ask(server, wish))


# What tells requests apart


def generation(**fields: Any) -> Wanted:
    return of_generation(CreateImageRequest(**{"prompt": "x", "seed": 1} | fields))


def edit(**fields: Any) -> Wanted:
    return of_edit(EditImageRequest(**{"prompt": "x", "seed": 1, "image": "AAAA"} | fields))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (generation(), generation(model="dall-e-3", response_format="url", stream=True), True),
        (generation(on_disconnect="finish"), generation(response_format_camel="b64_json"), True),
        (generation(image="AAAA"), generation(image=["AAAA"]), True),
        (generation(image="AAAA", size="64x64"), edit(size="64x64"), True),
        (generation(image="AAAA"), edit(), False),  # the defaults of their size differ
        (edit(mask="AAAA"), edit(image=["AAAA", "AAAA"]), False),
        (edit(image=["AAAA", "BBBB"]), edit(image=["BBBB", "AAAA"]), False),
        (edit(), msgspec.structs.replace(edit(), images=(b"AAAA",)), False),
        (generation(), generation(partial_images=1), False),  # there may be a warning of it
        (generation(output_compression=100), generation(output_compression=50), False),
    ],
)
def test_a_recipe_is_the_same_where_the_pictures_must_be(one: Wanted, other: Wanted, same: bool) -> None:
    recipes = [wanted.digests("url True", "model 1 cpu")[1] for wanted in (one, other)]
    assert None not in recipes
    assert (recipes[0] == recipes[1]) == same


@pytest.mark.parametrize(
    "wanted",
    [
        generation(seed=None),
        generation(image="http://x/y.png"),
        generation(image=["AAAA", "HTTPS://x/y.png"]),
        edit(mask="https://x/y.png"),
    ],
)
def test_where_the_pictures_may_differ_there_is_no_recipe(wanted: Wanted) -> None:
    fingerprint, recipe = wanted.digests("url True", "model 1 cpu")
    assert len(fingerprint) == 64
    assert recipe is None


def test_the_model_counts_in_the_recipe_alone_and_the_answers_form_in_the_fingerprint_alone() -> None:
    plain = generation().digests("url True", "model 1 cpu")
    other_model, other_answer = (
        generation().digests("url True", "model 2 cpu"),
        generation().digests("b64_json True", "model 1 cpu"),
    )
    assert (other_model[0] == plain[0], other_model[1] == plain[1]) == (True, False), "a key outlives new weights"
    assert (other_answer[0] == plain[0], other_answer[1] == plain[1]) == (False, True)
    streamed = generation(stream=True).digests("url True", "model 1 cpu")
    assert (streamed[0] == plain[0], streamed[1] == plain[1]) == (False, True)
