"""What handlers say of themselves for the OpenAPI document, since they decode their bodies and answer bytes themselves:

    @post(
        "/v1/images/edits",
        status_code=200,
        operation_class=operation(
            as_json(EditImageRequest),
            as_multipart(EditImageForm, image=Upload(most=16), mask=Upload(required=False)),
            answers={
                200: answer(as_json(ImagesResponse), as_events(PartialImageEvent, CompletedEvent)),
                202: answer(as_json(ImageJob), headers={"Location": "Where the job is."}),
            },
            parameters=[IDEMPOTENCY_KEY, PREFER],
        ),
        responses=errors(404, 507),
    )

What holds everywhere, and what a Struct is, `hub.api.openapi` adds. A route without a body that answers a Struct by its
annotation needs to say nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Encoding,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
)
from msgspec import Struct

from hub.api.schemas import REF, example_of, is_structured, plain_schema, with_types, without_null
from hub.api.wire import ErrorResponse

PICTURES = ("image/png", "image/jpeg", "image/webp")
"""The media types of pictures that the hub reads and writes."""


@dataclass(frozen=True)
class Content:
    """What a body may be in one media type: its JSON Schema, and the Structs that the schema refers to."""

    media_type: str
    schema: dict[str, Any]
    kinds: tuple[type[Struct], ...] = ()
    encoding: Mapping[str, str] = field(default_factory=dict)
    """Of a form: the media types of the parts that are not text."""
    example: Any = None
    """Of a request's body: what /docs offers to send."""


@dataclass(frozen=True)
class Answer:
    """What one status brings: any of `contents` (none: an empty body), and headers with their descriptions."""

    contents: tuple[Content, ...] = ()
    description: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """A file in a form. With `most` above one the name may be repeated, also as `name[]`, as OpenAI's clients do."""

    required: bool = True
    most: int = 1
    media_types: Sequence[str] = PICTURES
    description: str = ""


def as_json(kind: type[Struct]) -> Content:
    """JSON of this Struct."""
    return Content("application/json", {"$ref": REF + kind.__name__}, (kind,), example=example_of(kind))


def as_json_list(kind: type[Struct]) -> Content:
    """A JSON array of this Struct."""
    return Content("application/json", {"type": "array", "items": {"$ref": REF + kind.__name__}}, (kind,))


def as_multipart(kind: type[Struct], **files: Upload) -> Content:
    """A form whose text fields are this Struct's, with files beside them. A field that holds objects is JSON."""
    _, components = msgspec.json.schema_components([kind], ref_template=REF + "{name}")
    schema = dict(components[kind.__name__])
    fields = {name: without_null(value) for name, value in schema["properties"].items()}
    for info in msgspec.structs.fields(kind):
        if is_structured(info.type):
            json = {"contentMediaType": "application/json", "contentSchema": fields[info.encode_name]}
            fields[info.encode_name] = {"type": "string", **json}
    required = list(schema.get("required", []))
    either: list[dict[str, Any]] = []
    for name, upload in files.items():
        one = {"type": "string", "format": "binary"}
        described = {"description": upload.description} if upload.description else {}
        if upload.most == 1:
            fields[name] = {**one, **described}
            required += [name] if upload.required else []
            continue
        fields[name] = fields[f"{name}[]"] = {
            "type": "array",
            "items": one,
            "minItems": 1,
            "maxItems": upload.most,
            **described,
        }
        if upload.required:
            either.append({"anyOf": [{"required": [name]}, {"required": [f"{name}[]"]}]})
    schema["properties"] = fields
    schema["required"] = required
    if either:
        schema["allOf"] = either
    encoding = {
        part: ", ".join(upload.media_types)
        for name, upload in files.items()
        for part in ((name,) if upload.most == 1 else (name, f"{name}[]"))
    }
    return Content("multipart/form-data", with_types(schema), encoding=encoding, example=example_of(kind))


def as_events(*kinds: type[Struct]) -> Content:
    """Server-sent events; the `data` of each is JSON of one of these Structs. The schema is that of one event, as
    OpenAPI 3.2 has it in `itemSchema`, which 3.1 does not know.
    """
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [{"$ref": REF + kind.__name__} for kind in kinds]},
    }
    schema = {
        "type": "object",
        "description": "One event of the stream; its `data` is JSON.",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["event", "data"],
    }
    return Content("text/event-stream", schema, kinds)


def as_bytes(media_type: str) -> Content:
    """Bytes of a media type such as image/png."""
    return Content(media_type, {"type": "string", "format": "binary"})


def as_pictures() -> tuple[Content, ...]:
    """Bytes of any of PICTURES: `answer(*as_pictures())`."""
    return tuple(as_bytes(media_type) for media_type in PICTURES)


def as_text(media_type: str = "text/plain") -> Content:
    """Text of a media type."""
    return Content(media_type, {"type": "string"})


def answer(*contents: Content, description: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """What a status brings; several contents are alternatives, as JSON or events."""
    return Answer(contents, description, headers or {})


def header(name: str, description: str, *, required: bool = False, **schema: Any) -> Parameter:
    """A request header that the handler reads; `schema` holds keywords of JSON Schema, a string without."""
    return _parameter(name, "header", description, required, schema)


def query(name: str, description: str, *, required: bool = False, **schema: Any) -> Parameter:
    """A query parameter that the handler reads itself."""
    return _parameter(name, "query", description, required, schema)


def path(name: str, description: str, **schema: Any) -> Parameter:
    """Says more of a path parameter than Litestar does."""
    return _parameter(name, "path", description, True, schema)


def _parameter(name: str, place: str, description: str, required: bool, schema: dict[str, Any]) -> Parameter:
    raw = plain_schema({"type": "string", **schema})
    return Parameter(name=name, param_in=place, schema=raw, description=description, required=required)


IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    "Names this request, so that a repetition of it is answered alike and makes nothing twice.",
    pattern=r"^[!-~]{1,255}$",
)
PREFER = header("Prefer", "`respond-async`: answer at once with a job.", examples=["respond-async"])
CACHE_CONTROL = header(
    "Cache-Control",
    "`no-cache`: draw, also where pictures of the same seed and parameters are stored. `no-store`: and keep these from "
    "later requests.",
    examples=["no-cache"],
)


OF_PICTURES = ("x-job-id", "x-hub-cache", "x-hub-target")
"""Headers of what becomes a job and is answered with its pictures."""


def operation(
    *bodies: Content,
    answers: Mapping[int, Answer | Content] | None = None,
    parameters: Sequence[Parameter] = (),
    headers: Sequence[str] = (),
) -> type[Operation]:
    """The `operation_class` of a handler: the bodies it reads (each of another media type), what it answers when all
    is well, where the annotation does not tell, the parameters it reads from the request itself, and those headers of
    its good answers that several routes have, by their names in `hub.api.openapi`.
    """
    given = {
        status: each if isinstance(each, Answer) else Answer((each,)) for status, each in dict(answers or {}).items()
    }
    contents = [content for each in given.values() for content in each.contents]

    @dataclass
    class HubOperation(Operation):
        def __post_init__(self) -> None:
            if bodies:
                self.request_body = RequestBody(content=_content(bodies, with_examples=True), required=True)
            self.responses = {
                **{status: each for status, each in (self.responses or {}).items() if not _replaced(status, given)},
                **{str(status): _response(status, each) for status, each in given.items()},
            }
            mine = {(each.name, each.param_in) for each in parameters}
            theirs = [each for each in self.parameters or [] if _key_of(each) not in mine]
            self.parameters = [*theirs, *parameters] or None

    HubOperation.headers = tuple(headers)  # type: ignore[attr-defined]
    HubOperation.reads = {kind for content in bodies for kind in content.kinds}  # type: ignore[attr-defined]
    HubOperation.writes = {kind for content in contents for kind in content.kinds}  # type: ignore[attr-defined]
    return HubOperation


def errors(*statuses: int) -> dict[int, ResponseSpec]:
    """For `responses=`: errors, in the envelope, that a route has beyond those that `document` adds by itself."""
    return {status: ResponseSpec(ErrorResponse, generate_examples=False) for status in statuses}


def _content(contents: Sequence[Content], *, with_examples: bool = False) -> dict[str, OpenAPIMediaType]:
    by_type: dict[str, list[Content]] = {}
    for each in contents:
        by_type.setdefault(each.media_type, []).append(each)
    return {
        media_type: OpenAPIMediaType(
            schema=plain_schema(same[0].schema if len(same) == 1 else {"anyOf": [each.schema for each in same]}),
            encoding={name: Encoding(content_type=types) for each in same for name, types in each.encoding.items()}
            or None,
            example=same[0].example if with_examples else None,
        )
        for media_type, same in by_type.items()
    }


def _response(status: int, each: Answer) -> OpenAPIResponse:
    headers: dict[str, OpenAPIHeader | Reference] = {
        name: OpenAPIHeader(description=words, schema=plain_schema({"type": "string"}))
        for name, words in each.headers.items()
    }
    return OpenAPIResponse(
        description=each.description or HTTPStatus(status).phrase,
        content=_content(each.contents) or None,
        headers=headers or None,
    )


def _replaced(status: str, given: Mapping[int, Answer]) -> bool:
    """Whether Litestar's guess at the good answer goes: a handler that lists its answers lists all of them."""
    return bool(given) and int(status) < HTTPStatus.BAD_REQUEST and int(status) not in given


def _key_of(each: Any) -> tuple[Any, Any]:
    return getattr(each, "name", None), getattr(each, "param_in", None)
