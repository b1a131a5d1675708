"""multipart/form-data, as clients really send it: one `image`, repeated `image`, or `image[]`; scalars as text.

A part's declared type and file name mean nothing: what a file is, is told by its content, later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from hub.api.refusals import invalid, unknown_parameter
from hub.api.schemas import is_structured
from hub.api.wire import AnyRequest, read_body
from hub.errors import InvalidRequest
from hub.inputs import MAX_BYTES

T = TypeVar("T", bound=msgspec.Struct)

MAX_PARTS = 64
MAX_TEXT = 256 * 1024
NAMELESS = "a part has no name"
LARGE = 1 << 18
"""Bytes from which on a form is taken apart beside the event loop."""

Sources = dict[str, list[bytes | str]]


async def read_form(request: AnyRequest, kind: type[T], files: Mapping[str, int]) -> tuple[T, Sources]:
    """The text fields as a `kind`, and the files by name; `files` says how many of each may come.

    A file field that was sent as text is a reference (URL, data URL or base64). Raises InvalidRequest naming the
    parameter.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get("boundary", "")
    if not boundary or not boundary.isascii() or len(boundary) > 200:
        raise _damaged("its Content-Type names no boundary")
    body = await read_body(request)
    known = {info.encode_name for info in msgspec.structs.fields(kind)}
    if len(body) < LARGE:
        fields, sources = sort_parts(body, boundary, files, known)
    else:
        fields, sources = await asyncio.to_thread(sort_parts, body, boundary, files, known)
    values: dict[str, Any] = {**fields, **_structured(fields, kind)}
    try:
        return msgspec.convert(values, kind, strict=False), sources
    except msgspec.ValidationError as error:
        raise invalid(str(error), kind, in_form=True) from None


def _structured(fields: Mapping[str, str], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that are more than one text: they come as JSON, and are checked as in a JSON body."""
    found = {}
    for info in msgspec.structs.fields(kind):
        if info.encode_name in fields and is_structured(info.type):
            text = fields[info.encode_name]
            try:
                found[info.encode_name] = msgspec.json.decode(text, type=info.type)
            except msgspec.ValidationError as error:
                at = "$." + info.encode_name
                words = str(error).replace("`$", f"`{at}")
                raise invalid(words if at in words else f"{words} - at `{at}`", kind) from None
            except (msgspec.DecodeError, RecursionError):
                words = f"Invalid '{info.encode_name}': it must be JSON."
                raise InvalidRequest(words, param=info.encode_name) from None
    return found


def sort_parts(
    body: bytes, boundary: str, files: Mapping[str, int], known: Container[str]
) -> tuple[dict[str, str], Sources]:
    """A form's text fields, whose names are `known`, and its files in the order of their parts. Raises InvalidRequest
    naming the parameter.

    An empty text field is one that a program left out of a form; an empty file is an error.
    """
    fields: dict[str, str] = {}
    sources: Sources = {name: [] for name in files}
    for part, data in read_parts(body, boundary):
        name = part.name or ""
        file = name.removesuffix("[]")
        if file in files:
            if not data and not part.filename:
                continue  # a browser's file field that was left blank
            sources[file].append(_source(part, data, file))
            if len(sources[file]) > files[file]:
                many = f"at most {files[file]} are taken" if files[file] > 1 else "only one is taken"
                raise InvalidRequest(f"'{file}' was sent {len(sources[file])} times; {many}.", param=file)
            continue
        if data and name not in known:
            raise unknown_parameter(name)  # before its content is looked at: a file is no text
        text = _text(data, name)
        if name in fields:
            raise InvalidRequest(f"'{name}' was sent twice.", param=name)
        if text or name == "prompt":
            fields[name] = text
    return fields, sources


def read_parts(body: bytes, boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """A form's parts with their content. Raises InvalidRequest for a damaged form."""
    part: MultipartSegment | None = None
    pieces: list[bytes | bytearray] = []
    count = 0
    try:
        with PushMultipartParser(boundary, content_length=len(body), strict=True) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    part, pieces, count = event, [], count + 1
                    if not part.name:
                        raise _damaged(NAMELESS)
                    if count > MAX_PARTS:
                        raise _damaged(f"it has more than {MAX_PARTS} parts")
                elif event:
                    pieces.append(event)
                elif part is not None:
                    yield part, b"".join(pieces)
                    part = None
    except ParserLimitReached:
        raise _damaged("a part has too many or too long headers") from None
    except (MultipartError, ValueError, LookupError) as error:
        if "Missing name" in str(error):
            raise _damaged(NAMELESS) from None
        raise _damaged("it is cut short or its parts cannot be told apart") from None


def _source(part: MultipartSegment, data: bytes, param: str) -> bytes | str:
    if not data:
        raise InvalidRequest(f"'{param}' is an empty file.", param=param, code="invalid_image")
    if len(data) > MAX_BYTES:
        words = f"'{param}' is larger than {MAX_BYTES >> 20} MB."
        raise InvalidRequest(words, param=param, code="image_too_large")
    declared = (part.content_type or "text/plain").lower()
    if part.filename is None and declared.startswith("text/plain") and data.isascii() and b"\0" not in data:
        return data.decode("ascii")
    return data


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT:
        raise InvalidRequest(f"'{name}' is too long.", param=name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{name}' is not text in UTF-8.", param=name) from None


def _damaged(why: str) -> InvalidRequest:
    return InvalidRequest(f"The form (multipart/form-data) could not be read: {why}.", code="invalid_form")
