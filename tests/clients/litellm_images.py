"""LiteLLM's image functions, with `openai/` models whose api_base is the hub."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices while it is imported

import litellm
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
    expect_masked_edit,
    linked,
    mask_picture,
    opened,
    raises,
    source_picture,
)

check = Checks()
SOURCE = source_picture()
HUB: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60}
litellm.suppress_debug_info = True


def file(data: bytes, name: str = "source.png") -> io.BytesIO:
    """Bytes as an open file, which LiteLLM's edits want."""
    made = io.BytesIO(data)
    made.name = name
    return made


def field(answer: Any, name: str, n: int = 1) -> list[str]:
    """The `name` of each picture; fails where it lacks or stands beside the other field."""
    expect(len(answer.data) == n, f"{len(answer.data)} pictures, not {n}")
    other = "b64_json" if name == "url" else "url"
    for each in answer.data:
        expect(each[name], f"a picture has no {name}")
        expect(not each[other], f"a picture has {other} beside {name}")
    return [each[name] for each in answer.data]


@check("generate: dall-e-2, link by default")
def _() -> None:
    answer = litellm.image_generation(model="openai/dall-e-2", prompt=PROMPT, size=SMALL, **HUB)
    linked(field(answer, "url")[0])


@check("generate: dall-e-3, base64 and vivid through extra_body, hd")
def _() -> None:
    body = {"response_format": "b64_json", "style": "vivid"}  # LiteLLM itself no longer lets them pass
    answer = litellm.image_generation(
        model="openai/dall-e-3", prompt=PROMPT, size="1024x1024", quality="hd", extra_body=body, **HUB
    )
    opened(field(answer, "b64_json")[0], size="1024x1024")


@check("generate: gpt-image-1, base64 by default, usage")
def _() -> None:
    answer = litellm.image_generation(model="openai/gpt-image-1", prompt=PROMPT, size="1024x1024", quality="low", **HUB)
    opened(field(answer, "b64_json")[0], size="1024x1024")
    expect(answer.usage.total_tokens > 0, f"usage {answer.usage}")
    expect(answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens, f"{answer.usage}")


@check("generate: gpt-image-1, webp")
def _() -> None:
    answer = litellm.image_generation(
        model="openai/gpt-image-1", prompt=PROMPT, size=SMALL, output_format="webp", output_compression=80, **HUB
    )
    opened(field(answer, "b64_json")[0], kind="WEBP")


@check("generate: n=2")
def _() -> None:
    answer = litellm.image_generation(model="openai/dall-e-2", prompt=PROMPT, size=SMALL, n=2, **HUB)
    one, other = map(linked, field(answer, "url", 2))
    expect(difference(one, other) > 0.5, "the two pictures are the same")


@check("generate: the hub's own model")
def _() -> None:
    answer = litellm.image_generation(model="openai/builtin", prompt=PROMPT, size=SMALL, **HUB)
    linked(field(answer, "url")[0])


@check("generate: seed through extra_body, reproducible")
def _() -> None:
    def make() -> str:
        answer = litellm.image_generation(
            model="openai/gpt-image-1", prompt=PROMPT, size=SMALL, extra_body={"seed": 9}, **HUB
        )
        return field(answer, "b64_json")[0]

    expect(make() == make(), "the same seed gave another picture")


@check("generate: async, three at once")
async def _() -> None:
    answers = await asyncio.gather(
        *(
            litellm.aimage_generation(model="openai/dall-e-2", prompt=f"a {colour} ring", size=SMALL, **HUB)
            for colour in ("red", "blue", "green")
        )
    )
    links = [field(answer, "url")[0] for answer in answers]
    expect(len(set(links)) == 3, f"links are shared: {links}")
    for link in links:
        linked(link)


@check("edit: gpt-image-1, one image")
def _() -> None:
    answer = litellm.image_edit(
        model="openai/gpt-image-1", image=file(SOURCE), prompt=EDIT_PROMPT, size=SMALL, quality="low", **HUB
    )
    expect_edit(opened(field(answer, "b64_json")[0]), SOURCE)


@check("edit: dall-e-2, one image")
def _() -> None:
    answer = litellm.image_edit(model="openai/dall-e-2", image=file(SOURCE), prompt=EDIT_PROMPT, size=SMALL, **HUB)
    expect_edit(linked(field(answer, "url")[0]), SOURCE)


@check("edit: a list of images")
def _() -> None:
    answer = litellm.image_edit(
        model="openai/gpt-image-1",
        image=[file(SOURCE), file(source_picture(colour="red"), "other.png")],
        prompt=EDIT_PROMPT,
        size=SMALL,
        **HUB,
    )
    expect_edit(opened(field(answer, "b64_json")[0]), SOURCE)


@check("edit: with a mask, the rest stays")
def _() -> None:
    answer = litellm.image_edit(
        model="openai/gpt-image-1",
        image=file(SOURCE),
        mask=file(mask_picture(), "mask.png"),
        prompt=EDIT_PROMPT,
        size=SMALL,
        **HUB,
    )
    expect_masked_edit(opened(field(answer, "b64_json")[0]), SOURCE)


@check("edit: async")
async def _() -> None:
    answer = await litellm.aimage_edit(
        model="openai/gpt-image-1", image=file(SOURCE), prompt=EDIT_PROMPT, size=SMALL, **HUB
    )
    expect_edit(opened(field(answer, "b64_json")[0]), SOURCE)


@check("variation")
def _() -> None:
    answer = litellm.image_variation(model="openai/dall-e-2", image=file(SOURCE), size=SMALL, n=1, **HUB)
    linked(field(answer, "url")[0])


@check("error: unknown model is NotFoundError")
def _() -> None:
    error = raises(
        litellm.NotFoundError,
        lambda: litellm.image_generation(model="openai/no-such-model", prompt=PROMPT, size=SMALL, **HUB),
    )
    expect("no-such-model" in str(error), f"the hub's words are lost: {error}")


@check("error: bad n is BadRequestError, with the hub's words")
def _() -> None:
    error = raises(
        litellm.BadRequestError,
        lambda: litellm.image_generation(model="openai/dall-e-2", prompt=PROMPT, n=11, **HUB),
    )
    expect("'n'" in str(error), f"the hub's words are lost: {error}")


@check("error: wrong key is AuthenticationError")
async def _() -> None:
    other = {**HUB, "api_key": WRONG_KEY}
    raises(
        litellm.AuthenticationError,
        lambda: litellm.image_generation(model="openai/dall-e-2", prompt=PROMPT, **other),
    )
    await araises(
        litellm.AuthenticationError,
        litellm.aimage_edit(model="openai/gpt-image-1", image=file(SOURCE), prompt=EDIT_PROMPT, **other),
    )


if __name__ == "__main__":
    check.run()
