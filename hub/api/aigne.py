"""What AIGNE's own clients call: discovery, their image endpoints, their catalogue and status.

The shapes are those of the npm package @aigne/aigne-hub and of AIGNE Hub's server. Its client waits sixty seconds and
then repeats its request up to three times; so here identical requests in flight are joined, and go on alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from litestar import Response, get, post
from msgspec import UNSET, Meta, Struct, UnsetType

from hub.api.answers import ImagesResponse, images_response
from hub.api.modes import submit, wait_for
from hub.api.openapi import IDEMPOTENCY_KEY, answer, as_json, as_json_list, as_text, errors, operation, query
from hub.api.params import MAX_IMAGES, CreateImageRequest, ResponseFormat, of_generation
from hub.api.wire import AnyRequest, invalid, origin_for_links, read_json
from hub.errors import InvalidRequest, ModelNotFound
from hub.files import MEDIA_TYPES
from hub.hub import Hub
from hub.jobs import Job, JobResult

T = TypeVar("T")

AIGNE_HUB_DID = "z8ia3xzq2tMq8CRHfaXj1BTYJyYnEcHbqP8cJ"
"""The component that AIGNE's client looks for; its mount point is where its API begins."""

PROVIDER = "hub"
IGNORED = {"preferInputFileType", "outputFileType"}
"""What AIGNE's client tells itself in these places."""
_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")


class MountPoint(Struct, kw_only=True):
    """A component of AIGNE's platform and where it is served."""

    did: str
    mountPoint: str  # AIGNE's name


class Blocklet(Struct, kw_only=True):
    """AIGNE's discovery document."""

    componentMountPoints: list[MountPoint]


class InputFile(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="file"):
    """A picture inside the request, as base64."""

    data: str
    mimeType: str | None = None
    filename: str | None = None


class InputUrl(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="url"):
    """A picture by URL."""

    url: str
    mimeType: str | None = None
    filename: str | None = None


class InputLocal(Struct, kw_only=True, tag_field="type", tag="local"):
    """A path on some machine's disk. Known so that it can be refused by name: the hub never reads a client's path."""


InputImage = InputFile | InputUrl | InputLocal


class InvokeInput(Struct, kw_only=True):
    """What an image is asked for with. Further parameters, in AIGNE's spelling or OpenAI's, may stand here or in
    `modelOptions`; those are checked like OpenAI's."""

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    image: Annotated[list[InputImage], Meta(max_length=MAX_IMAGES)] | None = None
    outputFileType: Literal["url", "file", "local"] | None = None
    modelOptions: dict[str, Any] | None = None


class InvokeRequest(Struct, kw_only=True):
    """The body of AIGNE's client. `agent` and `options` steer agents and mean nothing to a picture."""

    input: InvokeInput
    agent: str | None = None
    options: dict[str, Any] | None = None


class OpenInvokeRequest(InvokeRequest, kw_only=True):
    """The same as it is read: `input` with the names that stand open in it."""

    input: dict[str, Any]  # type: ignore[assignment]


class OutputImage(Struct, kw_only=True, omit_defaults=True):
    """A picture as AIGNE's client takes it: `type` url with `url`, or `type` file with `data`."""

    type: Literal["url", "file"]
    url: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    mimeType: str
    filename: str


class InvokeUsage(Struct, kw_only=True):
    """Tokens, in AIGNE's spelling."""

    inputTokens: int
    outputTokens: int


class InvokeResponse(Struct, kw_only=True):
    """The answer to AIGNE's client. `seed` and `warnings` are extensions."""

    images: list[OutputImage]
    usage: InvokeUsage
    model: str
    seed: int
    warnings: list[str]


class GenerationImage(Struct, kw_only=True, omit_defaults=True):
    """A picture as AIGNE Hub's generations answer it: a link, or base64 in each of three spellings."""

    url: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET
    b64Json: str | UnsetType = UNSET


class GenerationsResponse(Struct, kw_only=True):
    """The answer of AIGNE Hub's generations; `data` is `images` again."""

    images: list[GenerationImage]
    data: list[GenerationImage]
    model: str
    usage: InvokeUsage
    seed: int
    warnings: list[str]


class ModelStatus(Struct, kw_only=True):
    """Whether a model answers."""

    available: bool


class CatalogueModel(Struct, kw_only=True):
    """A model in AIGNE's catalogue. Prices are strings; local pictures cost nothing."""

    key: str
    model: str
    type: Literal["image"] = "image"
    provider: str = PROVIDER
    providerDisplayName: str = "Hub"
    input_credits_per_token: str = "0"  # noqa: S105
    output_credits_per_token: str = "0"  # noqa: S105
    modelMetadata: dict[str, Any]
    status: ModelStatus


class HubStatus(Struct, kw_only=True, omit_defaults=True):
    """Whether requests for a model can be answered, and if not, why."""

    available: bool
    error: str | None = None


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
        as_json(InvokeRequest), answers={200: as_json(InvokeResponse)}, parameters=[IDEMPOTENCY_KEY]
    ),
    responses=errors(404, 409, 507),
    summary="AIGNE: create or edit images",
)
async def invoke(request: AnyRequest) -> Response[bytes]:
    """What AIGNE's JavaScript client calls."""
    body = await read_json(request, OpenInvokeRequest)
    plain = _converted(body.input, InvokeInput)
    if plain.outputFileType == "local":
        words = "outputFileType: this hub's disk is not yours; ask for url or file."
        raise InvalidRequest(words, param="outputFileType", code="unsupported_value")
    params = {name: value for name, value in body.input.items() if name not in InvokeInput.__struct_fields__}
    params |= {"prompt": plain.prompt, "image": [_source(each) for each in plain.image or []] or None}
    for name, value in (plain.modelOptions or {}).items():
        if params.setdefault(name, value) != value:
            words = f"'{name[:64]}' was given twice, in input and in modelOptions."
            raise InvalidRequest(words, param=name[:64])
    answered: ResponseFormat = "b64_json" if plain.outputFileType == "file" else "url"
    return await _respond(request, params, answered, _invoke_response)


@post(
    ["/api/v1/image/generations", "/api/v2/image/generations"],
    status_code=200,
    operation_class=operation(
        as_json(CreateImageRequest), answers={200: as_json(GenerationsResponse)}, parameters=[IDEMPOTENCY_KEY]
    ),
    responses=errors(404, 409, 507),
    summary="AIGNE: generations",
)
async def generations(request: AnyRequest) -> Response[bytes]:
    """AIGNE Hub's own endpoint (`image` in the singular). Parameters may be spelled in camel case; pictures are
    base64 unless the body says url, as there."""
    params = await read_json(request, dict)
    return await _respond(request, params, None, _generations_response)


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
    available = ModelStatus(available=hub.engine.device is not None)
    wanted = request.query_params.get("type") in (None, "", "image", "imageGeneration")
    models = [
        CatalogueModel(
            key=f"{PROVIDER}/{listed.id}",
            model=listed.id,
            modelMetadata={"name": listed.manifest.name, "tasks": listed.manifest.tasks},
            status=available,
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
    """Whether a request would be answered now."""
    hub: Hub = request.app.state.hub
    try:
        if model := request.query_params.get("model"):
            known_model(model, hub)
        error = None if hub.engine.device is not None else "The engine is starting. Try again shortly."
    except ModelNotFound as unknown:
        error = unknown.message
    return Response(msgspec.json.encode(HubStatus(available=error is None, error=error)), media_type="application/json")


async def _respond(
    request: AnyRequest,
    params: dict[str, Any],
    response_format: ResponseFormat | None,
    render: Callable[[Job, JobResult, ImagesResponse], Struct],
) -> Response[bytes]:
    """Makes the pictures that AIGNE's parameters ask for, and renders them in one of its shapes."""
    hub: Hub = request.app.state.hub
    body = _converted(_in_openais_words(params, hub), CreateImageRequest)
    if body.stream:
        raise InvalidRequest("stream: this path answers JSON only.", param="stream", code="unsupported_value")
    job = await submit(
        request, of_generation(body), response_format or body.asked_format or "b64_json", "wait", client_retries=True
    )
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
        seed=result.seed,
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
        seed=result.seed,
        warnings=answered.warnings,
    )


def _usage(result: JobResult) -> InvokeUsage:
    usage = result.usage
    return InvokeUsage(inputTokens=usage.text_tokens + usage.image_tokens, outputTokens=usage.output_tokens)


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
