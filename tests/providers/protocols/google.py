"""Google's Gemini API, by the types of its own SDK."""

from __future__ import annotations

import base64
import re
from typing import Any

from google.genai.types import Content, GenerateContentConfig, GenerateContentResponse
from pydantic import BaseModel, ConfigDict

from tests.providers.upstream import KEY, Asked, Protocol, Refused, Reply, Upstream

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
    "1:4": (512, 2064),
    "1:8": (352, 2928),
    "4:1": (2064, 512),
    "8:1": (2928, 352),
}
"""Of 1K; 2K and 4K are twice and four times as long."""
FIRST_SIZES = SIZES | {
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "3:4": (864, 1184),
    "4:3": (1184, 864),
    "4:5": (896, 1152),
    "5:4": (1152, 896),
    "9:16": (768, 1344),
    "16:9": (1344, 768),
    "21:9": (1536, 672),
}
"""Of gemini-2.5-flash-image."""


class Body(BaseModel):
    """GenerateContentRequest, which the SDK has no type of: it is made of these."""

    model_config = ConfigDict(extra="forbid")
    contents: list[Content]
    generationConfig: GenerateContentConfig
    safetySettings: list[Any] = []


class GoogleProtocol(Protocol):
    provider = "google"
    remote = {"model": "gemini-nano-banana-2.1", "max_images": 14}
    tasks = ["text-to-image", "image-to-image"]

    def check_key(self, asked: Asked) -> bool:
        assert "authorization" not in asked.headers
        assert KEY not in str(asked.query)
        return asked.headers.get("x-goog-api-key") == KEY

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        match = re.fullmatch(r"/models/([\w.-]+):generateContent", asked.path)
        if match is None or asked.method != "POST":
            raise Refused(self.error(404))
        body = Body.model_validate(asked.json)
        config = body.generationConfig
        assert config.response_modalities == ["IMAGE"]
        size = self.size_of(asked.json["generationConfig"].get("imageConfig", {}), match[1])
        (content,) = body.contents
        assert content.role == "user"
        *sources, prompt = content.parts or []
        assert prompt.text
        for source in sources:
            assert source.inline_data is not None
            assert source.inline_data.data is not None
            assert source.inline_data.mime_type in ("image/png", "image/jpeg", "image/webp")
            assert source.inline_data.data[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"RIFF")
        if "forbidden" in prompt.text:
            return Reply(typed({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": USAGE}))
        typed(self.generated(match[1], "eA=="))
        return Reply(self.generated(match[1], upstream.base64(*size)))

    def generated(self, model: str, text: str) -> dict[str, Any]:
        """A good answer: some words, a draft, and the picture in base64."""
        draft = {
            "inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"a draft").decode()},
            "thought": True,
        }
        image = {"inlineData": {"mimeType": "image/png", "data": text}}
        content = {"parts": [{"text": "Here:"}, draft, image], "role": "model"}
        return {
            "candidates": [{"content": content, "finishReason": "STOP"}],
            "usageMetadata": USAGE,
            "modelVersion": model,
        }

    def size_of(self, config: dict[str, str], model: str) -> tuple[int, int]:
        """What the model draws for an `imageConfig`."""
        first = model == "gemini-2.5-flash-image"
        wide = config.get("aspectRatio") in ("1:4", "1:8", "4:1", "8:1")
        if (first and "imageSize" in config) or (wide and model != "gemini-nano-banana-2.1"):
            raise Refused(self.error(400))
        side = {"1K": 1, "2K": 2, "4K": 4}[config.get("imageSize", "1K")]
        width, height = (FIRST_SIZES if first else SIZES)[config.get("aspectRatio", "1:1")]
        return width * side, height * side

    def error(self, status: int) -> Reply:
        # A wrong key is a 400 here.
        is_key = status in (401, 403)
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID" if is_key else "X"}
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.2s"}
        code = 400 if is_key else status
        return Reply(
            {"error": {"code": code, "message": f"secret words {KEY}", "status": "X", "details": [info, retry]}}, code
        )


def typed(body: dict[str, Any]) -> dict[str, Any]:
    """The same, if it is an answer by the SDK."""
    GenerateContentResponse.model_validate(body)
    return body


USAGE = {
    "promptTokenCount": 270,
    "candidatesTokenCount": 1130,
    "totalTokenCount": 1600,
    "thoughtsTokenCount": 200,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 12}, {"modality": "IMAGE", "tokenCount": 258}],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1120}, {"modality": "TEXT", "tokenCount": 10}],
}

protocol = GoogleProtocol()
