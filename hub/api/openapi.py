"""The OpenAPI document: made from the Structs by which bodies are read and written, and true for every route.

Litestar knows paths, path parameters and docstrings. What handlers do themselves (they decode their bodies strictly
and answer bytes) they say in their decorators, with the words of this module:

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

`document` adds what holds everywhere, so that no handler can forget it: the errors that the guard, the limits and the
body's reader give, the error envelope, the request id, the security of closed routes, and a component per Struct. A
route without a body that answers a Struct by its annotation needs to say nothing at all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Response, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    Encoding,
    License,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)
from litestar.plugins import OpenAPISchemaPlugin
from litestar.routes import HTTPRoute
from msgspec import Struct

from hub import __version__
from hub.api.wire import ErrorResponse
from hub.errors import HubError, NotFound

if TYPE_CHECKING:
    from litestar.connection import Request
    from litestar.handlers import HTTPRouteHandler
    from litestar.typing import FieldDefinition

DOCUMENT_PATH = "/openapi/openapi.json"
PICTURES = ("image/png", "image/jpeg", "image/webp")
"""The media types of pictures that the hub reads and writes."""

_BEARER = "bearer"
_REF = "#/components/schemas/"
_OF_EVERY_ROUTE = {500}
_OF_CLOSED_ROUTES = {401, 403, 429, 503}
_OF_ROUTES_WITH_BODY = {400, 413, 415}
_HEADERS = {
    "x-request-id": {"description": "The request's name in the hub's log.", "schema": {"type": "string"}},
    "x-job-id": {"description": "The job that the request has become.", "schema": {"type": "string"}},
}
_PLAIN_EXAMPLES: dict[Any, Any] = {"string": "a red circle on a white background", "object": {}, "array": []}
_DESCRIPTION = """\
OpenAI's image API, served by this machine. A key goes in `Authorization: Bearer KEY`; a hub without keys answers
this machine's own programs only.

Every error is OpenAI's envelope, `{"error": {"message", "type", "param", "code"}}`. Every answer carries
`x-request-id`, the name of the request in the hub's log. Links, models, `/health` and `/docs` answer `HEAD`
too.
"""


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


def as_json(kind: type[Struct], **fields: type[Struct]) -> Content:
    """JSON of this Struct. `fields`: what a handler reads in two steps, first as any object and then as a Struct."""
    whole: dict[str, Any] = {"$ref": _REF + kind.__name__}
    if fields:
        parts = {name: {"$ref": _REF + inner.__name__} for name, inner in fields.items()}
        whole = {"allOf": [whole, {"type": "object", "properties": parts}]}
    example = _example(kind) | {name: _example(inner) for name, inner in fields.items()}
    return Content("application/json", whole, (kind, *fields.values()), example=example)


def as_json_list(kind: type[Struct]) -> Content:
    """A JSON array of this Struct."""
    return Content("application/json", {"type": "array", "items": {"$ref": _REF + kind.__name__}}, (kind,))


def as_multipart(kind: type[Struct], **files: Upload) -> Content:
    """A form whose text fields are this Struct's (scalars and lists of them), with files beside them."""
    _, components = msgspec.json.schema_components([kind], ref_template=_REF + "{name}")
    if len(components) != 1:
        raise TypeError(f"{kind.__name__}: a form holds no objects")
    schema = dict(components[kind.__name__])
    fields = {name: _without_null(value) for name, value in schema["properties"].items()}
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
    return Content("multipart/form-data", _with_types(schema), encoding=encoding, example=_example(kind))


def as_events(*kinds: type[Struct]) -> Content:
    """Server-sent events; the `data` of each is JSON of one of these Structs. The schema is that of one event, as
    OpenAPI 3.2 has it in `itemSchema`, which 3.1 does not know.
    """
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [{"$ref": _REF + kind.__name__} for kind in kinds]},
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


class _RawSchema(Schema):
    """A JSON Schema that is passed on as it is."""

    raw: dict[str, Any]

    def to_schema(self) -> dict[str, Any]:
        return self.raw


def _plain_schema(raw: dict[str, Any]) -> Schema:
    schema = _RawSchema()
    schema.raw = raw
    return schema


def _parameter(name: str, place: str, description: str, required: bool, schema: dict[str, Any]) -> Parameter:
    raw = _plain_schema({"type": "string", **schema})
    return Parameter(name=name, param_in=place, schema=raw, description=description, required=required)


IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    "Names this request, so that a repetition of it is answered alike and makes nothing twice.",
    pattern=r"^[!-~]{1,255}$",
)
PREFER = header("Prefer", "`respond-async`: answer at once with a job.", examples=["respond-async"])


def operation(
    *bodies: Content, answers: Mapping[int, Answer | Content] | None = None, parameters: Sequence[Parameter] = ()
) -> type[Operation]:
    """The `operation_class` of a handler: the bodies it reads (each of another media type), what it answers when all
    is well, where the annotation does not tell, and the parameters it reads from the request itself.
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

    HubOperation.reads = {kind for content in bodies for kind in content.kinds}  # type: ignore[attr-defined]
    HubOperation.writes = {kind for content in contents for kind in content.kinds}  # type: ignore[attr-defined]
    return HubOperation


def errors(*statuses: int) -> dict[int, ResponseSpec]:
    """For `responses=`: errors, in the envelope, that a route has beyond those that `document` adds by itself."""
    return {status: ResponseSpec(ErrorResponse, generate_examples=False) for status in statuses}


class StructSchemas(OpenAPISchemaPlugin):
    """Structs as references to components that msgspec, which decodes and encodes them, describes itself.

    Litestar's own description leaves out `additionalProperties: false` and invents examples.
    """

    def __init__(self) -> None:
        self.kinds: set[type[Struct]] = set()

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Whether the field is a Struct."""
        return not field_definition.is_union and field_definition.is_subclass_of(Struct)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:  # noqa: ARG002
        """The reference; `document` adds what it refers to."""
        kind: type[Struct] = field_definition.type_
        self.kinds.add(kind)
        schema = _plain_schema({"$ref": _REF + kind.__name__})
        schema.examples = [None]  # never seen; without any, Litestar loads faker (200 ms) to invent some
        return schema


class _DocumentPlugin(JsonRenderPlugin):
    """The document as JSON, made on the first request for it."""

    def __init__(self) -> None:
        super().__init__(path="/openapi.json")
        self._made: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        if self._made is None:
            self._made = msgspec.json.encode(document(request.app))
        return self._made


async def _no_pages(response: Response[Any]) -> Response[Any]:
    """Litestar answers unknown paths beside the document with an HTML page of its own; here they are errors as all."""
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFound(f"The OpenAPI document is at {DOCUMENT_PATH}.")
    return response


def openapi_config() -> OpenAPIConfig:
    """GET /openapi/openapi.json. Public: /docs needs it, and it says nothing that the hub's source does not."""
    router = Router(
        "/openapi", route_handlers=[], after_request=_no_pages, include_in_schema=False, opt={"public": True}
    )
    scheme = SecurityScheme(type="http", scheme="bearer", description="A key of this hub; see `hub keys`.")
    return OpenAPIConfig(
        title="Hub",
        version=__version__,
        description=_DESCRIPTION,
        use_handler_docstrings=True,
        license=License(name="Apache-2.0"),
        components=Components(security_schemes={_BEARER: scheme}),
        openapi_router=router,
        render_plugins=[_DocumentPlugin()],
    )


def document(app: Litestar) -> dict[str, Any]:
    """The whole OpenAPI document of a hub."""
    made: dict[str, Any] = copy.deepcopy(app.openapi_schema.to_schema())  # parts of it are the handlers' own
    read: set[type[Struct]] = set()
    written: set[type[Struct]] = {ErrorResponse, *app.plugins.get(StructSchemas).kinds}
    statuses: set[int] = set()
    tags: dict[str, None] = {}
    needs_key = bool(app.state.hub.keys)
    for (where, method), handler in _handlers(app).items():
        if method == HTTPMethod.HEAD:
            made["paths"][where].pop("head", None)
            continue
        one = made["paths"][where][method.lower()]
        read |= getattr(handler.operation_class, "reads", set())
        written |= getattr(handler.operation_class, "writes", set())
        public = bool(handler.opt.get("public"))
        one["security"] = [] if public else [{_BEARER: []}] if needs_key else [{}, {_BEARER: []}]
        tags |= dict.fromkeys(one.setdefault("tags", [handler.fn.__module__.rpartition(".")[2]]))
        one["description"] = _plain_words(one.get("description", "")).partition("\n\n")[0]
        statuses |= _complete(one, where, public=public)
    components = made["components"]
    components["schemas"] = _schemas(read, written)
    components["responses"] = {_name(status): _error(status) for status in sorted(statuses)}
    components["headers"] = _HEADERS
    # Litestar's order of paths is that of a set.
    made["paths"] = dict(sorted(made["paths"].items(), key=lambda item: (not item[0].startswith("/v1/"), item[0])))
    made["tags"] = [{"name": name} for name in tags]
    return made


def _handlers(app: Litestar) -> dict[tuple[str, str], HTTPRouteHandler]:
    """Every handler that the document tells of, by its path and method."""
    return {
        (route.path_format, method): handler
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.resolve_include_in_schema()
        for method in handler.http_methods
    }


def _complete(operation: dict[str, Any], where: str, *, public: bool) -> set[int]:
    """Adds the answers that handlers do not list; returns the statuses that are errors in the envelope."""
    answers: dict[str, Any] = operation["responses"]
    expected = set(_OF_EVERY_ROUTE)
    expected |= set() if public else _OF_CLOSED_ROUTES
    expected |= _OF_ROUTES_WITH_BODY if "requestBody" in operation else set()
    expected |= {404} if "{" in where else set()
    litestars = {status for status, each in answers.items() if _is_litestars(status, each)}
    listed = {int(status) for status, each in answers.items() if _is_envelope(each) and status not in litestars}
    missing = {status for status in expected if str(status) not in answers or str(status) in litestars}
    for each in litestars:
        del answers[each]
    for status in listed | missing:
        answers[str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}
    for code, response in answers.items():
        if "$ref" in response:
            continue
        shared = ("x-request-id", "x-job-id") if "requestBody" in operation else ("x-request-id",)
        response.setdefault("headers", {}).update(_header_refs(*shared))
        if response["description"] == ResponseSpec.description:
            response["description"] = HTTPStatus(int(code)).phrase
    operation["responses"] = dict(sorted(answers.items()))
    return listed | missing


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _schema_of(response: dict[str, Any]) -> dict[str, Any]:
    return dict(response.get("content", {}).get("application/json", {}).get("schema", {}))


def _is_envelope(response: dict[str, Any]) -> bool:
    return _schema_of(response) == {"$ref": _REF + ErrorResponse.__name__}


def _is_litestars(status: str, response: dict[str, Any]) -> bool:
    """Litestar lists a 400 of its own shape for every handler with parameters."""
    return status == "400" and "status_code" in _schema_of(response).get("properties", {})


def _schemas(read: set[type[Struct]], written: set[type[Struct]]) -> dict[str, Any]:
    """A component for each Struct, and for each that it holds. What is only written is written whole, defaults
    included, so its fields are required."""
    ordered = sorted(read | written, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=_REF + "{name}")
    for kind in _all_structs(ordered):
        schema = _with_types(components[kind.__name__])
        schema["description"] = _plain_words(schema.get("description", ""))
        components[kind.__name__] = schema
    for kind in _all_structs(written) - _all_structs(read):
        if not kind.__struct_config__.omit_defaults:
            unset = {info.encode_name for info in msgspec.structs.fields(kind) if info.default is msgspec.UNSET}
            schema = components[kind.__name__]
            schema["required"] = [name for name in schema.get("properties", {}) if name not in unset]
    return dict(sorted(components.items()))


def _all_structs(kinds: Iterable[type[Struct]]) -> set[type[Struct]]:
    """These Structs and all that stand in their fields."""
    found: set[type[Struct]] = set()

    def look(info: Any) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                return
            found.add(info.cls)
            for each in info.fields:
                look(each.type)
        for name in ("type", "item_type", "key_type", "value_type"):
            if hasattr(info, name):
                look(getattr(info, name))
        for name in ("types", "item_types"):
            for each in getattr(info, name, ()):
                look(each)

    for info in msgspec.inspect.multi_type_info(kinds):
        look(info)
    return found


def _name(status: int) -> str:
    return re.sub(r"[^A-Za-z]", "", HTTPStatus(status).phrase.title())


def _error(status: int) -> dict[str, Any]:
    """The shared description of an error's status: its codes, from the errors themselves."""
    codes = {kind.code: (kind.__doc__ or "").partition("\n")[0] for kind in _error_kinds() if kind.status == status}
    words = "\n".join(f"- `{code}`: {text}" for code, text in codes.items())
    headers = _header_refs(*_HEADERS)
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = {"description": "Always `Bearer`.", "schema": {"type": "string"}}
    return {
        "description": words or HTTPStatus(status).phrase,
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": _REF + ErrorResponse.__name__}}},
    }


def _error_kinds() -> Iterator[type[HubError]]:
    waiting = [HubError]
    while waiting:
        kind = waiting.pop(0)
        yield kind
        waiting += kind.__subclasses__()


def _content(contents: Sequence[Content], *, with_examples: bool = False) -> dict[str, OpenAPIMediaType]:
    by_type: dict[str, list[Content]] = {}
    for each in contents:
        by_type.setdefault(each.media_type, []).append(each)
    return {
        media_type: OpenAPIMediaType(
            schema=_plain_schema(same[0].schema if len(same) == 1 else {"anyOf": [each.schema for each in same]}),
            encoding={name: Encoding(content_type=types) for each in same for name, types in each.encoding.items()}
            or None,
            example=same[0].example if with_examples else None,
        )
        for media_type, same in by_type.items()
    }


def _example(kind: type[Struct]) -> dict[str, Any]:
    """A body of what must be there and of what has an example (`Meta(examples=[…])`)."""
    _, components = msgspec.json.schema_components([kind])
    schema = components[kind.__name__]
    found = {}
    for name, described in schema["properties"].items():
        options = [described, *described.get("anyOf", ())]
        examples = [example for option in options for example in option.get("examples", ())]
        if examples or name in schema.get("required", ()):
            found[name] = examples[0] if examples else _PLAIN_EXAMPLES.get(described.get("type"))
    return found


def _response(status: int, each: Answer) -> OpenAPIResponse:
    headers: dict[str, OpenAPIHeader | Reference] = {
        name: OpenAPIHeader(description=words, schema=_plain_schema({"type": "string"}))
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


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field of a form is absent, never null."""
    kept = {key: value for key, value in schema.items() if key != "default" or value is not None}
    if "enum" in kept:
        kept["enum"] = [value for value in kept["enum"] if value is not None]
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        return {**kept, **options[0]}
    return {**kept, "anyOf": options} if options else kept


def _with_types(node: Any) -> Any:
    """The same schema, where every choice among strings says that it is a string: msgspec leaves that out."""
    if isinstance(node, list):
        return [_with_types(each) for each in node]
    if not isinstance(node, dict):
        return node
    strings = isinstance(node.get("enum"), list) and all(isinstance(each, str) for each in node["enum"])
    typed = {"type": "string"} if strings and "type" not in node else {}
    return {**typed, **{name: _with_types(value) for name, value in node.items()}}


def _plain_words(text: str) -> str:
    """A docstring as one paragraph of Markdown for each of its own."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(part.split()) for part in paragraphs)
