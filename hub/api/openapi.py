"""The OpenAPI document: made from the Structs by which bodies are read and written, and true for every route.

Litestar knows paths, path parameters and docstrings; what handlers do themselves they say in the words of
`hub.api.described`. `document` adds what holds everywhere, so that no handler can forget it: the errors that the guard,
the limits and the body's reader give, the error envelope, the request id, the security of closed routes, and a
component per Struct.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Response, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, License, Schema, SecurityScheme
from litestar.plugins import OpenAPISchemaPlugin
from litestar.routes import HTTPRoute
from msgspec import Struct

from hub import __version__
from hub.api.schemas import REF, components_of, plain_schema, plain_words
from hub.api.wire import ErrorResponse
from hub.errors import HubError, NotFound

if TYPE_CHECKING:
    from litestar.connection import Request
    from litestar.handlers import HTTPRouteHandler
    from litestar.typing import FieldDefinition

DOCUMENT_PATH = "/openapi/openapi.json"

_BEARER = "bearer"
_OF_EVERY_ROUTE = {500}
_OF_CLOSED_ROUTES = {401, 403, 429, 503}
_OF_ROUTES_WITH_BODY = {400, 413, 415}
_HEADERS = {
    "x-request-id": {"description": "The request's name in the hub's log.", "schema": {"type": "string"}},
    "x-job-id": {"description": "The job that the request has become.", "schema": {"type": "string"}},
    "x-hub-cache": {
        "description": "Only where stored pictures answer and nothing was drawn.",
        "schema": {"type": "string", "enum": ["hit"]},
    },
    "x-hub-target": {
        "description": "The model that has drawn the pictures; in streams and jobs that have not ended, only where no "
        "other one can.",
        "schema": {"type": "string"},
    },
}
_DESCRIPTION = """\
OpenAI's image API, served by this machine. A key goes in `Authorization: Bearer KEY`; a hub without keys answers
this machine's own programs only.

Every error is OpenAI's envelope, `{"error": {"message", "type", "param", "code"}}`. Every answer carries
`x-request-id`, the name of the request in the hub's log. Links, models, `/health` and `/docs` answer `HEAD`
too.
"""


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
        schema = plain_schema({"$ref": REF + kind.__name__})
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
        one["description"] = plain_words(one.get("description", "")).partition("\n\n")[0]
        headers = getattr(handler.operation_class, "headers", ())
        statuses |= _complete(one, where, headers, public=public)
    components = made["components"]
    components["schemas"] = components_of(read, written)
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


def _complete(operation: dict[str, Any], where: str, headers: Sequence[str], *, public: bool) -> set[int]:
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
        response.setdefault("headers", {}).update(_header_refs("x-request-id", *headers))
        if response["description"] == ResponseSpec.description:
            response["description"] = HTTPStatus(int(code)).phrase
    operation["responses"] = dict(sorted(answers.items()))
    return listed | missing


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _schema_of(response: dict[str, Any]) -> dict[str, Any]:
    return dict(response.get("content", {}).get("application/json", {}).get("schema", {}))


def _is_envelope(response: dict[str, Any]) -> bool:
    return _schema_of(response) == {"$ref": REF + ErrorResponse.__name__}


def _is_litestars(status: str, response: dict[str, Any]) -> bool:
    """Litestar lists a 400 of its own shape for every handler with parameters."""
    return status == "400" and "status_code" in _schema_of(response).get("properties", {})


def _name(status: int) -> str:
    return re.sub(r"[^A-Za-z]", "", HTTPStatus(status).phrase.title())


def _error(status: int) -> dict[str, Any]:
    """The shared description of an error's status: its codes, from the errors themselves."""
    codes = {kind.code: (kind.__doc__ or "").partition("\n")[0] for kind in _error_kinds() if kind.status == status}
    words = "\n".join(f"- `{code}`: {text}" for code, text in codes.items())
    headers = _header_refs("x-request-id", "x-job-id")
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = {"description": "Always `Bearer`.", "schema": {"type": "string"}}
    return {
        "description": words or HTTPStatus(status).phrase,
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": REF + ErrorResponse.__name__}}},
    }


def _error_kinds() -> Iterator[type[HubError]]:
    waiting = [HubError]
    while waiting:
        kind = waiting.pop(0)
        yield kind
        waiting += kind.__subclasses__()
