"""Weights in fewer bits than they are computed in: from GGUF files, or quantized as they are loaded.

The libraries that do it are an extra, as most hubs need none.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hub.pipelines import Unsupported
from hub.pipelines.headers import Damaged, read_gguf

INSTALL = 'pip install "image-hub[quantization]"'


def quantization_config(wanted: str | None, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' own for a manifest's `lossy.quantization`; None for none. Raises Unsupported where its library is
    missing, or needs another device."""
    if wanted is None:
        return None
    library, _, method = wanted.partition(":")
    if library == "bitsandbytes" and device.type != "cuda":
        raise Unsupported(f"lossy.quantization: {wanted} needs a GPU; on a {device.type} use one of torchao")
    _require(library, "lossy.quantization")
    if library == "bitsandbytes":
        from diffusers import BitsAndBytesConfig

        if method == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=method, bnb_4bit_compute_dtype=dtype)
    from diffusers import TorchAoConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    methods = {"int8_weight_only": Int8WeightOnlyConfig, "float8_weight_only": Float8WeightOnlyConfig}
    return TorchAoConfig(methods[method]())


def gguf_config(dtype: torch.dtype) -> Any:
    """For a file that passed `check_gguf`; it is computed in `dtype`."""
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=dtype)


def check_gguf(file: Path) -> None:
    """Raises Unsupported for a file that is cut off or broken, of a kind that diffusers does not compute with, or
    that cannot be read without a library that is missing."""
    _require("gguf", file.name)
    from gguf.constants import GGML_QUANT_SIZES

    try:
        read_gguf(file, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()})
    except Damaged as error:
        raise Unsupported(f"{file.name} {error}") from None
    except OSError:
        raise Unsupported(f"{file.name} cannot be read, or is a link that leads nowhere") from None


def _require(library: str, what: str) -> None:
    if find_spec(library) is None:
        raise Unsupported(f"{what} needs the library {library}, which is not installed: {INSTALL}")
