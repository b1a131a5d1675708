"""OpenAI's own Python client, of any major version from 1.109 on, plain and async."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from picture_checks import (
    EDIT_PROMPT,
    KEY,
    PROMPT,
    SECOND_KEY,
    SMALL,
    URL,
    WRONG_KEY,
    Checks,
    araises,
    difference,
    encoded,
    expect,
    expect_edit,
    expect_masked_edit,
    expect_nearing,
    expect_red_circle,
    fetch,
    linked,
    mask_picture,
    opened,
    raises,
    source_picture,
)
from PIL import Image

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=60)
aclient = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=60)
check = Checks()
SOURCE = source_picture()


def only(answer: Any, field: str, n: int = 1) -> list[str]:
    """The `field` of each picture; fails where a picture has both fields, or the number is wrong."""
    expect(len(answer.data) == n, f"{len(answer.data)} pictures, not {n}")
    other = "b64_json" if field == "url" else "url"
    for each in answer.data:
        expect(getattr(each, field), f"a picture has no {field}")
        expect(getattr(each, other) is None, f"a picture has {other} beside {field}")
    expect(abs(answer.created - time.time()) < 60, f"created is {answer.created}")
    return [getattr(each, field) for each in answer.data]


def expect_usage(usage: Any, *, image_tokens: bool = False) -> None:
    """Whether the token counts are there and add up."""
    expect(usage is not None, "there is no usage")
    expect(usage.input_tokens > 0 and usage.output_tokens > 0, f"usage counts nothing: {usage}")
    expect(usage.total_tokens == usage.input_tokens + usage.output_tokens, f"usage does not add up: {usage}")
    details = usage.input_tokens_details
    expect(details.text_tokens + details.image_tokens == usage.input_tokens, f"usage details do not add up: {usage}")
    expect((details.image_tokens > 0) is image_tokens, f"image tokens of the input: {usage}")


# Models


@check("models: list")
def _() -> None:
    listed = {model.id: model for model in client.models.list()}
    for name in ("dall-e-2", "dall-e-3", "gpt-image-1"):
        expect(name in listed, f"{name} is not listed: {sorted(listed)}")
        model = listed[name]
        expect(model.object == "model" and isinstance(model.created, int) and model.owned_by, model)


@check("models: retrieve")
def _() -> None:
    model = client.models.retrieve("dall-e-3")
    expect(model.id == "dall-e-3" and model.object == "model", model)
    error = raises(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    expect(error.code == "model_not_found", error.code)


# Generations


@check("generate: no model, link by default")
def _() -> None:
    expect_red_circle(linked(only(client.images.generate(prompt=PROMPT, size=SMALL, extra_body={"seed": 1}), "url")[0]))


@check("generate: dall-e-2, link")
def _() -> None:
    answer = client.images.generate(model="dall-e-2", prompt=PROMPT, size=SMALL, user="someone")
    linked(only(answer, "url")[0])


@check("generate: dall-e-3, link, hd and vivid, wide")
def _() -> None:
    answer = client.images.generate(
        model="dall-e-3", prompt=PROMPT, size="1792x1024", quality="hd", style="vivid", response_format="url"
    )
    linked(only(answer, "url")[0], size="1792x1024")


@check("generate: dall-e-3, base64")
def _() -> None:
    answer = client.images.generate(model="dall-e-3", prompt=PROMPT, size="1024x1024", response_format="b64_json")
    opened(only(answer, "b64_json")[0], size="1024x1024")


@check("generate: gpt-image-1, base64 by default, resolved fields and usage")
def _() -> None:
    answer = client.images.generate(
        model="gpt-image-1", prompt=PROMPT, size="1024x1024", quality="low", background="opaque", moderation="low"
    )
    opened(only(answer, "b64_json")[0], size="1024x1024")
    expect(answer.size == "1024x1024", f"size {answer.size}")
    expect(answer.quality == "low", f"quality {answer.quality}")
    expect(answer.background == "opaque", f"background {answer.background}")
    expect(answer.output_format == "png", f"output_format {answer.output_format}")
    expect_usage(answer.usage)


@check("generate: gpt-image-1, auto values are resolved")
def _() -> None:
    answer = client.images.generate(
        model="gpt-image-1", prompt=PROMPT, size="auto", quality="auto", background="auto", moderation="auto"
    )
    opened(only(answer, "b64_json")[0], size=answer.size)
    expect(answer.quality in ("low", "medium", "high"), f"quality {answer.quality}")
    expect(answer.background in ("opaque", "transparent"), f"background {answer.background}")


@check("generate: gpt-image-1 tolerates response_format url")
def _() -> None:
    answer = client.images.generate(model="gpt-image-1", prompt=PROMPT, size=SMALL, response_format="url")
    linked(only(answer, "url")[0])


@check("generate: base URL /api, link by default for gpt-image-1 too")
def _() -> None:
    other = OpenAI(base_url=f"{URL}/api", api_key=KEY, max_retries=0)
    linked(only(other.images.generate(model="gpt-image-1", prompt=PROMPT, size=SMALL), "url")[0])


@check("generate: n=2 gives two pictures")
def _() -> None:
    answer = client.images.generate(model="dall-e-2", prompt=PROMPT, size=SMALL, n=2, response_format="b64_json")
    one, other = (opened(each) for each in only(answer, "b64_json", 2))
    expect(difference(one, other) > 0.5, "the two pictures are the same")


@check("generate: null parameters mean absent")
def _() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("model", "n", "quality", "response_format", "style", "background", "output_format", "output_compression")
    )
    nothing |= dict.fromkeys(("moderation", "stream", "partial_images"))
    answer = client.images.generate(prompt=PROMPT, size=SMALL, **nothing)
    linked(only(answer, "url")[0])


@check("generate: parallel n=1 gives pictures of their own")
def _() -> None:
    def one(_: int) -> str:
        answer = client.images.generate(model="dall-e-3", prompt=PROMPT, size=SMALL, response_format="b64_json")
        return only(answer, "b64_json")[0]

    with ThreadPoolExecutor(3) as pool:
        pictures = [opened(each) for each in pool.map(one, range(3))]
    expect(difference(pictures[0], pictures[1]) > 0.5, "two of three parallel pictures are the same")
    expect(difference(pictures[1], pictures[2]) > 0.5, "two of three parallel pictures are the same")


@check("generate: seed through extra_body, reproducible")
def _() -> None:
    def make(seed: int) -> str:
        body = {"seed": seed, "num_inference_steps": 4}
        answer = client.images.generate(prompt=PROMPT, size=SMALL, response_format="b64_json", extra_body=body)
        expect(answer.seed == seed, f"the answer tells seed {getattr(answer, 'seed', None)}")
        return only(answer, "b64_json")[0]

    first, again, other = make(11), make(11), make(12)
    expect(first == again, "the same seed gave another picture")
    expect(first != other, "another seed gave the same picture")


@check("generate: webp and jpeg")
def _() -> None:
    for kind in ("webp", "jpeg"):
        answer = client.images.generate(
            model="gpt-image-1", prompt=PROMPT, size=SMALL, output_format=kind, output_compression=80
        )
        opened(only(answer, "b64_json")[0], kind=kind.upper())
        expect(answer.output_format == kind, f"output_format {answer.output_format}")


@check("generate: lower compression quality makes smaller files")
def _() -> None:
    def make(quality: int) -> int:
        body = {"seed": 5}
        answer = client.images.generate(
            model="gpt-image-1", prompt=PROMPT, size=SMALL, output_format="jpeg", output_compression=quality,
            extra_body=body,
        )  # fmt: skip
        return len(only(answer, "b64_json")[0])

    small, large = make(10), make(95)
    expect(small < large, f"{small} bytes at 10, {large} at 95")


@check("generate: links of webp and jpeg")
def _() -> None:
    for kind in ("webp", "jpeg"):
        answer = client.images.generate(
            model="gpt-image-1", prompt=PROMPT, size=SMALL, output_format=kind, response_format="url"
        )
        linked(only(answer, "url")[0], kind=kind.upper())


@check("generate: output_compression with png is accepted")
def _() -> None:
    answer = client.images.generate(
        model="gpt-image-1", prompt=PROMPT, size=SMALL, output_format="png", output_compression=50
    )
    opened(only(answer, "b64_json")[0])


# Edits and variations


@check("edit: one image, as a file")
def _() -> None:
    answer = client.images.edit(
        model="dall-e-2", image=("source.png", SOURCE, "image/png"), prompt=EDIT_PROMPT, size=SMALL
    )
    expect_edit(linked(only(answer, "url")[0]), SOURCE)


@check("edit: one image, as bare bytes, base64")
def _() -> None:
    answer = client.images.edit(
        model="dall-e-2", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, response_format="b64_json", n=1
    )
    expect_edit(opened(only(answer, "b64_json")[0]), SOURCE)


@check("edit: gpt-image-1, base64 by default, resolved fields and usage")
def _() -> None:
    answer = client.images.edit(
        model="gpt-image-1", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, quality="low", input_fidelity="high"
    )
    expect_edit(opened(only(answer, "b64_json")[0]), SOURCE)
    expect(answer.size == SMALL, f"size {answer.size}")
    expect(answer.output_format == "png", f"output_format {answer.output_format}")
    expect_usage(answer.usage, image_tokens=True)


@check("edit: a list of images")
def _() -> None:
    sources = [SOURCE, source_picture(colour="red"), source_picture(kind="JPEG"), source_picture(kind="WEBP")]
    answer = client.images.edit(model="gpt-image-1", image=sources, prompt=EDIT_PROMPT, size=SMALL)
    expect_edit(opened(only(answer, "b64_json")[0]), SOURCE)


@check("edit: a list of one image")
def _() -> None:
    answer = client.images.edit(model="gpt-image-1", image=[SOURCE], prompt=EDIT_PROMPT, size=SMALL)
    expect_edit(opened(only(answer, "b64_json")[0]), SOURCE)


@check("edit: with a mask, the rest stays")
def _() -> None:
    answer = client.images.edit(
        model="gpt-image-1", image=SOURCE, mask=mask_picture(), prompt=EDIT_PROMPT, size=SMALL, quality="low"
    )
    expect_masked_edit(opened(only(answer, "b64_json")[0]), SOURCE)


@check("edit: n=2")
def _() -> None:
    answer = client.images.edit(
        model="dall-e-2", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, n=2, response_format="b64_json"
    )
    one, other = (opened(each) for each in only(answer, "b64_json", 2))
    expect(difference(one, other) > 0.2, "the two pictures are the same")


@check("edit: null parameters mean absent")
def _() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("model", "n", "response_format", "quality", "background", "stream"))
    answer = client.images.edit(image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, **nothing)
    linked(only(answer, "url")[0])


@check("edit: webp and jpeg")
def _() -> None:
    for kind in ("webp", "jpeg"):
        answer = client.images.edit(
            model="gpt-image-1", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, output_format=kind
        )
        opened(only(answer, "b64_json")[0], kind=kind.upper())


@check("edit: seed through extra_body, reproducible")
def _() -> None:
    def make(seed: int) -> str:
        body = {"seed": seed}
        answer = client.images.edit(
            model="gpt-image-1", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, extra_body=body
        )  # fmt: skip
        return only(answer, "b64_json")[0]

    first, again, other = make(3), make(3), make(4)
    expect(first == again, "the same seed gave another picture")
    expect(first != other, "another seed gave the same picture")


@check("edit: bytes that are no picture are BadRequestError")
def _() -> None:
    error = raises(
        openai.BadRequestError,
        lambda: client.images.edit(model="dall-e-2", image=b"no picture at all", prompt=EDIT_PROMPT, size=SMALL),
    )
    expect(error.param and error.param.startswith("image"), f"param {error.param}")


@check("edit: a mask of another shape is BadRequestError")
def _() -> None:
    wide = encoded(Image.new("RGBA", (256, 128)), "PNG")
    error = raises(
        openai.BadRequestError,
        lambda: client.images.edit(model="gpt-image-1", image=SOURCE, mask=wide, prompt=EDIT_PROMPT, size=SMALL),
    )
    expect(error.param == "mask", f"param {error.param}")


@check("edit: a mask of another size is told of, and an error with strict")
def _() -> None:
    def make(**body: Any) -> Any:
        return client.images.edit(
            model="gpt-image-1", image=SOURCE, mask=mask_picture(64), prompt=EDIT_PROMPT, size=SMALL, extra_body=body
        )

    answer = make()
    opened(only(answer, "b64_json")[0])
    expect(any(each.startswith("mask") for each in answer.warnings), f"warnings {answer.warnings}")
    error = raises(openai.BadRequestError, lambda: make(strict=True))
    expect(error.param in ("mask", "size"), f"param {error.param}")


@check("variation: link")
def _() -> None:
    answer = client.images.create_variation(model="dall-e-2", image=SOURCE, size=SMALL)
    expect_edit(linked(only(answer, "url")[0]), SOURCE, least=0.2)


@check("variation: n=2, base64")
def _() -> None:
    answer = client.images.create_variation(image=SOURCE, size=SMALL, n=2, response_format="b64_json")
    one, other = (opened(each) for each in only(answer, "b64_json", 2))
    expect(difference(one, other) > 0.1, "the two variations are the same")


# Streams


def expect_stream(events: list[Any], prefix: str, partials: int, kind: str = "PNG") -> None:
    """Whether the events are `partials` previews, nearing the picture, and then the picture with its usage."""
    types = [event.type for event in events]
    wanted = [f"{prefix}.partial_image"] * partials + [f"{prefix}.completed"]
    expect(types == wanted, f"the events are {types}, not {wanted}")
    *previews, last = events
    indexes = [event.partial_image_index for event in previews]
    expect(indexes == list(range(partials)), f"the previews' indexes are {indexes}")
    final = opened(last.b64_json, kind=kind)
    expect_nearing([opened(event.b64_json, kind=kind) for event in previews], final)
    for event in events:
        expect(event.size == SMALL, f"size {event.size}")
        expect(event.output_format == kind.lower(), f"output_format {event.output_format}")
        expect(event.quality in ("low", "medium", "high"), f"quality {event.quality}")
        expect(event.background in ("opaque", "transparent"), f"background {event.background}")
        expect(abs(event.created_at - time.time()) < 60, f"created_at {event.created_at}")
    expect_usage(last.usage, image_tokens=prefix == "image_edit")


for count in (0, 1, 2, 3):

    @check(f"stream: generation, partial_images={count}")
    def _(count: int = count) -> None:
        stream = client.images.generate(
            model="gpt-image-1", prompt=PROMPT, size=SMALL, stream=True, partial_images=count
        )  # fmt: skip
        expect_stream(list(stream), "image_generation", count)


for count in (0, 3):

    @check(f"stream: edit, partial_images={count}")
    def _(count: int = count) -> None:
        stream = client.images.edit(
            model="gpt-image-1", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, stream=True, partial_images=count
        )
        expect_stream(list(stream), "image_edit", count)


@check("stream: without partial_images, jpeg")
def _() -> None:
    stream = client.images.generate(
        model="gpt-image-1", prompt=PROMPT, size=SMALL, stream=True, output_format="jpeg"
    )  # fmt: skip
    expect_stream(list(stream), "image_generation", 0, kind="JPEG")


@check("stream: previews come before the end")
def _() -> None:
    stream = client.images.generate(
        model="gpt-image-1",
        prompt=PROMPT,
        size=SMALL,
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 40},
    )
    times = [time.monotonic() for _ in stream]
    expect(len(times) == 3, f"{len(times)} events")
    expect(times[-1] - times[0] > 0.03, f"all events came at once, within {times[-1] - times[0]:.3f} s")


@check("stream: an error before the first event is a BadRequestError")
def _() -> None:
    error = raises(
        openai.BadRequestError,
        lambda: list(client.images.generate(model="gpt-image-1", prompt=PROMPT, size="huge", stream=True)),
    )
    expect(error.param == "size", f"param {error.param}")


# Errors


@check("error: unknown model is NotFoundError, model_not_found")
def _() -> None:
    error = raises(openai.NotFoundError, lambda: client.images.generate(model="no-such-model", prompt=PROMPT))
    expect(error.code == "model_not_found", f"code {error.code}")
    expect("no-such-model" in error.message and error.type == "invalid_request_error", f"{error.message} {error.type}")
    expect(error.param == "model", f"param {error.param}")


@check("error: bad n is BadRequestError that names n")
def _() -> None:
    for n in (0, 11, 1.5, "2", True):
        error = raises(openai.BadRequestError, lambda n=n: client.images.generate(prompt=PROMPT, n=n))
        expect(error.param == "n" and error.code, f"n={n!r}: param {error.param}, code {error.code}")


@check("error: unknown parameter is BadRequestError")
def _() -> None:
    error = raises(
        openai.BadRequestError, lambda: client.images.generate(prompt=PROMPT, extra_body={"colour": "red"})
    )  # fmt: skip
    expect(error.code == "unknown_parameter" and error.param == "colour", f"{error.code} {error.param}")


@check("error: bad n of an edit is BadRequestError that names n")
def _() -> None:
    error = raises(
        openai.BadRequestError, lambda: client.images.edit(image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, n=11)
    )  # fmt: skip
    expect(error.param == "n", f"param {error.param}")


@check("error: wrong key is AuthenticationError")
def _() -> None:
    other = OpenAI(base_url=f"{URL}/v1", api_key=WRONG_KEY, max_retries=0)
    error = raises(openai.AuthenticationError, lambda: other.images.generate(prompt=PROMPT))
    expect(error.code == "invalid_api_key", f"code {error.code}")
    raises(openai.AuthenticationError, lambda: list(other.models.list()))
    raises(openai.AuthenticationError, lambda: other.images.edit(image=SOURCE, prompt=EDIT_PROMPT))


@check("a second key works")
def _() -> None:
    other = client.with_options(api_key=SECOND_KEY)
    linked(only(other.images.generate(prompt=PROMPT, size=SMALL), "url")[0])


@check("x-request-id on answers and errors")
def _() -> None:
    answer = client.images.generate(prompt=PROMPT, size=SMALL)
    expect(answer._request_id, "an answer has no _request_id")
    error = raises(openai.NotFoundError, lambda: client.images.generate(model="no-such-model", prompt=PROMPT))
    expect(error.request_id, "an error has no request_id")
    expect(error.request_id != answer._request_id, "two requests have one id")


# Retries


@check("Idempotency-Key: the same answer again, another request is ConflictError")
def _() -> None:
    def make(prompt: str) -> str:
        answer = client.images.generate(
            prompt=prompt, size=SMALL, response_format="b64_json", extra_headers={"Idempotency-Key": f"again-{started}"}
        )
        return only(answer, "b64_json")[0]

    started = time.time()
    expect(make(PROMPT) == make(PROMPT), "the same key gave another picture")
    raises(openai.ConflictError, lambda: make(EDIT_PROMPT))


@check("Idempotency-Key: the client's own retry after its time-out makes one picture")
def _() -> None:
    start = time.monotonic()
    client.images.generate(prompt=PROMPT, size=SMALL, extra_body={"num_inference_steps": 80})
    patience = (time.monotonic() - start) / 2
    impatient = client.with_options(timeout=patience, max_retries=3)
    before = jobs_of_81_steps()
    start = time.monotonic()
    answer = impatient.images.generate(
        prompt=PROMPT,
        size=SMALL,
        extra_body={"num_inference_steps": 81},
        extra_headers={"Idempotency-Key": f"retry-{time.time()}"},
    )
    linked(only(answer, "url")[0])
    expect(time.monotonic() - start > patience, "the picture came before the client would retry")
    made = jobs_of_81_steps() - before
    expect(len(made) == 1, f"the retries made {len(made)} jobs")


def jobs_of_81_steps() -> set[str]:
    """The ids of such jobs; other majors of this client have made some, too."""
    status, _headers, body = fetch(f"{URL}/v1/images/jobs?limit=100", KEY)
    expect(status == 200, f"the jobs are answered with {status}")
    return {job["id"] for job in json.loads(body)["data"] if job["steps"] == 81}


# The async client


@check("async: models, generate, request id")
async def _() -> None:
    listed = [model.id async for model in aclient.models.list()]
    expect("gpt-image-1" in listed, listed)
    answer = await aclient.images.generate(model="gpt-image-1", prompt=PROMPT, size=SMALL)
    opened(only(answer, "b64_json")[0])
    expect(answer._request_id, "no _request_id")


@check("async: four at once")
async def _() -> None:
    answers = await asyncio.gather(
        *(
            aclient.images.generate(prompt=f"a {colour} circle on a white background", size=SMALL)
            for colour in ("red", "blue", "green", "yellow")
        )
    )
    links = [only(answer, "url")[0] for answer in answers]
    expect(len(set(links)) == 4, f"links are shared: {links}")
    for link in links:
        linked(link)


@check("async: edit with a mask")
async def _() -> None:
    answer = await aclient.images.edit(
        model="gpt-image-1", image=SOURCE, mask=mask_picture(), prompt=EDIT_PROMPT, size=SMALL
    )
    expect_masked_edit(opened(only(answer, "b64_json")[0]), SOURCE)


@check("async: variation")
async def _() -> None:
    answer = await aclient.images.create_variation(image=SOURCE, size=SMALL)
    linked(only(answer, "url")[0])


@check("async: stream, generation and edit")
async def _() -> None:
    stream = await aclient.images.generate(
        model="gpt-image-1", prompt=PROMPT, size=SMALL, stream=True, partial_images=2
    )  # fmt: skip
    expect_stream([event async for event in stream], "image_generation", 2)
    stream = await aclient.images.edit(
        model="gpt-image-1", image=SOURCE, prompt=EDIT_PROMPT, size=SMALL, stream=True, partial_images=1
    )
    expect_stream([event async for event in stream], "image_edit", 1)


@check("async: errors")
async def _() -> None:
    error = await araises(openai.NotFoundError, aclient.images.generate(model="no-such-model", prompt=PROMPT))
    expect(error.code == "model_not_found", f"code {error.code}")
    error = await araises(openai.BadRequestError, aclient.images.generate(prompt=PROMPT, n=11))
    expect(error.param == "n", f"param {error.param}")


if __name__ == "__main__":
    check.run()
