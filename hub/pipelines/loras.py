"""LoRA files: read, brought into PEFT's names by the pipeline's own converter, and checked against the model.

All of it happens before anything is changed. A file comes from anywhere: of its header only numbers are used (PEFT's
own configuration could name modules to import), and what does not fit to the last key is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load

from hub.loras import identity_of
from hub.pipelines import Unsupported

log = logging.getLogger("hub.worker")

MAX_FILE = 4 * 1024**3
"""Bytes. The whole file is read at once, so that what is hashed is what is used."""
METADATA = "lora_adapter_metadata"
"""Where diffusers' own training scripts keep their configuration in the header."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Patch(Struct, frozen=True):
    """What is added to one layer: `up` of `down` of its input, times alpha / rank."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


class ReadLora(Struct, frozen=True):
    """A file that fits: its SHA-256, and its patches by part of the pipeline and by the layer's path in it."""

    sha256: str
    patches: dict[str, dict[str, Patch]]

    @property
    def bytes(self) -> int:
        """Of its tensors, as the model takes them."""
        tensors = [each for layers in self.patches.values() for patch in layers.values() for each in _both(patch)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Wearable:
    """What of a pipeline LoRAs can change: taken while there is none, since they put layers of their own in place of
    the model's. Empty where the pipeline takes no LoRAs."""

    def __init__(self, base: DiffusionPipeline) -> None:
        names = getattr(base, "_lora_loadable_modules", ()) if hasattr(base, "lora_state_dict") else ()
        parts = {name: getattr(base, name, None) for name in names}
        self._convert: Any = getattr(type(base), "lora_state_dict", None)
        self.parts: dict[str, Any] = {k: part for k, part in parts.items() if isinstance(part, torch.nn.Module)}
        self._layers = {
            name: {path: layer for path, layer in part.named_modules() if isinstance(layer, _KINDS)}
            for name, part in self.parts.items()
        }

    def read(self, name: str, path: str, identity: str) -> ReadLora:
        """The LoRA `name` in the file. Raises Unsupported, in words that name it, for one that cannot be used here or
        is another file than the one of this `identity`."""
        try:
            data = _bytes_of(path, identity)
            try:
                tensors, metadata = load(data), _metadata_of(data)
            except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise Unsupported("is no safetensors file, or a damaged one") from None
            return ReadLora(hashlib.sha256(data).hexdigest(), self._checked(tensors, metadata))
        except Unsupported as error:
            raise Unsupported(f"The LoRA '{name}' {error}.") from None

    def _checked(self, tensors: dict[str, torch.Tensor], metadata: Mapping[str, Any]) -> dict[str, dict[str, Patch]]:
        if any("dora_scale" in key or "lora_magnitude_vector" in key for key in tensors):
            raise Unsupported("is a DoRA, which this hub does not apply")
        state, alphas = self._converted(tensors)
        patches: dict[str, dict[str, Patch]] = {}
        for part, own in _by_part(state).items():
            if part not in self.parts:
                raise Unsupported(f"does not fit this model: it changes '{part[:64]}', which this model does not have")
            renamed = self._renamed(part, own)
            scales = {_layer_of(key): value for key, value in self._renamed(part, alphas.get(part, {})).items()}
            about = {} if scales else _by_part(metadata).get(part, {})
            layers = sorted({_layer_of(key) for key in renamed})
            patches[part] = {layer: self._patch(part, layer, renamed, scales, about) for layer in layers}
            if unread := sorted(key for key in renamed if not key.endswith((_DOWN, _UP))):
                raise Unsupported(f"is no plain LoRA: it holds '{unread[0][:128]}'")
        if not patches:
            raise Unsupported("is empty")
        return patches

    def _converted(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """By diffusers' names, with the alphas that the file has, by part."""
        options: dict[str, Any] = {"return_lora_metadata": True}
        if "return_alphas" in inspect.signature(self._convert).parameters:
            options["return_alphas"] = True
        if "unet" in self.parts:  # its blocks are counted in another way by other programs
            options["unet_config"] = self.parts["unet"].config
        try:
            state, *more = self._convert(tensors, **options)
            alphas = more[0] or {} if len(more) > 1 else {}
            plain = {key.removesuffix(".alpha"): float(value) for key, value in alphas.items()}
        except Exception as error:  # each converter has its own way to fail over a file that is none of its own
            log.info("a LoRA could not be converted: %r", error)
            raise Unsupported("has names that this model's pipeline does not know: it is for another model") from None
        return state, _by_part(plain)

    def _renamed(self, part: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """By PEFT's names, as the part's own layers are called."""
        if not part.startswith("text_encoder"):
            return dict(convert_unet_state_dict_to_peft(dict(state)))
        renamed = dict(state)
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            renamed = convert_state_dict_to_peft(renamed, original_type=kind)
        prefix = "" if hasattr(self.parts[part], "text_model") else "text_model."
        return {key.removeprefix(prefix): value for key, value in renamed.items()}

    def _patch(
        self, part: str, path: str, state: Mapping[str, Any], scales: Mapping[str, float], about: Mapping[str, Any]
    ) -> Patch:
        shown = f"{part}.{path}"[:128]
        layer = self._layers[part].get(path)
        down, up = state.get(path + _DOWN), state.get(path + _UP)
        if layer is None:
            raise Unsupported(f"does not fit this model: it changes '{shown}', which this model does not have")
        if down is None or up is None:
            raise Unsupported(f"is incomplete: of '{shown}' it has only one half")
        weight = layer.weight
        if type(weight.data) is not torch.Tensor or weight.dtype not in DTYPES:
            raise Unsupported("cannot be used with this model: its weights are kept in a form of fewer bits")
        rank = down.shape[0] if down.dim() else 0
        wanted = (rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.dim() - 2))
        if rank < 1 or (tuple(down.shape), tuple(up.shape)) != wanted or not _is_plain(layer):
            has, needs = (" and ".join(map(_told, pair)) for pair in ((down.shape, up.shape), wanted))
            raise Unsupported(f"does not fit this model: '{shown}' needs {needs}, and it has {has}")
        if not (down.is_floating_point() and up.is_floating_point()):
            raise Unsupported(f"is no plain LoRA: '{shown}' is not kept as decimal numbers")
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise Unsupported(f"is damaged: '{shown}' holds what are no numbers")
        alpha = scales[path] if path in scales else _alpha_in(about, path, rank)
        if not math.isfinite(alpha):
            raise Unsupported(f"is damaged: the alpha of '{shown}' is no number")
        return Patch(down.to(weight.dtype).contiguous(), up.to(weight.dtype).contiguous(), alpha)


_KINDS = (torch.nn.Linear, torch.nn.Conv2d)
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def _both(patch: Patch) -> tuple[torch.Tensor, torch.Tensor]:
    return patch.down, patch.up


def _told(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _layer_of(key: str) -> str:
    return key.partition(".lora_")[0]


def _is_plain(layer: Any) -> bool:
    """Whether PEFT does to it what diffusers' training did: of a convolution it copies neither groups nor dilation."""
    if isinstance(layer, torch.nn.Linear):
        return True
    return bool(layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros")


def _by_part(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    return parts


def _bytes_of(path: str, identity: str) -> bytes:
    changed = Unsupported("has changed on the disk since it was asked for; ask again")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if identity_of(status) != identity:
                raise changed
            if status.st_size > MAX_FILE:
                raise Unsupported(f"is larger than {MAX_FILE >> 30} GiB")
            data = stream.read()
            if identity_of(os.fstat(stream.fileno())) != identity:
                raise changed
            return data
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        raise Unsupported("cannot be read") from None


def _metadata_of(data: bytes) -> dict[str, Any]:
    """What diffusers wrote into the header; `load` has checked the rest of it."""
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(METADATA)
    return dict(json.loads(text)) if text else {}


def _alpha_in(about: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha that a configuration names for the layer; without one the patch is added as it is."""
    alpha = about.get("lora_alpha", rank)
    patterns = about.get("alpha_pattern")
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if f".{path}".endswith(f".{pattern.removeprefix('^')}"):
            alpha = value
    if not isinstance(alpha, (int, float)):
        raise Unsupported("is damaged: its configuration has an alpha that is no number")
    return float(alpha) * (math.sqrt(rank) if about.get("use_rslora") is True else 1.0)
