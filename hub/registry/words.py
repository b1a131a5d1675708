"""What is wrong with a manifest, in words that say what it may hold."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

from hub.manifest.listing import PRICE_KEY_PATTERN

PRICE_KEY = 'a price\'s key is written quality/size, such as "high/1024x1024", "high/*" or "*/*"'
_AT = re.compile(r" - at `(?:(key|value)` in `)?\$([^`]*)`$")


def in_words(error: Exception, kind: Any) -> str:
    """The words of an error that msgspec raised when it read a `kind`."""
    words = str(error)
    if not isinstance(error, msgspec.ValidationError) or (at := _AT.search(words)) is None:
        return words
    if PRICE_KEY_PATTERN in words.replace("\\\\", "\\"):
        return f"{PRICE_KEY}{at[0]}"
    allowed = _allowed(inspect.type_info(kind), re.findall(r"\.(\w+)|\[", at[2]), key=at[1] == "key")
    if words.startswith("Invalid enum value") and allowed:
        return f"{words[: at.start()]}; there are {', '.join(map(str, allowed))}{at[0]}"
    return words


def _allowed(at: inspect.Type, path: list[str], *, key: bool) -> tuple[Any, ...]:
    """The values that a place of a type takes; a field's name leads on, and "" to the items of a list or a table."""
    match at:
        case inspect.Metadata():
            return _allowed(at.type, path, key=key)
        case inspect.UnionType():
            return next((found for each in at.types if (found := _allowed(each, path, key=key))), ())
        case inspect.StructType() if path:
            fields = [each.type for each in at.fields if each.encode_name == path[0]]
            return _allowed(fields[0], path[1:], key=key) if fields else ()
        case inspect.ListType() if path:
            return _allowed(at.item_type, path[1:], key=key)
        case inspect.DictType() if path:
            return _allowed(at.value_type, path[1:], key=key)
        case inspect.DictType() if key:
            return _allowed(at.key_type, [], key=False)
        case inspect.LiteralType():
            return at.values
    return ()
