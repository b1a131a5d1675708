"""What a manifest may give quality away for: a small decoder in the VAE's place, and weights kept in eight bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from hub.pipelines import Unsupported
from hub.pipelines.checks import check_configs, check_part, refuse_missing

STORAGE = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def small_decoder(path: str, decoder: str, dtype: torch.dtype) -> AutoencoderTiny:
    """The AutoencoderTiny in the folder `decoder`, in place of the VAE of the pipeline in the folder `path`.

    Raises Unsupported where it was not made for such latents, or is damaged.
    """
    try:
        own = json.loads(Path(path, "vae", "config.json").read_text())
    except (OSError, ValueError):
        own = {}
    if own.get("_class_name") != "AutoencoderKL":
        raise Unsupported("lossy.vae is for models with an AutoencoderKL, and this one has none")
    place = Path(decoder)
    check_configs(place, place.parent)
    check_part(place, place.parent)
    small, told = AutoencoderTiny.from_pretrained(
        place, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    refuse_missing("lossy.vae", told["missing_keys"])
    channels, wanted = small.config["latent_channels"], own.get("latent_channels")
    if channels != wanted:
        raise Unsupported(f"lossy.vae decodes latents of {channels} channels, and the model's have {wanted}")
    return small


def keep_small(module: Any, storage: str) -> None:
    """Keeps a denoiser's weights in `storage`; each layer is cast to the module's own dtype when it is its turn.

    Raises Unsupported for modules that diffusers cannot do this with.
    """
    if not hasattr(module, "enable_layerwise_casting"):
        raise Unsupported(f"lossy.storage_dtype is not for a {type(module).__name__}")
    module.enable_layerwise_casting(storage_dtype=STORAGE[storage], compute_dtype=module.dtype)
