"""ByteDance: Seedream on Ark, as BytePlus (abroad) and Volcengine (in China) offer it. Much like OpenAI's API; source
pictures come with the same request, and there are no masks.

`remote.base_url` chooses another region. Several pictures of one request are a series in which each knows the others,
so that the ready-made manifests ask for one at a time. With `stream = true` under `remote.options`, each picture is
passed on as soon as it is there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from hub.errors import HubError, NothingMade
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Partial, Pending, Picture, blocked
from hub.remote.reading import at, count, event_of, picture_of, text
from hub.remote.wish import Wish
from hub.types import Usage

MAX_SEED = 2**31 - 1
FURTHER = frozenset({"seed", "guidance_scale"})
"""Parameters that some models take."""
SENSITIVE = "SensitiveContent"
"""In the code of every error of its content policy, whether of the text, a source or the result."""


class Item(Struct):
    """A picture, or why there is none: an object with a `code`."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: Any = None
    error: Any = None

    @property
    def picture(self) -> Picture | None:
        """Of those that have one."""
        return picture_of(self.b64_json, self.url)


class Images(Struct):
    """The answer. `error`: what went wrong with all. `usage.output_tokens`: of all pictures; a token is 256 pixels."""

    data: list[Item] = []
    error: Any = None
    usage: Any = None


class Event(Item):
    """One of a stream: a picture, a failed one, the end, or an error."""

    type: Any = None
    usage: Any = None


class ByteDance(Adapter):
    """ark.ap-southeast.bytepluses.com."""

    name = "bytedance"
    title = "ByteDance"
    base_url = "https://ark.ap-southeast.bytepluses.com/api/v3"
    key_variable = "ARK_API_KEY"
    honours = frozenset({"size"})
    documentation = "https://docs.byteplus.com/en/docs/ModelArk/1541523"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """And those of FURTHER that the manifest names: Seedream 3 takes them, and no later one."""
        return self.honours | (FURTHER & set(manifest.remote.honours))

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """An edit without a size is told its class alone, and so keeps its source's shape."""
        request, honoured = wish.request, self.honoured(wish.manifest)
        images = [each.data_url for each in wish.images]
        body = wish.with_options(
            {
                "model": wish.model,
                "prompt": wish.prompt,
                "image": images if len(images) > 1 else images[0] if images else None,
                "size": str(wish.size) if wish.size else "2K" if images else None,
                "seed": wish.seed(first, MAX_SEED) if "seed" in honoured else None,
                "guidance_scale": request.guidance_scale if "guidance_scale" in honoured else None,
                "output_format": wish.output_format if len(wish.manifest.remote.formats) > 1 else None,
                "response_format": "b64_json",
                "sequential_image_generation": "auto" if n > 1 else None,
                "sequential_image_generation_options": {"max_images": n} if n > 1 else None,
            }
        )
        return Call("/images/generations", json=body, stream=body.get("stream") is True)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """Each picture may have failed for itself; what was made counts."""
        del wish
        images = answer.read(Images)
        pictures = [item.picture for item in images.data]
        made = [picture for picture in pictures if picture is not None]
        faults = [fault for fault in (images.error, *(item.error for item in images.data)) if fault]
        if faults and not made:
            raise self._fault(faults[0])
        return Made(made, usage=_usage(images.usage))

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """The picture that was refused ends a request for one; of several, the others go on."""
        if data == b"[DONE]":
            return None
        event = event_of(self.title, data, Event)
        kind = (text(event.type) or name).rpartition(".")[2]
        if kind == "partial_succeeded" and (picture := event.picture) is not None:
            return Made([picture])
        if event.error and (kind != "partial_failed" or wish.manifest.remote.max_n == 1):
            raise self._fault(event.error)
        return Made([], usage=_usage(event.usage)) if kind == "completed" else None

    def refusal(self, answer: Answer) -> HubError:
        """`error.code` tells of its content policy."""
        code = answer.peek("error", "code")
        return blocked(self.title) if SENSITIVE in str(code) else super().refusal(answer)

    def _fault(self, fault: object) -> HubError:
        if SENSITIVE in text(at(fault, "code")):
            return blocked(self.title)
        return NothingMade(f"{self.title} made no picture of this request.", may_have_billed=True)


def _usage(told: object) -> Usage | None:
    tokens = count(at(told, "output_tokens"))
    return Usage(text_tokens=0, image_tokens=0, output_tokens=tokens) if tokens else None


adapter = ByteDance()
