"""fal: models of many makers behind one queue. A request is put into it, its state is asked for at one URL and, when it
is done, its pictures at another. Each model has inputs of its own, which its manifest names (hub.remote.inputs), and
editing is often a model of its own (`remote.models`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from hub.errors import HubError
from hub.manifest import Input, RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, JobFailed, Link, Made, Pending, blocked
from hub.remote.inputs import honoured_by, inputs_of
from hub.remote.reading import listed, seed, text
from hub.remote.wish import Wish

POLL = 0.5
"""Seconds between two questions."""
FIELDS: dict[Input, str] = {
    "size": "image_size",
    "n": "num_images",
    "seed": "seed",
    "image": "image_urls[]",
    "output_format": "output_format",
}
"""What most image models there take, for manifests that name none."""


class Image(Struct):
    """A picture behind a link, or in a data URL."""

    url: str


class Job(Struct):
    """What the queue says: where a request is asked for, and how it stands."""

    status: str | None = None
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: Any = None
    error: Any = None
    error_type: Any = None


class Output(Struct):
    """What a model has made. `has_nsfw_concepts`: of each picture, whether the model's own check has blackened it."""

    images: list[Image] | None = None
    image: Image | None = None
    seed: Any = None
    has_nsfw_concepts: Any = None


class Fal(Adapter):
    """queue.fal.run."""

    name = "fal"
    title = "fal"
    base_url = "https://queue.fal.run"
    key_variable = "FAL_KEY"
    documentation = "https://fal.ai/docs"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """What its manifest says that the model takes."""
        return honoured_by(manifest.remote.fields or FIELDS)

    def headers(self, key: str) -> Mapping[str, str]:
        """Not a bearer's."""
        return {"Authorization": f"Key {key}"}

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """The model is the path."""
        body = inputs_of(wish, n, first, wish.manifest.remote.fields or FIELDS)
        return Call(f"/{wish.model}", json=wish.with_options(body))

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """The queue's word, or at last the model's."""
        job = answer.read(Job)
        if job.status in ("IN_QUEUE", "IN_PROGRESS"):
            ask = Call(job.status_url, method="GET") if job.status_url else None
            cancel = Call(text(job.cancel_url), method="PUT") if text(job.cancel_url) else None
            return Pending(ask, after=POLL, cancel=cancel)
        if job.status == "COMPLETED":
            if job.error or job.error_type:
                raise JobFailed(f"{self.title} made no picture of this request.", may_have_billed=True)
            return Pending(Call(job.response_url, method="GET") if job.response_url else None, after=0.0)
        if job.status is not None:
            raise JobFailed(f"{self.title} made no picture of this request.", may_have_billed=True)
        return self._made(wish, answer.read(Output))

    def refusal(self, answer: Answer) -> HubError:
        """The content policy speaks by an error's type. The answer that was waited for may be an error, too."""
        detail = answer.peek("detail")
        types = [each.get("type") for each in detail if isinstance(each, dict)] if isinstance(detail, list) else []
        return blocked(self.title) if "content_policy_violation" in types else super().refusal(answer)

    def _made(self, wish: Wish, output: Output) -> Made:
        images = output.images if output.images is not None else [output.image] if output.image is not None else []
        checked = wish.manifest.remote.options.get("enable_safety_checker") is not False
        flags = listed(output.has_nsfw_concepts) if checked else []
        good = [image for number, image in enumerate(images) if flags[number : number + 1] != [True]]
        if images and not good:
            raise blocked(self.title)
        return Made([Link(image.url) for image in good], seed=seed(output.seed))


adapter = Fal()
