"""POST /api/images/generations and /v1/images/generations: one handler, OpenAI's wire, a few extensions."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
import pybase64
from litestar import Response, post
from litestar.openapi.datastructures import ResponseSpec
from msgspec import UNSET, Meta, Struct, UnsetType

from hub.api.openapi import json_body
from hub.api.wire import (
    AnyRequest,
    ErrorResponse,
    log_label,
    origin_for_links,
    own_origins,
    read_json,
    unless_client_leaves,
)
from hub.errors import InvalidRequest
from hub.hub import Hub
from hub.registry import SIZE, parse_size
from hub.types import MAX_SEED, ImageRequest, ImageResult, Quality, Size, Style

DEFAULT_SIZE = Size(1024, 1024)
MAX_IMAGES = 16

ResponseFormat = Literal["url", "b64_json"]
Prompt = Annotated[str, Meta(min_length=1, max_length=32_000)]


class CreateImageRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's body of an image generation. `null` means absent. With `image` it is an edit.

    Extensions: seed, num_inference_steps, guidance_scale, negative_prompt, strength, and `strict`, which turns
    warnings into errors. `user`, `safety_identifier` and `moderation` are accepted and mean nothing here: the hub
    neither reports nor moderates.
    """

    prompt: Prompt
    model: str | None = None
    image: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_IMAGES)] | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Annotated[str, Meta(description="WIDTHxHEIGHT in pixels, or auto", examples=["1024x1024"])] | None = None
    response_format: ResponseFormat | None = None
    response_format_camel: ResponseFormat | None = msgspec.field(default=None, name="responseFormat")
    quality: Quality | None = None
    style: Style | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=32_000)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=1024)] | None = None
    strict: bool | None = None


class Image(Struct, omit_defaults=True, kw_only=True):
    """One picture: exactly one of `url` and `b64_json`."""

    url: str | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET


class ImagesResponse(Struct, omit_defaults=True, kw_only=True):
    """`created`: unix seconds. `seed`: of the first picture; picture k used seed + k. `warnings`: what was asked
    for and could not be honoured, each beginning with the parameter's name."""

    created: int
    data: list[Image]
    seed: int
    warnings: list[str] = msgspec.field(default_factory=list)


@post(
    ["/api/images/generations", "/v1/images/generations"],
    status_code=200,
    operation_class=json_body(CreateImageRequest),
    responses={200: ResponseSpec(ImagesResponse), 400: ResponseSpec(ErrorResponse)},
    summary="Create images, or edit one",
)
async def generate(request: AnyRequest) -> Response[bytes]:
    """Makes the pictures and answers with links or base64."""
    hub: Hub = request.app.state.hub
    body = await read_json(request, CreateImageRequest)
    created = int(time.time())
    refuse_what_is_not_offered(body)
    model = body.model or hub.settings.default_model
    hub.registry.get(model)  # an unknown model is told before any picture is read
    ignored = without_effect(body)
    if body.strict and ignored:
        raise InvalidRequest(f"strict: {ignored[0]}.", param=ignored[0].partition(":")[0], code="unsupported_value")
    with hub.admission():
        result = await unless_client_leaves(request, make(request, hub, model, body))
    response_format = choose_response_format(body, hub, is_v1=request.scope["path"].startswith("/v1/"))
    if response_format == "url":
        data = await links(result, hub, origin_for_links(request, hub.settings))
    else:
        data = [Image(b64_json=_spliced(png)) for png in result.images]
    answer = ImagesResponse(created=created, data=data, seed=result.seed, warnings=[*ignored, *result.warnings])
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def make(request: AnyRequest, hub: Hub, model: str, body: CreateImageRequest) -> ImageResult:
    """Reads the source pictures and makes the new ones."""
    wanted = await to_image_request(body, hub, own_origins(request, hub.settings), log_label(request))
    return await hub.generate(model, wanted)


def refuse_what_is_not_offered(body: CreateImageRequest) -> None:
    """Known parameters whose value this hub cannot honour are errors, by name."""
    if body.stream:
        raise InvalidRequest("stream: this hub does not stream yet.", param="stream", code="unsupported_value")
    if body.background == "transparent":
        words = "background: no model of this hub draws transparent pictures."
        raise InvalidRequest(words, param="background", code="unsupported_value")
    if body.output_format not in (None, "png"):
        words = f"output_format: '{body.output_format}' is not offered; pictures are png."
        raise InvalidRequest(words, param="output_format", code="unsupported_value")


def without_effect(body: CreateImageRequest) -> list[str]:
    """Warnings for what the wire accepts, because clients send it, and what changes nothing here."""
    warnings = []
    if body.output_compression not in (None, 100):
        warnings.append("output_compression: png is lossless; it was not used")
    if body.partial_images:
        warnings.append("partial_images: without stream there are none")
    if body.moderation == "low":
        warnings.append("moderation: this hub does not moderate; it was not used")
    return warnings


async def to_image_request(body: CreateImageRequest, hub: Hub, origins: list[str], label: str) -> ImageRequest:
    """The wire's body as the domain's request; source pictures are read here."""
    if not body.prompt.strip():
        raise InvalidRequest("Invalid 'prompt': it is blank.", param="prompt")
    sources = [body.image] if isinstance(body.image, str) else body.image or []
    images = [await hub.inputs.read(text, origins) for text in sources]
    return ImageRequest(
        prompt=body.prompt,
        n=body.n or 1,
        size=wanted_size(body.size),
        images=tuple(images),
        quality=body.quality,
        style=body.style,
        seed=body.seed,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        negative_prompt=body.negative_prompt or None,
        strength=body.strength,
        strict=bool(body.strict),
        label=label,
    )


def wanted_size(text: str | None) -> Size | None:
    """`size` as pixels; None for `auto`. SIZE takes ASCII digits only, where `int` takes other scripts' too."""
    if text is None:
        return DEFAULT_SIZE
    if text == "auto":
        return None
    if not SIZE.fullmatch(text):
        raise InvalidRequest("Invalid 'size': write it as WIDTHxHEIGHT, for example 1024x1024.", param="size")
    return parse_size(text)


def choose_response_format(body: CreateImageRequest, hub: Hub, *, is_v1: bool) -> ResponseFormat:
    """What the body says; else url, as documented, except that under /v1 OpenAI's gpt-image models answer with
    base64 and other models as their manifest says."""
    asked = body.response_format or body.response_format_camel
    if asked:
        return asked
    if not is_v1 or body.model is None or body.model.startswith("dall-e-"):
        return "url"
    if body.model.startswith(("gpt-image-", "chatgpt-image-")):
        return "b64_json"
    return hub.registry.get(body.model).manifest.defaults.response_format


async def links(result: ImageResult, hub: Hub, origin: str) -> list[Image]:
    """Stores the pictures and links to them; all are stored before any link is answered."""
    paths = await asyncio.gather(*(hub.files.save(png) for png in result.images))
    return [Image(url=origin + path) for path in paths]


def _spliced(png: bytes) -> Any:
    """base64 that the JSON encoder copies as it is: escaping a string of megabytes costs eight milliseconds."""
    return msgspec.Raw(b'"' + pybase64.b64encode(png) + b'"')
