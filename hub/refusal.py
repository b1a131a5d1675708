"""Which error a request gets that nothing could serve: the one that helps most. Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hub.errors import (
    BudgetExceeded,
    HubError,
    InvalidRequest,
    ModelForbidden,
    ModelUnusable,
    Offline,
    ProviderBusy,
    ProviderKeyRefused,
    ProviderUnavailable,
    QueueFull,
    RemoteNotAllowed,
)
from hub.route import Caller, Code, LeftOut, Route
from hub.settings import EVERYBODY
from hub.types import ImageRequest

_ORDER: tuple[tuple[Code, ...], ...] = (
    ("busy", "unavailable", "max_waiting"),
    ("budget", "no_price"),
    ("key_refused", "no_key"),
    ("absent",),
    ("offline",),
    ("never_leaves", "remote_keys"),
    ("keys",),
    ("size", "max_pixels"),
    ("task", "tasks"),
    ("gone", "nested"),
)
"""What stands between a request and its target, from what passes by itself to what never does: the target that is
nearest to serving decides, since that is what somebody can change. What nobody has planned goes before what was."""

COME_BACK = 5
"""Seconds, where too many requests wait."""


def refusal(route: Route, request: ImageRequest, caller: Caller, tried: Sequence[HubError] = ()) -> HubError:
    """The error for a route that has no target left. `tried`: what those have failed with that were asked, in order;
    one of these is told, with what became of the others."""
    if tried:
        return _of_tried(route, tried)
    code, first = _nearest(route)
    if route.manifest is None and first.told:
        return BudgetExceeded(first.told) if code == "budget" else InvalidRequest(first.told, param="size")
    words = f"{route.asked} {first.words}." if route.manifest is None else _all_words(route)
    hint = first.told if code == "budget" else _hint(code, caller)
    return _error(code, f"{words} {hint}".strip(), route, request)


def _of_tried(route: Route, tried: Sequence[HubError]) -> HubError:
    billed = [each for each in tried if each.may_have_billed]
    ours = [each for each in tried if not isinstance(each, InvalidRequest)]
    error = (billed or ours or tried)[-1]
    if route.manifest is None or len(route.left_out) < 2:
        return error
    return with_words(error, f"{error.message} {_all_words(route)}")


def with_words(error: HubError, message: str) -> HubError:
    """The same error in other words; `error` itself may be told elsewhere, too."""
    told = copy.copy(error)
    told.message, told.args = message, (message,)
    return told


def _all_words(route: Route) -> str:
    each = "; ".join(f"{left.model} {left.words}" for left in route.left_out)
    return f"No target of '{route.asked}' can serve this: {each}."


def _nearest(route: Route) -> tuple[Code, LeftOut]:
    for codes in _ORDER:
        for left in route.left_out:
            if left.code in codes:
                return left.code, left
    raise ValueError(f"nothing was left out of the route of {route.asked}")


def _hint(code: Code, caller: Caller) -> str:
    """Who can change it, and how."""
    match code:
        case "remote_keys":
            name = caller.owner or EVERYBODY
            return f'The owner of this hub allows it with remote_keys = ["{name}"] in hub.toml.'
        case "never_leaves":
            return "The owner of this hub has set `remote = false` for it."
        case "no_price":
            return "The owner of this hub gives it one with `prices`."
        case "no_key" | "key_refused":
            return "The owner of this hub has to act."
        case "absent":
            return "The owner of this hub can see what is missing with `hub doctor`."
        case _:
            return ""


def _error(code: Code, words: str, route: Route, request: ImageRequest) -> HubError:
    waits = [each.wait for each in route.left_out if each.wait > 0]
    wait = max(1, round(min(waits, default=COME_BACK)))
    match code:
        case "busy":
            return ProviderBusy(words, retry_after=wait)
        case "unavailable":
            return ProviderUnavailable(words, retry_after=wait)
        case "max_waiting":
            return QueueFull(words, retry_after=COME_BACK)
        case "budget" | "no_price":
            return BudgetExceeded(words)
        case "offline":
            return Offline(words, param="model")
        case "never_leaves" | "remote_keys":
            return RemoteNotAllowed(words, param="model")
        case "keys":
            return ModelForbidden(words, param="model")
        case "key_refused":
            return ProviderKeyRefused(words)
        case "no_key":
            return ProviderUnavailable(words).for_good()
        case "size" | "max_pixels":
            return InvalidRequest(f"size: {words}", param="size", code="unsupported_value")
        case "task" | "tasks":
            param = "mask" if request.mask is not None else "image" if request.images else "model"
            return InvalidRequest(f"{param}: {words}", param=param, code="unsupported_value")
        case _:
            return ModelUnusable(words, param="model")
