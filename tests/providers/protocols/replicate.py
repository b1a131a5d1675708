"""Replicate, as https://replicate.com/docs/reference/http and its models' schemas have it. Answers are validated by the
SDK's own Prediction, and tests drive the SDK (replicate) against this upstream."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from replicate.prediction import Prediction

from hub.manifest import ShapesSection
from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

Side = Annotated[int, Field(ge=256, le=2048, multiple_of=32)]
RATIOS = Literal["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"]
SIZES = {"1:1": (1024, 1024), "16:9": (1344, 768), "3:2": (1216, 832)}


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    seed: int | None = None
    output_format: Literal["webp", "jpg", "png"] = "webp"
    output_quality: Annotated[int, Field(ge=0, le=100)] = 80


class Flux2(Inputs):
    input_images: Annotated[list[str], Field(max_length=8)] = []
    aspect_ratio: RATIOS | Literal["custom", "match_input_image"] = "1:1"
    width: Side | None = None
    height: Side | None = None


class FluxDev(Inputs):
    image: str | None = None
    prompt_strength: Annotated[float, Field(ge=0, le=1)] = 0.8
    aspect_ratio: RATIOS = "1:1"
    num_outputs: Annotated[int, Field(ge=1, le=4)] = 1
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] = 28
    guidance: Annotated[float, Field(ge=0, le=10)] = 3.0


VERSION = "a" * 64
MODELS: dict[str, type[Inputs]] = {
    "black-forest-labs/flux-2-pro": Flux2,
    "black-forest-labs/flux-dev": FluxDev,
}


class ReplicateProtocol(Protocol):
    """`ends`: the status of a prediction that was asked for once, and its error. `at_once`: whether the first answer is
    the last one."""

    provider = "replicate"
    remote = {
        "model": "black-forest-labs/flux-2-pro",
        "max_images": 8,
        "source_ratio": "match_input_image",
        "shapes": ShapesSection(multiple=32, min=256, max=2048),
        "formats": ["png", "jpeg", "webp"],
        "fields": {
            "aspect_ratio": "aspect_ratio",
            "width": "width",
            "height": "height",
            "image": "input_images[]",
            "seed": "seed",
            "output_format": "output_format",
            "output_compression": "output_quality",
        },
    }
    tasks = ["text-to-image", "image-to-image"]
    links = True
    polls = True

    def __init__(self, ends: tuple[str, str | None] = ("succeeded", None), at_once: bool = False) -> None:
        self.ends, self.at_once = ends, at_once

    def error(self, status: int) -> Reply:
        return Reply({"title": "x", "detail": f"secret words {KEY}", "status": status}, status)

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        path = asked.path.removeprefix("/v1")  # the SDK adds it
        if made := re.fullmatch(r"/models/([\w.-]+/[\w.-]+)/predictions", path):
            return self.create(made[1], asked, {"input"}, upstream)
        if (asked.method, path) == ("POST", "/predictions"):
            assert asked.json["version"] == VERSION
            return self.create("black-forest-labs/flux-dev", asked, {"input", "version"}, upstream)
        named = re.fullmatch(r"/predictions/(\w+)(/cancel)?", path)
        if named is None or named[1] not in upstream.jobs:
            raise Refused(self.error(404))
        job = upstream.jobs[named[1]]
        if named[2]:
            assert (asked.method, asked.body) == ("POST", b"")
            job["status"] = "canceled"
        else:
            assert asked.method == "GET"
            job["asked"] += 1
        return Reply(self.prediction(named[1], upstream))

    def create(self, model: str, asked: Asked, known: set[str], upstream: Upstream) -> Reply:
        assert re.fullmatch(r"wait(=([1-9]|[1-5][0-9]|60))?", asked.headers.get("prefer", "wait"))
        assert set(asked.json) == known
        kind = MODELS.get(model)
        if kind is None or asked.method != "POST":
            raise Refused(self.error(404))
        try:
            body = kind.model_validate(asked.json["input"])
        except ValidationError:
            raise Refused(self.error(422)) from None
        for url in [*getattr(body, "input_images", []), *filter(None, [getattr(body, "image", None)])]:
            head, _, text = url.partition(";base64,")
            assert head in ("data:image/png", "data:image/jpeg", "data:image/webp")
            base64.b64decode(text, validate=True)
        name = f"p{len(upstream.jobs)}"
        upstream.jobs[name] = {"model": model, "body": body, "asked": 2 if self.at_once else 0, "status": None}
        return Reply(self.prediction(name, upstream), 201 if self.at_once else 202)

    def prediction(self, name: str, upstream: Upstream) -> dict[str, Any]:
        job = upstream.jobs[name]
        status, error = ("starting", None) if not job["asked"] else ("processing", None)
        if job["asked"] > 1:
            status, error = self.ends
        status = job["status"] or status
        ended = status in ("succeeded", "failed", "canceled")
        reply = {
            "id": name,
            "model": job["model"],
            "version": "hidden",
            "status": status,
            "input": job["body"].model_dump(mode="json"),
            "output": self.output(job["body"], upstream) if status == "succeeded" else None,
            "logs": "Using seed: 3\n  0%|          | 0/28\n 50%|#####     | 14/28\n" if job["asked"] else "",
            "error": error,
            "metrics": {"predict_time": 1.5} if ended else {},
            "created_at": "2026-11-27T12:00:00Z",
            "started_at": None,
            "completed_at": None,
            "data_removed": False,
            "urls": {
                "get": f"{upstream.url}/predictions/{name}",
                "cancel": f"{upstream.url}/predictions/{name}/cancel",
            },
        }
        Prediction(**reply)
        return reply

    def output(self, body: Any, upstream: Upstream) -> str | list[str]:
        size = (getattr(body, "width", None), getattr(body, "height", None))
        if None in size:
            size = SIZES.get(body.aspect_ratio, (1024, 1024))
        image_format = {"jpg": "JPEG"}.get(body.output_format, body.output_format.upper())
        made = [upstream.link(*size, image_format=image_format) for _ in range(getattr(body, "num_outputs", 1))]
        return made if isinstance(body, FluxDev) else made[0]


protocol = ReplicateProtocol()
