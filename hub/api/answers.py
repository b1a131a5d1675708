"""What a finished job becomes on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pybase64
from msgspec import UNSET, Struct, UnsetType

from hub.api.params import ResponseFormat
from hub.hub import Hub
from hub.jobs import Job, JobResult
from hub.types import Background, Effort, OutputFormat, Usage

_HOLE = msgspec.Raw(b"null")
_HOLED = b'"b64_json":null'


class Rendering(Struct, frozen=True, kw_only=True):
    """How a request wants its answer; kept with its job. `extended`: with the resolved values and the usage that
    OpenAI's gpt-image models add. `warnings` are the API's own."""

    response_format: ResponseFormat
    extended: bool
    warnings: list[str]


class Image(Struct, omit_defaults=True, kw_only=True):
    """One picture: exactly one of `url` and `b64_json`. `revised_prompt`: what the provider made of the prompt, where
    it tells."""

    url: str | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET
    revised_prompt: str | UnsetType = UNSET


class InputTokens(Struct, kw_only=True):
    """What the input's tokens were spent on."""

    text_tokens: int
    image_tokens: int


class ImagesUsage(Struct, kw_only=True):
    """OpenAI's usage of images. For local models the counts follow one rule (docs/api.md)."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens


class ImagesResponse(Struct, omit_defaults=True, kw_only=True):
    """`created`: unix seconds. `seed`: of the first picture; of those that were drawn here, picture k used seed + k;
    left out where a remote provider tells none, as `quality` is where neither it nor the request told one. `warnings`:
    what was asked for and could not be honoured, each beginning with the parameter's name. Resolved values and usage
    are left out for dall-e models, as OpenAI's are."""

    created: int
    data: list[Image]
    background: Background | UnsetType = UNSET
    output_format: OutputFormat | UnsetType = UNSET
    quality: Effort | UnsetType = UNSET
    size: str | UnsetType = UNSET
    usage: ImagesUsage | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    warnings: list[str] = msgspec.field(default_factory=list)


def rendering_of(job: Job) -> Rendering:
    """The note that the request left with its job."""
    return msgspec.json.decode(job.row.rendering, type=Rendering)


async def images_response(job: Job, hub: Hub, origin: str) -> ImagesResponse:
    """The answer of a completed job, with links under `origin` or base64, as its request asked."""
    how = rendering_of(job)
    return await _response(job, hub, origin, [] if how.response_format == "url" else await in_base64(hub, job))


async def images_body(job: Job, hub: Hub, origin: str) -> list[bytes | memoryview]:
    """The same as JSON, in parts: between them the base64 is as it came, since an encoder would copy it."""
    if rendering_of(job).response_format == "url":
        return [msgspec.json.encode(await _response(job, hub, origin, []))]
    texts = job.encoded or [pybase64.b64encode(image) for image in await hub.jobs.images(job)]
    hollow = msgspec.json.encode(await _response(job, hub, origin, [_HOLE] * len(texts)))
    first, *others = hollow.split(_HOLED)  # no string holds these bytes: its quotes are escaped
    parts: list[bytes | memoryview] = [first]
    for text, other in zip(texts, others, strict=True):
        parts += [b'"b64_json":"', text, b'"' + other]
    return parts


async def _response(job: Job, hub: Hub, origin: str, texts: Sequence[Any]) -> ImagesResponse:
    how = rendering_of(job)
    result = await (job.finished() if how.response_format == "url" else job.had())
    if how.response_format == "url":
        data = [Image(url=origin + hub.files.link(name)) for name in result.files]
    else:
        data = [Image(b64_json=text) for text in texts]
    for image, prompt in zip(data, result.revised_prompts, strict=False):
        image.revised_prompt = prompt or UNSET
    answer = ImagesResponse(created=int(job.row.created_at), data=data, warnings=warnings_of(how, result))
    if result.seed is not None:
        answer.seed = result.seed
    if how.extended:
        answer.background, answer.output_format = result.background, result.output_format
        answer.size = str(result.size)
        if result.quality_told:
            answer.quality = result.quality
        answer.usage = usage_body(result.usage)
    return answer


def warnings_of(how: Rendering, result: JobResult) -> list[str]:
    """The API's warnings and the provider's."""
    return [*how.warnings, *result.warnings]


def usage_body(usage: Usage) -> ImagesUsage:
    """OpenAI's shape of a usage."""
    inputs = usage.text_tokens + usage.image_tokens
    return ImagesUsage(
        input_tokens=inputs,
        output_tokens=usage.output_tokens,
        total_tokens=inputs + usage.output_tokens,
        input_tokens_details=InputTokens(text_tokens=usage.text_tokens, image_tokens=usage.image_tokens),
    )


async def in_base64(hub: Hub, job: Job) -> list[Any]:
    """The pictures of a completed job as `spliced` makes them: as a provider sent them, where it did."""
    if job.encoded:
        return [msgspec.Raw(b"".join((b'"', text, b'"'))) for text in job.encoded]
    return [spliced(image) for image in await hub.jobs.images(job)]


def spliced(image: bytes) -> Any:
    """base64 that the JSON encoder copies as it is: escaping a string of megabytes costs eight milliseconds."""
    return msgspec.Raw(b'"' + pybase64.b64encode(image) + b'"')
