"""multipart/form-data, as clients really send it: one `image`, repeated `image`, or `image[]`; scalars as text.

A part's declared type and file name mean nothing: what a file is, is told by its content, later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from hub.api.wire import AnyRequest, invalid, read_body
from hub.errors import InvalidRequest
from hub.inputs import MAX_BYTES

T = TypeVar("T")

MAX_PARTS = 64
MAX_TEXT = 256 * 1024
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
    if len(body) < LARGE:
        fields, sources = sort_parts(body, boundary, files)
    else:
        fields, sources = await asyncio.to_thread(sort_parts, body, boundary, files)
    try:
        return msgspec.convert(fields, kind, strict=False), sources
    except msgspec.ValidationError as error:
        raise invalid(str(error), kind) from None


def sort_parts(body: bytes, boundary: str, files: Mapping[str, int]) -> tuple[dict[str, str], Sources]:
    """A form's text fields, and its files in the order of their parts. Raises InvalidRequest naming the parameter.

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
        text = _text(data, name)
        if name in fields:
            raise InvalidRequest(f"'{name[:64]}' was sent twice.", param=name[:64])
        if text or name == "prompt":
            fields[name] = text
    return fields, sources


def read_parts(body: bytes, boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """A form's parts with their content. Raises InvalidRequest for a damaged form."""
    part: MultipartSegment | None = None
    pieces: list[bytes | bytearray] = []
    try:
        with PushMultipartParser(
            boundary, content_length=len(body), max_segment_count=MAX_PARTS, strict=True
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    part, pieces = event, []
                elif event:
                    pieces.append(event)
                elif part is not None:
                    yield part, b"".join(pieces)
                    part = None
    except (MultipartError, ValueError, LookupError):
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
        raise InvalidRequest(f"'{name[:64]}' is too long.", param=name[:64])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{name[:64]}' is not text in UTF-8.", param=name[:64]) from None


def _damaged(why: str) -> InvalidRequest:
    return InvalidRequest(f"The form (multipart/form-data) could not be read: {why}.", code="invalid_form")
