"""The OpenAPI document: made from the Structs, served as JSON only, so that no page loads a script from afar."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Response, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema

from hub import __version__
from hub.errors import NotFound


async def _no_pages(response: Response[Any]) -> Response[Any]:
    """Litestar answers unknown paths beside the document with an HTML page of its own; here they are errors as all."""
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFound("The OpenAPI document is at /openapi/openapi.json.")
    return response


def openapi_config() -> OpenAPIConfig:
    """GET /openapi/openapi.json."""
    router = Router("/openapi", route_handlers=[], after_request=_no_pages, include_in_schema=False)
    document = JsonRenderPlugin(path="/openapi.json")
    return OpenAPIConfig(title="Hub", version=__version__, openapi_router=router, render_plugins=[document])


def json_body(kind: type[msgspec.Struct]) -> type[Operation]:
    """An operation whose request body is `kind`, for handlers that decode their body strictly themselves."""
    (definition,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    schema = components[kind.__name__] if "$ref" in definition else definition

    @dataclass
    class JsonBodyOperation(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(
                content={"application/json": OpenAPIMediaType(schema=_plain_schema(schema))}, required=True
            )

    return JsonBodyOperation


class _RawSchema(Schema):
    """A JSON Schema that is passed on as it is."""

    raw: dict[str, Any]

    def to_schema(self) -> dict[str, Any]:
        return self.raw


def _plain_schema(raw: dict[str, Any]) -> Schema:
    schema = _RawSchema()
    schema.raw = raw
    return schema
