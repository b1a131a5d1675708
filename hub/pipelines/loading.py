"""From a diffusers folder to modules on a device, in the form in which they are shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from hub.pipelines import Unsupported
from hub.pipelines.auto import DENOISERS, READERS, LoadedPipeline
from hub.pipelines.checks import refuse_unset
from hub.pipelines.families import family_at, family_of
from hub.pipelines.lossy import keep_small, small_decoder
from hub.pipelines.overflow import keep_in_float32, mend_overflow
from hub.pipelines.parts import Source, read_parts
from hub.pipelines.schedulers import rescheduled
from hub.pipelines.sharing import identities

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(wanted: str) -> torch.device:
    """`auto` is the first CUDA device, else Apple's, else the CPU; anything else is taken at its word."""
    if wanted != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        device = torch.device(wanted)
        if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
            raise RuntimeError(f"device {wanted} is not available on this machine; set `device` to auto or cpu")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The manifest's dtype, or for `auto` the fastest one that the device computes natively.

    A CPU without AVX512_BF16 or AMX emulates bfloat16 a hundred times more slowly than float32.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "mps":
        return torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def load_pipeline(
    path: str,
    dtype: str,
    device: torch.device,
    *,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    decoder: str | None = None,
    storage_dtype: str | None = None,
    config: str | None = None,
    components: Mapping[str, str] | None = None,
    quantization: str | None = None,
    known: Mapping[str, torch.nn.Module] | None = None,
    variant: str | None = None,
    use: str = "",
    hashes: Path | None = None,
) -> LoadedPipeline:
    """Loads a diffusers folder from disk: safetensors only, no remote code, no network. Or a single file, for which
    the folder `config` has all but the weights.

    `scheduler` and `scheduler_options` replace the folder's noise scheduler or change its configuration; for `decoder`
    and `storage_dtype` see `lossy`, for `components` and `quantization` see `parts`. All of it comes to lie in main
    memory; `device` says what it is prepared for. `known` are modules that are loaded already, by identity (see
    `sharing`), which is computed where they are given; `use` tells apart how denoisers are used, for `variant` see
    `variants`, and for `hashes` `weights_hash`. Raises Unsupported, also for what `checks` refuses, and whatever
    diffusers raises for a folder that it cannot load.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    computed = choose_dtype(dtype, device)
    folder = config or path
    source = Source(
        folder=Path(folder),
        file=Path(path) if config else None,
        components={name: Path(place) for name, place in (components or {}).items()},
        quantization=quantization,
        variant=variant,
    )
    small = {"vae": small_decoder(folder, decoder, computed)} if decoder else {}
    own: dict[str, str] = {}
    if known is not None and config is None:  # of a single file's parts nothing is known
        uses = dict.fromkeys(DENOISERS, f"{storage_dtype} {quantization} {use}")
        found = identities(folder, str(computed), uses, hashes, variant)
        own = {name: identity for name, identity in found.items() if name not in {*source.components, *small}}
    shared = {name: known[identity] for name, identity in own.items() if known and identity in known}
    base = _read(source, computed, device, given={**small, **shared})
    fresh = {name: module for name, module in base.components.items() if name not in shared}
    if storage_dtype is not None:
        _keep_small(base, fresh, storage_dtype)
    _prepare(base, fresh, device)
    if scheduler is not None or scheduler_options:
        further = family_of(type(base).__name__).schedulers
        base.scheduler = rescheduled(base.scheduler, scheduler, scheduler_options or {}, further)
    pipeline = LoadedPipeline(base)
    pipeline.identities = own
    return pipeline


def _read(source: Source, dtype: torch.dtype, device: torch.device, given: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline with the components that are `given`, and all others from the files."""
    folder = str(source.folder)
    usual = family_at(folder).components(folder)
    parts = {**read_parts(source, dtype, device, given=given), **usual, **given}
    base = DiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts)
    refuse_unset(base)
    if hasattr(base, "_set_pag_attn_processor"):
        raise Unsupported("pipelines with perturbed attention (PAG) change the shared model while they draw")
    base.set_progress_bar_config(disable=True)
    return base


def _keep_small(base: DiffusionPipeline, fresh: Mapping[str, Any], storage_dtype: str) -> None:
    denoisers = [name for name in DENOISERS if base.components.get(name) is not None]
    if not denoisers:
        raise Unsupported("lossy.storage_dtype is for denoisers, and none of this model's parts is known as one")
    for name in denoisers:
        if name in fresh:
            keep_small(fresh[name], storage_dtype)


def _prepare(base: DiffusionPipeline, fresh: Mapping[str, Any], device: torch.device) -> None:
    """The modules, as many requests at once use them; of those that another model has, that was done before."""
    for name, module in fresh.items():
        if not isinstance(module, torch.nn.Module):
            continue
        module.eval().requires_grad_(False)
        if not any(parameter.dim() > 4 for parameter in module.parameters()):
            # Convolutions run faster on this layout (5 % of a small UNet's step on a CPU); the rest stays as it is.
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the form
        if name.startswith(READERS):
            _forget_keys(module)
    vae = fresh.get("vae")
    if vae is not None and hasattr(base, "upcast_vae"):
        keep_in_float32(vae, device)
    if getattr(vae, "dtype", None) == torch.float16 and hasattr(vae, "decode"):
        mend_overflow(vae)


def _forget_keys(module: Any) -> None:
    """Text encoders read a prompt once: their keys and values would be kept for tokens that nobody adds, and could
    not be split among requests."""
    config: Any = getattr(module, "config", None)
    for each in filter(None, (config, getattr(config, "text_config", None))):
        if getattr(each, "use_cache", False):
            each.use_cache = False
