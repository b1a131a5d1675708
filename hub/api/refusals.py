"""What is wrong with a body, in plain words that name the parameter: msgspec's own quote types and paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
from msgspec import Struct

from hub.errors import InvalidRequest

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?P<what>unknown|missing required) field `(?P<field>[^`]*)`")
_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`")
_LENGTH = re.compile(r"Expected `(?P<type>str|array)` of length (?P<bound>>=|<=) (?P<limit>\d+)")
_PATTERN = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'")
_RANGE = re.compile(r"Expected `(?:int|float)` (?P<bound>>=|<=|>|<) (?P<limit>\S+)")

_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "array": "an array",
    "object": "an object",
}
_GOT = {**_EXPECTED, "float": "a decimal number", "bool": "a boolean"}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
NO_LINE_END = r"$(?!\n)"
"""How patterns end, since Python's `$` would let a line's end pass."""
_COUNTED = {"str": "character", "array": "item"}


def unknown_parameter(name: str) -> InvalidRequest:
    """The refusal of a parameter that the hub does not know, wherever it stood."""
    name = name[:64]
    return InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def invalid(words: str, kind: Any, *, in_form: bool = False) -> InvalidRequest:
    """msgspec's message on a body that is no `kind`, as an error that names the parameter.

    `in_form`: all that comes in a form is text, so what came instead is not told.
    """
    at = _PATH.search(words)
    where = at["path"] if at else ""
    param = re.split(r"[.\[]", where)[0]
    field = _FIELD.search(words)
    if field and field["what"] == "unknown":
        return unknown_parameter(field["field"])
    if field:
        name = field["field"]
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    plain = _PATH.sub("", words)
    wrong_type = _TYPE.match(plain)
    told = _of_type(wrong_type, in_form) if wrong_type else _of_value(plain, kind, param)
    named = f"Invalid '{where}': {told}." if where else f"Invalid body: {told}."
    return InvalidRequest(named, param=param or None, code="invalid_type" if wrong_type else "invalid_value")


def _of_type(match: re.Match[str], in_form: bool) -> str:
    """`null` is not offered: it means absent."""
    wanted = [_EXPECTED.get(name, name) for name in match["expected"].split(" | ") if name != "null"]
    told = f"it must be {' or '.join(wanted)}"
    return told if in_form else f"{told}, not {_GOT.get(match['got'], match['got'])}"


def _of_value(plain: str, kind: Any, param: str) -> str:
    if match := _LENGTH.match(plain):
        counted = _COUNTED[match["type"]] + ("" if match["limit"] == "1" else "s")
        return f"it must have {_BOUNDS[match['bound']]} {match['limit']} {counted}"
    if match := _PATTERN.match(plain):
        return f"it must match {match['pattern'].replace(NO_LINE_END, '$')}"
    if match := _RANGE.match(plain):
        return f"it must be {_BOUNDS[match['bound']]} {match['limit'].removesuffix('.0')}"
    if plain.startswith(("Invalid enum value", "Invalid value")):
        choices = _choices(kind, param)
        return f"it must be one of {', '.join(choices)}" if choices else "it is not one of the values that are known"
    if plain.endswith("out of range"):
        return "it is out of range"
    return plain.replace("`", "'")


def _choices(kind: Any, name: str) -> list[str]:
    """The values that a field of a Struct may have, or the tags of the Structs in it, where it is one of a few."""
    types = [field.type for field in msgspec.structs.fields(kind) if field.encode_name == name]
    return [each for one in types for each in _options(one)]


def _options(kind: Any) -> Iterator[str]:
    if isinstance(kind, str):
        yield kind
    elif isinstance(kind, type) and issubclass(kind, Struct):
        if isinstance(kind.__struct_config__.tag, str):
            yield kind.__struct_config__.tag
    else:
        for each in get_args(kind):
            yield from _options(each)
