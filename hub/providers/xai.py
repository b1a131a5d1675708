"""xAI's Grok Imagine: OpenAI's generations with shapes instead of sizes, and edits as JSON.

Its SDK speaks gRPC; the REST API has the same fields. The pictures are JPEG. Shapes: docs.x.ai, "Image Generation" and
"Image Editing".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hub.errors import HubError, ProviderKeyRefused
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, Made, Pending, blocked
from hub.remote.reading import at, number, picture_of, text
from hub.remote.sizes import tier
from hub.remote.wish import Notice, Wish
from hub.types import Effort

TICKS = 10_000_000_000
"""Of a US dollar, in which a call's cost is told."""


class Item(Struct):
    """One picture, without contents where it was moderated."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: Any = None
    revised_prompt: Any = None
    respect_moderation: Any = True


class Images(Struct):
    """The answer to generations and edits. `usage.cost_in_usd_ticks`: what the call has cost."""

    data: list[Item]
    usage: Any = None


class XAI(Adapter):
    """api.x.ai."""

    name = "xai"
    title = "xAI"
    base_url = "https://api.x.ai/v1"
    key_variable = "XAI_API_KEY"
    honours = frozenset({"size"})
    documentation = "https://docs.x.ai/developers/model-capabilities/images/generation"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """A `quality` where the manifest says that the model has one."""
        return self.honours | ({"quality"} & set(manifest.remote.honours))

    def unmet(self, wish: Wish) -> Sequence[Notice]:
        """An edit of one picture keeps its shape, and the best quality is medium."""
        notices = []
        if len(wish.images) == 1 and wish.request.size is not None:
            notices.append(Notice("size", f"{wish.manifest.id} keeps the shape of the picture that it edits"))
        if _quality(self, wish) != wish.effort and wish.request.quality is not None and wish.effort is not None:
            notices.append(Notice("quality", f"{wish.manifest.id} has no {wish.effort}; it was asked for medium"))
        return notices

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Base64 is asked for, since its URLs live for a short time."""
        del first
        body: dict[str, object] = {
            "model": wish.model,
            "prompt": wish.prompt,
            "n": n,
            "aspect_ratio": wish.aspect_ratio if len(wish.images) != 1 else None,
            "resolution": f"{min(2, tier(wish.size))}k" if wish.size is not None else None,
            "quality": _quality(self, wish),
            "user": wish.request.user,
            "response_format": "b64_json",
        }
        if not wish.images:
            return Call("/images/generations", json=wish.with_options(body))
        sources = [{"type": "image_url", "url": each.data_url} for each in wish.images]
        of_one = {"image": sources[0]} if len(sources) == 1 else {"images": sources}
        return Call("/images/edits", json=wish.with_options({**body, **of_one}))

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """What was moderated comes without a picture, in a good answer."""
        found = answer.read(Images)
        made = [
            (picture, text(item.revised_prompt))
            for item in found.data
            if (picture := picture_of(item.b64_json, item.url)) is not None
        ]
        if not made and any(item.respect_moderation is False for item in found.data):
            raise blocked(self.title)
        ticks, prompts = number(at(found.usage, "cost_in_usd_ticks")), [prompt for _, prompt in made]
        return Made(
            [picture for picture, _ in made],
            cost=ticks / TICKS if ticks is not None else None,
            revised_prompts=prompts if any(prompts) else [],
            quality=_quality(self, wish),
        )

    def refusal(self, answer: Answer) -> HubError:
        """A wrong key and a moderated prompt are both a 400, which only their words tell apart."""
        words = str(answer.peek("error")).lower().replace("%20", " ")
        if answer.status == 400 and "incorrect api key" in words:
            return ProviderKeyRefused(f"{self.title} does not take this hub's key. Its owner has to act.")
        if answer.status in (400, 403) and "moderation" in words:
            return blocked(self.title)
        return super().refusal(answer)


def _quality(adapter: XAI, wish: Wish) -> Effort | None:
    """The nearest that it has; None where it has none, or shall choose."""
    if "quality" not in adapter.honoured(wish.manifest):
        return None
    return "medium" if wish.effort == "high" else wish.effort


adapter = XAI()
