"""Which targets serve a request, in which order, and why the others do not. Pure: no I/O, no clock, no settings.

What is known of the world comes in: who asks (`Caller`), what is asked (the request), what the owner has decided (the
manifests, `offline`), and how each target is at the moment (`State`). What comes out is the whole decision in words, so
that `hub route` can print it and a test can hold it against a table. docs/routing.md has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from hub.accounts import MICRO
from hub.errors import ModelNotFound
from hub.manifest import MIN_OUTPUT, ModelManifest, RemoteManifest, RouteManifest, TargetSection, parse_size
from hub.offline import is_here
from hub.prices import dollars, micro
from hub.registry import ListedModel, Registry
from hub.route import Caller, Code, LeftOut, Route, Servable, State, Target
from hub.types import DEFAULT_SIZE, ImageRequest, Size, Task

ITSELF = "it is the model itself"


class _Question(Struct, frozen=True):
    """All that a decision follows from."""

    asked: str
    request: ImageRequest
    caller: Caller
    offline: bool
    waiting: int
    remote: bool
    tried: Mapping[str, str]
    billed: bool


class _Candidate(Struct, frozen=True):
    """A target of the route, as it stands in its manifest."""

    section: TargetSection
    manifest: Servable
    state: State
    leaves: bool
    place: int


def route(
    listed: ListedModel,
    registry: Registry,
    request: ImageRequest,
    caller: Caller,
    state_of: Callable[[Servable], State],
    *,
    offline: bool = False,
    waiting: int = 0,
    tried: Mapping[str, str] | None = None,
    billed: bool = False,
) -> Route:
    """The decision; without targets where nothing may serve the request (hub.refusal says which error that is).

    waiting: how many requests wait on this hub that came before this one. tried: of those that have failed at this
    request, the codes of their errors. billed: whether one of them may be paid for, so that another must not be.
    """
    manifest = listed.manifest
    own = manifest if isinstance(manifest, RouteManifest) else None
    remote = own is None or own.remote
    question = _Question(listed.id, request, caller, offline, waiting, remote, tried or {}, billed)
    sections = own.targets if own else [TargetSection(model=manifest.id)]
    candidates, left_out = _candidates(sections, registry, state_of)
    targets = []
    for place, each in enumerate(sorted(candidates, key=_KEYS[own.order if own else "listed"])):
        found = _left_out(each, place, question)
        if found is not None:
            left_out.append(found)
        else:
            why = _why(each, own)
            targets.append(Target(each.manifest, why, each.leaves, each.state.cost, place))
    return Route(listed.id, tuple(targets), _reason(listed, own, targets), tuple(left_out), own)


def itself(listed: ListedModel) -> Route:
    """The route of a model that is asked for by its own name, whatever else may be in its way."""
    if isinstance(listed.manifest, RouteManifest):
        raise TypeError(f"{listed.id} names other models")
    return Route(listed.id, (Target(listed.manifest, ITSELF),), _named(listed))


def leaves(manifest: Servable) -> bool:
    """Whether a request to this model leaves the machine, as the owner has it: `remote.leaves`, else its address."""
    if not isinstance(manifest, RemoteManifest):
        return False
    return is_elsewhere(manifest) if manifest.remote.leaves is None else manifest.remote.leaves


def is_elsewhere(manifest: RemoteManifest) -> bool:
    """Whether its address is not this machine by loopback. A provider's own address never is."""
    base_url = manifest.remote.base_url
    return base_url is None or not is_here(urlsplit(base_url).hostname)


def is_free(manifest: Servable) -> bool:
    """Whether nothing that is drawn there costs anything: it says no price, and is on this machine."""
    return manifest.prices.is_free and not leaves(manifest)


def broken(manifest: RouteManifest, registry: Registry) -> list[LeftOut]:
    """The targets of a route that can never serve: for the log."""
    return _candidates(manifest.targets, registry, lambda _: State())[1]


def size_at(manifest: Servable, request: ImageRequest) -> Size:
    """The size of the pictures, as far as it can be known without looking at source pictures."""
    if isinstance(manifest, ModelManifest):
        return request.size or request.default_size or parse_size(manifest.defaults.size)
    default = manifest.defaults.size
    return request.size or (parse_size(default) if default else DEFAULT_SIZE)


def _candidates(
    sections: list[TargetSection], registry: Registry, state_of: Callable[[Servable], State]
) -> tuple[list[_Candidate], list[LeftOut]]:
    found, left_out = [], []
    for place, section in enumerate(sections):
        try:
            manifest = registry.get(section.model).manifest
        except ModelNotFound:
            left_out.append(LeftOut(section.model, "gone", "is no model of this hub"))
            continue
        if isinstance(manifest, RouteManifest):
            left_out.append(LeftOut(section.model, "nested", "is a route itself, and routes do not nest"))
        else:
            found.append(_Candidate(section, manifest, state_of(manifest), leaves(manifest), place))
    return found, left_out


def _cost_of(candidate: _Candidate) -> tuple[float, int, int]:
    """What a model of this machine will work is not known beforehand: it comes after all that is free, since what is
    elsewhere would cost as well, and leave the machine."""
    cost = candidate.state.cost
    if cost is None and isinstance(candidate.manifest, ModelManifest):
        return (0.0, 2, candidate.place)
    return (float("inf") if cost is None else cost, candidate.leaves, candidate.place)


_KEYS: dict[str, Callable[[_Candidate], tuple[float, int, int]]] = {
    "listed": lambda each: (0.0, False, each.place),
    "local-first": lambda each: (0.0, each.leaves, each.place),
    "cheapest": _cost_of,
}


def _left_out(each: _Candidate, place: int, question: _Question) -> LeftOut | None:
    """What stands against a target, the most lasting first; None where nothing does."""
    for check in (_not_meant, _not_allowed, _not_able, _not_paid):
        found = check(each, question)
        if found is not None:
            code, words = found
            wait = each.state.wait if code in ("busy", "unavailable") else 0.0
            told, cost, budget = "", each.state.cost, question.caller.budget
            if code == "budget" and cost is not None and budget is not None:
                told = budget.refused(question.caller.owner, micro(cost))
            if code == "size" and isinstance(each.manifest, ModelManifest):
                told = each.manifest.size.refused(size_at(each.manifest, question.request)) or ""
            return LeftOut(each.manifest.id, code, words, place, wait, told)
    return None


Verdict = tuple[Code, str] | None


def _not_meant(each: _Candidate, question: _Question) -> Verdict:
    """By the kind of the request: what the model can do, and the route's conditions."""
    section, manifest, request = each.section, each.manifest, question.request
    if request.variation and isinstance(manifest, RemoteManifest):
        return "task", "makes no variations"
    if request.task not in manifest.tasks:
        return "task", _CANNOT[request.task]
    size = size_at(manifest, request)
    if isinstance(manifest, ModelManifest) and manifest.size.refused(size) is not None:
        return "size", f"draws {MIN_OUTPUT} to {manifest.size.max_output} pixels a side"
    if section.tasks and request.task not in section.tasks:
        return "tasks", "is not meant for this kind of request"
    if section.keys and question.caller.owner not in section.keys:
        return "keys", "is kept for other keys"
    if section.max_pixels is not None and size.width * size.height > section.max_pixels:
        return "max_pixels", f"is for pictures of at most {section.max_pixels} pixels"
    return None


def _not_allowed(each: _Candidate, question: _Question) -> Verdict:
    """By those who decide what leaves this machine."""
    manifest, caller = each.manifest, question.caller
    elsewhere = isinstance(manifest, RemoteManifest) and is_elsewhere(manifest)
    if question.offline and (each.leaves or elsewhere):
        return "offline", "is on another machine, and this hub is offline"
    if not each.leaves:
        return None
    if not question.remote:
        return "never_leaves", f"is on another machine, and '{question.asked}' never leaves this one"
    if not caller.may_leave:
        who = f"requests of the key '{caller.owner}'" if caller.owner else "this hub's requests"
        return "remote_keys", f"is on another machine, and {who} may not leave this one"
    return None


def _not_able(each: _Candidate, question: _Question) -> Verdict:
    """By how it is at the moment."""
    section, state = each.section, each.state
    if (code := question.tried.get(each.manifest.id)) is not None:
        return "failed", f"failed ({code})"
    if state.absent:
        return "absent", "has no weights on this machine"
    if state.key == "none":
        return "no_key", "needs a key of its provider's, and this hub has none"
    if state.key == "refused":
        return "key_refused", "is one whose provider does not take this hub's key"
    if state.key == "no credit":
        return "key_refused", "is one with whose provider this hub has no credit left"
    if state.key == "busy":
        return "busy", f"takes no request for {_seconds(state.wait)}"
    if state.open:
        return "unavailable", f"failed again and again, and is left alone for {_seconds(state.wait)}"
    if section.max_waiting is not None and question.waiting > section.max_waiting:
        return (
            "max_waiting",
            f"is for times when at most {section.max_waiting} requests wait before this one, and {question.waiting} do",
        )
    return None


def _not_paid(each: _Candidate, question: _Question) -> Verdict:
    """By what it costs. Where nobody knows that of a local model, the ledger decides."""
    cost, budget = each.state.cost, question.caller.budget
    remote = isinstance(each.manifest, RemoteManifest)
    if question.billed and remote and cost != 0:
        return "billed", "would cost money, and one that was tried before may have cost some already"
    if budget is None or cost == 0 or (cost is None and not remote):
        return None
    if cost is None:
        return "no_price", "has no price in its manifest, and whoever has a budget may not use it"
    if cost > budget.left:
        left = dollars(round(budget.left * MICRO))
        return "budget", f"would cost about {dollars(micro(cost))}, and {left} of the budget is left"
    return None


_CANNOT: dict[Task, str] = {
    "text-to-image": "only edits pictures",
    "image-to-image": "cannot edit pictures",
    "inpainting": "cannot change a part of a picture",
}


def _seconds(wait: float) -> str:
    return f"{max(1, round(wait))} s"


def _why(each: _Candidate, own: RouteManifest | None) -> str:
    if own is None:
        return ITSELF
    if own.order == "cheapest":
        return price_words(each.state.cost, local=isinstance(each.manifest, ModelManifest))
    if own.order == "listed":
        return f"it is number {each.place + 1} of the list"
    return "it is on another machine, which comes after those on this one" if each.leaves else "it is on this machine"


def price_words(cost: float | None, *, local: bool) -> str:
    """What a request would cost."""
    if cost is None and local:
        return "what it will cost is known when it has drawn, and it is on this machine"
    if cost is None:
        return "its price is not known, which counts as the most expensive"
    return f"it costs about {dollars(micro(cost))}" if cost else "it costs nothing"


def _named(listed: ListedModel) -> str:
    if listed.is_alias:
        return f"'{listed.id}' is an alias of '{listed.manifest.id}'"
    kind = "route" if isinstance(listed.manifest, RouteManifest) else "model"
    return f"'{listed.id}' is a {kind} of this hub"


def _reason(listed: ListedModel, own: RouteManifest | None, targets: list[Target]) -> str:
    if own is None:
        return _named(listed)
    first = f"{targets[0].manifest.id} is asked first: {targets[0].why}" if targets else "none of its targets is left"
    return f"{_named(listed)}, {own.order}; {first}"
