"""Black Forest Labs, by models of ours made from https://api.bfl.ai/openapi.json: there is no SDK on PyPI. What a model
does not take is refused."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.manifest import ShapesSection
from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

Ratio = Annotated[str, Field(pattern=r"^\d{1,2}:\d{1,2}$")]


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    safety_tolerance: Annotated[int, Field(ge=0, le=5)] = 2


class Seeded(Inputs):
    seed: int | None = None
    output_format: Literal["jpeg", "png", "webp"] = "jpeg"


class Flux2Klein(Seeded):
    input_image: str | None = None
    input_image_2: str | None = None
    input_image_3: str | None = None
    input_image_4: str | None = None
    width: Annotated[int, Field(ge=64, multiple_of=16)] | None = None
    height: Annotated[int, Field(ge=64, multiple_of=16)] | None = None


class Flux2(Flux2Klein):
    input_image_5: str | None = None
    input_image_6: str | None = None
    input_image_7: str | None = None
    input_image_8: str | None = None
    disable_pup: bool = False


class Flux2Flex(Flux2Klein):
    input_image_5: str | None = None
    input_image_6: str | None = None
    input_image_7: str | None = None
    input_image_8: str | None = None
    prompt_upsampling: bool = True
    steps: Annotated[int, Field(ge=1, le=50)] = 50
    guidance: Annotated[float, Field(ge=1.5, le=10)] = 5.0


class Flux3(Inputs):
    images: Annotated[list[str], Field(max_length=10)] = []
    aspect_ratio: Ratio | Literal["auto"] = "auto"
    resolution: Literal["768sq", "1k", "1.5k", "2k", "4k"] = "1k"
    grounding: bool = True


class Kontext(Seeded):
    input_image: str | None = None
    input_image_2: str | None = None
    input_image_3: str | None = None
    input_image_4: str | None = None
    aspect_ratio: Ratio | None = None


class Pro11(Seeded):
    width: Annotated[int, Field(ge=256, le=1440, multiple_of=32)] = 1024
    height: Annotated[int, Field(ge=256, le=1440, multiple_of=32)] = 768


class Ultra(Seeded):
    aspect_ratio: Ratio = "16:9"
    raw: bool = False


class Fill(Seeded):
    image: str
    mask: str | None = None
    steps: Annotated[int, Field(ge=15, le=50)] = 50
    guidance: Annotated[float, Field(ge=1.5, le=100)] = 60.0


MODELS: dict[str, type[Inputs]] = {
    "flux-2-pro": Flux2,
    "flux-2-max": Flux2,
    "flux-2-flex": Flux2Flex,
    "flux-2-klein-4b": Flux2Klein,
    "flux-2-klein-9b": Flux2Klein,
    "flux-3-image": Flux3,
    "flux-kontext-pro": Kontext,
    "flux-kontext-max": Kontext,
    "flux-pro-1.1": Pro11,
    "flux-pro-1.1-ultra": Ultra,
    "flux-pro-1.0-fill": Fill,
}


class BlackForestLabsProtocol(Protocol):
    """`ends`: how a task that was asked for once ends, and with which status of HTTP."""

    provider = "black_forest_labs"
    remote = {
        "model": "flux-2-pro",
        "max_images": 8,
        "shapes": ShapesSection(multiple=16, max_pixels=4_194_304),
        "formats": ["png", "jpeg", "webp"],
    }
    tasks = ["text-to-image", "image-to-image"]
    links = True
    polls = True

    def __init__(self, ends: tuple[int, str] = (200, "Ready")) -> None:
        self.ends = ends

    def check_key(self, asked: Asked) -> bool:
        return asked.headers.get("x-key") == KEY and "authorization" not in asked.headers

    def error(self, status: int) -> Reply:
        return Reply({"detail": f"secret words {KEY}"}, status)

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.path == "/get_result" and asked.method == "GET":
            return self.result(asked.query["id"][0], upstream)
        kind = MODELS.get(asked.path.removeprefix("/"))
        if kind is None or asked.method != "POST":
            raise Refused(self.error(404))
        try:
            body = kind.model_validate(asked.json)
        except ValidationError as error:
            raise Refused(Reply({"detail": error.errors(include_url=False)}, 422)) from None
        for name, text in asked.json.items():
            for each in text if name == "images" else [text] if "image" in name or name == "mask" else []:
                base64.b64decode(each, validate=True)
        task = f"task-{len(upstream.jobs)}"
        upstream.jobs[task] = {"body": body, "polls": 0}
        return Reply(
            {
                "id": task,
                "polling_url": f"{upstream.url}/get_result?id={task}",
                "cost": 3.0,
                "input_mp": 0.0,
                "output_mp": 1.0,
            }
        )

    def result(self, task: str, upstream: Upstream) -> Reply:
        job = upstream.jobs.get(task)
        if job is None:
            return Reply({"id": task, "status": "Task not found", "result": None}, 404)
        job["polls"] += 1
        reply: dict[str, Any] = {"id": task, "status": "Pending", "result": None, "progress": 0.4, "details": None}
        status = 200
        if job["polls"] > 1:
            status, reply["status"] = self.ends
        if reply["status"] == "Ready":
            body = job["body"]
            side = 2048 if isinstance(body, Ultra) else 1024
            size = getattr(body, "width", None) or side, getattr(body, "height", None) or side
            image_format = getattr(body, "output_format", "png").upper()
            sample = upstream.link(*size, image_format=image_format)
            reply["result"] = {"sample": sample, "prompt": body.prompt, "seed": getattr(body, "seed", None) or 42}
            reply["progress"] = 1.0
        return Reply(reply, status)


protocol = BlackForestLabsProtocol()
