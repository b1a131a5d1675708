"""Hubs as processes, one behind the other: what their tests share."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from tests.api.conftest import Answer, as_file, call, multipart, upload
from tests.conftest import Server, run_server

BACK_KEY = "sk-canary-back-4d1f0c7a"
WRONG_KEY = "sk-canary-wrong-91be22d6"
HONOURS = '["seed", "num_inference_steps", "guidance_scale", "negative_prompt", "strength", "scheduler", "strict"]'
PROMPT = "a red circle on a white background"
WISH = {"prompt": PROMPT, "size": "128x128", "num_inference_steps": 3, "seed": 7}


def write_manifest(folder: Path, name: str, base_url: str, *, model: str, credentials: str, more: str = "") -> None:
    """A model of another server's."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(
        f'id = "{name}"\nname = "{name}"\ndescription = ""\nprovider = "openai_compatible"\n'
        'tasks = ["text-to-image", "image-to-image", "inpainting"]\n\n'
        f'[remote]\nmodel = "{model}"\nbase_url = "{base_url}"\ncredentials = "{credentials}"\n'
        f"honours = {HONOURS}\nmax_n = 10\nmax_images = 16\ntimeout = 60\n{more}\n"
    )


def start_front(folder: Path, **environ: str) -> Any:
    """A hub without keys, with the manifests in its folder `models`."""
    credentials = folder / "credentials.toml"
    credentials.touch(0o600)
    return run_server(folder, HUB_MODELS_DIR=str(folder / "models"), HUB_CREDENTIALS=str(credentials), **environ)


def write_credentials(folder: Path, **keys: str) -> None:
    path = folder / "credentials.toml"
    path.touch(0o600)
    path.write_text("".join(f'[{name}]\nkeys = ["{key}"]\n' for name, key in keys.items()))


def generate(server: Server, path: str = "/v1/images/generations", **body: Any) -> Answer:
    return call(server.url + path, WISH | {"model": "back"} | body)


def directly(back: Server, **body: Any) -> Any:
    """The back hub's own answer to the same wish."""
    told = WISH | {"model": "builtin", "response_format": "b64_json"} | body
    answer = call(f"{back.url}/v1/images/generations", told, authorization=f"Bearer {BACK_KEY}")
    assert answer.status == 200, answer.body
    return answer.json


def pictures(answer: Answer) -> list[bytes]:
    """In base64, or behind links of the server that was asked."""
    assert answer.status == 200, answer.body
    return [
        base64.b64decode(each["b64_json"]) if "b64_json" in each else call(each["url"]).body
        for each in answer.json["data"]
    ]


def edit(server: Server, *parts: Any, **fields: Any) -> Answer:
    texts = {**WISH, "response_format": "b64_json", **fields}
    form = multipart(*parts, *((name, str(value)) for name, value in texts.items()))
    kind = "multipart/form-data; boundary=----boundary7MA4YWxk"
    return call(f"{server.url}/v1/images/edits", form, content_type=kind)


def expect_masked_edit(server: Server, model: str) -> None:
    """That an edit changes the right half of a picture, which a mask selects, and leaves the left one as it was."""
    source, mask = Image.new("RGB", (128, 128), "blue"), Image.new("RGBA", (128, 128), "black")
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    parts = [upload("image", as_file(source)), upload("mask", as_file(mask))]
    (picture,) = pictures(edit(server, *parts, model=model, num_inference_steps=10, strength=1.0))
    difference = ImageChops.difference(Image.open(io.BytesIO(picture)).convert("RGB"), source)
    assert difference.crop((0, 0, 60, 128)).getbbox() is None
    assert difference.crop((68, 0, 128, 128)).getbbox() is not None
