"""One request, three modes: wait for the answer, follow it as a stream, or take a job and come back for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from typing import Literal

import msgspec
from litestar import Response

from hub.api.answers import Rendering, images_body
from hub.api.events import EventStream, image_events, or_error
from hub.api.job_body import job_body
from hub.api.params import ResponseFormat, Wanted, choose_response_format
from hub.api.parts import InParts
from hub.api.wire import (
    JOB,
    TARGET,
    WAS_THERE,
    AnyRequest,
    log_label,
    origin_for_links,
    own_origins,
    owner_of,
    query_value,
    unless_client_leaves,
)
from hub.errors import InvalidRequest
from hub.hub import Hub
from hub.jobs import Ask, Job, JobResult
from hub.manifest import ModelManifest, RouteManifest
from hub.types import ImageResult, OnEvent

Mode = Literal["wait", "stream", "job"]

_KEY = re.compile(r"[!-~]{1,255}")


async def respond(request: AnyRequest, wanted: Wanted) -> Response[bytes]:
    """Answers a request for images on OpenAI's paths, in the mode that it asks for."""
    hub: Hub = request.app.state.hub
    mode = mode_of(request, wanted)
    is_v1 = request.scope["path"].startswith("/v1/")
    response_format = choose_response_format(wanted, hub, is_v1=is_v1)
    job = await submit(request, wanted, response_format, mode)
    with contextlib.ExitStack() as held:
        held.enter_context(hub.jobs.watching(job))
        if mode == "wait":
            at_once = response_format == "b64_json" and job.row.idempotency_key is None
            await wait_for(request, job, stored=not at_once)
            return InParts(await images_body(job, hub, origin_for_links(request, hub.settings)))
        queue = held.enter_context(job.events())
        await unless_client_leaves(request.receive, job.accepted())  # what is wrong with it is told by a status
        if mode == "stream":
            return EventStream(or_error(image_events(hub, job, queue), job), held.pop_all())
    headers = {"Location": f"/v1/images/jobs/{job.row.id}"}
    if "respond-async" in _preferences(request):
        headers["Preference-Applied"] = "respond-async"
    body = await job_body(job, hub, origin_for_links(request, hub.settings))
    if body.result is not None:
        hub.jobs.collect(job)
    return Response(msgspec.json.encode(body), status_code=202, media_type="application/json", headers=headers)


async def submit(
    request: AnyRequest, wanted: Wanted, response_format: ResponseFormat, mode: Mode, *, client_retries: bool = False
) -> Job:
    """The job that a request becomes, or joins. `client_retries`: this client is known to repeat a request that is
    slow, so that identical ones are joined and go on alone. A request that may be paid for goes on alone as well, and
    is joined by the identical one that comes once its client has left. Raises HubError; an unknown model is told before
    any picture is read."""
    hub: Hub = request.app.state.hub
    wanted.check()
    params = wanted.params
    model = params.model or hub.settings.default_model
    listed = hub.registry.get(model)
    ignored = wanted.warnings(partial_images_reach_somebody=mode != "wait")
    if params.strict and ignored:
        raise InvalidRequest(f"strict: {ignored[0]}.", param=ignored[0].partition(":")[0], code="unsupported_value")
    files = await asyncio.to_thread(hub.loras.find, params.loras) if params.loras else []
    identities = tuple(file.identity for file in files)
    key, cache = idempotency_key(request), cache_control(request)
    drawn_here = isinstance(listed.manifest, ModelManifest)
    comes_back = client_retries or key is not None or not drawn_here  # what is paid for is not thrown away
    policy = params.on_disconnect or ("finish" if comes_back else hub.settings.on_disconnect)
    extended = not model.startswith("dall-e-")
    note = Rendering(response_format=response_format, extended=extended, warnings=ignored)
    rendering = msgspec.json.encode(note)
    answered_as = f"{response_format} {extended}"
    drawn_by = f"{listed.manifest.id} {listed.revision} {hub.settings.device} {hub.settings.receipts}"
    if identities:
        drawn_by += f" {identities}"
        answered_as += "" if key else f" {identities}"  # a key's answer outlives its files
    shared = key is not None or client_retries or params.seed is not None
    fingerprint = recipe = None
    if key is not None or ("no-store" not in cache and (shared or (not drawn_here and mode != "job"))):
        digests = functools.partial(wanted.digests, answered_as, drawn_by)
        fingerprint, recipe = await asyncio.to_thread(digests) if wanted.images else digests()
    ask = Ask(
        owner=owner_of(request),
        kind=wanted.kind,
        model=model,
        rendering=rendering,
        output_format=params.output_format or "png",
        fingerprint=fingerprint,
        joins="any" if shared else "abandoned",
        recipe=recipe if drawn_here and hub.settings.reuse_results and "no-store" not in cache else None,
        fresh="no-cache" in cache,
        idempotency_key=key,
        goes_on=mode == "job" or policy == "finish",
        takes_base64=mode != "job" and response_format == "b64_json",
    )
    origins, label = own_origins(request, hub.settings), log_label(request)
    partial_images = 0 if mode == "wait" else params.partial_images or 0

    async def work(on_event: OnEvent) -> ImageResult:
        asked = await wanted.to_domain(
            hub, origins, label, partial_images, lora_identities=identities, owner=ask.owner or ""
        )
        return await hub.generate(model, asked, on_event)

    job = await hub.jobs.submit(ask, work)
    only = None if isinstance(listed.manifest, RouteManifest) else listed.manifest.id
    request.scope["state"] |= {JOB: job, WAS_THERE: job.ended, TARGET: only}
    return job


async def wait_for(request: AnyRequest, job: Job, *, stored: bool = True) -> JobResult:
    """The job's result, or its error; ClientGone when the client leaves before. Call it inside `watching`.
    `stored`: not before its pictures lie in files."""
    hub: Hub = request.app.state.hub
    result = await unless_client_leaves(request.receive, job.finished() if stored else job.had())
    hub.jobs.collect(job)
    return result


def mode_of(request: AnyRequest, wanted: Wanted) -> Mode:
    """`stream` in the body; `?async=true` or `Prefer: respond-async` for a job; else the client waits."""
    text = query_value(request, "async")
    if text not in (None, "true", "false", "1", "0"):
        raise InvalidRequest("Invalid 'async': it must be true or false.", param="async")
    if wanted.params.stream and text in ("true", "1"):
        raise InvalidRequest("'stream' and 'async' exclude each other; a job has events of its own.", param="stream")
    if wanted.params.stream:
        return "stream"  # whatever it prefers
    prefers_job = text is None and "respond-async" in _preferences(request)
    return "job" if text in ("true", "1") or prefers_job else "wait"


def _preferences(request: AnyRequest) -> set[str]:
    """The preferences of every `Prefer` header, without their parameters (RFC 7240, section 2)."""
    parts = ",".join(request.headers.getall("prefer", [])).split(",")
    return {part.partition(";")[0].strip().lower() for part in parts}


def cache_control(request: AnyRequest) -> set[str]:
    """The directives of every `Cache-Control` header, without their values (RFC 9111, section 5.2.1)."""
    parts = ",".join(request.headers.getall("cache-control", [])).split(",")
    return {part.partition("=")[0].strip().lower() for part in parts}


def idempotency_key(request: AnyRequest) -> str | None:
    """The header's value, checked; None where it was not sent."""
    keys = set(request.headers.getall("idempotency-key", []))
    if len(keys) > 1:
        words = "The header Idempotency-Key was sent more than once, with different keys."
        raise InvalidRequest(words, param="idempotency_key")
    key: str | None = keys.pop() if keys else None
    if key is not None and not _KEY.fullmatch(key):
        words = "The header Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise InvalidRequest(words, param="idempotency_key")
    return key
