"""A decision of the router's: which targets serve a request, and why the others do not. See hub.routing."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from hub.manifest import ModelManifest, RemoteManifest, RouteManifest
from hub.prices import Budget

Servable = ModelManifest | RemoteManifest

Code = Literal[
    "gone",
    "nested",
    "task",
    "size",
    "tasks",
    "keys",
    "max_pixels",
    "max_waiting",
    "offline",
    "never_leaves",
    "remote_keys",
    "absent",
    "no_key",
    "key_refused",
    "busy",
    "unavailable",
    "no_price",
    "budget",
    "billed",
    "failed",
]
"""Why a target is left out. `tasks`, `keys`, `max_pixels` and `max_waiting` are conditions of the route itself."""

PLANNED: frozenset[Code] = frozenset({"gone", "nested", "task", "size", "tasks", "keys", "max_pixels"})
"""What follows from the request and the manifests alone: no answer warns of it."""


KeyState = Literal["", "none", "refused", "no credit", "busy"]


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks: the name of the key ("" on a hub without keys), whether it may leave this machine, and its budget, if
    it has one."""

    owner: str = ""
    may_leave: bool = False
    budget: Budget | None = None


class State(Struct, frozen=True, kw_only=True):
    """How a target is at the moment.

    `cost`: US dollars that the request would cost there, None where nobody knows. `absent`: its weights are not on this
    machine, and nothing fetches them. `key`: what is wrong with the provider's keys; `open`: whether it has failed
    again and again. `wait`: seconds until a key, or the target, may be tried again.
    """

    cost: float | None = 0.0
    absent: bool = False
    key: KeyState = ""
    open: bool = False
    wait: float = 0.0


class Target(Struct, frozen=True):
    """One model that can serve the request. `place`: in the route's order, those that are left out counted, from 0."""

    manifest: Servable
    why: str
    leaves: bool = False
    cost: float | None = 0.0
    place: int = 0


class LeftOut(Struct, frozen=True):
    """One that does not, and why: a code, and words that go on after its name. `wait`: seconds until it may again.
    `told`: what the model answers by itself, where these are other words."""

    model: str
    code: Code
    words: str
    place: int = 0
    wait: float = 0.0
    told: str = ""


class Route(Struct, frozen=True):
    """The targets in the order in which they are to be tried, those that are left out, and the reason in a sentence.
    `manifest` is the route's own; None where the id is a model's."""

    asked: str
    targets: tuple[Target, ...]
    reason: str
    left_out: tuple[LeftOut, ...] = ()
    manifest: RouteManifest | None = None

    def warning(self, served: Target) -> str | None:
        """What the answer tells of those that would have come first; None where nothing out of the ordinary was."""
        before = [each for each in self.left_out if each.place < served.place and each.code not in PLANNED]
        if self.manifest is None or not before:
            return None
        told = "; ".join(f"{each.model} was left out: it {each.words}" for each in before)
        return f"target: served by {served.manifest.id}; {told}"
