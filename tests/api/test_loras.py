"""LoRAs over HTTP: in each kind of body, by a real server with a folder of them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from hub.receipt import receipt_in
from tests.api.conftest import Answer, as_file, call, data_url, from_base64, generate, picture, send_form, upload
from tests.api.test_errors import check
from tests.api.test_joining import at_once
from tests.conftest import Server, run_server, write_manifest
from tests.families.loras import ATTENTION, TEXT, kohyas, save, tensors

WISH = {"model": "small", "prompt": "a", "size": "64x64", "seed": 3, "response_format": "b64_json"}
INK: list[dict[str, Any]] = [{"name": "styles/ink", "weight": 0.8}]
SOURCE = as_file(Image.new("RGB", (64, 64), (90, 120, 30)))


@pytest.fixture(scope="module")
def pipeline(small_stable_diffusion: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipeline: Any) -> Path:
    found = tmp_path_factory.mktemp("loras")
    save(found, "styles/ink", kohyas(pipeline, {"unet": ATTENTION, "text_encoder": TEXT}, (2.0,), 1))
    save(found, "oil", tensors(pipeline, {"unet": ATTENTION}, 2))
    (found / "broken.safetensors").write_bytes(b"\x80\x04 a pickle, or the like")
    (found / "notes.txt").write_text("no LoRA")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, small_stable_diffusion: Path, folder: Path) -> Iterator[Server]:
    at = tmp_path_factory.mktemp("server")
    models = write_manifest(at / "models", small_stable_diffusion)
    text = (models / "small.toml").read_text()
    (models / "fresh.toml").write_text(text.replace('"small"', '"fresh"'))
    eight = text.replace('"small"', '"eight-bit"')
    (models / "eight-bit.toml").write_text(eight + '[lossy]\nstorage_dtype = "float8_e4m3fn"\n')
    with run_server(at, HUB_MODELS_DIR=str(models), HUB_LORAS_DIR=str(folder), HUB_DEVICE="cpu") as running:
        yield running


def pixels(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    return np.asarray(from_base64(answer.json["data"][0]["b64_json"]).convert("RGB")).astype(int)


def test_a_picture_with_a_lora_is_the_one_that_diffusers_draws(server: Server, folder: Path, pipeline: Any) -> None:
    plain = pixels(generate(server, **WISH))
    drawn = pixels(generate(server, loras=[*INK, {"name": "oil", "weight": -0.5}], **WISH))
    bare = diffusers.StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    bare.set_progress_bar_config(disable=True)
    with warnings.catch_warnings(action="ignore"):  # PEFT's, of a second one
        bare.load_lora_weights(folder / "styles", weight_name="ink.safetensors", adapter_name="ink")
        bare.load_lora_weights(folder, weight_name="oil.safetensors", adapter_name="oil")
    bare.set_adapters(["ink", "oil"], [0.8, -0.5])
    with torch.no_grad():
        alone = bare(
            prompt="a",
            width=64,
            height=64,
            num_inference_steps=6,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        ).images[0]
    assert np.abs(drawn - (alone * 255).round()).max() <= 1
    assert np.abs(drawn - plain).max() > 1
    assert np.abs(pixels(generate(server, **WISH, user="again")) - plain).max() == 0, "and leaves no trace"


def test_every_body_takes_them(server: Server) -> None:
    wanted = pixels(generate(server, loras=INK, **WISH))
    loras = json.dumps(INK)
    fields = [(name, str(value)) for name, value in WISH.items()]
    edit = {**WISH, "images": [{"image_url": data_url(SOURCE)}], "loras": INK}
    edited = pixels(generate(server, "/v1/images/edits", **edit))
    sent = pixels(send_form(server, *fields, ("loras", loras), upload("image", SOURCE)))
    assert np.abs(sent - edited).max() <= 1
    assert np.abs(sent - pixels(send_form(server, *fields, upload("image", SOURCE)))).max() > 1
    varied = [(name, value) for name, value in fields if name != "prompt"]
    path = "/v1/images/variations"
    some = pixels(send_form(server, *varied, ("loras", loras), upload("image", SOURCE), path=path))
    assert np.abs(some - pixels(send_form(server, *varied, upload("image", SOURCE), path=path))).max() > 1
    aigne = {name: value for name, value in WISH.items() if name != "response_format"} | {"loras": INK}
    answer = generate(server, "/api/v2/image/generations", **aigne)
    assert answer.status == 200, answer.body
    assert np.abs(np.asarray(from_base64(answer.json["data"][0]["b64_json"])).astype(int) - wanted).max() <= 1
    answer = generate(server, "/api/v2/image", input={**aigne, "outputFileType": "file"})
    assert np.abs(np.asarray(from_base64(answer.json["images"][0]["data"])).astype(int) - wanted).max() <= 1


def test_strangers_at_once_get_what_they_get_alone(server: Server) -> None:
    """Also where none of the LoRAs has been read yet: the model is one that nobody else asks."""
    worn: list[Any] = [[], INK, [{"name": "oil"}], [{"name": "oil", "weight": 0.3}], [*INK, {"name": "oil"}], INK]
    wishes = [WISH | {"model": "fresh", "seed": 100 + number, "loras": each} for number, each in enumerate(worn)]
    together = at_once(*[functools.partial(generate, server, **wish) for wish in wishes])
    for wish, answer in zip(wishes, together, strict=True):
        again = call(f"{server.url}/v1/images/generations", wish, Cache_Control="no-cache")
        assert np.abs(pixels(again) - pixels(answer)).max() <= 1, wish


@pytest.mark.parametrize(
    ("loras", "words"),
    [
        ([{"name": "styles/ing"}], r"the LoRA 'styles/ing' does not exist\. Near names: styles/ink"),
        ([{"name": "../secret"}], "does not exist"),
        ([{"name": "oil"}, {"name": "oil"}], "named twice"),
        ([{"name": "oil", "weight": 11}], "at most 10"),
        ([{"name": ""}], "at least 1 character"),
        ([{"name": f"l{number}"} for number in range(9)], "at most 8 items"),
        ("oil", "array"),
        ([{"name": "broken"}], "The LoRA 'broken' is no safetensors file"),
    ],
)
def test_what_is_wrong_with_them_is_a_400_that_names_the_parameter(server: Server, loras: Any, words: str) -> None:
    error = check(generate(server, **WISH | {"seed": None}, loras=loras), 400)
    assert error["param"] == "loras", error
    assert re.search(words, error["message"]), error


@pytest.mark.parametrize(
    "text", ["oil", "{", '{"name": "oil"}', '[{"name": "oil", "weight": "1"}]', '[{"nom": "oil"}]']
)
def test_a_form_field_that_is_no_list_of_them_is_a_400(server: Server, text: str) -> None:
    answer = send_form(server, ("prompt", "a"), ("model", "small"), ("loras", text), upload("image", SOURCE))
    assert check(answer, 400)["param"] in ("loras", "nom")


def test_a_model_whose_weights_are_kept_small_refuses_them(server: Server) -> None:
    error = check(generate(server, **WISH | {"model": "eight-bit"}, loras=INK), 400)
    assert error["param"] == "loras" and "float8_e4m3fn" in error["message"]


def test_those_that_there_are_are_listed(server: Server, folder: Path) -> None:
    listed = call(f"{server.url}/v1/loras").json
    assert [each["id"] for each in listed["data"]] == ["broken", "oil", "styles/ink"]
    assert listed["data"][1] == {"id": "oil", "object": "lora", "bytes": (folder / "oil.safetensors").stat().st_size}
    assert call(f"{server.url}/api/loras").json == listed


def test_a_file_that_was_changed_is_drawn_anew_and_the_receipt_tells_which(
    server: Server, folder: Path, pipeline: Any
) -> None:
    file = folder / "new.safetensors"
    wish = {**WISH, "seed": 77, "loras": [{"name": "new"}]}
    save(folder, "new", tensors(pipeline, {"unet": ATTENTION}, 8))
    first = generate(server, **wish)
    assert generate(server, **wish).headers["x-hub-cache"] == "hit"
    os.utime(file, ns=(1, 1))
    assert generate(server, **wish).headers["x-hub-cache"] is None, "it may be another one"
    save(folder, "new", tensors(pipeline, {"unet": ATTENTION}, 9))
    second = generate(server, **wish)
    assert second.headers["x-hub-cache"] is None
    assert np.abs(pixels(first) - pixels(second)).max() > 1
    png = base64.b64decode(second.json["data"][0]["b64_json"])
    (drawn,) = receipt_in(png).loras
    assert (drawn.name, drawn.weight) == ("new", 1.0)
    assert drawn.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    told = picture(png).text["parameters"]  # type: ignore[attr-defined]
    assert told.startswith("a <lora:new:1>\n") and f'Lora hashes: "new: {drawn.sha256[:10]}"' in told
    file.unlink()
    error = check(generate(server, **wish), 400)
    assert "does not exist" in error["message"], "also where its pictures are kept"
