"""Google's Gemini API: its image models draw in a chat, by `generateContent`, one picture a call.

They take a shape and one of three sizes; the manifest lists the pixels that come of each pair. (Imagen, whose `predict`
took n, was shut down in August 2026.) Shapes as in the official SDK, `google.genai.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from hub.errors import HubError, NothingMade, ProviderBusy, ProviderKeyRefused
from hub.remote.adapter import Adapter, Answer, Call, Made, Pending, blocked, retry_after
from hub.remote.reading import at, count, listed, picture_of, text
from hub.remote.sizes import nearest_ratio, tier
from hub.remote.wish import Wish
from hub.types import Size, Usage

RATIOS = ("1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9")
MAX_SEED = 2**31 - 1
BLOCKED = {
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
}
"""Reasons to finish that are a verdict on the contents."""


class InlineData(Struct):
    """Bytes in base64."""

    data: msgspec.Raw = msgspec.Raw(b"null")


class Part(Struct, rename="camel"):
    """Text, or a picture. `thought`: a draft that the model has made for itself."""

    inline_data: InlineData | None = None
    thought: Any = False


class Content(Struct):
    """The parts of an answer."""

    parts: list[Part] | None = None


class Candidate(Struct, rename="camel"):
    """One answer; without contents where it was blocked."""

    content: Content | None = None
    finish_reason: Any = None


class Generated(Struct, rename="camel"):
    """GenerateContentResponse. `prompt_feedback`: why a prompt had no answer at all. `usage_metadata`: what a call
    took, in all and by kind (TEXT, IMAGE …)."""

    candidates: list[Candidate] = []
    prompt_feedback: Any = None
    usage_metadata: Any = None


class Google(Adapter):
    """generativelanguage.googleapis.com, with a key of AI Studio's."""

    name = "google"
    title = "Google"
    base_url = "https://generativelanguage.googleapis.com/v1beta"
    key_variable = "GEMINI_API_KEY"
    honours = frozenset({"size", "seed"})
    documentation = "https://ai.google.dev/gemini-api/docs/image-generation"

    def headers(self, key: str) -> Mapping[str, str]:
        """Never in the URL, where logs on the way would keep it."""
        return {"x-goog-api-key": key}

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """The pictures come before the words, as Google's examples have it."""
        del n
        seed = wish.seed(first, MAX_SEED)
        parts: list[dict[str, object]] = [
            {"inlineData": {"mimeType": each.media_type, "data": each.base64}} for each in wish.images
        ]
        config: dict[str, object] = {"responseModalities": ["IMAGE"]}
        if wish.size is not None:
            config["imageConfig"] = _image_config(wish.size, wish.aspect_ratio)
        if seed is not None:
            config["seed"] = seed
        config |= wish.manifest.remote.options.get("generationConfig", {})
        body = wish.with_options({"contents": [{"role": "user", "parts": [*parts, {"text": wish.prompt}]}]})
        return Call(f"/models/{wish.model}:generateContent", json=body | {"generationConfig": config})

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """GenerateContentResponse: a good status also tells of what was blocked."""
        del wish
        found = answer.read(Generated)
        pictures = [
            picture
            for candidate in found.candidates
            for part in (candidate.content or Content()).parts or ()
            if part.inline_data is not None and part.thought is not True
            if (picture := picture_of(part.inline_data.data)) is not None
        ]
        if not pictures:
            raise self._nothing(found)
        return Made(pictures, usage=_usage(found.usage_metadata))

    def refusal(self, answer: Answer) -> HubError:
        """A wrong key is a 400 here, and a 429 tells in its body how long to wait."""
        details = answer.peek("error", "details")
        details = [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []
        if any(each.get("reason") == "API_KEY_INVALID" for each in details):
            return ProviderKeyRefused(f"{self.title} does not take this hub's key. Its owner has to act.")
        if answer.peek("error", "status") == "FAILED_PRECONDITION":
            words = f"{self.title} wants something of this hub's account first, such as billing. Its owner has to act."
            return ProviderKeyRefused(words)
        if answer.status == 429:
            delays = [each["retryDelay"] for each in details if isinstance(each.get("retryDelay"), str)]
            wait = retry_after(answer) or (_seconds(delays[0]) if delays else None)
            return ProviderBusy(f"{self.title} takes no request just now.", retry_after=wait)
        return super().refusal(answer)

    def _nothing(self, found: Generated) -> HubError:
        reasons = {text(candidate.finish_reason) for candidate in found.candidates}
        if reasons & BLOCKED or at(found.prompt_feedback, "blockReason"):
            return blocked(self.title)
        return NothingMade(f"{self.title} answered without a picture.", may_have_billed=True)


def _image_config(size: Size, ratio: str | None) -> dict[str, str]:
    """The shape, and the size where it is not the default, for which models of one size alone have no name."""
    level = tier(size)
    return {"aspectRatio": ratio or nearest_ratio(size, RATIOS)} | ({"imageSize": f"{level}K"} if level > 1 else {})


def _usage(told: object) -> Usage | None:
    """Of what was made the pictures alone: words and thoughts have another price, which is small beside theirs. None
    where no pictures were counted, since that would be a price without them."""
    image = _of_pictures(at(told, "promptTokensDetails"))
    output = _of_pictures(at(told, "candidatesTokensDetails")) or count(at(told, "candidatesTokenCount"))
    text_tokens = max(0, count(at(told, "promptTokenCount")) - image)
    return Usage(text_tokens=text_tokens, image_tokens=image, output_tokens=output) if output else None


def _of_pictures(details: object) -> int:
    return sum(count(at(each, "tokenCount")) for each in listed(details) if at(each, "modality") == "IMAGE")


def _seconds(text: str) -> int | None:
    """A duration as protobuf writes it in JSON: `34.07s`."""
    try:
        return min(3600, max(1, int(float(text.removesuffix("s"))) + 1))
    except (ValueError, OverflowError):
        return None


adapter = Google()
