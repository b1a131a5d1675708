"""What all handlers share of the wire: the error envelope, request ids, strict bodies, origins, disconnects."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Message, Receive, Scope
from msgspec import Struct

from hub.api.refusals import invalid
from hub.errors import BodyTooLarge, ErrorBody, HubError, InvalidRequest, UnsupportedMedia
from hub.jobs import Job
from hub.settings import Settings, has_port

log = logging.getLogger("hub.api")

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")

KEY_NAME = "hub_key_name"
"""Where the guard leaves the name of the caller's key in the scope's state."""

JOB = "hub_job"
"""Where a handler leaves the job that its request has become."""

WAS_THERE = "hub_job_was_there"
"""Whether that job had ended before the request came."""

TARGET = "hub_target"
"""The id of the only model that can serve the request; what has served it stands in its job."""

BODY_TIMEOUT = 60.0
LARGE_BODY = 1 << 18
"""Bytes from which on a body is decoded beside the event loop."""

_FRAMEWORK_CODES = {
    400: ("invalid_request", "The request could not be read."),
    404: ("not_found", "Nothing is served at this path."),
    405: ("method_not_allowed", "This path does not take this method."),
    413: ("request_too_large", "The request's body is larger than this hub takes."),
    415: ("unsupported_media_type", "The request's content type is not supported."),
}


class ErrorResponse(Struct):
    """OpenAI's error envelope."""

    error: ErrorBody


class ClientGone(Exception):
    """The client closed the connection; whatever is answered, nobody reads it."""


def request_id(scope: Scope) -> str:
    """The id of the request, made on first use; it is answered as `x-request-id` and stands in the log."""
    state = scope.setdefault("state", {})
    return str(state.setdefault("hub_request_id", f"req_{secrets.token_hex(12)}"))


def owner_of(request: AnyRequest) -> str | None:
    """The name of the key that the request came with; None on an open hub."""
    name: str | None = request.scope["state"].get(KEY_NAME)
    return name


def log_label(request: AnyRequest) -> str:
    """The request's id, and the name of the key that it came with, for the log."""
    name = owner_of(request)
    return request_id(request.scope) + (f" ({name})" if name else "")


async def add_common_headers(message: Message, scope: Scope) -> None:
    """Puts x-request-id and nosniff on every answer, the framework's own errors included, x-job-id where the request
    became a job, x-hub-cache where nothing was drawn for it, and x-hub-target where it is certain which model has drawn
    it, or will: of a stream whose model may yet turn out to be another one, its events' end tells."""
    if message["type"] == "http.response.start":
        state = scope.get("state", {})
        job: Job | None = state.get(JOB)
        stored = job is not None and (job.repeats or state[WAS_THERE])
        target = _target(job, state.get(TARGET), message["status"])
        message["headers"] = [
            *(_methods_of(scope, message["headers"]) if scope.get("method") == "OPTIONS" else message["headers"]),
            (b"x-request-id", request_id(scope).encode()),
            (b"x-content-type-options", b"nosniff"),
            *([(b"x-job-id", job.row.id.encode())] if job else []),
            *([(b"x-hub-cache", b"hit")] if stored else []),
            *([(b"x-hub-target", target.encode())] if target else []),
        ]


def _target(job: Job | None, only: str | None, status: int) -> str | None:
    """The model that has served, or that alone can; None on errors, which nothing has served."""
    if status >= HTTPStatus.BAD_REQUEST:
        return None
    return (job.result.target if job is not None and job.result is not None else None) or only


def _methods_of(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer to OPTIONS, with every method of the path in Allow: Litestar lists only those of the
    handler that was registered first."""
    here = scope.get("path_template")
    methods = {method for route in scope["app"].routes if route.path_format == here for method in route.methods}
    allowed = ", ".join(sorted(methods)).encode()
    return [(name, allowed if methods and name.lower() == b"allow" else value) for name, value in headers]


def _envelope(status: int, error: ErrorBody, headers: dict[str, str] | None = None) -> Response[Any]:
    body = msgspec.json.encode(ErrorResponse(error))
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def on_hub_error(request: AnyRequest, error: HubError) -> Response[Any]:
    """A HubError as its own status and words."""
    headers = dict(error.headers)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s (%s)", request_id(request.scope), error.status, error.code, error.message)
    return _envelope(error.status, error.body, headers)


def on_http_exception(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """The framework's own errors; its words are not used, since they quote paths and internals."""
    status = error.status_code
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return on_exception(request, error)
    code, words = _FRAMEWORK_CODES.get(status, ("invalid_request", HTTPStatus(status).phrase + "."))
    headers = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    body = ErrorBody(message=words, type="invalid_request_error", param=None, code=code)
    return _envelope(status, body, headers)


def on_exception(request: AnyRequest, error: Exception) -> Response[Any]:
    """Anything else is a fault of the hub: told to the log, not to the client."""
    if isinstance(error, ClientGone):
        return Response(b"", status_code=499, media_type="text/plain")
    number = request_id(request.scope)
    log.error("%s failed", number, exc_info=error)
    words = f"The hub failed on this request. Its log tells why, under {number}."
    return _envelope(500, HubError(words).body)


def media_type_of(request: AnyRequest) -> str:
    """The Content-Type without its options, in small letters; empty where there is none."""
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def read_body(request: AnyRequest) -> bytes:
    """The whole body. Raises HubError where it is too large or does not arrive, ClientGone where its sender leaves."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.body()
    except HTTPException as error:
        if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise BodyTooLarge("The body is larger than this hub takes (setting max_body_mb).") from None
        if "disconnected" in error.detail:  # Litestar has no class of its own for it
            log.info("%s: its client left while it sent the body", request_id(request.scope))
            raise ClientGone from None
        raise
    except TimeoutError:
        raise InvalidRequest("The body did not arrive in time.", code="request_timeout") from None


async def read_json(request: AnyRequest, kind: type[T]) -> T:
    """The body as a `kind`, strictly: no coercion, no unknown field. Raises HubError naming the parameter.

    Litestar's own `data` parameter is not used since it coerces (`"2"` becomes 2).
    """
    if media_type_of(request) != "application/json":
        raise UnsupportedMedia("Send the body as JSON, with the header 'Content-Type: application/json'.")
    body = await read_body(request)
    try:
        if len(body) < LARGE_BODY:
            return msgspec.json.decode(body, type=kind)
        return await asyncio.to_thread(msgspec.json.decode, body, type=kind)
    except msgspec.ValidationError as error:
        raise invalid(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None


def query_value(request: AnyRequest, name: str) -> str | None:
    """A parameter of the query. Raises InvalidRequest where it came more than once: one of them would be dropped in
    silence."""
    values = request.query_params.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(f"'{name}' was given {len(values)} times in the query.", param=name)
    return str(values[0]) if values else None


def etag_matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this entity tag (RFC 9110, section 13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(",", 64))


def own_hosts(request: AnyRequest, settings: Settings) -> set[str]:
    """The values of the Host header that mean this hub: loopback names, the bound address, and the owner's list."""
    server = request.scope.get("server") or (settings.host, settings.port)
    address, port = str(server[0]), server[1] or 80
    names = {"localhost", "127.0.0.1", "[::1]", _bracketed(settings.host), _bracketed(address)}
    names |= {host for host in settings.allowed_hosts if not has_port(host)}
    hosts = {f"{name}:{port}" for name in names} | set(settings.allowed_hosts)
    if settings.public_url:
        hosts.add(settings.public_url.partition("://")[2])
    return hosts | (names if port == 80 else set())


def own_origins(request: AnyRequest, settings: Settings) -> list[str]:
    """Every origin under which this hub may have handed out links."""
    origins = [f"{request.scope['scheme']}://{host}" for host in own_hosts(request, settings)]
    return [*origins, *([settings.public_url] if settings.public_url else [])]


def origin_for_links(request: AnyRequest, settings: Settings) -> str:
    """The origin of a new link: public_url; else the Host header where it is known; else the socket's own address.

    An unknown Host is never echoed: it comes from the client, and links are handed on.
    """
    if settings.public_url:
        return settings.public_url
    scheme = request.scope["scheme"]
    host = request.headers.get("host", "").lower()
    if host in own_hosts(request, settings):
        return f"{scheme}://{host}"
    address, port = request.scope.get("server") or (settings.host, settings.port)
    return f"{scheme}://{_bracketed(str(address))}:{port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` in the caller's own task, and cancels it when the client closes the connection; then raises
    ClientGone, whatever work makes of that.

    Litestar and uvicorn let a handler run on after its client has gone. Call it after the body was read.
    """
    task = cast(asyncio.Task[Any], asyncio.current_task())
    left = over = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal left
        if not (over or gone.cancelled()):
            left = True
            task.cancel()

    gone = asyncio.create_task(_disconnected(receive))
    gone.add_done_callback(leave)
    before = task.cancelling()
    try:
        return await work
    finally:
        over = True
        gone.cancel()
        if left and task.uncancel() <= before:  # else somebody cancels this task as well
            raise ClientGone from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
