"""Streams: previews and pictures as server-sent events, with OpenAI's client and without."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from typing import Any

import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image

from hub.api.events import or_silence
from hub.types import Progress
from tests.api.conftest import (
    Event,
    as_file,
    call,
    data_url,
    from_base64,
    generate,
    send_form,
    stream,
    upload,
)
from tests.api.test_errors import check
from tests.conftest import Server, wait_for

WISH = {"prompt": "a red circle on a white background", "size": "128x128", "num_inference_steps": 10, "seed": 1}
SOURCE = as_file(Image.new("RGB", (128, 128), "white"))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), float)


def decoded(event: Event) -> Image.Image:
    return from_base64(event.data["b64_json"])


def events_of(server: Server, path: str = "/v1/images/generations", **body: Any) -> list[Event]:
    with stream(server, WISH | {"stream": True} | body, path) as opened:
        assert opened.status == 200
        assert opened.headers["content-type"].startswith("text/event-stream")
        assert opened.headers["cache-control"] == "no-store"
        assert opened.headers["x-request-id"].startswith("req_")
        assert opened.headers["x-job-id"].startswith("job_")
        return list(opened)


@pytest.mark.parametrize("partial_images", [0, 1, 2, 3])
def test_a_stream_has_the_previews_asked_for_each_nearer_to_the_picture(server: Server, partial_images: int) -> None:
    events = events_of(server, partial_images=partial_images)
    names = [event.name for event in events]
    assert names == ["image_generation.partial_image"] * partial_images + ["image_generation.completed"]
    assert all(event.data["type"] == event.name for event in events)
    final = array(decoded(events[-1]))
    common = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format", "image_index"}
    for index, event in enumerate(events[:-1]):
        assert set(event.data) == common | {"partial_image_index"}
        assert event.data["partial_image_index"] == index
        assert event.data["size"] == "128x128"
        assert decoded(event).size == (128, 128)
    distances = [np.abs(array(decoded(event)) - final).mean() for event in events[:-1]]
    assert distances == sorted(distances, reverse=True)
    assert len(set(distances)) == partial_images
    completed = events[-1].data
    assert set(completed) == common | {"usage", "seed", "warnings"}
    assert (completed["size"], completed["quality"], completed["background"], completed["output_format"]) == (
        *("128x128", "medium", "opaque", "png"),
    )
    assert abs(completed["created_at"] - time.time()) < 60
    assert completed["seed"] == 1
    assert completed["usage"] == {
        "input_tokens": 9,
        "output_tokens": 16,
        "total_tokens": 25,
        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
    }


def test_a_streamed_picture_equals_the_one_that_is_waited_for(server: Server) -> None:
    waited = from_base64(generate(server, response_format="b64_json", **WISH).json["data"][0]["b64_json"])
    for partial_images in (0, 3):
        streamed = decoded(events_of(server, partial_images=partial_images)[-1])
        assert np.array_equal(array(streamed), array(waited)), "previews change nothing"


def test_the_headers_come_at_once_and_the_previews_before_the_end(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 40, "partial_images": 3, "stream": True, "seed": None}
    with stream(server, wish) as opened:
        events = list(opened)
    assert len(events) == 4
    assert opened.at < events[-1].at / 4
    assert opened.at < events[0].at
    for before, after in itertools.pairwise(events):
        assert after.at - before.at > 0.1 * events[-1].at


def test_openais_client_reads_the_stream_of_a_generation(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            model="gpt-image-1",
            prompt="a red circle",
            size="1024x1024",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 9},
        )
    )
    assert [event.type for event in events] == [
        *("image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"),
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[2].usage.total_tokens > 0
    assert all(from_base64(event.b64_json).size == (1024, 1024) for event in events)


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_openais_client_reads_the_stream_of_an_edit(client: OpenAI, partial_images: int) -> None:
    events = list(
        client.images.edit(
            model="gpt-image-1",
            image=SOURCE,
            prompt="a blue square",
            stream=True,
            partial_images=partial_images,
            extra_body={"num_inference_steps": 12},
        )
    )
    previews = [event for event in events if event.type == "image_edit.partial_image"]
    assert [event.partial_image_index for event in previews] == list(range(partial_images))
    assert [event.type for event in events[partial_images:]] == ["image_edit.completed"]
    assert events[-1].usage.input_tokens_details.image_tokens == 16


def test_a_masked_edits_previews_keep_what_the_mask_protects(server: Server) -> None:
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    body = {"images": [{"image_url": data_url(SOURCE)}], "mask": {"image_url": data_url(as_file(mask))}}
    events = events_of(server, "/v1/images/edits", partial_images=2, **body)
    assert [event.name for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    for event in events:
        pixels = array(decoded(event))
        assert (pixels[:, 64:] == 255).all()
        assert pixels[:, :64].min() < 128


def test_variations_stream_as_edits(server: Server) -> None:
    answer = send_form(
        server,
        *(("stream", "true"), ("partial_images", "1"), ("num_inference_steps", "6")),
        upload("image", SOURCE),
        path="/v1/images/variations",
    )
    names = [line[7:] for line in answer.body.decode().splitlines() if line.startswith("event: ")]
    assert names == ["image_edit.partial_image", "image_edit.completed"]


def test_two_pictures_are_two_completed_events_whose_usage_adds_up(server: Server) -> None:
    events = events_of(server, n=2, partial_images=2, prompt="a shape")  # any, so that the two differ
    completed = [event.data for event in events if event.name == "image_generation.completed"]
    assert [each["image_index"] for each in completed] == [0, 1]
    assert [each["seed"] for each in completed] == [1, 2]
    assert completed[0]["b64_json"] != completed[1]["b64_json"]
    body = generate(server, **(WISH | {"model": "gpt-image-1", "n": 2, "prompt": "a shape"})).json
    usage = body["usage"]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(each["usage"][name] for each in completed) == usage[name]
    for index in (0, 1):
        previews = [event.data for event in events if "partial" in event.name and event.data["image_index"] == index]
        assert [each["partial_image_index"] for each in previews] == [0, 1]
        final = array(from_base64(completed[index]["b64_json"]))
        other = array(from_base64(completed[1 - index]["b64_json"]))
        last = array(from_base64(previews[-1]["b64_json"]))
        assert np.abs(last - final).mean() < np.abs(last - other).mean(), "a preview is of its own picture"


@pytest.mark.parametrize(("output_format", "magic"), [("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")])
def test_previews_have_the_format_asked_for(server: Server, output_format: str, magic: bytes) -> None:
    events = events_of(server, output_format=output_format, partial_images=2)
    assert len(events) == 3
    for event in events:
        assert event.data["output_format"] == output_format
        assert base64.b64decode(event.data["b64_json"]).startswith(magic)
        assert decoded(event).size == (128, 128)


def test_fewer_steps_than_previews_are_fewer_previews_and_no_error(server: Server) -> None:
    events = events_of(server, num_inference_steps=2, partial_images=3)
    previews = events[:-1]
    assert len(previews) < 3
    assert [event.data["partial_image_index"] for event in previews] == list(range(len(previews)))
    assert events[-1].name == "image_generation.completed"


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"n": 0}, 400, "n"),
    ({"size": "7x7"}, 400, "size"),
    ({"image": "AAAA"}, 400, "image"),
    ({"image": data_url(SOURCE), "strength": 1e-9}, 400, "strength"),
    ({"model": "no-such-model"}, 404, "model"),
    ({"num_inference_steps": 1000}, 400, "num_inference_steps"),
    ({"strict": True, "size": "100x100"}, 400, "size"),
]


@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=lambda value: str(value)[:30])
def test_what_is_wrong_with_a_request_is_told_by_a_status_and_not_in_the_stream(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    check(generate(server, **(WISH | {"stream": True} | fields)), status, param=param)


@pytest.mark.parametrize("value", [None, False])
def test_a_stream_that_is_null_or_false_is_a_plain_answer(server: Server, value: bool | None) -> None:
    answer = generate(server, stream=value, partial_images=None, **WISH)
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json["data"]


def test_links_are_not_streamed_and_the_event_says_so(server: Server) -> None:
    (event,) = events_of(server, response_format="url", num_inference_steps=2)
    assert [words.partition(":")[0] for words in event.data["warnings"]] == ["response_format"]
    assert "url" not in event.data
    refused = generate(server, **(WISH | {"stream": True, "response_format": "url", "strict": True}))
    check(refused, 400, "unsupported_value", "response_format")


def worker_of(server: Server) -> psutil.Process:
    (worker,) = psutil.Process(server.process.pid).children()
    return worker


def test_a_client_that_leaves_a_stream_ends_its_work(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 150, "n": 10, "partial_images": 3, "stream": True, "seed": None}
    with stream(server, wish) as opened:
        job_id = opened.headers["x-job-id"]
        worker = worker_of(server)
        used = sum(worker.cpu_times()[:2])
        wait_for(lambda: sum(worker.cpu_times()[:2]) > used + 0.2, timeout=20)
    url = f"{server.url}/v1/images/jobs/{job_id}"
    wait_for(lambda: call(url).json["status"] == "cancelled", timeout=5)
    assert opened.status == 200

    def idle() -> bool:
        before = sum(worker.cpu_times()[:2])
        time.sleep(0.2)
        return sum(worker.cpu_times()[:2]) - before < 0.05

    wait_for(idle, timeout=5)


def test_a_failure_in_mid_stream_is_an_error_event_and_the_hub_goes_on(server: Server) -> None:
    wish = WISH | {"num_inference_steps": 150, "n": 10, "partial_images": 3, "stream": True}
    with stream(server, wish) as opened:
        assert opened.status == 200
        time.sleep(0.3)
        worker_of(server).kill()
        events = list(opened)
    assert events[-1].name == "error"
    assert [event.name for event in events[:-1]] == [event.name for event in events if "partial" in event.name]
    assert set(events[-1].data) == {"error"}
    error = events[-1].data["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == ("engine_unavailable", "server_error")
    job = call(f"{server.url}/v1/images/jobs/{opened.headers['x-job-id']}").json
    assert (job["status"], job["error"]["code"], job["result"]) == ("failed", "engine_unavailable", None)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    assert client.images.generate(model="dall-e-2", prompt="x", extra_body={"num_inference_steps": 1}).data


def test_silence_is_filled_with_comments_until_the_next_event() -> None:
    async def main() -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        heard = []

        async def feed() -> None:
            await asyncio.sleep(0.12)
            queue.put_nowait(Progress(step=1, steps=2))
            queue.put_nowait(Progress(step=2, steps=2))
            await asyncio.sleep(0.12)
            queue.put_nowait(None)

        feeding = asyncio.create_task(feed())
        async with asyncio.timeout(10):
            heard.extend([event async for event in or_silence(queue, 0.05)])
        await feeding
        return heard

    heard = asyncio.run(main())
    steps = [event for event in heard if isinstance(event, Progress)]
    assert [event.step for event in steps] == [1, 2]
    first = heard.index(steps[0])
    assert 1 <= first <= 3
    assert heard[:first] == [b": keep-alive\n\n"] * first
    assert heard[first + 2 :]
    assert set(heard[first + 2 :]) == {b": keep-alive\n\n"}


def test_every_line_of_a_stream_is_an_event_a_comment_or_empty(server: Server) -> None:
    body = generate(server, stream=True, partial_images=1, **WISH).body.decode()
    assert body.startswith(":"), "something leaves at once"
    assert body.endswith("\n\n")
    for block in body.strip().split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith(":"):
            assert len(lines) == 1
            continue
        assert [line.partition(":")[0] for line in lines] == ["event", "data"]
        assert json.loads(lines[1][6:])["type"] == lines[0][7:]
