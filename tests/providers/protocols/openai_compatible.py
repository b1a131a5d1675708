"""A plain server that speaks OpenAI's image API, with its own extensions: it answers with links unless it is asked for
base64, and refuses what it does not know."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hub.types import Lora
from tests.providers.upstream import Asked, Protocol, Refused, Reply, Upstream

FIELDS: dict[str, Any] = {
    "model": str,
    "prompt": str,
    "n": int,
    "size": str,
    "quality": str,
    "output_format": str,
    "output_compression": int,
    "background": str,
    "response_format": str,
    "stream": bool,
    "partial_images": int,
    "user": str,
}
EXTENSIONS: dict[str, Any] = {
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "negative_prompt": str,
    "strength": float,
    "scheduler": str,
    "style": str,
    "loras": list[Lora],
    "moderation": str,
    "input_fidelity": str,
    "safety_identifier": str,
    "strict": bool,
}


class OpenAICompatibleProtocol(Protocol):
    provider = "openai_compatible"
    remote = {"model": "painter", "max_n": 4, "max_images": 4}
    tasks = ["text-to-image", "image-to-image", "inpainting"]
    streams = True
    mask = "transparent"
    links = True
    extensions: frozenset[str] = frozenset()
    """Those that this server has."""

    def answer(self, asked: Asked, upstream: Upstream) -> Reply:
        if asked.method != "POST" or asked.path not in ("/images/generations", "/images/edits"):
            raise Refused(self.error(404))
        kind = "image_edit" if asked.path == "/images/edits" else "image_generation"
        body = self.read(self.form(asked) if kind == "image_edit" else asked.json)
        width, _, height = body.get("size", "1024x1024").partition("x")
        picture = (int(width), int(height))
        image_format = body.get("output_format", "png").upper()
        if body.get("stream"):
            return self.streamed(kind, body, lambda: upstream.base64(*picture, image_format=image_format))
        if body.get("response_format") == "b64_json":
            data = [{"b64_json": upstream.base64(*picture, image_format=image_format)} for _ in range(body["n"])]
        else:
            data = [{"url": upstream.link(*picture, image_format=image_format)} for _ in range(body["n"])]
        reply: dict[str, Any] = {"created": 1, "data": data}
        return Reply(reply | ({"seed": body["seed"]} if "seed" in body else {}))

    def streamed(self, kind: str, body: dict[str, Any], draw: Any) -> Reply:
        """Previews of all pictures, one after the other, and then the pictures."""
        n, previews = body["n"], body.get("partial_images", 0)
        partial = f"{kind}.partial_image"
        return Reply(
            events=[
                *(
                    (partial, {"type": partial, "b64_json": draw(), "partial_image_index": each, "image_index": index})
                    for each in range(previews)
                    for index in range(n)
                ),
                *(
                    (f"{kind}.completed", {"type": f"{kind}.completed", "b64_json": draw(), "image_index": index})
                    for index in range(n)
                ),
            ]
        )

    def form(self, asked: Asked) -> dict[str, Any]:
        """The fields of an edit: text, of which what is no text is JSON."""
        files = [part.name for part in asked.parts if part.filename is not None]
        assert files.count("image") == 1 or files.count("image[]") > 1, files
        assert files.count("mask") <= 1
        kinds = FIELDS | EXTENSIONS
        return {
            name: text if kinds.get(name) in (str, None) else json.loads(text) for name, text in asked.fields.items()
        }

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """Known fields, of their types."""
        known = FIELDS | {name: EXTENSIONS[name] for name in self.extensions}
        for name, value in body.items():
            if name not in known:
                raise Refused(Reply({"error": {"message": f"secret words about {name}", "param": name}}, 400))
            msgspec.convert(value, known[name])
        assert body["model"] == "painter"
        return body


protocol = OpenAICompatibleProtocol()
