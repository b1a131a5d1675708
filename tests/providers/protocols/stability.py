"""Stability AI's REST API, v2beta, by its documentation: its SDK on PyPI is for an older gRPC one."""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

SIZES = {
    "21:9": (1536, 640),
    "16:9": (1344, 768),
    "3:2": (1216, 832),
    "5:4": (1088, 896),
    "1:1": (1024, 1024),
    "4:5": (896, 1088),
    "2:3": (832, 1216),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}


class Common(BaseModel):
    """Fields of every service; those of a form are text, and so is what is checked here."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, Field(min_length=1, max_length=10_000)]
    negative_prompt: Annotated[str, Field(max_length=10_000)] = ""
    seed: Annotated[int, Field(ge=0, le=4294967294)] = 0
    output_format: Literal["png", "jpeg", "webp"] = "png"


class Core(Common):
    """/generate/core."""

    aspect_ratio: Literal["21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21"] = "1:1"


class Ultra(Core):
    """/generate/ultra."""

    strength: Annotated[float, Field(ge=0, le=1)] | None = None


class SD3(Ultra):
    """/generate/sd3."""

    model: Literal["sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "sd3.5-flash"]
    mode: Literal["text-to-image", "image-to-image"] = "text-to-image"
    cfg_scale: Annotated[float, Field(ge=1, le=10)] | None = None
    output_format: Literal["png", "jpeg"] = "png"


SERVICES: dict[str, type[Common]] = {
    "/generate/core": Core,
    "/generate/ultra": Ultra,
    "/generate/sd3": SD3,
    "/edit/inpaint": Common,
}


class StabilityProtocol(Protocol):
    provider = "stability"
    remote = {"model": "sd3.5-large", "aspect_ratios": list(SIZES), "formats": ["png", "jpeg"]}
    tasks = ["text-to-image", "image-to-image"]

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path not in SERVICES:
            raise Refused(self.error(404))
        assert asked.headers["accept"] == "application/json"
        body = SERVICES[asked.path].model_validate(asked.fields)
        files = {part.name: part.data for part in asked.parts if part.filename is not None}
        size = self.check(asked.path, body, files)
        if body.prompt == "forbidden":
            raise Refused(self.moderated())
        text = upstream.base64(*size, image_format=body.output_format.upper())
        reason = "CONTENT_FILTERED" if body.prompt == "filtered" else "SUCCESS"
        return Reply({"image": text, "finish_reason": reason, "seed": body.seed or 1234567})

    def check(self, path: str, body: Common, files: dict[str, bytes]) -> tuple[int, int]:
        """Whether fields and files go together; what is drawn."""
        allowed = {"/generate/core": set(), "/edit/inpaint": {"image", "mask"}}.get(path, {"image"})
        assert set(files) <= allowed, files.keys()
        source = Image.open(io.BytesIO(files["image"])).size if "image" in files else None
        if path == "/edit/inpaint":
            assert source is not None
            mask = Image.open(io.BytesIO(files["mask"]))
            assert (mask.mode, mask.size) == ("L", source)
            return source
        assert isinstance(body, Core)
        if isinstance(body, Ultra):
            assert (body.strength is None) == (source is None)
        if isinstance(body, SD3):
            assert (body.mode == "image-to-image") == (source is not None)
            assert source is None or "aspect_ratio" not in body.model_fields_set
            distilled = body.model.endswith(("turbo", "flash"))
            assert not distilled or not {"cfg_scale", "negative_prompt"} & body.model_fields_set
        return source or SIZES[body.aspect_ratio]

    def moderated(self) -> Reply:
        """A 403 that is not for the key."""
        return Reply({"id": "1", "name": "content_moderation", "errors": [f"secret words {KEY}"]}, 403)

    def error(self, status: int) -> Reply:
        body: dict[str, Any] = {"id": "1", "name": "unauthorized", "errors": [f"secret words {KEY}"]}
        return Reply(body, status)


protocol = StabilityProtocol()
