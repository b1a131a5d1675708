"""OpenAI, by the types of its own SDK."""

from __future__ import annotations

from typing import Any

from openai.types import ImagesResponse
from openai.types.image_edit_params import ImageEditParamsStreaming
from openai.types.image_generate_params import ImageGenerateParamsStreaming
from pydantic import ConfigDict, TypeAdapter, with_config

from tests.providers.upstream import Asked, Protocol, Refused, Reply, Upstream

STRICT = with_config(ConfigDict(extra="forbid"))
USAGE = {
    "input_tokens": 17,
    "output_tokens": 1056,
    "total_tokens": 1073,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 7},
}


class OpenAIProtocol(Protocol):
    provider = "openai"
    remote = {"model": "gpt-image-2.5-flare", "max_n": 10, "max_images": 16}
    tasks = ["text-to-image", "image-to-image", "inpainting"]
    streams = True

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        body = self.generation(asked) if asked.path == "/images/generations" else self.edit(asked)
        width, _, height = str(body.get("size") or "1024x1024").partition("x")
        size, n = (int(width), int(height)), int(body.get("n", 1))
        image_format = str(body.get("output_format") or "png").upper()
        resolved = {
            "size": f"{width}x{height}",
            "quality": body.get("quality") or "high",
            "background": body.get("background") or "opaque",
            "output_format": image_format.lower(),
        }
        if body.get("stream") in (True, "true"):
            kind = "image_generation" if asked.path == "/images/generations" else "image_edit"
            partials = [
                (
                    f"{kind}.partial_image",
                    {
                        "type": f"{kind}.partial_image",
                        "b64_json": upstream.base64(*size, image_format=image_format),
                        "created_at": 1,
                        "partial_image_index": index,
                        **resolved,
                    },
                )
                for index in range(int(body.get("partial_images") or 0))
            ]
            completed = [
                (
                    f"{kind}.completed",
                    {
                        "type": f"{kind}.completed",
                        "b64_json": upstream.base64(*size, image_format=image_format),
                        "created_at": 1,
                        "usage": USAGE,
                        **resolved,
                    },
                )
                for _ in range(n)
            ]
            return Reply(events=[*partials, *completed])
        data = [{"b64_json": upstream.base64(*size, image_format=image_format)} for _ in range(n)]
        reply = {"created": 1, "data": data, "usage": USAGE, **resolved}
        ImagesResponse.model_validate(reply)
        return Reply(reply)

    def generation(self, asked: Asked) -> dict[str, Any]:
        body: dict[str, Any] = asked.json
        TypeAdapter(STRICT(ImageGenerateParamsStreaming)).validate_python({"stream": True, **body}, strict=True)
        return body

    def edit(self, asked: Asked) -> dict[str, Any]:
        if asked.path != "/images/edits":
            raise Refused(self.error(404))
        fields: dict[str, Any] = asked.fields
        typed = {**fields, "n": int(fields.get("n", 1)), "image": [part.data for part in asked.parts if part.filename]}
        for name in ("partial_images", "output_compression"):
            if name in typed:
                typed[name] = int(typed[name])
        TypeAdapter(ImageEditParamsStreaming).validate_python({**typed, "stream": True})
        unknown = set(typed) - set(ImageEditParamsStreaming.__annotations__)
        assert unknown <= {"stream"} | _inherited(ImageEditParamsStreaming), unknown
        return fields


def _inherited(kind: Any) -> set[str]:
    return {name for base in kind.__orig_bases__ for name in getattr(base, "__annotations__", {})}


protocol = OpenAIProtocol()
