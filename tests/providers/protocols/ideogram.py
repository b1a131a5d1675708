"""Ideogram, by models of ours made from https://developer.ideogram.ai: there is no SDK on PyPI. Version 1 takes forms;
version 2 takes JSON, and forms where pictures come along."""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.providers.upstream import KEY, Asked, Part, Protocol, Refused, Reply, Upstream

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Resolution = Annotated[str, Field(pattern=r"^\d{3,4}x\d{3,4}$")]
Speed = Literal["FLASH", "TURBO", "DEFAULT", "QUALITY"]


class Form(BaseModel):
    """Of forms all is text, so that numbers are read out of it."""

    model_config = ConfigDict(extra="forbid")


class Inpaint3(Form):
    prompt: str
    seed: Seed | None = None
    rendering_speed: Speed = "DEFAULT"
    magic_prompt: Literal["AUTO", "ON", "OFF"] = "AUTO"
    num_images: Annotated[int, Field(ge=1, le=8)] = 1


class Generate3(Inpaint3):
    resolution: Resolution | None = None
    negative_prompt: str | None = None


class Remix3(Generate3):
    image_weight: Annotated[int, Field(ge=1, le=100)] = 50


class Generate4(Form):
    text_prompt: str
    resolution: Resolution | None = None
    rendering_speed: Literal["TURBO", "DEFAULT", "QUALITY"] = "DEFAULT"


class Remix4(Generate4):
    image_weight: Annotated[int, Field(ge=1, le=100)] = 50


class Words45(Form):
    prompt: Annotated[str, Field(min_length=1, max_length=10_000)]
    size: Resolution | Literal["auto"] = "auto"
    quality: Literal["low", "medium", "high"] = "high"
    seed: Seed | None = None
    num_images: Annotated[int, Field(ge=1, le=8)] = 1


class Pictures45(Words45):
    size: Resolution | Literal["auto", "source"] = "auto"  # type: ignore[assignment]


class Masked45(Form):
    prompt: str
    quality: Literal["low", "medium", "high"] = "medium"
    seed: Seed | None = None
    num_images: Annotated[int, Field(ge=1, le=8)] = 1


PATHS: dict[str, tuple[type[Form], set[str]]] = {
    "/v1/ideogram-v3/generate": (Generate3, set()),
    "/v1/ideogram-v3/remix": (Remix3, {"image"}),
    "/v1/ideogram-v3/inpaint": (Inpaint3, {"image", "mask"}),
    "/v1/ideogram-v4/generate": (Generate4, set()),
    "/v1/ideogram-v4/remix": (Remix4, {"image"}),
}
LATEST = "/v2/image/generate/ideogram-4-5"


class IdeogramProtocol(Protocol):
    """`unsafe`: the numbers of pictures that are withheld."""

    provider = "ideogram"
    remote = {"model": "ideogram-v3", "max_n": 8}
    tasks = ["text-to-image", "image-to-image", "inpainting"]
    links = True
    mask = "black"

    def __init__(self, unsafe: tuple[int, ...] = ()) -> None:
        self.unsafe = unsafe

    def check_key(self, asked: Asked) -> bool:
        return asked.headers.get("api-key") == KEY and "authorization" not in asked.headers

    def error(self, status: int) -> Reply:
        return Reply({"error": f"secret words {KEY}"}, status)

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path not in {*PATHS, LATEST}:
            raise Refused(self.error(404))
        is_form = asked.headers["content-type"].startswith("multipart/form-data")
        files = [part for part in asked.parts if part.filename is not None] if is_form else []
        kind, needed = PATHS.get(asked.path) or self.latest(files)
        try:
            body = kind.model_validate(asked.fields if is_form else asked.json, strict=not is_form)
        except ValidationError as error:
            raise Refused(Reply({"error": str(error)}, 400)) from None
        assert {part.name for part in files} == needed
        assert is_form or asked.path == LATEST
        check_files(files)
        text = str(getattr(body, "resolution", None) or getattr(body, "size", None) or "auto")
        width, _, height = text.partition("x") if "x" in text else ("1024", "x", "1024")
        prompt = getattr(body, "prompt", None) or getattr(body, "text_prompt", "")
        data: list[dict[str, Any]] = [
            {
                "prompt": f"{prompt}, in a garden",
                "resolution": f"{width}x{height}",
                "is_image_safe": number not in self.unsafe,
                "seed": (getattr(body, "seed", None) or 5) + number,
                "url": None if number in self.unsafe else upstream.link(int(width), int(height)),
            }
            for number in range(getattr(body, "num_images", 1))
        ]
        if asked.path == LATEST:
            return Reply({"generation_id": "abc", "seed": data[0]["seed"], "data": data})
        return Reply({"created": "2026-11-27T12:00:00Z", "data": data})

    def latest(self, files: list[Part]) -> tuple[type[Form], set[str]]:
        names = {part.name for part in files}
        assert len([part for part in files if part.name == "images"]) <= 5
        return (Masked45 if "mask" in names else Pictures45 if names else Words45), names


def check_files(files: list[Part]) -> None:
    """Pictures of the kinds that it takes, and a mask of the first one's size with black and white in it."""
    opened = [(part, Image.open(io.BytesIO(part.data))) for part in files]
    for part, image in opened:
        assert part.content_type == Image.MIME[str(image.format)]
        if part.name == "mask":
            assert image.size == opened[0][1].size
            assert image.convert("L").getextrema() == (0, 255)


protocol = IdeogramProtocol()
