"""Together AI's images. The types are those of its SDK, `together.types` 3.1: it is not installed, as it wants an older
filelock than the hub."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from hub.manifest import ShapesSection
from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

Side = Annotated[int, Field(ge=256, le=1920, multiple_of=8)]
DataURL = Annotated[str, Field(pattern=r"^data:image/(png|jpeg|webp);base64,")]
KONTEXT_SIZES = {"1:1": (1024, 1024), "16:9": (1344, 768), "9:16": (768, 1344), "4:3": (1184, 864), "3:2": (1248, 832)}


class ImageGenerateParams(BaseModel):
    """ImageGenerateParams, and `aspect_ratio`, which its documentation adds for Kontext."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    prompt: Annotated[str, Field(min_length=1)]
    guidance_scale: float | None = None
    height: Side = 1024
    image_url: DataURL | None = None
    n: Annotated[int, Field(ge=1, le=4)] = 1
    negative_prompt: str | None = None
    output_format: Literal["jpeg", "png"] = "jpeg"
    reference_images: list[DataURL] | None = None
    response_format: Literal["base64", "url"] = "url"
    seed: int | None = None
    steps: Annotated[int, Field(ge=1, le=50)] | None = None
    width: Side = 1024
    aspect_ratio: Literal["1:1", "16:9", "9:16", "4:3", "3:2"] | None = None


class ImageDataB64(BaseModel):
    """A picture in base64."""

    b64_json: str
    index: int
    type: Literal["b64_json"]


class ImageDataURL(BaseModel):
    """A picture behind a link."""

    index: int
    type: Literal["url"]
    url: str


class ImageFile(BaseModel):
    """The answer."""

    id: str
    data: list[Annotated[ImageDataB64 | ImageDataURL, Field(discriminator="type")]]
    model: str
    object: Literal["list"]


FEATURES = {
    "black-forest-labs/FLUX.2-pro": {"reference_images"},
    "black-forest-labs/FLUX.2-flex": {"reference_images", "steps", "guidance_scale"},
    "black-forest-labs/FLUX.2-dev": {"reference_images", "steps", "guidance_scale"},
    "black-forest-labs/FLUX.1.1-pro": {"negative_prompt"},
    "black-forest-labs/FLUX.1-kontext-pro": {"image_url", "aspect_ratio", "steps"},
}
"""By its documentation; others take everything here."""


class TogetherProtocol(Protocol):
    provider = "together"
    remote = {
        "model": "painter",
        "max_n": 4,
        "max_images": 8,
        "formats": ["png", "jpeg"],
        "shapes": ShapesSection(multiple=16, min=256, max=1920),
    }
    tasks = ["text-to-image", "image-to-image"]

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path != "/images/generations":
            raise Refused(self.error(404))
        body = ImageGenerateParams.model_validate(asked.json)
        special = {"reference_images", "image_url", "steps", "guidance_scale", "negative_prompt", "aspect_ratio"}
        unknown = (body.model_fields_set & special) - FEATURES.get(body.model, special)
        assert not unknown, unknown
        for source in [*(body.reference_images or ()), *([body.image_url] if body.image_url else ())]:
            base64.b64decode(source.partition(",")[2], validate=True)
        if body.prompt == "forbidden":
            raise Refused(self.refused("prompt"))
        if body.prompt == "partner":
            raise Refused(self.refused(None, "third_party_data_sharing_blocked", 403))
        size = KONTEXT_SIZES[body.aspect_ratio] if body.aspect_ratio else (body.width, body.height)
        data: list[dict[str, Any]] = []
        for index in range(body.n):
            if body.response_format == "base64":
                text = upstream.base64(*size, image_format=body.output_format.upper())
                data.append({"index": index, "b64_json": text, "type": "b64_json"})
            else:
                link = upstream.link(*size, image_format=body.output_format.upper())
                data.append({"index": index, "url": link, "type": "url"})
        reply = {"id": "o-1", "model": body.model, "object": "list", "data": data}
        TypeAdapter(ImageFile).validate_python(reply)
        return Reply(reply)

    def refused(self, param: str | None, code: str | None = None, status: int = 400) -> Reply:
        """An error that says what is wrong."""
        error = {"message": f"secret words {KEY}", "type": "invalid_request_error", "param": param, "code": code}
        return Reply({"id": "o-1", "error": error}, status)


protocol = TogetherProtocol()
