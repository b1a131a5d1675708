"""Edits and variations, as forms and as JSON; masks; formats; what the answers tell."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image, ImageDraw

from tests.api.conftest import (
    Answer,
    Part,
    as_file,
    call,
    data_url,
    from_base64,
    generate,
    picture,
    send_form,
    upload,
)
from tests.conftest import Server

QUICK: list[Part] = [("num_inference_steps", "2"), ("seed", "3"), ("response_format", "b64_json")]
PROMPT: Part = ("prompt", "a red circle on a white background")


def square(size: tuple[int, int] = (128, 128), colour: tuple[int, ...] = (30, 60, 220)) -> Image.Image:
    """A blue square on white."""
    drawn = Image.new("RGB", size, "white")
    ImageDraw.Draw(drawn).rectangle((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), colour)
    return drawn


SOURCE = as_file(square())


def left_half(size: tuple[int, int] = (128, 128)) -> Image.Image:
    """OpenAI's mask whose left half may change."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    return mask


def drawn(answer: Answer, index: int = 0) -> Image.Image:
    assert answer.status == 200, answer.body
    return from_base64(answer.json["data"][index]["b64_json"]).convert("RGB")


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.int16)


def test_every_way_of_naming_one_picture_gives_the_same_edit(server: Server) -> None:
    link = server.url + str(generate(server, prompt="x", size="128x128", num_inference_steps=1).json["data"][0]["url"])
    link = link.removeprefix(server.url)
    source = call(link).body
    forms = [
        send_form(server, PROMPT, *QUICK, upload("image", source)),
        send_form(server, PROMPT, *QUICK, upload("image[]", source)),
        send_form(server, PROMPT, *QUICK, ("image", source, "a.txt", "text/plain")),
        send_form(server, upload("image", source), *QUICK, PROMPT),
        send_form(server, PROMPT, *QUICK, ("image", base64.b64encode(source))),
        send_form(server, PROMPT, *QUICK, ("image", data_url(source))),
        send_form(server, PROMPT, *QUICK, ("image", link)),
    ]
    body = {"prompt": PROMPT[1], "num_inference_steps": 2, "seed": 3, "response_format": "b64_json"}
    sources: list[dict[str, Any]] = [
        {"images": [{"image_url": data_url(source)}]},
        {"images": [{"image_url": link}]},
        {"images": [{"image_url": link, "file_id": None}]},
        {"images": [data_url(source)]},
        {"image": data_url(source)},
        {"image": [link]},
    ]
    jsons = [call(f"{server.url}/v1/images/edits", body | each) for each in sources]
    results = [drawn(answer) for answer in (*forms, *jsons)]
    assert all(np.array_equal(array(each), array(results[0])) for each in results)
    assert not np.array_equal(array(results[0]), array(picture(source)))
    assert all("warnings" not in answer.json for answer in (*forms, *jsons))


def test_two_different_pictures_sent_as_text_or_in_other_places_are_two_requests(server: Server) -> None:
    """They are the same text fields, so that only the pictures tell them apart."""
    other = as_file(square(colour=(20, 160, 40)))
    answers = [
        send_form(server, PROMPT, *QUICK, ("strength", "0.5"), ("image", base64.b64encode(each)), idempotency_key=key)
        for each, key in ((SOURCE, "edits-a"), (other, "edits-b"))
    ]
    assert not np.array_equal(array(drawn(answers[0])), array(drawn(answers[1])))
    reused = send_form(
        server, PROMPT, *QUICK, ("strength", "0.5"), ("image", data_url(other)), idempotency_key="edits-a"
    )
    assert reused.status == 409
    mask = as_file(left_half())
    first = send_form(server, PROMPT, *QUICK, upload("image", SOURCE), upload("mask", mask), idempotency_key="edits-c")
    second = send_form(
        server, PROMPT, *QUICK, upload("image", SOURCE), upload("image", mask), idempotency_key="edits-c"
    )
    assert (first.status, second.status) == (200, 409)


def test_a_file_id_is_refused_by_name(server: Server) -> None:
    body = {"prompt": "a red circle", "images": [{"file_id": "file-abc"}]}
    error = call(f"{server.url}/v1/images/edits", body).json["error"]
    assert (error["param"], error["code"]) == ("images", "unsupported_value")
    body = {"prompt": "a red circle", "images": [{"image_url": data_url(SOURCE)}], "mask": {"file_id": "file-abc"}}
    error = call(f"{server.url}/v1/images/edits", body).json["error"]
    assert (error["param"], error["code"]) == ("mask", "unsupported_value")


BAD_JSON: list[tuple[dict[str, Any], str]] = [
    ({}, "images"),
    ({"images": []}, "images"),
    ({"images": None}, "images"),
    ({"images": [{}]}, "images"),
    ({"images": [None]}, "images"),
    ({"images": "x"}, "images"),
    ({"images": [{"image_url": 3}]}, "images"),
    ({"images": [{"image_url": "x", "detail": "low"}]}, "detail"),
    ({"images": [data_url(SOURCE)] * 17}, "images"),
    ({"images": [data_url(SOURCE)], "image": data_url(SOURCE)}, "image"),
    ({"images": [{"image_url": "http://127.0.0.1:1/a.png"}]}, "image"),
    ({"images": [data_url(SOURCE)], "mask": data_url(b"nothing")}, "mask"),
    ({"images": [data_url(SOURCE)], "mask": {}}, "mask"),
    ({"images": [data_url(SOURCE)], "mask": 1}, "mask"),
    ({"images": [data_url(SOURCE)], "prompt": " "}, "prompt"),
    ({"images": [data_url(SOURCE)], "input_fidelity": "medium"}, "input_fidelity"),
    ({"images": [data_url(SOURCE)], "background": "transparent"}, "background"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_JSON, ids=lambda value: str(value)[:40])
def test_a_bad_field_of_a_json_edit_is_a_400_that_names_it(server: Server, fields: dict[str, Any], param: str) -> None:
    answer = call(f"{server.url}/v1/images/edits", {"prompt": "a red circle"} | fields)
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param


def differs_only_on_the_left(result: Image.Image, source: Image.Image) -> None:
    change = np.abs(array(result) - array(source)).max(axis=2)
    assert change[:, change.shape[1] // 2 :].max() <= 2
    assert change[:, : change.shape[1] // 2].max() > 40


@pytest.mark.parametrize("style", ["form", "json", "generations", "opaque"])
def test_a_mask_protects_what_it_does_not_select(server: Server, style: str) -> None:
    mask = as_file(left_half())
    if style == "opaque":
        opaque = Image.new("L", (128, 128), 0)
        opaque.paste(255, (0, 0, 64, 128))
        mask = as_file(opaque)
    prompt = "a yellow star on a black background"
    wish = {"prompt": prompt, "seed": 4, "response_format": "b64_json", "num_inference_steps": 6}
    if style in ("form", "opaque"):
        parts = [("num_inference_steps", "6"), ("seed", "4"), ("response_format", "b64_json"), ("prompt", prompt)]
        answer = send_form(server, *parts, upload("image", SOURCE), upload("mask", mask))
    elif style == "json":
        wish |= {"images": [{"image_url": data_url(SOURCE)}], "mask": {"image_url": data_url(mask)}}
        answer = call(f"{server.url}/v1/images/edits", wish)
    else:
        answer = generate(server, image=data_url(SOURCE), mask=data_url(mask), size="128x128", **wish)
    differs_only_on_the_left(drawn(answer), square())


def test_openais_client_edits_inside_the_mask_towards_the_prompt_and_nowhere_else(client: OpenAI) -> None:
    source = Image.new("RGB", (128, 128), (255, 255, 255))
    mask = Image.new("RGBA", (128, 128), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (16, 16, 112, 112))
    answer = client.images.edit(
        model="gpt-image-1",
        image=("source.png", as_file(source), "image/png"),
        mask=as_file(mask),
        prompt="a red square on a white background",
        extra_body={"seed": 1},
    )
    result = from_base64(answer.data[0].b64_json)
    pixels = array(result)
    outside = np.ones((128, 128), bool)
    outside[16:112, 16:112] = False
    assert (pixels[outside] == 255).all(), "really identical, also after resampling nothing"
    red, green, blue = pixels[56:72, 56:72].mean(axis=(0, 1))
    assert red > 150 > green + 30
    assert blue < 120
    assert answer.usage.input_tokens_details.image_tokens > 0
    assert (answer.size, answer.background, answer.output_format) == ("128x128", "opaque", "png")


def test_a_mask_holds_its_promise_at_sizes_that_the_model_does_not_draw(server: Server) -> None:
    source = square((200, 120))
    answer = send_form(
        server, PROMPT, *QUICK, upload("image", as_file(source)), upload("mask", as_file(left_half((200, 120))))
    )
    differs_only_on_the_left(drawn(answer), source)


def test_a_pictures_own_alpha_is_its_mask(server: Server) -> None:
    source = square().convert("RGBA")
    source.putalpha(left_half().getchannel("A"))
    answer = send_form(
        server, ("prompt", "a green ring on a purple background"), *QUICK, upload("image", as_file(source))
    )
    differs_only_on_the_left(drawn(answer), square())
    assert "warnings" not in answer.json


BAD_MASKS: dict[str, bytes] = {
    "another size": as_file(left_half((96, 128))),
    "nothing is selected": as_file(Image.new("RGBA", (128, 128), (0, 0, 0, 255))),
    "a photograph": as_file(Image.new("RGB", (128, 128), (120, 130, 90))),
    "no picture": b"mask",
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_bad_mask_is_a_400_that_names_it(server: Server, kind: str) -> None:
    answer = send_form(server, PROMPT, upload("image", SOURCE), upload("mask", BAD_MASKS[kind]))
    assert answer.status == 400
    assert answer.json["error"]["param"] == "mask"
    assert answer.json["error"]["code"] in ("invalid_mask", "invalid_image")


def test_a_mask_without_a_picture_is_a_400(server: Server) -> None:
    answer = generate(server, prompt="a red circle", mask=data_url(as_file(left_half())))
    assert (answer.status, answer.json["error"]["param"]) == (400, "mask")
    answer = send_form(server, PROMPT, upload("mask", as_file(left_half())))
    assert (answer.status, answer.json["error"]["code"]) == (400, "missing_required_parameter")


def test_of_several_pictures_the_first_is_used_and_the_answer_says_so(server: Server) -> None:
    other = as_file(square(colour=(20, 160, 40)))
    alone = drawn(send_form(server, PROMPT, *QUICK, upload("image", SOURCE)))
    for name in ("image", "image[]"):
        answer = send_form(server, PROMPT, *QUICK, upload(name, SOURCE), upload(name, other))
        assert answer.json["warnings"] == ["image: only the first of 2 images was used"]
        assert np.array_equal(array(drawn(answer)), array(alone))
        strict = send_form(server, PROMPT, *QUICK, ("strict", "true"), upload(name, SOURCE), upload(name, other))
        assert (strict.status, strict.json["error"]["param"]) == (400, "image")
    many = send_form(server, PROMPT, *QUICK, *(upload("image[]", SOURCE) for _ in range(17)))
    assert (many.status, many.json["error"]["param"]) == (400, "image")
    broken = send_form(server, PROMPT, *QUICK, upload("image[]", SOURCE), upload("image[]", b"\x89PNG broken"))
    assert (broken.status, broken.json["error"]["param"]) == (400, "image"), "none is taken unchecked"


def test_a_variation_is_like_its_source_and_needs_no_prompt(client: OpenAI, server: Server) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI has retired them; programs have not
        answer = client.images.create_variation(image=SOURCE, n=2, response_format="b64_json", extra_body={"seed": 5})
    pictures = [from_base64(item.b64_json) for item in answer.data]
    assert all(each.size == (128, 128) for each in pictures)
    assert not np.array_equal(array(pictures[0]), array(pictures[1]))
    for each in pictures:
        assert np.abs(array(each) - array(square())).mean() < 80
    told = send_form(server, *QUICK, upload("image", SOURCE), path="/api/images/variations")
    assert "warnings" not in told.json
    for parts in ([PROMPT, upload("image", SOURCE)], [upload("image", SOURCE), upload("mask", SOURCE)], []):
        refused = send_form(server, *parts, path="/v1/images/variations")
        assert refused.status == 400
        assert refused.json["error"]["param"] in ("prompt", "mask", "image")


MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


@pytest.mark.parametrize("path", ["generations", "edits"])
@pytest.mark.parametrize(("output_format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_the_file_and_its_link_are_of_the_format_asked_for(
    server: Server, path: str, output_format: str, extension: str
) -> None:
    wish = {"prompt": "a red circle", "size": "128x128", "num_inference_steps": 2, "seed": 6}
    wish |= {"output_format": output_format, "response_format": "url"}
    wish |= {"images": [{"image_url": data_url(SOURCE)}]} if path == "edits" else {}
    answer = call(f"{server.url}/v1/images/{path}", wish)
    url = answer.json["data"][0]["url"]
    assert url.endswith(f".{extension}")
    fetched = call(url)
    assert fetched.headers["content-type"] == f"image/{output_format}"
    assert fetched.body.startswith(MAGIC[output_format])
    opened = Image.open(io.BytesIO(fetched.body))
    assert opened.format == output_format.upper()
    opened.load()
    base = call(f"{server.url}/v1/images/{path}", wish | {"response_format": "b64_json"})
    assert base64.b64decode(base.json["data"][0]["b64_json"]) == fetched.body


def test_the_formats_show_the_same_picture_and_compression_makes_it_smaller(server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "256x256", "num_inference_steps": 2, "seed": 6}

    def made(**more: Any) -> bytes:
        answer = generate(server, response_format="b64_json", **wish, **more)
        return base64.b64decode(answer.json["data"][0]["b64_json"])

    png = array(picture(made()))
    for output_format in ("jpeg", "webp"):
        files = [made(output_format=output_format, output_compression=quality) for quality in (0, 50, 100)]
        sizes = [len(file) for file in files]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[2] / 3
        assert made(output_format=output_format) == files[2], "100 is the default"
        errors = [np.abs(array(picture(file)) - png).mean() for file in files]
        assert errors[2] < 3
        assert errors[0] > errors[2]


def test_n8n_sends_compression_with_png_and_is_only_warned(server: Server) -> None:
    answer = generate(
        server, prompt="a", size="128x128", num_inference_steps=1, output_format="png", output_compression=80
    )
    assert [warning.partition(":")[0] for warning in answer.json["warnings"]] == ["output_compression"]


@pytest.mark.parametrize("size", [None, "auto"])
def test_without_a_size_an_edit_has_its_sources(server: Server, size: str | None) -> None:
    parts = [("size", size)] if size else []
    answer = send_form(server, PROMPT, *QUICK, *parts, upload("image", as_file(square((96, 160)))))
    assert drawn(answer).size == (96, 160)
    assert answer.json["size"] == "96x160" if "size" in answer.json else True


@pytest.mark.parametrize("model", ["gpt-image-1", "gpt-image-2", "builtin"])
def test_the_gpt_image_models_tell_resolved_values_and_usage(server: Server, model: str) -> None:
    answer = generate(
        server, model=model, prompt="a red circle", size="auto", quality="auto", num_inference_steps=2, n=2
    )
    body = answer.json
    assert (body["size"], body["quality"], body["background"], body["output_format"]) == (
        *("1024x1024", "medium"),
        *("opaque", "png"),
    )
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"] == {"text_tokens": 3, "image_tokens": 0}
    assert usage["output_tokens"] == 2 * 32 * 32
    edited = send_form(server, ("model", model), PROMPT, *QUICK, upload("image", SOURCE), ("quality", "high"))
    assert edited.json["usage"]["input_tokens_details"]["image_tokens"] == 4 * 4
    assert edited.json["quality"] == "high"


def test_a_mask_counts_as_input_at_its_own_size(server: Server) -> None:
    for size, tokens in (((128, 128), 4 * 4), ((256, 256), 8 * 8)):
        mask = upload("mask", as_file(left_half().resize(size)))
        answer = send_form(server, ("model", "builtin"), PROMPT, *QUICK, upload("image", SOURCE), mask)
        assert answer.json["usage"]["input_tokens_details"]["image_tokens"] == 4 * 4 + tokens


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", None])
def test_the_dall_e_models_answer_as_they_did(server: Server, model: str | None) -> None:
    body = generate(server, model=model, prompt="a red circle", size="128x128", num_inference_steps=1).json
    assert set(body) == {"created", "data", "seed"}


@pytest.mark.parametrize(
    ("quality", "told"),
    [
        *(("standard", "medium"), ("hd", "high"), ("low", "low"), ("medium", "medium"), ("high", "high")),
        *(("auto", "medium"), ("xhigh", "high"), ("max", "high"), (None, "medium")),
    ],
)
def test_every_name_of_a_quality_is_known(server: Server, quality: str | None, told: str) -> None:
    wish = {"model": "gpt-image-1", "prompt": "a red circle", "size": "64x64", "quality": quality}
    assert generate(server, num_inference_steps=1, **wish).json["quality"] == told
    if quality == "low":
        assert "quality" not in str(generate(server, **wish).json["warnings"])


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("/v1/images/edits", None, "url"),
        ("/v1/images/edits", "dall-e-2", "url"),
        ("/v1/images/edits", "gpt-image-1", "b64_json"),
        ("/api/images/edits", "gpt-image-1", "url"),
        ("/v1/images/variations", None, "url"),
        ("/v1/images/variations", "gpt-image-1", "b64_json"),
        ("/api/images/variations", "gpt-image-1", "url"),
    ],
)
def test_the_default_response_format_of_forms_depends_on_path_and_model(
    server: Server, path: str, model: str | None, expected: str
) -> None:
    parts = [("model", model)] if model else []
    parts += [] if "variations" in path else [PROMPT]
    answer = send_form(server, *parts, ("num_inference_steps", "2"), upload("image", SOURCE), path=path)
    assert set(answer.json["data"][0]) == {expected}


def test_input_fidelity_is_taken_and_high_is_a_warning(server: Server) -> None:
    low = send_form(server, PROMPT, *QUICK, ("input_fidelity", "low"), upload("image", SOURCE))
    high = send_form(server, PROMPT, *QUICK, ("input_fidelity", "high"), upload("image", SOURCE))
    assert "warnings" not in low.json
    assert [words.partition(":")[0] for words in high.json["warnings"]] == ["input_fidelity"]


def test_the_documented_endpoint_takes_input_fidelity_with_its_image(server: Server) -> None:
    wish = {
        "prompt": "x",
        "image": data_url(SOURCE),
        "size": "128x128",
        "num_inference_steps": 2,
        "input_fidelity": "high",
    }
    answer = generate(server, "/api/images/generations", **wish)
    assert [each.partition(":")[0] for each in answer.json["warnings"]] == ["input_fidelity"]


def test_a_transparent_background_is_refused_by_name_on_every_path(server: Server) -> None:
    answers = [
        generate(server, prompt="a", background="transparent"),
        send_form(server, PROMPT, ("background", "transparent"), upload("image", SOURCE)),
        send_form(server, ("background", "transparent"), upload("image", SOURCE), path="/v1/images/variations"),
    ]
    for answer in answers:
        assert (answer.status, answer.json["error"]["param"]) == (400, "background")
        assert answer.json["error"]["code"] == "unsupported_value"


def test_a_picture_of_the_documented_endpoint_may_be_a_list(server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "128x128", "num_inference_steps": 2, "seed": 1}
    wish |= {"response_format": "b64_json"}
    one = generate(server, "/api/images/generations", image=data_url(SOURCE), **wish)
    two = generate(server, "/api/images/generations", image=[base64.b64encode(SOURCE).decode()] * 2, **wish)
    assert np.array_equal(array(drawn(one)), array(drawn(two)))
    assert any(words.startswith("image:") for words in two.json["warnings"])
