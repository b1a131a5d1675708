"""Routes: ids that several models may serve."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from hub.manifest.listing import Listing, ModelId
from hub.types import Task


class TargetSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """One model that may serve a route's id, and when: only `tasks` of these kinds, only callers with these `keys`,
    only requests of at most `max_pixels` a picture, and only while at most `max_waiting` requests wait on this hub that
    came before."""

    model: ModelId
    tasks: list[Task] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    max_pixels: Annotated[int, Meta(ge=1)] | None = None
    max_waiting: Annotated[int, Meta(ge=0)] | None = None


Order = Literal["local-first", "listed", "cheapest"]


class RouteManifest(Listing, kw_only=True):
    """An id that several models may serve. `targets` are tried in their `order`: `local-first` (those of this machine
    before the others, else as listed), `listed`, or `cheapest` (by what the request would cost). With `remote` false
    nothing of it ever leaves this machine. `retry_billed`: whether another target, or another try, may be paid for
    after one that may have been. `deadline`: seconds for all tries together."""

    targets: Annotated[list[TargetSection], Meta(min_length=1, max_length=32)]
    order: Order = "local-first"
    remote: bool = True
    retry_billed: bool = False
    deadline: Annotated[int, Meta(ge=1, le=24 * 3600)] = 600
    response_format: Literal["url", "b64_json"] | None = None
