"""Any diffusers folder as a set of runnable pipelines, one per task, over the same modules."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from msgspec import Struct
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d

from hub.pipelines.previews import LatentViewer, viewer_for
from hub.types import Task

log = logging.getLogger("hub.worker")

PIPELINES: dict[Task, dict[str, type[DiffusionPipeline]]] = {
    "text-to-image": AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    "image-to-image": AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    "inpainting": AUTO_INPAINT_PIPELINES_MAPPING,
}
"""For each task, diffusers' pipelines by family."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DENOISERS = ("unet", "transformer", "transformer_2", "prior")


class SharedMethod(Struct, frozen=True):
    """A method of a module that all requests share. `denoising`: each call is one step of a denoising loop."""

    module: Any
    method: str
    denoising: bool


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


class LoadedPipeline:
    """A model in memory: one pipeline per task that diffusers knows for its class."""

    def __init__(self, base: DiffusionPipeline) -> None:
        self._base = base
        self._tasks: dict[Task, DiffusionPipeline] = {}
        for task, cls in _classes(base).items():
            self._tasks[task] = base if cls is type(base) else _over_same_modules(cls, base)

    @property
    def tasks(self) -> frozenset[Task]:
        """What this model can be asked for."""
        return frozenset(self._tasks)

    def shared_methods(self) -> Iterator[SharedMethod]:
        """Every method that pipelines call on the modules that all requests share."""
        for name, module in self._base.components.items():
            if not isinstance(module, torch.nn.Module) or name == "safety_checker":  # its verdicts cannot be split
                continue
            if hasattr(module, "decode") and hasattr(module, "encode"):
                yield SharedMethod(module, "encode", False)
                yield SharedMethod(module, "decode", False)
            else:
                yield SharedMethod(module, "forward", name in DENOISERS)

    def own_copy(self, task: Task) -> DiffusionPipeline:
        """A pipeline for one picture: the modules are shared, but the noise scheduler and all that a pipeline
        writes to itself while it runs (guidance, step counts, interrupts) are its own."""
        own = copy.copy(self._tasks[task])
        own.scheduler = copy.deepcopy(own.scheduler)
        return own

    def accepts(self, task: Task) -> frozenset[str]:
        """The names of the arguments that the task's pipeline takes."""
        return frozenset(inspect.signature(type(self._tasks[task]).__call__).parameters)

    @functools.cached_property
    def viewer(self) -> LatentViewer | None:
        """What shows this model's latents as previews; None where it has none. The first use may fit it to the VAE:
        outside of a run."""
        try:
            return viewer_for(self._base)
        except Exception:  # an encoder of another kind, or no memory left: the picture itself may still be made
            log.exception("this model's latents cannot be shown; it gives no previews")
            return None

    @property
    def mask_cell(self) -> int:
        """Side in pixels of the square that one latent stands for: no pipeline can change a part of it alone."""
        return int(getattr(self._base, "vae_scale_factor", None) or 1)

    def prompt_overflow(self, prompt: str) -> int:
        """How many tokens of a prompt the text encoder cannot read (0 where all fit or the model has no limit)."""
        tokenizer = getattr(self._base, "tokenizer", None)
        limit = getattr(tokenizer, "model_max_length", None)
        if tokenizer is None or not limit or limit > 100_000:
            return 0
        return max(0, len(tokenizer(prompt, truncation=False).input_ids) - int(limit))


def load_pipeline(path: str, dtype: str, device: torch.device) -> LoadedPipeline:
    """Loads a diffusers folder from disk: safetensors only, no remote code, no network."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    base = DiffusionPipeline.from_pretrained(
        path, dtype=choose_dtype(dtype, device), use_safetensors=True, local_files_only=True
    )
    base.to(device)
    base.set_progress_bar_config(disable=True)
    for module in base.components.values():
        if isinstance(module, torch.nn.Module):
            # Convolutions run faster on this layout (5 % of a small UNet's step on a CPU); the rest stays as it is.
            module.eval().requires_grad_(False)
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the form
    return LoadedPipeline(base)


def to_picture(raw: bytes, width: int, height: int) -> Image.Image:
    """Raw RGB bytes as the Pillow picture that diffusers' pipelines take as a source."""
    return Image.frombytes("RGB", (width, height), raw)


def to_mask(raw: bytes, width: int, height: int, cell: int) -> Image.Image:
    """A mask (one byte per pixel, 0 = must stay) as the pipelines take it, grown to whole cells of latents.

    They look at one pixel of each cell: a thin mask would be missed, and beside an edge the old picture would show
    through. What is repainted too much is covered by the original when the picture is finished.
    """
    touched = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(1, 1, height, width).gt(0).float()
    cells = max_pool2d(touched, cell, ceil_mode=True)
    grown = interpolate(cells, scale_factor=cell)[0, 0, :height, :width]
    return Image.fromarray(grown.mul(255).to(torch.uint8).numpy())


def _classes(base: DiffusionPipeline) -> dict[Task, type[DiffusionPipeline]]:
    """The class for each task that can run over the modules of `base`, itself among them.

    A denoiser with more input channels than the latents have (2 x 4 + 1 in Stable Diffusion's inpainting models)
    wants a mask with every call and can do nothing else.
    """
    cls = type(base)
    family = next((key for known in PIPELINES.values() for key, member in known.items() if member is cls), None)
    if family is None:
        task: Task = "inpainting" if "mask_image" in inspect.signature(cls.__call__).parameters else "text-to-image"
        return {task: cls}
    classes = {task: known[family] for task, known in PIPELINES.items() if family in known}
    if _wants_masks(base):
        return {task: member for task, member in classes.items() if task == "inpainting"} or {"inpainting": cls}
    return classes


def _wants_masks(base: DiffusionPipeline) -> bool:
    denoiser = next((getattr(base, name) for name in DENOISERS if getattr(base, name, None) is not None), None)
    latents = getattr(getattr(getattr(base, "vae", None), "config", None), "latent_channels", None)
    taken = getattr(getattr(denoiser, "config", None), "in_channels", None)
    return latents is not None and taken == 2 * latents + 1


def _over_same_modules(cls: type[DiffusionPipeline], base: DiffusionPipeline) -> DiffusionPipeline:
    """Another task's pipeline over the very same modules.

    Not `from_pipe`: it casts the shared weights to float32 in place (diffusers#12754).
    """
    takes = inspect.signature(cls.__init__).parameters
    options = {k: v for k, v in base.config.items() if k in takes and not isinstance(v, (list, tuple))}
    pipe = cls(**{**options, **{k: v for k, v in base.components.items() if k in takes}})
    pipe.set_progress_bar_config(disable=True)
    return pipe
