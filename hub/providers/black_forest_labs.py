"""Black Forest Labs: FLUX. A request is taken, and its picture asked for at the URL that the answer names, which lies
on the host of the region that draws; the finished picture is behind a link for ten minutes. One picture a request.

Models differ in how they are told sizes (in pixels, or by an aspect ratio: the manifest says which) and in how they
call source pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pybase64
from msgspec import Struct

from hub.errors import HubError
from hub.manifest import RemoteManifest
from hub.remote.adapter import Adapter, Answer, Call, JobFailed, Link, Made, Pending, blocked
from hub.remote.reading import number, seed
from hub.remote.wish import Wish

POLL = 0.5
"""Seconds between two questions, as its documentation has it."""
CREDIT = 0.01
"""US dollars."""
FILL, FLUX_3 = "flux-pro-1.0-fill", "flux-3"
STEPS = ("flux-2-flex", "flux-dev", FILL)
"""Models that take steps and guidance."""


class Result(Struct):
    """A finished picture."""

    sample: str
    seed: Any = None


class Task(Struct):
    """What is told when a request is taken (id, polling_url, cost), and when it is asked for (the rest)."""

    polling_url: str | None = None
    status: str = "Pending"
    result: Result | None = None
    progress: Any = None
    cost: Any = None


class BlackForestLabs(Adapter):
    """api.bfl.ai."""

    name = "black_forest_labs"
    title = "Black Forest Labs"
    base_url = "https://api.bfl.ai/v1"
    key_variable = "BFL_API_KEY"
    honours = frozenset({"size", "seed", "output_format"})
    sites = frozenset({"bfl.ai"})
    documentation = "https://docs.bfl.ai"

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """FLUX 3 takes no seed, and Fill draws the size of its source."""
        model = manifest.remote.model
        if model.startswith(FLUX_3):
            return frozenset({"size"})
        steps = {"num_inference_steps", "guidance_scale"} if model.startswith(STEPS) else set()
        return self.honours - ({"size"} if model.startswith(FILL) else set()) | steps

    def headers(self, key: str) -> Mapping[str, str]:
        """A header of its own."""
        return {"x-key": key}

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """The model is the path."""
        del n
        request, size = wish.request, wish.size
        body: dict[str, object] = {"prompt": wish.prompt, **_pictures(wish), "aspect_ratio": wish.aspect_ratio}
        if size is not None and wish.aspect_ratio is None:
            body |= {"width": size.width, "height": size.height}
        if not wish.model.startswith(FLUX_3):
            body |= {"seed": wish.seed(first), "output_format": wish.output_format}
        if wish.model.startswith(STEPS):
            body |= {"steps": request.num_inference_steps, "guidance": request.guidance_scale}
        return Call(f"/{wish.model}", json=wish.with_options(body))

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """A task, taken or asked for."""
        del wish
        task = answer.read(Task)
        if error := self._ended(task.status):
            raise error
        cost, progress = number(task.cost), number(task.progress)
        cost = None if cost is None else cost * CREDIT
        if task.status == "Ready" and task.result is not None:
            return Made([Link(task.result.sample)], seed=seed(task.result.seed), cost=cost)
        ask = Call(task.polling_url, method="GET") if task.polling_url else None
        percent = None if progress is None else min(100, round(100 * progress))
        return Pending(ask, after=POLL, progress=percent, cost=cost)

    def refusal(self, answer: Answer) -> HubError:
        """A task that has failed may be told with the status of an error, too."""
        return self._ended(answer.peek("status")) or super().refusal(answer)

    def _ended(self, status: object) -> HubError | None:
        """What a task's status says of why there will be no picture."""
        if status in ("Request Moderated", "Content Moderated"):
            return blocked(self.title)
        if status in ("Error", "Failed", "Task not found"):
            return JobFailed(f"{self.title} made no picture of this request.", may_have_billed=True)
        return None


def _pictures(wish: Wish) -> dict[str, object]:
    """Source pictures and mask: `input_image`, `input_image_2` and so on; of FLUX 3 a list; of Fill one and a mask, in
    which white may change."""
    texts = [each.base64 for each in wish.images]
    if wish.model.startswith(FILL):
        mask = pybase64.b64encode(wish.mask.white_changes).decode() if wish.mask is not None else None
        return {"image": texts[0] if texts else None, "mask": mask}
    if wish.model.startswith(FLUX_3):
        return {"images": texts or None}
    return {f"input_image_{number}" if number > 1 else "input_image": text for number, text in enumerate(texts, 1)}


adapter = BlackForestLabs()
