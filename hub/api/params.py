"""The bodies of requests for images, and what they mean to the domain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hub.errors import InvalidRequest
from hub.hub import Hub
from hub.jobs import Kind
from hub.manifest import SCHEDULER_PATTERN, SIZE, parse_size
from hub.types import DEFAULT_SIZE, MAX_LORAS, MAX_SEED, ImageRequest, Lora, OutputFormat, Quality, Size, Style

MAX_IMAGES = 16
SMALL_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQAAAABbAUdZAAAAQUlEQVR42mP8z8DAwMRABPFTgYGJ4ccHBiaGC19gYgf+"
    "MTD8Z2D4j0dbAyMDE4MDE4TL8P8D/38mBg4BBkYi7QUAEYQOkpJuJDQAAAAASUVORK5CYII="
)
"""A black circle: an example that can be sent as it is."""
GPT_IMAGE = ("gpt-image-", "chatgpt-image-")

ResponseFormat = Literal["url", "b64_json"]
Prompt = Annotated[str, Meta(min_length=1, max_length=32_000)]
SizeText = Annotated[str, Meta(description="WIDTHxHEIGHT in pixels, or auto", examples=["1024x1024"])]
References = Annotated[
    list["ImageReference | str"],
    Meta(min_length=1, max_length=MAX_IMAGES, examples=[[{"image_url": SMALL_PNG}]]),
]
Source = bytes | str
"""A picture of a request: an uploaded file's bytes, or a URL, data URL or base64."""

NOT_DRAWN = {
    *("model", "response_format", "responseFormat", "stream", "on_disconnect"),
    *("image", "images", "mask"),
}
"""Parameters that change nothing in the pictures, or that stand in their recipe in another form."""


class ImageParams(Struct, forbid_unknown_fields=True, kw_only=True):
    """What generations, edits and variations have in common. `null` means absent.

    Extensions of OpenAI's: seed, num_inference_steps, guidance_scale, negative_prompt, strength, scheduler (the class
    name of one of diffusers'), loras; `strict`, which turns warnings into errors; `on_disconnect`, cancel or finish.
    `user`, `safety_identifier` and `moderation` are accepted and mean nothing here: the hub neither reports nor
    moderates.
    """

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: SizeText | None = None
    response_format: ResponseFormat | None = None
    response_format_camel: ResponseFormat | None = msgspec.field(default=None, name="responseFormat")
    quality: Quality | None = None
    style: Style | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=32_000)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    scheduler: Annotated[str, Meta(pattern=SCHEDULER_PATTERN)] | None = None
    loras: Annotated[list[Lora], Meta(max_length=MAX_LORAS)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=1024)] | None = None
    strict: bool | None = None
    on_disconnect: Literal["cancel", "finish"] | None = None

    @property
    def asked_format(self) -> ResponseFormat | None:
        """`response_format`, in either spelling."""
        return self.response_format or self.response_format_camel


class CreateImageRequest(ImageParams, kw_only=True):
    """OpenAI's body of an image generation. With `image` it is an edit, as the documented endpoint offers it; `mask`
    may then say where, and `input_fidelity` how closely it keeps to its source."""

    prompt: Prompt
    image: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_IMAGES)] | None = None
    mask: str | None = None
    input_fidelity: Literal["high", "low"] | None = None


class ImageReference(Struct, forbid_unknown_fields=True, kw_only=True):
    """A picture in a JSON body. `image_url`: an http(s) URL or a data URL. `file_id` is OpenAI's; the hub has no
    Files API and refuses it."""

    image_url: str | None = None
    file_id: str | None = None


class EditImageRequest(ImageParams, kw_only=True):
    """OpenAI's JSON body of an edit; `image` may stand for `images`, as in a form."""

    prompt: Prompt
    images: References | None = None
    image: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_IMAGES)] | None = None
    mask: ImageReference | str | None = None
    input_fidelity: Literal["high", "low"] | None = None


class EditImageForm(ImageParams, kw_only=True):
    """The text fields of an edit's form; its files are `image`, `image[]` and `mask`."""

    prompt: Prompt
    input_fidelity: Literal["high", "low"] | None = None


class VariationForm(ImageParams, kw_only=True):
    """The text fields of a variation's form; its file is `image`. A variation has no prompt."""


class Wanted(Struct, frozen=True, kw_only=True):
    """A request for images, however it came: the parameters, and its pictures as bytes or references."""

    kind: Kind
    params: ImageParams
    prompt: str
    images: tuple[Source, ...] = ()
    mask: Source | None = None
    default_size: Size | None = None

    def warnings(self, *, partial_images_reach_somebody: bool) -> list[str]:
        """What the wire accepts, because clients send it, and what changes nothing here."""
        params, found = self.params, []
        if params.output_compression not in (None, 100) and params.output_format in (None, "png"):
            found.append("output_compression: png is lossless; it was not used")
        if params.partial_images and not partial_images_reach_somebody:
            found.append("partial_images: without stream there are none")
        if params.stream and params.asked_format == "url":
            found.append("response_format: streamed pictures are always base64; url was not used")
        return found

    def check(self) -> None:
        """Raises InvalidRequest, by name, for values that are known and that this hub cannot honour."""
        if not self.prompt.strip() and self.kind != "image_variation":
            raise InvalidRequest("Invalid 'prompt': it is blank.", param="prompt")
        if len({self.params.response_format, self.params.response_format_camel} - {None}) > 1:
            words = "'response_format' and 'responseFormat' contradict each other."
            raise InvalidRequest(words, param="response_format")
        if self.params.size is not None:
            wanted_size(self.params.size)

    def digests(self, answered_as: str, drawn_by: str) -> tuple[str, str | None]:
        """Two digests of the request: its fingerprint, and the recipe of its pictures. What was left out does not
        count, so that a later version with more parameters gives the same. Reads all source pictures: not for the
        event loop, where there are any.

        The fingerprint is equal for equal requests that are answered alike: the same body means other answers on other
        paths. The recipe is equal where the pictures must be, drawn by the same model and device (`drawn_by`), however
        they are answered; None where they may differ: without a seed, or with a source behind a URL.
        """
        params = {name: value for name, value in msgspec.to_builtins(self.params).items() if value is not None}
        sources = [("image", image) for image in self.images] + ([("mask", self.mask)] if self.mask is not None else [])
        told = [(name, type(source).__name__, _digest(source)) for name, source in sources]
        kind = (self.kind, None if self.params.size else str(self.default_size))
        fingerprint = _digest_of(kind, answered_as, params, told)
        if self.params.seed is None or any(isinstance(source, str) and _is_url(source) for _, source in sources):
            return fingerprint, None
        drawn = {name: value for name, value in params.items() if name not in NOT_DRAWN}
        return fingerprint, _digest_of(kind, drawn_by, drawn, told)

    async def to_domain(
        self,
        hub: Hub,
        origins: Sequence[str],
        label: str,
        partial_images: int,
        *,
        lora_identities: tuple[str, ...] = (),
        owner: str = "",
    ) -> ImageRequest:
        """The domain's request; pictures are read here. Raises InvalidRequest."""
        params = self.params
        images = [await read_source(hub, source, origins, "image") for source in self.images]
        mask = await read_source(hub, self.mask, origins, "mask") if self.mask is not None else None
        return ImageRequest(
            prompt=self.prompt,
            n=params.n or 1,
            size=wanted_size(params.size) if params.size else None,
            default_size=None if params.size else self.default_size,
            images=tuple(images),
            mask=mask,
            variation=self.kind == "image_variation",
            quality=params.quality,
            style=params.style,
            seed=params.seed,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            negative_prompt=params.negative_prompt or None,
            strength=params.strength,
            scheduler=params.scheduler,
            loras=tuple(params.loras or ()),
            lora_identities=lora_identities,
            output_format=params.output_format or "png",
            output_compression=100 if params.output_compression is None else params.output_compression,
            partial_images=partial_images,
            background=params.background,
            moderation=params.moderation,
            input_fidelity=getattr(params, "input_fidelity", None),
            user=params.user,
            safety_identifier=params.safety_identifier,
            strict=bool(params.strict),
            owner=owner,
            label=label,
        )


def _digest(source: Source) -> str:
    return hashlib.sha256(source if isinstance(source, bytes) else source.encode()).hexdigest()


def _digest_of(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _is_url(source: str) -> bool:
    return source[:6].lower().startswith(("http:", "https:"))


def of_generation(body: CreateImageRequest) -> Wanted:
    """A generation, or an edit by the documented endpoint."""
    sources = [body.image] if isinstance(body.image, str) else body.image or []
    return Wanted(
        kind="image_edit" if sources else "image_generation",
        params=body,
        prompt=body.prompt,
        images=tuple(sources),
        mask=body.mask,
        default_size=DEFAULT_SIZE,
    )


def of_edit(body: EditImageRequest) -> Wanted:
    """An edit by JSON. Raises InvalidRequest where it names no picture, or one that cannot be had."""
    if body.images is not None and body.image is not None:
        raise InvalidRequest("Give 'images' or 'image', not both.", param="image")
    single = [body.image] if isinstance(body.image, str) else body.image
    sources = [_reference(each, "images") for each in body.images or single or []]
    if not sources:
        words = "Missing required parameter: 'images'."
        raise InvalidRequest(words, param="images", code="missing_required_parameter")
    mask = _reference(body.mask, "mask") if body.mask is not None else None
    return Wanted(kind="image_edit", params=body, prompt=body.prompt, images=tuple(sources), mask=mask)


def _reference(source: ImageReference | str, param: str) -> str:
    if isinstance(source, str):
        return source
    if source.file_id is not None:
        words = f"{param}: this hub has no Files API; send the picture as an image_url, which may be a data URL."
        raise InvalidRequest(words, param=param, code="unsupported_value")
    if source.image_url is None:
        words = f"Missing required parameter: '{param}.image_url'."
        raise InvalidRequest(words, param=param, code="missing_required_parameter")
    return source.image_url


async def read_source(hub: Hub, source: Source, origins: Sequence[str], param: str) -> bytes:
    """The encoded file behind a source."""
    return source if isinstance(source, bytes) else await hub.inputs.read(source, origins, param)


def wanted_size(text: str) -> Size | None:
    """`size` as pixels; None for `auto`. SIZE takes ASCII digits only, where `int` takes other scripts' too."""
    if text == "auto":
        return None
    if not SIZE.fullmatch(text):
        raise InvalidRequest("Invalid 'size': write it as WIDTHxHEIGHT, for example 1024x1024.", param="size")
    return parse_size(text)


def choose_response_format(wanted: Wanted, hub: Hub, *, is_v1: bool) -> ResponseFormat:
    """What the body says; else url, as documented, except that under /v1 OpenAI's gpt-image models answer with
    base64, and other models as their manifest says. Where that says nothing, an edit is base64, since the AI SDK's
    edits ask for nothing and read nothing else."""
    params = wanted.params
    if params.asked_format:
        return params.asked_format
    if not is_v1 or params.model is None or params.model.startswith("dall-e-"):
        return "url"
    if params.model.startswith(GPT_IMAGE):
        return "b64_json"
    told = hub.registry.get(params.model).response_format
    return told or ("url" if wanted.kind == "image_generation" else "b64_json")
