"""What a file of weights says of itself, read without torch and without believing it: its header against its size.

The API process reads headers, too. Nothing here reads a weight, or more than the header is long.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""How pickles begin, and the zip archives that torch puts them in."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip
"""Of one number; of types that are not here only the place is checked."""


class Damaged(Exception):
    """The file is not what its name says; the words go on after it."""


class Tensor(Struct, frozen=True):
    """A tensor as a header names it, and where its bytes end in the file."""

    dtype: str
    shape: tuple[int, ...]
    end: int


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, whose bytes fill it without gaps; raises Damaged."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        _refuse_disguise(start)
        if len(start) < 8:
            raise Damaged("is cut off: it has no header")
        length = int.from_bytes(start, "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise Damaged("is cut off or no safetensors file: its header would be longer than itself")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {name: _tensor(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Damaged("has a broken header") from None
    end = 0
    for begin, tensor in sorted(tensors.values(), key=lambda each: (each[0], each[1].end)):
        bits = math.prod(tensor.shape) * BITS.get(tensor.dtype, 0)
        if begin != end or tensor.end < begin or (bits and (tensor.end - begin) * 8 != bits):
            raise Damaged("has a header that does not fit its tensors")
        end = tensor.end
    if size - 8 - length != end:
        change = "cut off" if size - 8 - length < end else "longer than it was"
        raise Damaged(f"is {change}: it has {size} bytes, and its header tells of {end + 8 + length}")
    return {name: tensor for name, (_, tensor) in tensors.items()}


def _tensor(entry: dict[str, Any]) -> tuple[int, Tensor]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError
    return begin, Tensor(str(entry["dtype"]), shape, end)


def _refuse_disguise(start: bytes) -> None:
    if start.startswith(PICKLES):
        raise Damaged("is a pickle under another name, which is never read; convert it to safetensors")
    if start == b"version ":
        raise Damaged("is a pointer of Git LFS; fetch the file itself (git lfs pull)")


class _Reader:
    """Numbers and texts of a GGUF header, none of which may lie beyond the file's end or be absurdly long."""

    SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # noqa: RUF012
    TEXT, ARRAY = 8, 9

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, min(size, MAX_HEADER)

    @property
    def place(self) -> int:
        return self._stream.tell()

    def take(self, count: int) -> bytes:
        if count > self._size - self.place:
            raise Damaged("is cut off within its header, or has a broken one")
        return self._stream.read(count)

    def number(self, form: str = "<Q") -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> int | None:
        """Skips a value; the number where it is one."""
        if kind == self.TEXT:
            self.text()
        elif kind == self.ARRAY and depth < 4:
            inner, count = self.number("<I"), self.number()
            if inner in self.SCALARS:
                self.take(count * self.SCALARS[inner])
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        elif kind in self.SCALARS:
            return int.from_bytes(self.take(self.SCALARS[kind]), "little")
        else:
            raise Damaged("has a broken header")
        return None


def read_gguf(file: Path, sizes: dict[int, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a GGUF file's tensors by name (fastest dimension first), all of which lie within it; raises
    Damaged. `sizes`: for each type of tensor the numbers in a block, and its bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        _refuse_disguise(start)
        if start[:4] != b"GGUF" or int.from_bytes(start[4:], "little") not in (2, 3):
            raise Damaged("is no GGUF file of version 2 or 3")
        reader = _Reader(stream, size)
        count, values = reader.number(), reader.number()
        alignment = 32
        for _ in range(values):
            name, value = reader.text(), reader.value(reader.number("<I"))
            if name == "general.alignment":
                alignment = value or 32
        shapes, ends = {}, [0]
        for _ in range(count):
            name = reader.text()
            shapes[name] = tuple(reader.number() for _ in range(min(reader.number("<I"), 8)))
            kind, offset = reader.number("<I"), reader.number()
            if kind not in sizes:
                raise Damaged(f"has a tensor of unknown type, '{name[:80]}'")
            block, length = sizes[kind]
            ends.append(offset + math.prod(shapes[name]) // block * length)
        data = -(-reader.place // alignment) * alignment
        if data + max(ends) > size:
            raise Damaged(f"is cut off: it has {size} bytes, and its header tells of {data + max(ends)}")
    return shapes
