"""OpenAI, by the types of its own SDK: bodies are validated by them, and so are the sample answers here."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

from openai.types import ImageEditStreamEvent, ImageGenStreamEvent, ImagesResponse
from openai.types.image_edit_params import ImageEditParamsBase
from openai.types.image_generate_params import ImageGenerateParamsBase
from pydantic import TypeAdapter

from tests.providers.upstream import Asked, Protocol, Refused, Reply, Upstream

USAGE = {
    "input_tokens": 17,
    "output_tokens": 1056,
    "total_tokens": 1073,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 7},
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 1056},
}
FILES = {"image", "mask", "markup"}
STREAM_OF = {"image_generation": TypeAdapter(ImageGenStreamEvent), "image_edit": TypeAdapter(ImageEditStreamEvent)}

GENERATION = {**get_type_hints(ImageGenerateParamsBase), "stream": bool}
EDIT = {**get_type_hints(ImageEditParamsBase), "stream": bool}


class OpenAIProtocol(Protocol):
    provider = "openai"
    remote = {"model": "gpt-image-2.5-flare", "max_n": 10, "max_images": 16}
    tasks = ["text-to-image", "image-to-image", "inpainting"]
    streams = True
    mask = "transparent"

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        kind = {"/images/generations": "image_generation", "/images/edits": "image_edit"}.get(asked.path)
        if kind is None or asked.method != "POST":
            raise Refused(self.error(404))
        body = self.generation(asked) if kind == "image_generation" else self.edit(asked)
        self.check(body)
        return self.streamed(kind, body, upstream) if body.get("stream") else self.whole(body, upstream)

    def whole(self, body: dict[str, Any], upstream: Upstream) -> Reply:
        data = [{"b64_json": self.drawn(body, upstream)} for _ in range(body.get("n") or 1)]
        reply = {"created": 1, "data": data, "usage": USAGE, **self.resolved(body)}
        ImagesResponse.model_validate(reply, strict=True)
        return Reply(reply)

    def streamed(self, kind: str, body: dict[str, Any], upstream: Upstream) -> Reply:
        """Previews, and the picture."""
        told = {"created_at": 1, **self.resolved(body)}
        events: list[tuple[str, Any]] = []
        for index in range(body.get("partial_images") or 0):
            preview = {"type": f"{kind}.partial_image", "partial_image_index": index, **told}
            events.append((preview["type"], {**preview, "b64_json": self.drawn(body, upstream)}))
        done = {"type": f"{kind}.completed", "b64_json": self.drawn(body, upstream), "usage": USAGE, **told}
        events.append((done["type"], done))
        for _, event in events:
            STREAM_OF[kind].validate_python(event)
        return Reply(events=events)

    def resolved(self, body: dict[str, Any]) -> dict[str, Any]:
        """What was made of `auto`."""
        auto = {"size": "1024x1024", "quality": "high", "background": "opaque", "output_format": "png"}
        given = {name: body[name] for name in auto if body.get(name) not in (None, "auto")}
        return auto | given

    def drawn(self, body: dict[str, Any], upstream: Upstream) -> str:
        told = self.resolved(body)
        width, _, height = told["size"].partition("x")
        return upstream.base64(int(width), int(height), image_format=told["output_format"].upper())

    def generation(self, asked: Asked) -> dict[str, Any]:
        return self.validated(asked.json, GENERATION, strict=True)

    def edit(self, asked: Asked) -> dict[str, Any]:
        files = [part for part in asked.parts if part.filename is not None]
        pictures = [part for part in files if part.name in ("image", "image[]")]
        assert pictures, "no image"
        assert len({part.name for part in pictures}) == 1
        assert len(pictures) == 1 or pictures[0].name == "image[]"
        assert all(part.content_type in ("image/png", "image/jpeg", "image/webp") for part in files)
        assert {part.name for part in files} <= {"image", "image[]", "mask"}
        fields: dict[str, Any] = dict(asked.fields)
        assert len(fields) == sum(part.filename is None for part in asked.parts), "a field came twice"
        if "stream" in fields:
            fields["stream"] = {"true": True, "false": False}[fields["stream"]]
        return self.validated(fields, EDIT, strict=False)

    def validated(self, body: dict[str, Any], hints: dict[str, Any], *, strict: bool) -> dict[str, Any]:
        """The fields by the SDK's annotations, one by one, since no validator knows its files' type. `strict`: whether
        numbers have to come as such, and not as text."""
        unknown = set(body) - set(hints) | set(body) & FILES
        assert not unknown, f"unknown parameters {unknown}"
        assert None not in body.values(), "null"
        return {name: TypeAdapter(hints[name]).validate_python(value, strict=strict) for name, value in body.items()}

    def check(self, body: dict[str, Any]) -> None:
        """What OpenAI refuses, by the words beside each parameter in its SDK."""
        model, streams = body["model"], body.get("stream")
        version = re.match(r"gpt-image-([0-9.]+)(-mini)?", model)
        number = float(version[1]) if version else 0.0
        fidelities = {1.5: ("high", "low"), 1.0: ("low",)}.get(number, ())
        wrong = {
            "prompt": not 0 < len(body["prompt"]) <= 32_000,
            "n": not 1 <= body.get("n", 1) <= 10 or (streams and body.get("n", 1) != 1),
            "quality": body.get("quality") in ("xhigh", "max") and number < 2.5,
            "input_fidelity": "input_fidelity" in body and body["input_fidelity"] not in fidelities,
            "partial_images": "partial_images" in body and not (streams and 0 <= body["partial_images"] <= 3),
            "output_compression": "output_compression" in body and body.get("output_format") not in ("jpeg", "webp"),
            "background": body.get("background") == "transparent" and body.get("output_format") == "jpeg",
            "response_format": "response_format" in body,
            "style": "style" in body,
            "size": not self.draws(body.get("size", "auto"), number),
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise Refused(self.refused(name))

    def draws(self, size: str, version: float) -> bool:
        """Whether the model takes this size."""
        if size in ("auto", "1024x1024", "1536x1024", "1024x1536"):
            return True
        width, height = map(int, size.split("x"))
        return (
            version >= 2
            and width % 16 == height % 16 == 0
            and max(width, height) <= min(3840, 3 * min(width, height))
            and 655_360 <= width * height <= 8_294_400
        )

    def refused(self, param: str) -> Reply:
        """OpenAI's 400 about a parameter."""
        error = {"message": "secret words", "type": "invalid_request_error", "param": param, "code": "invalid_value"}
        return Reply({"error": error}, 400)


protocol = OpenAIProtocol()
