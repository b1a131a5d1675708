"""What modules return: tensors, ModelOutputs, dataclasses, tuples and lists of these, and None."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


class Unknown(Exception):
    """A value of another kind."""


def mapped(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with changed tensors: ModelOutputs, dataclasses, tuples, lists and None."""
    if torch.is_tensor(output):
        return change(output)
    if isinstance(output, dict):
        return type(output)(**{key: mapped(value, change) for key, value in output.items()})
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        values = {f.name: mapped(getattr(output, f.name), change) for f in dataclasses.fields(output)}
        return type(output)(**values)
    if isinstance(output, (list, tuple)):
        return type(output)(mapped(item, change) for item in output)
    if output is None:
        return None
    raise Unknown


def tensors_of(output: Any) -> list[torch.Tensor]:
    """All of them, in order. Raises Unknown."""
    found: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    mapped(output, take)
    return found


def copied(output: Any) -> Any:
    """An output with tensors of its own, for one who may write into them; the same where it cannot be copied."""
    try:
        return mapped(output, torch.clone)
    except Unknown:
        return output


def distance(one: Any, other: Any) -> torch.Tensor:
    """Mean difference of two outputs' tensors, as a share of the second's mean size; a number on their device, which
    waits for it only when it is read. Raises Unknown, and ValueError where they do not compare."""
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        raise ValueError("outputs of other shapes")
    size = torch.stack([b.float().abs().mean() for _, b in pairs]).sum()
    apart = torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).sum()
    return apart / size.clamp(min=1e-12)
