"""LangChain's DallEAPIWrapper, alone and as the tool that agents call."""

from __future__ import annotations

import openai
from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from picture_checks import KEY, PROMPT, SMALL, URL, WRONG_KEY, Checks, difference, expect, linked, raises

check = Checks()


def wrapper(**settings: object) -> DallEAPIWrapper:
    """A wrapper that points at the hub."""
    return DallEAPIWrapper(**{"base_url": f"{URL}/v1", "api_key": KEY, "size": SMALL, "max_retries": 0, **settings})


@check("run: its default model, dall-e-2")
def _() -> None:
    linked(wrapper().run(PROMPT))


@check("run: dall-e-3, hd")
def _() -> None:
    linked(wrapper(model="dall-e-3", quality="hd", size="1024x1024").run(PROMPT), size="1024x1024")


@check("run: n=2, links joined by the separator")
def _() -> None:
    links = wrapper(n=2, separator="|").run(PROMPT).split("|")
    expect(len(links) == 2, f"{len(links)} links")
    one, other = map(linked, links)
    expect(difference(one, other) > 0.5, "the two pictures are the same")


@check("run: as a tool")
def _() -> None:
    linked(OpenAIDALLEImageGenerationTool(api_wrapper=wrapper()).invoke(PROMPT))


@check("run: the default size, 1024x1024")
def _() -> None:
    made = DallEAPIWrapper(base_url=f"{URL}/v1", api_key=KEY, max_retries=0).run(PROMPT)
    linked(made, size="1024x1024")


@check("run: the hub's own model")
def _() -> None:
    linked(wrapper(model="builtin").run(PROMPT))


@check("error: unknown model, bad n, wrong key")
def _() -> None:
    error = raises(openai.NotFoundError, lambda: wrapper(model="no-such-model").run(PROMPT))
    expect(error.code == "model_not_found", f"code {error.code}")
    error = raises(openai.BadRequestError, lambda: wrapper(n=11).run(PROMPT))
    expect(error.param == "n", f"param {error.param}")
    raises(openai.AuthenticationError, lambda: wrapper(api_key=WRONG_KEY).run(PROMPT))


if __name__ == "__main__":
    check.run()
