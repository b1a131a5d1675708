"""Whether a request can be drawn at all with the memory that there is, before anything of it is computed.

Refused is what would fit in no way: neither block by block nor in tiles. All else is tried; what is predicted decides
then which modules leave the device (see `residency`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from hub.engine.meeting import Place
from hub.engine.models import TooLittleMemory, gigabytes
from hub.engine.protocol import Generate
from hub.engine.residency import Residency
from hub.pipelines.auto import LoadedPipeline, SharedMethod
from hub.pipelines.tiling import can_tile, tile_side
from hub.pipelines.workspace import decode_bytes, denoise_bytes, read_bytes
from hub.types import Size

MOST_SIZES = 64
"""Of a model, whose needs are remembered."""
ATTEMPTS = 24
"""Sizes that are tried in words, each a tenth smaller in each side."""


_seen: WeakKeyDictionary[LoadedPipeline, dict[Size, tuple[dict[Place, int], int]]] = WeakKeyDictionary()


def needs_of(pipeline: LoadedPipeline, size: Size) -> dict[Place, int]:
    """Bytes that a row takes in each of the pipeline's shared methods, beside the weights."""
    return {(id(shared.module), shared.method): _need(pipeline, shared, size) for shared in pipeline.shared_methods()}


def admit(request: Generate, pipeline: LoadedPipeline, residency: Residency) -> Mapping[Place, int]:
    """What its rows will take (see `needs_of`). Raises TooLittleMemory."""
    known = _seen.setdefault(pipeline, {})
    if request.native not in known:  # to ask every module takes milliseconds, and the answers stay the same
        if len(known) >= MOST_SIZES:
            known.clear()
        needs = needs_of(pipeline, request.native)
        known[request.native] = needs, least_of(pipeline, request.native, residency)
    needs, least = known[request.native]
    if least > residency.capacity:
        raise TooLittleMemory(words_for(request, pipeline, residency))
    return needs


def words_for(request: Generate, pipeline: LoadedPipeline, residency: Residency) -> str:
    """For a request that does not fit, or did not: what it takes, what there is, and what would fit."""
    least, capacity = least_of(pipeline, request.native, residency), residency.capacity
    words = f"There is too little memory for {request.native} with {request.model.id}: that takes at least "
    words += f"{gigabytes(least)}, and {gigabytes(max(capacity, 0))} can be had. "
    # One that should have fitted and did not is told half its pixels.
    start = 0 if least > capacity else 3
    for size in list(_smaller(request.native, pipeline.multiple))[start:]:
        if least_of(pipeline, size, residency) <= capacity * (1 if start == 0 else 0.8):
            return f"{words}{size} would fit."
    return f"{words}No size would fit: the model itself is too large for that."


def least_of(pipeline: LoadedPipeline, size: Size, residency: Residency) -> int:
    """Bytes of the device without which one picture cannot be made, however slowly."""
    return max(_least(pipeline, size, residency), default=0)


def _least(pipeline: LoadedPipeline, size: Size, residency: Residency) -> Iterator[int]:
    for shared in pipeline.shared_methods():
        need = _need(pipeline, shared, size)
        if shared.method in ("encode", "decode") and can_tile(shared.module):
            side = tile_side(max(size.width, size.height))
            need = min(need, decode_bytes(shared.module, side, side, shared.method))
        yield need + residency.least(shared.module)


def _need(pipeline: LoadedPipeline, shared: SharedMethod, size: Size) -> int:
    if shared.method in ("encode", "decode"):
        return decode_bytes(shared.module, size.width, size.height, shared.method)
    if not shared.denoising:
        return read_bytes(shared.module)
    return denoise_bytes(shared.module, (size.width // pipeline.multiple) * (size.height // pipeline.multiple))


def _smaller(size: Size, multiple: int) -> Iterator[Size]:
    for step in range(1, ATTEMPTS):
        scale = 0.9**step
        sides = [max(1, round(side * scale / multiple)) * multiple for side in (size.width, size.height)]
        yield Size(*sides)
