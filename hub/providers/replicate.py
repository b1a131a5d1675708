"""Replicate: models of many makers. A prediction is begun and asked for until it has ended; quick ones are answered at
once. Each model has inputs of its own, which its manifest names (hub.remote.inputs). `remote.model` is `owner/name` or,
of a certain version, `owner/name:version`.

Pictures are sent in data URLs, which Replicate means for small files.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from hub.errors import HubError
from hub.manifest import Input, RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, JobFailed, Link, Made, Pending, blocked
from hub.remote.inputs import honoured_by, inputs_of
from hub.remote.reading import at, text
from hub.remote.wish import Wish

POLL = 1.0
"""Seconds between two questions."""
AT_ONCE = "wait=5"
"""Seconds for which the first answer is held back, in case that the pictures are ready by then. What runs longer can be
cancelled, since its address is known."""
FIELDS: dict[Input, str] = {"aspect_ratio": "aspect_ratio", "seed": "seed", "output_format": "output_format"}
"""What most image models there take, for manifests that name none."""
POLICY = re.compile(r"nsfw|sensitive|moderat|safety|content policy", re.IGNORECASE)
"""How models there say that they refuse: in words alone."""
PERCENT = re.compile(r"(\d{1,3})%\|")


class Prediction(Struct):
    """How it stands. `urls`: where it is asked for (`get`), and cancelled."""

    status: str
    output: str | list[str] | None = None
    error: Any = None
    logs: Any = None
    urls: Any = None


class Replicate(Adapter):
    """api.replicate.com."""

    name = "replicate"
    title = "Replicate"
    base_url = "https://api.replicate.com/v1"
    key_variable = "REPLICATE_API_TOKEN"
    documentation = "https://replicate.com/docs/reference/http"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """What its manifest says that the model takes."""
        return honoured_by(manifest.remote.fields or FIELDS)

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Official models have a path; others are named by their version."""
        body: dict[str, object] = {"input": wish.with_options(_inputs(wish, n, first))}
        model, _, version = wish.model.partition(":")
        if version:
            body["version"] = version
        path = "/predictions" if version else f"/models/{model}/predictions"
        return Call(path, json=body, headers={"Prefer": AT_ONCE})

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """A prediction: begun, going on, or ended."""
        del wish
        prediction = answer.read(Prediction)
        if prediction.status in ("starting", "processing"):
            get, cancel = (text(at(prediction.urls, name)) for name in ("get", "cancel"))
            ask = Call(get, method="GET") if get else None
            return Pending(ask, POLL, _percent(text(prediction.logs)), Call(cancel) if cancel else None)
        if prediction.status != "succeeded":
            raise self._failure(text(prediction.error))
        output = prediction.output
        return Made([Link(url) for url in ([output] if isinstance(output, str) else output or [])])

    def _failure(self, words: str) -> HubError:
        if POLICY.search(words):
            return blocked(self.title)
        return JobFailed(f"{self.title} made no picture of this request.", may_have_billed=True)


def _inputs(wish: Wish, n: int, first: int) -> dict[str, object]:
    """Models that take a size in pixels beside an aspect ratio want the latter to be `custom`; some have a word for the
    shape of the source."""
    fields = wish.manifest.remote.fields or FIELDS
    body = inputs_of(wish, n, first, fields)
    if body.get("output_format") == "jpeg":
        body["output_format"] = "jpg"
    ratio = fields.get("aspect_ratio")
    if ratio is not None and ratio not in body:
        if "width" in fields and wish.size is not None:
            body[ratio] = "custom"
        elif wish.images and wish.manifest.remote.source_ratio is not None:
            body[ratio] = wish.manifest.remote.source_ratio
    return body


def _percent(logs: str) -> int | None:
    """As far as the last progress bar in the logs has come."""
    found = PERCENT.findall(logs)
    return min(100, int(found[-1])) if found else None


adapter = Replicate()
