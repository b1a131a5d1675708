"""Reading what a provider tells: strictly what pictures need, leniently all else. Pictures that were made and paid for
are not lost because a count is null, or a flag a text. In the adapters' Structs what is read so is `Any`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from hub.errors import ProviderFailed
from hub.remote.adapter import Base64, Link, Picture, raw_base64
from hub.types import MAX_SEED

T = TypeVar("T")


def event_of(title: str, data: bytes, kind: type[T]) -> T:
    """One event of a stream as JSON of this kind; raises ProviderFailed where it is something else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProviderFailed(f"{title} sent something else than pictures.", may_have_billed=True) from None


def picture_in(text: bytes | memoryview | None) -> Picture | None:
    """A picture in base64, which may stand in a data URL; None where there is none."""
    if not text:
        return None
    return Link(bytes(text).decode("ascii", "replace")) if text[:5] == b"data:" else Base64(text)


def picture_of(b64_json: msgspec.Raw, url: object = None) -> Picture | None:
    """A picture in base64, or else behind a link; None where there is neither. Raises ProviderFailed."""
    return picture_in(raw_base64(b64_json)) or (Link(text(url)) if text(url) else None)


def at(told: Any, *path: str) -> Any:
    """What stands at a path of names; None where it is not there."""
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return told


def listed(told: object) -> list[Any]:
    """A list; an empty one where it is none."""
    return told if isinstance(told, list) else []


def text(told: object) -> str:
    """A text; an empty one where it is none."""
    return told if isinstance(told, str) else ""


def number(told: object) -> float | None:
    """A number that is not negative, which may be written as a text, as protocol buffers have their large ones."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        return None
    try:
        found = float(told)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None


def count(told: object) -> int:
    """How many; 0 where nobody says."""
    return int(number(told) or 0)


def seed(told: object) -> int | None:
    """A seed that can be asked for."""
    return told if type(told) is int and 0 <= told <= MAX_SEED else None
