"""ByteDance's Ark, as https://docs.byteplus.com/en/docs/ModelArk/1541523 has it. Tests drive the SDK of Volcengine
(volcengine-ark-runtime), which has the same shapes, against this upstream."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.manifest import ShapesSection
from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

PIXELS = {"4-0": (921_600, 16_777_216), "4-5": (3_686_400, 16_777_216), "5-0": (3_686_400, 10_404_496)}


class Several(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    max_images: Annotated[int, Field(ge=1, le=15)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    prompt: str
    image: str | Annotated[list[str], Field(min_length=2, max_length=14)] | None = None
    size: Annotated[str, Field(pattern=r"^([124]K|[1-9]\d{2,3}x[1-9]\d{2,3})$")] = "2048x2048"
    output_format: Literal["png", "jpeg"] = "jpeg"
    response_format: Literal["url", "b64_json"] = "url"
    watermark: bool = True
    stream: bool = False
    sequential_image_generation: Literal["auto", "disabled"] = "disabled"
    sequential_image_generation_options: Several | None = None


class ByteDanceProtocol(Protocol):
    """`refused`: the numbers of pictures that its content policy withholds."""

    provider = "bytedance"
    remote = {
        "model": "seedream-5-0-260128",
        "max_images": 14,
        "shapes": ShapesSection(max=8192, max_ratio=16, min_pixels=3_686_400, max_pixels=10_404_496),
        "formats": ["png", "jpeg"],
        "options": {"watermark": False},
    }
    size = "2048x2048"
    tasks = ["text-to-image", "image-to-image"]

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused

    def error(self, status: int) -> Reply:
        return Reply({"error": {"code": "X", "message": f"secret words {KEY}", "param": "", "type": "X"}}, status)

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if (asked.method, asked.path) != ("POST", "/images/generations"):
            raise Refused(self.error(404))
        sent = {name: each for name, each in asked.json.items() if each is not None}  # the SDK sends null for nothing
        try:
            body = Body.model_validate(sent)
        except ValidationError:
            raise Refused(self.error(400)) from None
        self.check(body, sent)
        width, _, height = body.size.partition("x") if "x" in body.size else ("2048", "x", "2048")
        options = body.sequential_image_generation_options
        n = options.max_images if options and body.sequential_image_generation == "auto" else 1
        made = [number for number in range(n) if number not in self.refused]
        usage = {
            "generated_images": len(made),
            "output_tokens": len(made) * int(width) * int(height) // 256,
            "total_tokens": len(made) * int(width) * int(height) // 256,
        }
        size = int(width), int(height)
        told = {"model": body.model, "created": 1}
        data = [self.item(number, body, size, upstream) for number in range(n)]
        if not body.stream:
            return Reply({**told, "data": data, "usage": usage})
        kinds = ["partial_failed" if "error" in item else "partial_succeeded" for item in data]
        return Reply(
            events=[
                *(
                    (kind, {"type": kind, **told, "image_index": number, **item})
                    for number, (name, item) in enumerate(zip(kinds, data, strict=True))
                    for kind in [f"image_generation.{name}"]
                ),
                ("image_generation.completed", {"type": "image_generation.completed", **told, "usage": usage}),
                ("", "[DONE]"),
            ]
        )

    def check(self, body: Body, sent: dict[str, Any]) -> None:
        """What the models differ in."""
        version = body.model.removeprefix("seedream-")[:3]
        least, most = PIXELS[version]
        if "x" in body.size:
            width, height = map(int, body.size.split("x"))
            if not least <= width * height <= most or not 1 / 16 <= width / height <= 16:
                raise Refused(self.error(400))
        if "output_format" in sent and version != "5-0":
            raise Refused(self.error(400))
        for url in [body.image] if isinstance(body.image, str) else body.image or []:
            head, _, text = url.partition(";base64,")
            assert head in ("data:image/png", "data:image/jpeg", "data:image/webp")
            base64.b64decode(text, validate=True)

    def item(self, number: int, body: Body, size: tuple[int, int], upstream: Upstream) -> dict[str, Any]:
        if number in self.refused:
            return {"error": {"code": "OutputImageSensitiveContentDetected", "message": f"secret words {KEY}"}}
        image_format = body.output_format.upper()
        if body.response_format == "url":
            return {"url": upstream.link(*size, image_format=image_format), "size": "x".join(map(str, size))}
        return {"b64_json": upstream.base64(*size, image_format=image_format), "size": "x".join(map(str, size))}


protocol = ByteDanceProtocol()
