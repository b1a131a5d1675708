"""How calls of one method are merged into one forward, and how its output is split again.

A call is its bound arguments, by name. Batched tensors (first dimension = the call's rows) are concatenated; a
timestep that is one number for a whole call becomes one value per row; in a ragged call (one tensor per row, in a
list) the lists are joined, and so are lists that describe each row's shape; any other list is merged element by
element. All else must be equal for two calls to meet, and `signature` says what "equal" means, so that it is decided
before any work is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from msgspec import Struct
from torch.utils.weak import WeakTensorKeyDictionary

PER_ROW = frozenset({"timestep", "timesteps", "t"})
"""Arguments of diffusers' denoisers that may be one number per call or one per row, with the same meaning."""

UNUSED = frozenset({"generator"})
"""Arguments that diffusers hands to `vae.decode` and that no decoder reads: a call's own must not keep it apart."""

Arguments = Mapping[str, Any]

_contents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Layout(Struct, frozen=True):
    """A call's batch size, and whether its batch is a list with one tensor per row."""

    rows: int
    ragged: bool


def layout_of(arguments: Arguments) -> Layout:
    """Read off the first argument that holds tensors, which in every diffusers module is the sample itself."""
    for value in arguments.values():
        if torch.is_tensor(value) and value.dim() > 0:
            return Layout(int(value.shape[0]), False)
        if isinstance(value, list) and value and all(torch.is_tensor(item) for item in value):
            return Layout(len(value), True)
    return Layout(1, False)


def signature(arguments: Arguments, layout: Layout) -> Hashable:
    """What must be equal for two calls of one method to share a forward."""
    return layout.ragged, tuple((name, _sign(name, value, layout)) for name, value in arguments.items())


def _sign(name: str, value: Any, layout: Layout) -> Hashable:
    if name in UNUSED:
        return "unused"
    if torch.is_tensor(value):
        return _sign_tensor(name, value, layout)
    if isinstance(value, (list, tuple)):
        if _joins(value, layout):
            return ("ragged", value[0].dtype, value[0].device)
        if _describes_rows(value, layout):
            return ("rows", type(value), tuple(sorted({repr(item) for item in value})))
        return (type(value), *(_sign(name, item, layout) for item in value))
    if isinstance(value, dict):
        return (dict, *((key, _sign(key, item, layout)) for key, item in value.items()))
    if name in PER_ROW and _is_number(value):
        return ("per row", type(value))
    if isinstance(value, (int, float, str, bool, type(None), torch.dtype, torch.device)):
        return (type(value), value)
    return ("object", id(value))


def _sign_tensor(name: str, value: torch.Tensor, layout: Layout) -> Hashable:
    if name in PER_ROW and (value.numel() == 1 or tuple(value.shape) == (layout.rows,)):
        return ("per row", value.dtype, value.device)
    if value.dim() > 0 and value.shape[0] == layout.rows:
        return ("batched", value.dtype, value.device, tuple(value.shape[1:]))
    if name.startswith("pixel_values"):  # patches of all rows' pictures in one, counted by another argument
        return ("own", id(value))
    # Shared by all rows (position ids and the like: small). Equal shapes do not make equal values.
    return ("shared", value.dtype, value.device, tuple(value.shape), _content(value))


def _content(tensor: torch.Tensor) -> bytes:
    """Its values. To fetch those of a GPU's tensor waits for all that the GPU still has to do, so they are remembered:
    pipelines make such tensors once, pass them with every step, and do not change them in place."""
    if tensor.device.type == "cpu":
        return _fetched(tensor)
    if tensor not in _contents:
        _contents[tensor] = _fetched(tensor)
    content: bytes = _contents[tensor]
    return content


def _fetched(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def merge(calls: Sequence[Arguments], layouts: Sequence[Layout]) -> dict[str, Any]:
    """One set of arguments for calls of equal signature."""
    device = _device_of(calls[0])
    return {name: _merge(name, [call[name] for call in calls], layouts, device) for name in calls[0]}


def cut(merged: Arguments, like: Arguments, layout: Layout, rows: slice) -> dict[str, Any]:
    """Some rows of merged arguments. `like`: one of the calls that they were merged of, with its layout."""
    return {name: _cut(name, merged[name], like[name], layout, rows) for name in like}


def _cut(name: str, merged: Any, like: Any, layout: Layout, rows: slice) -> Any:
    if torch.is_tensor(merged):
        per_row = name in PER_ROW and merged.dim() > 0 and merged.numel() > 1
        batched = torch.is_tensor(like) and like.dim() > 0 and like.shape[0] == layout.rows
        return merged[rows] if per_row or batched else merged
    if isinstance(like, (list, tuple)):
        if _joins(like, layout) or _describes_rows(like, layout):
            return merged[rows]
        return type(like)(_cut(name, *each, layout, rows) for each in zip(merged, like, strict=True))
    if isinstance(like, dict):
        return {key: _cut(key, merged[key], like[key], layout, rows) for key in like}
    return merged


def _device_of(arguments: Arguments) -> torch.device | None:
    """Where the sample lies."""
    for value in arguments.values():
        first = value[0] if isinstance(value, list) and value else value
        if torch.is_tensor(first):
            return first.device
    return None


def _merge(name: str, values: list[Any], layouts: Sequence[Layout], device: torch.device | None) -> Any:
    first, layout = values[0], layouts[0]
    if torch.is_tensor(first):
        if name in PER_ROW and (first.numel() == 1 or tuple(first.shape) == (layout.rows,)):
            return torch.cat([v.reshape(-1).expand(lay.rows) for v, lay in zip(values, layouts, strict=True)])
        return torch.cat(values) if first.dim() > 0 and first.shape[0] == layout.rows else first
    if isinstance(first, (list, tuple)):
        if _joins(first, layout):
            return [item for value in values for item in value]
        if _describes_rows(first, layout):
            return type(first)(item for value in values for item in value)
        return type(first)(_merge(name, list(column), layouts, device) for column in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _merge(key, [value[key] for value in values], layouts, device) for key in first}
    if name in PER_ROW and _is_number(first):
        return torch.tensor([v for v, lay in zip(values, layouts, strict=True) for _ in range(lay.rows)], device=device)
    return first


def _joins(value: Sequence[Any], layout: Layout) -> bool:
    return layout.ragged and len(value) == layout.rows and all(torch.is_tensor(item) for item in value)


def _describes_rows(value: Sequence[Any], layout: Layout) -> bool:
    """Whether this is a list with one list or tuple of plain values per row (Qwen-Image's `img_shapes`)."""
    return (
        isinstance(value, list)
        and len(value) == layout.rows
        and all(isinstance(item, (list, tuple)) and not _holds_tensors(item) for item in value)
    )


def _holds_tensors(value: Any) -> bool:
    return torch.is_tensor(value) or (isinstance(value, (list, tuple)) and any(map(_holds_tensors, value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def split(output: Any, layouts: Sequence[Layout]) -> list[Any]:
    """One output per call, in order. Understands tensors, ModelOutputs, dataclasses, tuples and lists of these,
    lists with one tensor per row, and VAE posteriors; raises TypeError for anything else."""
    rows = [layout.rows for layout in layouts]
    if output is None:
        return [None] * len(rows)
    if torch.is_tensor(output):
        return list(torch.split(output, rows))
    if torch.is_tensor(getattr(output, "parameters", None)):  # diffusers' DiagonalGaussianDistribution
        return [type(output)(part) for part in output.parameters.split(rows)]
    if isinstance(output, dict):  # transformers' and diffusers' ModelOutput
        columns = {key: split(value, layouts) for key, value in output.items()}
        return [type(output)(**{key: column[i] for key, column in columns.items()}) for i in range(len(rows))]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        columns = {f.name: split(getattr(output, f.name), layouts) for f in dataclasses.fields(output)}
        return [type(output)(**{key: column[i] for key, column in columns.items()}) for i in range(len(rows))]
    if isinstance(output, (list, tuple)):
        if layouts[0].ragged and len(output) == sum(rows):
            ends = accumulate(rows)
            return [type(output)(output[end - count : end]) for end, count in zip(ends, rows, strict=True)]
        parts = [split(item, layouts) for item in output]
        return [type(output)(part[i] for part in parts) for i in range(len(rows))]
    raise TypeError(f"cannot split {type(output).__name__} among {len(rows)} calls")


def joined(outputs: Sequence[Any], layouts: Sequence[Layout]) -> Any:
    """The inverse of `split`: one output of those of several forwards."""
    first = outputs[0]
    if first is None:
        return None
    if torch.is_tensor(first):
        return torch.cat(list(outputs))
    if torch.is_tensor(getattr(first, "parameters", None)):
        return type(first)(torch.cat([output.parameters for output in outputs]))
    if isinstance(first, dict):
        return type(first)(**{key: joined([output[key] for output in outputs], layouts) for key in first})
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return type(first)(**{name: joined([getattr(output, name) for output in outputs], layouts) for name in names})
    if isinstance(first, (list, tuple)):
        if all(_joins(output, layout) for output, layout in zip(outputs, layouts, strict=True)):
            return type(first)(item for output in outputs for item in output)
        return type(first)(joined(column, layouts) for column in zip(*outputs, strict=True))
    raise TypeError(f"cannot join outputs of type {type(first).__name__}")
