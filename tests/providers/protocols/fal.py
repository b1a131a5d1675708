"""fal's queue, as https://fal.ai/docs and its models' schemas have it. Tests drive its SDK (fal-client) against this
upstream."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.manifest import ShapesSection
from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    width: Annotated[int, Field(ge=256, le=2048)]
    height: Annotated[int, Field(ge=256, le=2048)]


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    seed: int | None = None
    output_format: Literal["jpeg", "png", "webp"] = "jpeg"
    sync_mode: bool = False


class Flux2Pro(Inputs):
    image_size: Size | Literal["auto", "square_hd", "landscape_4_3"] = "landscape_4_3"


class Flux2ProEdit(Flux2Pro):
    image_urls: Annotated[list[str], Field(min_length=1)]


class Flux2(Flux2Pro):
    num_images: Annotated[int, Field(ge=1, le=4)] = 1
    num_inference_steps: Annotated[int, Field(ge=4, le=50)] = 28
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 2.5
    enable_safety_checker: bool = True


class Flux2Edit(Flux2):
    image_urls: Annotated[list[str], Field(min_length=1, max_length=4)]


class Redraw(Inputs):
    image_url: str
    strength: Annotated[float, Field(ge=0.01, le=1)] = 0.95
    num_images: Annotated[int, Field(ge=1, le=4)] = 1
    num_inference_steps: Annotated[int, Field(ge=10, le=50)] = 40
    guidance_scale: float = 3.5


class Fill(Inputs):
    image_url: str
    mask_url: str
    num_images: Annotated[int, Field(ge=1, le=4)] = 1


APPS: dict[str, type[Inputs]] = {
    "/fal-ai/flux-2-pro": Flux2Pro,
    "/fal-ai/flux-2-pro/edit": Flux2ProEdit,
    "/fal-ai/flux-2": Flux2,
    "/fal-ai/flux-2/edit": Flux2Edit,
    "/fal-ai/flux/dev/image-to-image": Redraw,
    "/fal-ai/flux-pro/v1/fill": Fill,
}


class FalProtocol(Protocol):
    """`flagged`: the numbers of pictures that the safety check has blackened. `ends`: what is answered instead of a
    result."""

    provider = "fal"
    remote = {
        "model": "fal-ai/flux-2",
        "models": {"image-to-image": "fal-ai/flux-2/edit"},
        "max_n": 4,
        "max_images": 4,
        "shapes": ShapesSection(multiple=16, min=512, max=2048),
        "formats": ["png", "jpeg", "webp"],
        "fields": {
            "size": "image_size",
            "n": "num_images",
            "seed": "seed",
            "image": "image_urls[]",
            "num_inference_steps": "num_inference_steps",
            "guidance_scale": "guidance_scale",
            "output_format": "output_format",
        },
    }
    tasks = ["text-to-image", "image-to-image"]
    links = True
    polls = True

    def __init__(self, flagged: tuple[int, ...] = (), ends: Reply | None = None) -> None:
        self.flagged, self.ends = flagged, ends

    def check_key(self, asked: Asked) -> bool:
        return asked.headers.get("authorization") == f"Key {KEY}"

    def error(self, status: int) -> Reply:
        return Reply({"detail": f"secret words {KEY}"}, status)

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method == "POST":
            return self.submit(asked, upstream)
        app, _, rest = asked.path.partition("/requests/")
        request, _, what = rest.partition("/")
        job = upstream.jobs.get(request)
        if job is None or job["app"] != app:
            raise Refused(self.error(404))
        if (asked.method, what) == ("PUT", "cancel"):
            return Reply({"status": "CANCELLATION_REQUESTED"}, 202)
        assert asked.method == "GET"
        if what == "status":
            return self.status(job, asked, upstream)
        assert what == ""
        if job["asked"] < 3:
            return Reply({"detail": "Request is still in progress"}, 400)
        return self.ends or self.result(job["body"], upstream)

    def submit(self, asked: Asked, upstream: Upstream) -> Reply:
        kind = APPS.get(asked.path)
        if kind is None:
            raise Refused(self.error(404))
        try:
            body = kind.model_validate(asked.json)
        except ValidationError as error:
            detail = [
                {"loc": ["body", *each["loc"]], "msg": each["msg"], "type": each["type"]} for each in error.errors()
            ]
            raise Refused(Reply({"detail": detail}, 422)) from None
        given = asked.json
        for url in [
            *given.get("image_urls", []),
            *(given[name] for name in ("image_url", "mask_url") if name in given),
        ]:
            head, _, text = url.partition(";base64,")
            assert head in ("data:image/png", "data:image/jpeg", "data:image/webp")
            base64.b64decode(text, validate=True)
        app = "/" + "/".join(asked.path.split("/")[1:3])  # a request is asked for without the rest of the path
        request = f"request-{len(upstream.jobs)}"
        upstream.jobs[request] = {
            "app": app,
            "body": body,
            "asked": 0,
            "url": f"{upstream.url}{app}/requests/{request}",
        }
        return Reply({"status": "IN_QUEUE", "queue_position": 0, **urls(request, upstream)})

    def status(self, job: dict[str, Any], asked: Asked, upstream: Upstream) -> Reply:
        job["asked"] += 1
        told = {"response_url": job["url"], "logs": None}
        if job["asked"] == 1:
            return Reply({"status": "IN_QUEUE", "queue_position": 0, **told}, 202)
        if job["asked"] == 2:
            return Reply({"status": "IN_PROGRESS", **told}, 202)
        return Reply({"status": "COMPLETED", "metrics": {"inference_time": 1.2}, **told})

    def result(self, body: Any, upstream: Upstream) -> Reply:
        size = getattr(body, "image_size", None)
        width, height = (size.width, size.height) if isinstance(size, Size) else (1024, 1024)
        image_format = body.output_format
        n = getattr(body, "num_images", 1)
        made = []
        for _ in range(n):
            make = upstream.base64 if body.sync_mode else upstream.link
            url = make(width, height, image_format=image_format.upper())
            url = f"data:image/{image_format};base64,{url}" if body.sync_mode else url
            made.append({"url": url, "width": width, "height": height, "content_type": f"image/{image_format}"})
        return Reply(
            {
                "images": made,
                "timings": {"inference": 1.2},
                "seed": body.seed or 77,
                "has_nsfw_concepts": [number in self.flagged for number in range(n)],
                "prompt": body.prompt,
            }
        )


def urls(request: str, upstream: Upstream) -> dict[str, str]:
    url = upstream.jobs[request]["url"]
    return {
        "request_id": request,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }


protocol = FalProtocol()
