"""Real pictures through the real server, with OpenAI's own client and without."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from tests.api.conftest import call, from_base64, generate, picture
from tests.conftest import Server

RED_ON_WHITE = "a red circle on a white background"


def is_red(pixel: tuple[int, ...]) -> bool:
    red, green, blue = pixel[:3]
    return red > 150 and green < 110 and blue < 110


def is_white(pixel: tuple[int, ...]) -> bool:
    return min(pixel[:3]) > 215


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_a_red_circle_is_red_in_the_middle_and_white_at_the_corners(client: OpenAI) -> None:
    answer = client.images.generate(
        model="dall-e-2", prompt=RED_ON_WHITE, size="256x256", response_format="b64_json", extra_body={"seed": 1}
    )
    drawn = from_base64(answer.data[0].b64_json)
    assert drawn.size == (256, 256)
    assert is_red(drawn.getpixel((128, 128)))
    for corner in ((4, 4), (251, 4), (4, 251), (251, 251)):
        assert is_white(drawn.getpixel(corner))
    assert answer.data[0].url is None


def test_a_link_is_answered_by_default_and_fetched_without_a_key(client: OpenAI, server: Server) -> None:
    answer = client.images.generate(model="dall-e-3", prompt="a blue square", size="1024x1024")
    url = answer.data[0].url
    assert answer.data[0].b64_json is None
    assert url.startswith(server.url)
    assert url.endswith(".png")
    assert "?" not in url
    fetched = call(url)
    assert fetched.headers["content-type"] == "image/png"
    assert picture(fetched.body).size == (1024, 1024)


def test_the_documented_examples_work_as_they_stand(server: Server) -> None:
    first = generate(
        server,
        "/api/images/generations",
        prompt="A photorealistic image of a cat programming on a laptop",
        n=1,
        size="1024x1024",
    )
    assert first.status == 200
    assert set(first.json["data"][0]) == {"url"}
    assert picture(call(first.json["data"][0]["url"]).body).size == (1024, 1024)
    second = generate(
        server,
        "/api/images/generations",
        model="dall-e-3",
        prompt="An oil painting of a futuristic city skyline at sunset, with flying cars",
        n=1,
        size="1792x1024",
        quality="hd",
        style="vivid",
        response_format="b64_json",
    )
    assert second.status == 200
    assert set(second.json["data"][0]) == {"b64_json"}
    assert from_base64(second.json["data"][0]["b64_json"]).size == (1792, 1024)


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("/api/images/generations", None, "url"),
        ("/api/images/generations", "gpt-image-1", "url"),
        ("/v1/images/generations", None, "url"),
        ("/v1/images/generations", "dall-e-3", "url"),
        ("/v1/images/generations", "gpt-image-1", "b64_json"),
        ("/v1/images/generations", "builtin", "url"),
    ],
)
def test_the_default_response_format_depends_on_path_and_model(
    server: Server, path: str, model: str | None, expected: str
) -> None:
    answer = generate(server, path, model=model, prompt="a red ring", size="64x64", num_inference_steps=1)
    assert answer.status == 200
    assert set(answer.json["data"][0]) == {expected}


def test_n_pictures_have_the_seeds_s_plus_k_and_equal_themselves_alone(server: Server) -> None:
    wish = {"prompt": "a green star", "size": "128x128", "response_format": "b64_json", "num_inference_steps": 6}
    batch = generate(server, n=3, seed=40, **wish).json
    assert batch["seed"] == 40
    pictures = [from_base64(item["b64_json"]) for item in batch["data"]]
    assert difference(pictures[0], pictures[1]) > 1
    for k, drawn in enumerate(pictures):
        alone = from_base64(generate(server, n=1, seed=40 + k, **wish).json["data"][0]["b64_json"])
        assert difference(drawn, alone) <= 1


def test_a_request_beside_strangers_equals_itself_alone(server: Server) -> None:
    def wish(k: int) -> Image.Image:
        answer = generate(
            server,
            prompt=f"a {['red', 'blue', 'green', 'yellow'][k]} heart",
            seed=k,
            num_inference_steps=5 + 3 * k,
            guidance_scale=2.0 + k,
            size="128x128",
            response_format="b64_json",
        )
        return from_base64(answer.json["data"][0]["b64_json"])

    alone = [wish(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(wish, range(4)))
    for one, other in zip(alone, together, strict=True):
        assert difference(one, other) <= 1


def test_an_unseeded_request_says_its_seed_and_can_be_repeated(server: Server) -> None:
    wish = {"prompt": "a pink ring", "size": "128x128", "response_format": "b64_json", "num_inference_steps": 4}
    first = generate(server, **wish).json
    again = generate(server, seed=first["seed"], **wish).json
    assert first["data"] == again["data"]
    assert generate(server, **wish).json["seed"] != first["seed"]


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_edit_keeps_more_of_the_source_the_lower_its_strength(server: Server) -> None:
    source = Image.new("RGB", (256, 256), "white")
    source.paste((30, 60, 220), (64, 64, 192, 192))
    encoded = base64.b64encode(as_png(source)).decode()
    distances = []
    for strength in (0.1, 1.0):
        answer = generate(
            server,
            prompt="a red circle on a white background",
            image=encoded,
            strength=strength,
            size="256x256",
            seed=1,
            response_format="b64_json",
        )
        drawn = from_base64(answer.json["data"][0]["b64_json"])
        distances.append(np.abs(np.asarray(drawn, float) - np.asarray(source, float)).mean())
    assert distances[0] < 15
    assert is_red(drawn.getpixel((128, 128))), "at full strength the prompt wins"
    assert distances[1] > 2 * distances[0]


def test_the_image_of_an_edit_may_be_a_data_url_or_a_link_of_this_hub(server: Server) -> None:
    made = generate(server, prompt="a black square", size="128x128", seed=2).json["data"][0]["url"]
    data_url = "data:image/png;base64," + base64.b64encode(call(made).body).decode()
    wish = {"prompt": "a black square", "strength": 0.3, "seed": 5, "size": "128x128", "response_format": "b64_json"}
    answers = [generate(server, image=image, **wish) for image in (made, data_url, [data_url])]
    assert [answer.status for answer in answers] == [200] * 3
    pictures = [answer.json["data"] for answer in answers]
    assert pictures[0] == pictures[1] == pictures[2]


def test_size_auto_gives_an_edit_the_size_of_its_source(server: Server) -> None:
    encoded = base64.b64encode(as_png(Image.new("RGB", (200, 120), "white"))).decode()
    answer = generate(server, prompt="a red star", image=encoded, size="auto", response_format="b64_json")
    assert from_base64(answer.json["data"][0]["b64_json"]).size == (200, 120)


def test_what_cannot_be_honoured_is_a_warning_and_with_strict_an_error(server: Server) -> None:
    wish = {"prompt": "a red star", "size": "300x200", "num_inference_steps": 2, "strength": 0.5, "quality": "high"}
    warnings = generate(server, **wish).json["warnings"]
    assert {warning.partition(":")[0] for warning in warnings} == {"size", "strength", "quality"}
    refused = generate(server, strict=True, **wish)
    assert refused.status == 400
    assert refused.json["error"]["param"] in {"size", "strength", "quality"}
    assert "warnings" not in generate(server, prompt="a red star", size="128x128", num_inference_steps=2).json


def test_a_prompt_longer_than_the_text_encoder_reads_is_a_warning(server: Server) -> None:
    answer = generate(server, prompt="a red star " * 60, size="128x128", num_inference_steps=1)
    assert any(warning.startswith("prompt:") for warning in answer.json["warnings"])


def test_style_natural_changes_the_picture_and_quality_the_number_of_steps(server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "128x128", "seed": 9, "response_format": "b64_json"}
    plain = generate(server, **wish).json["data"]
    assert generate(server, style="natural", **wish).json["data"] != plain
    assert generate(server, quality="low", **wish).json["data"] != plain
    assert generate(server, quality="medium", **wish).json["data"] == plain


def test_nulls_and_what_clients_send_besides_are_accepted(server: Server) -> None:
    answer = generate(
        server,
        prompt="a red circle",
        model=None,
        n=None,
        size="64x64",
        response_format=None,
        responseFormat="b64_json",
        quality="auto",
        style=None,
        background="auto",
        output_format="png",
        output_compression=100,
        moderation="auto",
        user="someone",
        stream=False,
        num_inference_steps=1,
    )
    assert answer.status == 200
    assert "b64_json" in answer.json["data"][0]


def test_the_png_says_model_and_seed(server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "64x64", "response_format": "b64_json", "num_inference_steps": 1}
    answer = generate(server, seed=77, n=2, **wish)
    drawn = from_base64(answer.json["data"][1]["b64_json"])
    assert drawn.text["Seed"] == "78"
    assert drawn.text["Model"] == "builtin"
