"""OpenRouter's Image API, by the types of its own SDK."""

from __future__ import annotations

import base64
import re
from typing import Any

from openrouter.components import ImageGenerationRequest, ImageGenerationResponse, ImageStreamingResponse

from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 1290,
    "total_tokens": 1302,
    "cost": 0.04,
    "completion_tokens_details": {"image_tokens": 1290},
}
SIZES = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
SHAPES = {"aspect_ratio", "resolution", "input_references"}
OPENAI = {"size", "input_references", "quality", "output_format", "output_compression", "background", "stream"}
FEATURES = {
    "google/gemini-3-pro-image": SHAPES,
    "bytedance-seed/seedream-4.5": SHAPES,
    "black-forest-labs/flux.2-pro": {"size", "input_references"},
    "openai/gpt-5-image": OPENAI,
}
"""What a model takes beside a model, a prompt and a user. Others take everything."""


class OpenRouterProtocol(Protocol):
    provider = "openrouter"
    remote = {
        "model": "google/gemini-3-pro-image",
        "max_images": 14,
        "aspect_ratios": ["1:1", "16:9", "9:16"],
    }
    tasks = ["text-to-image", "image-to-image"]

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path != "/images":
            raise Refused(self.error(404))
        given: dict[str, Any] = asked.json
        unknown = set(given) - set(ImageGenerationRequest.model_fields)
        assert not unknown, unknown
        assert None not in given.values()
        body = ImageGenerationRequest.model_validate(given, strict=True)
        everything = set(ImageGenerationRequest.model_fields)
        further = set(given) - {"model", "prompt", "user"} - FEATURES.get(body.model, everything)
        assert not further, further
        assert body.size is None or (body.aspect_ratio is None and body.resolution is None)
        for source in body.input_references or ():
            head, _, text = source.image_url.url.partition(",")
            assert re.fullmatch(r"data:image/(png|jpeg|webp);base64", head)
            base64.b64decode(text, validate=True)
        if body.prompt == "forbidden":
            raise Refused(self.moderated())
        image_format = str(body.output_format or "png")
        size = self.size_of(body)
        if body.stream and asked.headers["accept"] == "text/event-stream":
            return self.streamed(upstream, size, image_format, failing=body.prompt == "failing")
        one = {"media_type": f"image/{image_format}"}
        data = [
            {"b64_json": upstream.base64(*size, image_format=image_format.upper()), **one} for _ in range(body.n or 1)
        ]
        reply = {"created": 1, "data": data, "usage": USAGE}
        ImageGenerationResponse.model_validate(reply)
        return Reply(reply)

    def size_of(self, body: ImageGenerationRequest) -> tuple[int, int]:
        """What is drawn."""
        if body.size is not None:
            width, _, height = body.size.partition("x")
            return int(width), int(height)
        side = {"1K": 1, "2K": 2, "4K": 4}[str(body.resolution or "1K")]
        width, height = SIZES[str(body.aspect_ratio or "1:1")]
        return width * side, height * side

    def streamed(self, upstream: Upstream, size: tuple[int, int], image_format: str, *, failing: bool) -> Reply:
        """Events without a name, three previews whatever was asked, and a closing word that is no JSON."""
        kind = image_format.upper()
        events: list[dict[str, Any]] = [
            {
                "type": "image_generation.partial_image",
                "b64_json": upstream.base64(*size, image_format=kind),
                "partial_image_index": index,
            }
            for index in range(3)
        ]
        if failing:
            events.append({"type": "error", "error": {"message": f"secret words {KEY}", "code": None}})
        else:
            text = upstream.base64(*size, image_format=kind)
            events.append({"type": "image_generation.completed", "b64_json": text, "created": 1, "usage": USAGE})
        for event in events:
            found = ImageStreamingResponse.model_validate({"data": event}).data
            assert found.type == event["type"]
        return Reply(events=[*(("", event) for event in events), ("", "[DONE]")])

    def moderated(self) -> Reply:
        """A 403 that is not for the key."""
        metadata = {"reasons": ["violence"], "flagged_input": f"secret words {KEY}", "provider_name": "X"}
        return Reply({"error": {"code": 403, "message": f"secret words {KEY}", "metadata": metadata}}, 403)

    def error(self, status: int) -> Reply:
        return Reply({"error": {"code": status, "message": f"secret words {KEY}", "metadata": {"raw": KEY}}}, status)


protocol = OpenRouterProtocol()
