"""What AIGNE's own clients call: discovery, their image endpoints, their catalogue and status.

The shapes are those of the npm package @aigne/aigne-hub and of AIGNE Hub's server. Its client waits sixty seconds and
then repeats its request up to three times; so here identical requests in flight are joined, and go on alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from litestar import Response, get, post
from msgspec import UNSET, Struct

from hub.api.aigne_bodies import (
    PROVIDER,
    Blocklet,
    CatalogueModel,
    GenerationImage,
    GenerationsResponse,
    HubStatus,
    InputFile,
    InputImage,
    InputUrl,
    InvokeInput,
    InvokeRequest,
    InvokeResponse,
    InvokeUsage,
    ModelStatus,
    MountPoint,
    OpenInvokeRequest,
    OutputImage,
)
from hub.api.answers import ImagesResponse, images_response
from hub.api.described import (
    CACHE_CONTROL,
    IDEMPOTENCY_KEY,
    OF_PICTURES,
    answer,
    as_json,
    as_json_list,
    as_text,
    errors,
    operation,
    query,
)
from hub.api.modes import submit, wait_for
from hub.api.params import CreateImageRequest, ResponseFormat, of_generation
from hub.api.refusals import invalid
from hub.api.wire import AnyRequest, origin_for_links, owner_of, read_json
from hub.errors import InvalidRequest, ModelNotFound
from hub.files import MEDIA_TYPES
from hub.hub import Hub
from hub.jobs import Job, JobResult
from hub.manifest import ModelManifest
from hub.refusal import refusal
from hub.registry import ListedModel
from hub.route import Caller
from hub.types import ImageRequest

T = TypeVar("T")

AIGNE_HUB_DID = "z8ia3xzq2tMq8CRHfaXj1BTYJyYnEcHbqP8cJ"
"""The component that AIGNE's client looks for; its mount point is where its API begins."""

IGNORED = {"preferInputFileType"}
"""What AIGNE's client tells itself among the parameters."""
FILE_TYPES: dict[Any, ResponseFormat] = {"url": "url", "file": "b64_json"}
"""AIGNE's `outputFileType` in OpenAI's words. Its third, local, is a path on a disk."""
_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")


@get(
    "/__blocklet__.js",
    opt={"public": True},
    operation_class=operation(
        answers={200: answer(as_json(Blocklet), as_text("text/javascript"))},
        parameters=[query("type", "`json` for JSON; else a script that sets `window.blocklet`.")],
    ),
    summary="AIGNE: discovery",
)
async def blocklet(request: AnyRequest) -> Response[bytes]:
    """Where AIGNE's client finds this hub's API. Public: the client asks before it sends its key."""
    document = msgspec.json.encode(Blocklet(componentMountPoints=[MountPoint(did=AIGNE_HUB_DID, mountPoint="/")]))
    if request.query_params.get("type") == "json":
        return Response(document, media_type="application/json")
    return Response(b"window.blocklet = " + document + b";\n", media_type="text/javascript")


@post(
    "/api/v2/image",
    status_code=200,
    operation_class=operation(
        as_json(InvokeRequest),
        answers={200: as_json(InvokeResponse)},
        parameters=[IDEMPOTENCY_KEY, CACHE_CONTROL],
        headers=OF_PICTURES,
    ),
    responses=errors(402, 404, 409, 502, 504, 507),
    summary="AIGNE: create or edit images",
)
async def invoke(request: AnyRequest) -> Response[bytes]:
    """What AIGNE's JavaScript client calls."""
    body = await read_json(request, OpenInvokeRequest)
    plain = _converted(body.input, InvokeInput)
    params = {name: value for name, value in body.input.items() if name not in InvokeInput.__struct_fields__}
    params |= {"prompt": plain.prompt, "image": [_source(each) for each in plain.image or []] or None}
    if plain.outputFileType is not None:
        params["outputFileType"] = plain.outputFileType
    for name, value in (plain.modelOptions or {}).items():
        if params.setdefault(name, value) != value:
            words = f"'{name[:64]}' was given twice, in input and in modelOptions."
            raise InvalidRequest(words, param=name[:64])
    params.setdefault("outputFileType", "url")
    return await _respond(request, params, _invoke_response)


@post(
    ["/api/v1/image/generations", "/api/v2/image/generations"],
    status_code=200,
    operation_class=operation(
        as_json(CreateImageRequest),
        answers={200: as_json(GenerationsResponse)},
        parameters=[IDEMPOTENCY_KEY, CACHE_CONTROL],
        headers=OF_PICTURES,
    ),
    responses=errors(402, 404, 409, 502, 504, 507),
    summary="AIGNE: generations",
)
async def generations(request: AnyRequest) -> Response[bytes]:
    """AIGNE Hub's own endpoint (`image` in the singular). Parameters may be spelled in camel case; pictures are
    base64 unless the body says url, as there."""
    return await _respond(request, await read_json(request, dict), _generations_response)


@get(
    "/api/ai/models",
    opt={"public": True},
    operation_class=operation(
        answers={200: as_json_list(CatalogueModel)},
        parameters=[query("type", "`image`, or nothing; this hub has no models of other types.")],
    ),
    summary="AIGNE: catalogue",
)
async def catalogue(request: AnyRequest) -> Response[bytes]:
    """Every id that answers. Public, as on AIGNE Hub: its client sends no key here."""
    hub: Hub = request.app.state.hub
    wanted = request.query_params.get("type") in (None, "", "image", "imageGeneration")
    anybody = Caller(may_leave=bool(hub.settings.remote_keys))
    models = [
        CatalogueModel(
            key=f"{PROVIDER}/{listed.id}",
            model=listed.id,
            modelMetadata={"name": listed.manifest.name, "tasks": hub.registry.tasks_of(listed)},
            status=ModelStatus(available=await _problem(hub, listed, anybody) is None),
        )
        for listed in hub.registry
        if wanted
    ]
    return Response(msgspec.json.encode(models), media_type="application/json")


@get(
    "/api/v2/status",
    operation_class=operation(
        answers={200: as_json(HubStatus)}, parameters=[query("model", "A model's id; without it, the hub itself.")]
    ),
    summary="AIGNE: status",
)
async def hub_status(request: AnyRequest) -> Response[bytes]:
    """Whether a request would be answered now, with this key."""
    hub: Hub = request.app.state.hub
    try:
        model = request.query_params.get("model") or hub.settings.default_model
        listed = hub.registry.get(known_model(model, hub))
        error = await _problem(hub, listed, await hub.caller(owner_of(request) or ""))
    except ModelNotFound as unknown:
        error = unknown.message
    return Response(msgspec.json.encode(HubStatus(available=error is None, error=error)), media_type="application/json")


async def _problem(hub: Hub, listed: ListedModel, caller: Caller) -> str | None:
    """What stands against a plain request for a model, in words. No provider is asked."""
    if not isinstance(listed.manifest, ModelManifest):
        tasks = hub.registry.tasks_of(listed)
        sources = () if not tasks or "text-to-image" in tasks else (b"",)
        mask = b"" if tasks == ["inpainting"] else None
        plain = ImageRequest(prompt="", images=sources, mask=mask, owner=caller.owner)
        decided = await hub.decide(listed.id, plain, caller)
        if not decided.targets:
            return refusal(decided, plain, caller).message
        if not all(isinstance(target.manifest, ModelManifest) for target in decided.targets):
            return None
    return None if hub.engine.device is not None else hub.engine.problem or "The engine is starting. Try again shortly."


async def _respond(
    request: AnyRequest,
    params: dict[str, Any],
    render: Callable[[Job, JobResult, ImagesResponse], Struct],
) -> Response[bytes]:
    """Makes the pictures that AIGNE's parameters ask for, and renders them in one of its shapes."""
    hub: Hub = request.app.state.hub
    named = params.pop("outputFileType", None)
    response_format = _file_type(named) if named is not None else None
    body = _converted(_in_openais_words(params, hub), CreateImageRequest)
    if body.stream:
        raise InvalidRequest("stream: this path answers JSON only.", param="stream", code="unsupported_value")
    if response_format and body.asked_format not in (None, response_format):
        raise InvalidRequest("response_format: it contradicts outputFileType.", param="response_format")
    answered_as = response_format or body.asked_format or "b64_json"
    job = await submit(request, of_generation(body), answered_as, "wait", client_retries=True)
    with hub.jobs.watching(job):
        result = await wait_for(request, job)
        answered = await images_response(job, hub, origin_for_links(request, hub.settings))
    return Response(msgspec.json.encode(render(job, result, answered)), media_type="application/json")


def _invoke_response(job: Job, result: JobResult, answered: ImagesResponse) -> InvokeResponse:
    images = []
    for name, image in zip(result.files, answered.data, strict=True):
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        if image.url is not UNSET:
            images.append(OutputImage(type="url", url=image.url, mimeType=media_type, filename=name))
        elif image.b64_json is not UNSET:
            images.append(OutputImage(type="file", data=image.b64_json, mimeType=media_type, filename=name))
    return InvokeResponse(
        images=images,
        usage=_usage(result),
        model=job.row.model,
        seed=answered.seed,
        warnings=answered.warnings,
    )


def _generations_response(job: Job, result: JobResult, answered: ImagesResponse) -> GenerationsResponse:
    images = [
        GenerationImage(url=each.url, base64=each.b64_json, b64_json=each.b64_json, b64Json=each.b64_json)
        for each in answered.data
    ]
    return GenerationsResponse(
        images=images,
        data=images,
        model=job.row.model,
        usage=_usage(result),
        seed=answered.seed,
        warnings=answered.warnings,
    )


def _usage(result: JobResult) -> InvokeUsage:
    usage = result.usage
    return InvokeUsage(inputTokens=usage.text_tokens + usage.image_tokens, outputTokens=usage.output_tokens)


def _file_type(named: Any) -> ResponseFormat:
    try:
        return FILE_TYPES[named]
    except (KeyError, TypeError):
        words = "outputFileType: ask for url or file; no other machine can read this hub's disk."
        raise InvalidRequest(words, param="outputFileType", code="unsupported_value") from None


def _source(image: InputImage) -> str:
    match image:
        case InputFile():
            return image.data
        case InputUrl():
            return image.url
    words = "image: a path on a disk is never read; send the picture itself ('type': 'file') or a URL."
    raise InvalidRequest(words, param="image", code="unsupported_value")


def _in_openais_words(params: dict[str, Any], hub: Hub) -> dict[str, Any]:
    """Parameters by OpenAI's names, and the model by an id that is known here."""
    words: dict[str, Any] = {}
    for name, value in params.items():
        if name in IGNORED:
            continue
        plain = _HUMP.sub(lambda hump: "_" + hump[0].lower(), name)
        if plain in words:
            raise InvalidRequest(f"'{plain[:64]}' was given twice, in two spellings.", param=plain[:64])
        words[plain] = value
    if words.get("response_format") == "base64":
        words["response_format"] = "b64_json"
    if isinstance(words.get("model"), str):
        words["model"] = known_model(words["model"], hub)
    return words


def known_model(model: str, hub: Hub) -> str:
    """AIGNE's ids are `provider/model`; the provider's name is dropped where only the rest is known here. Raises
    ModelNotFound."""
    try:
        return hub.registry.get(model).id
    except ModelNotFound:
        rest = model.partition("/")[2]
        if not rest:
            raise
        return hub.registry.get(rest).id


def _converted(values: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise invalid(str(error), kind) from None
