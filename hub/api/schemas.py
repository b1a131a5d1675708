"""JSON Schemas of Structs, as msgspec, which decodes and encodes them, describes them itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.openapi.spec import Schema
from msgspec import Struct

REF = "#/components/schemas/"
_PROMPT = "a red circle on a white background"


class _RawSchema(Schema):
    """A JSON Schema that is passed on as it is."""

    raw: dict[str, Any]

    def to_schema(self) -> dict[str, Any]:
        return self.raw


def plain_schema(raw: dict[str, Any]) -> Schema:
    """A JSON Schema in Litestar's clothes."""
    schema = _RawSchema()
    schema.raw = raw
    return schema


def components_of(read: set[type[Struct]], written: set[type[Struct]]) -> dict[str, Any]:
    """A component for each Struct, and for each that it holds. What is only written is written whole, defaults
    included, so its fields are required."""
    ordered = sorted(read | written, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=REF + "{name}")
    for kind in _all_structs(ordered):
        schema = with_types(components[kind.__name__])
        schema["description"] = plain_words(schema.get("description", ""))
        components[kind.__name__] = schema
    for kind in _all_structs(written) - _all_structs(read):
        if not kind.__struct_config__.omit_defaults:
            unset = {info.encode_name for info in msgspec.structs.fields(kind) if info.default is msgspec.UNSET}
            schema = components[kind.__name__]
            schema["required"] = [name for name in schema.get("properties", {}) if name not in unset]
    for kind in read:  # a body of one kind need not say which it is
        if kind.__struct_config__.tag is not None and "required" in components[kind.__name__]:
            components[kind.__name__]["required"].remove(kind.__struct_config__.tag_field)
    return dict(sorted(components.items()))


def _all_structs(kinds: Iterable[Any]) -> set[type[Struct]]:
    """These Structs and all that stand in their fields."""
    found: set[type[Struct]] = set()

    def look(info: Any) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                return
            found.add(info.cls)
            for each in info.fields:
                look(each.type)
        for name in ("type", "item_type", "key_type", "value_type"):
            if hasattr(info, name):
                look(getattr(info, name))
        for name in ("types", "item_types"):
            for each in getattr(info, name, ()):
                look(each)

    for info in msgspec.inspect.multi_type_info(kinds):
        look(info)
    return found


def is_structured(kind: Any) -> bool:
    """Whether a field of this type holds Structs, so that a form has it as JSON."""
    return bool(_all_structs([kind]))


def example_of(kind: type[Struct]) -> dict[str, Any]:
    """A body of what must be there (its text is a prompt) and of what has an example (`Meta(examples=[…])`)."""
    _, components = msgspec.json.schema_components([kind], ref_template=REF + "{name}")
    return _example(components[kind.__name__], components)


def _example(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, described in schema["properties"].items():
        options = [described, *described.get("anyOf", ())]
        examples = [example for option in options for example in option.get("examples", ())]
        if examples:
            found[name] = examples[0]
        elif name in schema.get("required", ()) and "$ref" in described:
            found[name] = _example(components[described["$ref"].removeprefix(REF)], components)
        elif name in schema.get("required", ()):
            found[name] = _PROMPT if described.get("type") == "string" else None
    return found


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field of a form is absent, never null."""
    kept = {key: value for key, value in schema.items() if key != "default" or value is not None}
    if "enum" in kept:
        kept["enum"] = [value for value in kept["enum"] if value is not None]
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        return {**kept, **options[0]}
    return {**kept, "anyOf": options} if options else kept


def with_types(node: Any) -> Any:
    """The same schema, where every choice among strings says that it is a string: msgspec leaves that out."""
    if isinstance(node, list):
        return [with_types(each) for each in node]
    if not isinstance(node, dict):
        return node
    strings = isinstance(node.get("enum"), list) and all(isinstance(each, str) for each in node["enum"])
    typed = {"type": "string"} if strings and "type" not in node else {}
    return {**typed, **{name: with_types(value) for name, value in node.items()}}


def plain_words(text: str) -> str:
    """A docstring as one paragraph of Markdown for each of its own."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(part.split()) for part in paragraphs)
