"""xAI's images, by its documentation: its SDK speaks gRPC. The fields and their values are those of
`xai_sdk.proto.v6.image_pb2.GenerateImageRequest` and of `xai_sdk.types`."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

SIZES = {
    "1:1": (1024, 1024),
    "3:4": (864, 1152),
    "4:3": (1152, 864),
    "9:16": (720, 1280),
    "16:9": (1280, 720),
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "9:20": (640, 1408),
    "20:9": (1408, 640),
    "1:2": (720, 1440),
    "2:1": (1440, 720),
    "21:9": (1456, 624),
    "5:2": (1520, 608),
}
"""Pixels are not documented: these are of the right shapes."""


class Source(BaseModel):
    """A picture to edit."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["image_url"]
    url: Annotated[str, Field(pattern=r"^data:image/(png|jpeg|webp);base64,")]


class Generation(BaseModel):
    """A body of /images/generations."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    prompt: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=10)] = 1
    aspect_ratio: str | None = None
    resolution: Literal["1k", "2k"] = "1k"
    quality: Literal["low", "medium"] | None = None
    response_format: Literal["url", "b64_json"] = "url"
    user: str | None = None


class Edit(Generation):
    """A body of /images/edits."""

    image: Source | None = None
    images: Annotated[list[Source], Field(min_length=2)] | None = None


class XAIProtocol(Protocol):
    provider = "xai"
    remote = {"model": "grok-imagine-image-2.0", "max_n": 10, "max_images": 5, "aspect_ratios": ["1:1", "16:9"]}
    tasks = ["text-to-image", "image-to-image"]

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path not in ("/images/generations", "/images/edits"):
            raise Refused(self.error(404))
        edits = asked.path == "/images/edits"
        body = (Edit if edits else Generation).model_validate(asked.json)
        if isinstance(body, Edit):
            sources = body.images or [body.image]
            assert (body.image is None) != (body.images is None)
            assert body.aspect_ratio is None or len(sources) > 1
            for source in sources:
                assert source is not None
                base64.b64decode(source.url.partition(",")[2], validate=True)
        if body.quality is not None and body.model == "grok-imagine-image":
            raise Refused(Reply({"code": "Client specified an invalid argument", "error": "quality"}, 400))
        if body.aspect_ratio in ("21:9", "5:2") and body.model == "grok-imagine-image":
            raise Refused(Reply({"code": "Client specified an invalid argument", "error": "aspect_ratio"}, 400))
        if body.prompt == "forbidden":
            words = f"Generated image rejected by content moderation. secret words {KEY}"
            raise Refused(Reply({"code": "Client specified an invalid argument", "error": words}, 400))
        width, height = SIZES[body.aspect_ratio or "1:1"]
        side = 2 if body.resolution == "2k" else 1
        ticks = 400_000_000 if body.quality == "low" else 600_000_000
        data: list[dict[str, Any]] = [
            self.picture(upstream, (width * side, height * side), body.response_format) for _ in range(body.n)
        ]
        if body.prompt == "half":
            data[0] = {"respect_moderation": False}
        return Reply({"data": data, "usage": {"cost_in_usd_ticks": ticks * body.n}, "model": body.model})

    def picture(self, upstream: Upstream, size: tuple[int, int], response_format: str) -> dict[str, Any]:
        """One of an answer's."""
        told = {"mime_type": "image/jpeg", "revised_prompt": "", "respect_moderation": True}
        if response_format == "url":
            return {**told, "url": upstream.link(*size, image_format="JPEG")}
        return {**told, "b64_json": upstream.base64(*size, image_format="JPEG")}

    def error(self, status: int) -> Reply:
        # A wrong key is a 400 here.
        if status in (401, 403):
            words = (
                f"Incorrect API key provided: secret words {KEY}. You can obtain an API key from https://console.x.ai."
            )
            return Reply({"code": "Client specified an invalid argument", "error": words}, 400)
        return Reply({"code": "The service is unwell", "error": f"secret words {KEY}"}, status)


protocol = XAIProtocol()
