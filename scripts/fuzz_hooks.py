"""What scripts/fuzz tells schemathesis about this hub beyond its OpenAPI document.

A schema says what a value looks like, not which pictures decode, which models are there and what sides and steps they
take. So that valid requests reach the pictures and `positive_data_acceptance` can stay on, values of that sort are
replaced in requests that are meant to be valid; broken ones are left as they are. scripts/fuzz puts the path of a
picture's link into HUB_FUZZ_LINK.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from typing import Any

import jsonschema_rs
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode

SIZES = ("64x64", "96x64", "64x128", "256x256", "auto")
MODELS = ("small", "dall-e-2", "dall-e-3", "gpt-image-1")
SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
LORAS = [{"name": "styles/ink", "weight": 0.5}]
KNOWN = {"model": MODELS, "scheduler": SCHEDULERS}
WHOLE = ("n", "seed", "num_inference_steps", "output_compression", "partial_images")
AIGNES = {"prompt", "image", "outputFileType", "modelOptions"}
"""Of AIGNE's input; further names stand open in the schema, since any parameter may stand there."""
MOST_STEPS = 4
"""The most that the small model's manifest allows."""


def picture(media_type: str, mode: str = "RGB", side: int = 64) -> bytes:
    """A small picture; `mode` RGBA gives one that a mask may be."""
    file = io.BytesIO()
    Image.new(mode, (side, side), 90).save(file, media_type.removeprefix("image/"))
    return file.getvalue()


PICTURES = {media_type: picture(media_type) for media_type in ("image/png", "image/jpeg", "image/webp")}
MASK = picture("image/png", "RGBA")
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURES["image/png"]).decode()
MASK_URL = "data:image/png;base64," + base64.b64encode(MASK).decode()

for each, data in PICTURES.items():
    schemathesis.openapi.media_type(each, st.just(data))


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:  # noqa: ARG001
    """Requests that are meant to be valid name what the hub has."""
    if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
        tame_case(case)
    return case


@schemathesis.hook
def before_add_examples(context: schemathesis.HookContext, examples: list[schemathesis.Case]) -> None:  # noqa: ARG001
    """The same for requests made of the document's examples, which pass by `map_case`."""
    for case in examples:
        tame_case(case)


def tame_case(case: schemathesis.Case) -> None:
    """Replaces, in a request that fits the document, what this hub cannot honour though it fits."""
    path = case.operation.path
    if path.startswith("/files/") and "HUB_FUZZ_LINK" in os.environ:
        _, _, signature, name = os.environ["HUB_FUZZ_LINK"].split("/")
        case.path_parameters.update(signature=signature, name=name)
    if path.endswith("/models/{model}") and len(str(case.path_parameters["model"])) % 2:
        case.path_parameters["model"] = MODELS[0]
    if path.endswith("/usage") and "month" in (case.query or {}):  # instead of days, as its description says
        case.query = {name: value for name, value in case.query.items() if name not in ("from", "to")}
    if path.endswith("/usage") and {"from", "to"} <= set(case.query or {}):
        case.query["from"], case.query["to"] = sorted((case.query["from"], case.query["to"]))
    if not isinstance(case.body, dict):
        return
    body = case.body
    if isinstance(body.get("input"), dict):
        body = body["input"]
        for name in set(body) - AIGNES:
            del body[name]
    tame(body)
    tame_pictures(body, as_json=case.media_type == "application/json", needs_picture=path.endswith("/edits"))
    if "async" in (case.query or {}) or "Prefer" in (case.headers or {}) or path.startswith("/api/v"):
        body.pop("stream", None)  # a job has events of its own; AIGNE's paths have none


def tame(body: dict[str, Any]) -> None:
    """All but pictures: a model, scheduler, LoRA and size that are there, steps that it takes, one of two spellings."""
    for name, value in body.items():
        if name in WHOLE and isinstance(value, float):  # 2.0 fits JSON Schema's integer; the hub coerces nothing
            body[name] = int(value)
    prompt = body.get("prompt")
    if isinstance(prompt, str) and not prompt.strip():
        body["prompt"] = "a red circle"
    named = {name: known for name, known in KNOWN.items() if isinstance(body.get(name), str)}
    body.update({name: known[len(body[name]) % len(known)] for name, known in named.items()})
    if body.get("loras") is not None:
        body["loras"] = json.dumps(LORAS) if isinstance(body["loras"], str) else LORAS[: len(body["loras"])]
    if isinstance(body.get("size"), str) and not re.fullmatch(r"auto|\d{2,3}x\d{2,3}", body["size"]):
        body["size"] = SIZES[len(body["size"]) % len(SIZES)]
    if isinstance(body.get("num_inference_steps"), int):
        body["num_inference_steps"] = min(body["num_inference_steps"], MOST_STEPS)
    if isinstance(body.get("strength"), float):  # an edit of few steps by so little leaves no whole step: a 400
        body["strength"] = 1.0
    if body.get("background") == "transparent":  # no model draws it; a 400 that the document tells
        body["background"] = "opaque"
    if body.get("strict"):  # turns any warning into a 400
        body["strict"] = False
    if "response_format" in body:
        body.pop("responseFormat", None)  # one of two spellings
    if isinstance(body.get("modelOptions"), dict):  # any object to AIGNE's schema, parameters to the hub
        body["modelOptions"] = {}
    if body.get("outputFileType") == "local":  # the hub writes no client's files
        body["outputFileType"] = "file"


def tame_pictures(body: dict[str, Any], *, as_json: bool, needs_picture: bool) -> None:
    """Pictures that decode; a mask only beside a picture; one way of giving them where there are several."""
    picture, mask = (DATA_URL, MASK_URL) if as_json else (PICTURES["image/png"], MASK)
    for name in ("image", "image[]"):
        if isinstance(body.get(name), (str, bytes)):
            body[name] = picture
        if isinstance(body.get(name), list):
            body[name] = [_replaced(one, picture) for one in body[name]]
    if isinstance(body.get("images"), list):
        body["images"] = [_replaced(one, picture) for one in body["images"]]
        body.pop("image", None)
    if isinstance(body.get("mask"), dict):
        body["mask"] = {"image_url": mask}
    elif isinstance(body.get("mask"), (str, bytes)):
        body["mask"] = mask
    if (needs_picture or body.get("mask")) and not any(body.get(name) for name in ("image", "image[]", "images")):
        body["image"] = picture


def _replaced(one: Any, picture: Any) -> Any:
    """A reference or a file of a list, of the shape that it had."""
    if not isinstance(one, dict):
        return picture
    if "type" in one:  # AIGNE's: file, url, or local, which no hub reads
        return {"type": "file", "data": DATA_URL.partition(",")[2], "mimeType": "image/png"}
    return {"image_url": DATA_URL}


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,  # noqa: ARG001
    failure: Any,
    case: schemathesis.Case,
    response: schemathesis.Response,
) -> bool:
    """Keeps what is a failure of the hub.

    DELETE of a job or task that still waits or runs cancels it, and the cancelled one can be read: that is no use after
    free. DELETE of one that has ended frees it. And a form has texts only: `false` for a string is the string "false",
    so nothing wrong was accepted.
    """
    name = type(failure).__name__
    if name == "UseAfterFree" and ("/jobs/" in case.operation.path or "/tasks/" in case.operation.path):
        return b'"status":"cancelled"' not in response.content
    if name == "AcceptedNegativeData" and case.media_type == "multipart/form-data":
        return not fits_as_texts(case)
    return True


def fits_as_texts(case: schemathesis.Case) -> bool:
    """Whether a form's fields fit their schema once they are written as a form writes them."""
    alternative = case.operation.get_body_for_media_type("multipart/form-data")
    if alternative is None or not isinstance(case.body, dict):
        return False
    schema = alternative.validation_schema
    kinds = {name: described.get("type") for name, described in schema["properties"].items()}
    written = {name: as_text(value, kinds.get(name)) for name, value in case.body.items()}
    return jsonschema_rs.is_valid(schema, written)


def as_text(value: Any, kind: str | None) -> Any:
    """A form's field as it arrives, as far as the schema can see."""
    if isinstance(value, bytes):
        return [""] if kind == "array" else ""
    return json.dumps(value) if kind == "string" and isinstance(value, (bool, int, float)) else value
