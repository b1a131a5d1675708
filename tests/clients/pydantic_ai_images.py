"""Pydantic AI's ImageGenerator, whose OpenAI model posts to /v1/images/generations and /v1/images/edits."""

from __future__ import annotations

from typing import Any

from picture_checks import (
    EDIT_PROMPT,
    KEY,
    PROMPT,
    SMALL,
    URL,
    WRONG_KEY,
    Checks,
    araises,
    difference,
    expect,
    expect_edit,
    opened,
    source_picture,
)
from pydantic_ai import ImageGenerator
from pydantic_ai.exceptions import ModelHTTPError, UserError
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.messages import BinaryImage
from pydantic_ai.providers.openai import OpenAIProvider

check = Checks()
SOURCE = source_picture()
BASE = f"{URL}/v1"


def generator(model: str = "gpt-image-1", key: str = KEY) -> ImageGenerator:
    """A generator that points at the hub."""
    return ImageGenerator(OpenAIImageGenerationModel(model, provider=OpenAIProvider(base_url=BASE, api_key=key)))


@check("generate: gpt-image-1")
async def _() -> None:
    settings: Any = {"openai_size": "1024x1024", "openai_quality": "low"}
    result = await generator().generate(PROMPT, settings=settings)
    expect(len(result.images) == 1, f"{len(result.images)} pictures")
    expect(result.image.media_type == "image/png", result.image.media_type)
    opened(result.image.data, size="1024x1024")
    expect(result.usage.input_tokens > 0 and result.usage.output_tokens > 0, f"usage {result.usage}")
    expect(result.provider_details["size"] == "1024x1024", result.provider_details)
    expect(result.provider_details["quality"] == "low", result.provider_details)


@check("generate: its default size")
async def _() -> None:
    result = await generator("gpt-image-1-mini").generate(PROMPT)
    opened(result.image.data, size=result.provider_details["size"])


@check("generate: aspect ratio of a newer model")
async def _() -> None:
    settings: Any = {"aspect_ratio": "3:2"}
    result = await generator("gpt-image-2").generate(PROMPT, settings=settings)
    picture = opened(result.image.data, size=None)
    expect(abs(picture.width / picture.height - 1.5) < 0.02, f"the picture is {picture.size}")


@check("generate: n=2, jpeg")
async def _() -> None:
    settings: Any = {"openai_n": 2, "openai_output_format": "jpeg", "openai_size": SMALL}
    result = await generator().generate(PROMPT, settings=settings)
    expect(len(result.images) == 2, f"{len(result.images)} pictures")
    one, other = (opened(each.content.data, kind="JPEG") for each in result.images)
    expect(difference(one, other) > 0.5, "the two pictures are the same")


@check("generate: webp")
async def _() -> None:
    settings: Any = {"openai_output_format": "webp", "openai_output_compression": 70, "openai_size": SMALL}
    result = await generator().generate(PROMPT, settings=settings)
    expect(result.image.media_type == "image/webp", result.image.media_type)
    opened(result.image.data, kind="WEBP")


@check("generate: seed through extra_body, reproducible")
async def _() -> None:
    settings: Any = {"openai_size": SMALL, "extra_body": {"seed": 21}}
    one = await generator().generate(PROMPT, settings=settings)
    other = await generator().generate(PROMPT, settings=settings)
    expect(one.image.data == other.image.data, "the same seed gave another picture")


@check("edit: one image")
async def _() -> None:
    settings: Any = {"openai_size": SMALL, "openai_quality": "low", "openai_input_fidelity": "high"}
    source = BinaryImage(data=SOURCE, media_type="image/png")
    result = await generator().generate(EDIT_PROMPT, images=[source], settings=settings)
    expect_edit(opened(result.image.data), SOURCE)
    expect(result.usage.input_tokens > 0, f"usage {result.usage}")


@check("edit: two images")
async def _() -> None:
    settings: Any = {"openai_size": SMALL}
    sources = [
        BinaryImage(data=SOURCE, media_type="image/png"),
        BinaryImage(data=source_picture(kind="JPEG", colour="red"), media_type="image/jpeg"),
    ]
    result = await generator().generate(EDIT_PROMPT, images=sources, settings=settings)
    expect_edit(opened(result.image.data), SOURCE)


@check("error: unknown model, with the hub's words")
async def _() -> None:
    error = await araises(ModelHTTPError, generator("no-such-model").generate(PROMPT))
    expect(error.status_code == 404, f"status {error.status_code}")
    expect(error.body["code"] == "model_not_found", f"body {error.body}")


@check("error: bad size")
async def _() -> None:
    settings: Any = {"openai_size": "huge"}
    error = await araises(ModelHTTPError, generator().generate(PROMPT, settings=settings))
    expect(error.status_code == 400 and error.body["param"] == "size", f"{error.status_code} {error.body}")


@check("error: wrong key")
async def _() -> None:
    error = await araises(ModelHTTPError, generator(key=WRONG_KEY).generate(PROMPT))
    expect(error.status_code == 401 and error.body["code"] == "invalid_api_key", f"{error.status_code} {error.body}")


@check("it refuses dall-e ids by itself")
def _() -> None:
    try:
        generator("dall-e-3")
    except UserError:
        return
    raise AssertionError("dall-e-3 is taken now: add checks of it")


if __name__ == "__main__":
    check.run()
