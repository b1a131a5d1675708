"""What a call's arguments look like, in words that can be kept: everything that a compiled forward depends on, but for
the tensors' values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch

Form = dict[str, Any]
"""JSON: `{"tensor": [dtype, shape, kind of device]}`, `{"value": …}`, or a `list`, `tuple` or `dict` of these."""


class Formless(Exception):
    """A value that a compiled forward could not be told by."""


def call(module: Any, arguments: dict[str, Any]) -> Any:
    """What is compiled: the module's own forward. By a function of ours, because torch cannot keep a method that is
    decorated, as many of diffusers' are; and not in the program that compiles, whose names the worker does not know."""
    return module.forward(**arguments)


def form_of(value: Any) -> Form:
    """Raises Formless for objects of unknown kinds, and for fractional numbers, which differ from call to call."""
    if torch.is_tensor(value):
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [form_of(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): form_of(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, str)):
        return {"value": value}
    raise Formless(type(value).__name__)


def example(form: Form, device: torch.device) -> Any:
    """Arguments of this form, with tensors of zeros."""
    ((kind, inner),) = form.items()
    match kind:
        case "tensor":
            dtype, shape, kind = inner
            return torch.zeros(shape, dtype=getattr(torch, dtype), device=device if kind == device.type else kind)
        case "list":
            return [example(item, device) for item in inner]
        case "tuple":
            return tuple(example(item, device) for item in inner)
        case "dict":
            return {key: example(item, device) for key, item in inner.items()}
    return inner


def contiguous(value: Any) -> Any:
    """The same arguments, with tensors laid out as `example` has them."""
    if torch.is_tensor(value):
        return value.contiguous()
    if isinstance(value, (list, tuple)):
        return type(value)(contiguous(item) for item in value)
    if isinstance(value, dict):
        return {key: contiguous(item) for key, item in value.items()}
    return value


def told(arguments: Mapping[str, Any]) -> bytes:
    """The form of a call as bytes. Raises Formless."""
    return msgspec.json.encode(form_of(dict(arguments)), order="sorted")
