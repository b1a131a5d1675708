"""Any diffusers folder as a set of runnable pipelines, one per task, over the same modules."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConsistencyDecoderVAE, DDIMScheduler, DiffusionPipeline, LCMScheduler, TCDScheduler
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from msgspec import Struct
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d

from hub.pipelines.families import Family, family_at, family_of
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
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "prior_prior", "decoder")
READERS = ("text_encoder", "image_encoder")
NO_LIMIT = 100_000
"""Tokens: what tokenizers without a limit name is far above it."""


class SharedMethod(Struct, frozen=True):
    """A method of a module that all requests share. `denoising`: each call belongs to a denoising loop. `reading`: it
    encodes prompts, and the same ones come again and again."""

    module: Any
    method: str
    denoising: bool = False
    reading: bool = False


class Unsupported(Exception):
    """The pipeline cannot run here; the words say why, and clients may read them."""


class UnknownScheduler(Unsupported):
    """The model has no such noise scheduler; the words name those it has."""


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
        self.family: Family = family_of(type(base).__name__)
        self._tasks: dict[Task, DiffusionPipeline] = {}
        for task, cls in _classes(base, self.family).items():
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
            if isinstance(module, ConsistencyDecoderVAE):
                continue  # its decoder draws noise of its own, by the request's generator
            if hasattr(module, "decode") and hasattr(module, "encode"):
                yield SharedMethod(module, "encode")
                yield SharedMethod(module, "decode")
            else:
                yield SharedMethod(module, "forward", denoising=name in DENOISERS, reading=name.startswith(READERS))

    def own_copy(self, task: Task, scheduler: str | None = None) -> DiffusionPipeline:
        """A pipeline for one picture: the modules are shared, but the noise scheduler and all that a pipeline
        writes to itself while it runs (guidance, step counts, interrupts) are its own.

        `scheduler` is the class name of one that suits the model. Raises UnknownScheduler.
        """
        kept: dict[int, Any] = {}
        if scheduler is not None:
            if not isinstance(getattr(self._base, "scheduler", None), SchedulerMixin):
                raise UnknownScheduler("this model's pipeline takes none")
            kept[id(self._base.scheduler)] = _rescheduled(self._base.scheduler, scheduler, {}, self.family.schedulers)
        return _own(self._tasks[task], kept)

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

    @property
    def fixed_guidance(self) -> bool:
        """Whether the model was distilled to one guidance, which nothing can change."""
        if getattr(self._base.config, "is_distilled", False):
            return True
        config = getattr(getattr(self._base, "transformer", None), "config", {})
        return self.family.embedded_guidance and not config.get("guidance_embeds", False)

    @property
    def multiple(self) -> int:
        """Both sides of a picture must be multiples of this: of a latent's side, and of a token's."""
        if any(hasattr(self._base, name) for name in ("_pack_latents", "_patchify_latents")):
            return self.mask_cell * 2
        config = getattr(getattr(self._base, "transformer", None), "config", {})
        patch = config.get("patch_size") or config.get("all_patch_size") or 1
        return self.mask_cell * (int(patch) if isinstance(patch, int) else max(patch))

    def prompt_overflow(self, prompt: str, longest: int | None = None) -> int:
        """How many tokens of a prompt no text encoder can read (0 where one reads all or has no limit). `longest`:
        the `max_sequence_length` of the call where it is not the pipeline's own.

        Several read the same words; the one that takes the most decides.
        """
        usual = inspect.signature(type(self._base).__call__).parameters.get("max_sequence_length")
        overflows = []
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            tokenizer = getattr(self._base, name, None)
            if tokenizer is None:
                continue
            limit = int(getattr(tokenizer, "model_max_length", None) or NO_LIMIT)
            if usual is not None and "CLIP" not in type(tokenizer).__name__:
                limit = min(limit, longest or int(usual.default))
            if limit >= NO_LIMIT:
                return 0
            overflows.append(max(0, len(tokenizer(prompt, truncation=False).input_ids) - limit))
        return min(overflows, default=0)


def load_pipeline(
    path: str,
    dtype: str,
    device: torch.device,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
) -> LoadedPipeline:
    """Loads a diffusers folder from disk: safetensors only, no remote code, no network.

    `scheduler` and `scheduler_options` replace the folder's noise scheduler or change its configuration. Raises
    UnknownScheduler, and whatever diffusers raises for a folder that it cannot load.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    base = DiffusionPipeline.from_pretrained(
        path,
        dtype=choose_dtype(dtype, device),
        use_safetensors=True,
        local_files_only=True,
        **family_at(path).components(path),
    )
    if hasattr(base, "_set_pag_attn_processor"):
        raise Unsupported("pipelines with perturbed attention (PAG) change the shared model while they draw")
    base.to(device)
    base.set_progress_bar_config(disable=True)
    for name, module in base.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        module.eval().requires_grad_(False)
        if not any(parameter.dim() > 4 for parameter in module.parameters()):
            # Convolutions run faster on this layout (5 % of a small UNet's step on a CPU); the rest stays as it is.
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the form
        if name.startswith(READERS):
            _forget_keys(module)
    if hasattr(base, "upcast_vae"):
        _keep_in_float32(base.vae)
    if scheduler is not None or scheduler_options:
        further = family_of(type(base).__name__).schedulers
        base.scheduler = _rescheduled(base.scheduler, scheduler, scheduler_options or {}, further)
    return LoadedPipeline(base)


def _rescheduled(own: Any, name: str | None, options: Mapping[str, Any], further: Iterable[str]) -> Any:
    """A new noise scheduler with the configuration of the model's own, and `options` on top. `further`: names beside
    those that the model's own is compatible with."""
    suitable = {cls.__name__: cls for cls in (type(own), *own.compatibles) if not hasattr(cls, "_backends")}
    if DDIMScheduler in suitable.values():  # the consistency ones follow the same noise; diffusers' list lacks them
        suitable |= {cls.__name__: cls for cls in (LCMScheduler, TCDScheduler)}
    suitable |= {each: getattr(diffusers, each) for each in further}
    if name is not None and name not in suitable:
        raise UnknownScheduler(f"this model has no '{name[:64]}'; it has {', '.join(sorted(suitable))}")
    usual = {"skip_prk_steps": True} if name == "PNDMScheduler" and "skip_prk_steps" not in own.config else {}
    return suitable[name or type(own).__name__].from_config(own.config, **{**usual, **options})


def _own(pipeline: DiffusionPipeline, kept: dict[int, Any]) -> DiffusionPipeline:
    """A copy of a pipeline, and of the pipelines that it is made of, with noise schedulers and guiders of its own;
    those that they share, their copies share too. `kept` maps ids to copies made so far."""
    own = copy.copy(pipeline)
    for name, value in list(vars(own).items()):
        if isinstance(value, (SchedulerMixin, BaseGuidance, DiffusionPipeline)):
            if id(value) not in kept:
                kept[id(value)] = _own(value, kept) if isinstance(value, DiffusionPipeline) else copy.deepcopy(value)
            own.__dict__[name] = kept[id(value)]
    return own


def _forget_keys(module: Any) -> None:
    """Text encoders read a prompt once: their keys and values would be kept for tokens that nobody adds, and could
    not be split among requests."""
    config: Any = getattr(module, "config", None)
    for each in filter(None, (config, getattr(config, "text_config", None))):
        if getattr(each, "use_cache", False):
            each.use_cache = False


def _keep_in_float32(vae: Any) -> None:
    """A VAE that overflows in float16 stays in float32, as far as diffusers' pipelines would cast it: all of it, or
    of bfloat16 the encoder.

    They would cast it to and fro in place, for each picture: while another one waits to be decoded. They give their
    latents in whatever type, so its methods cast them.
    """
    if not vae.config.get("force_upcast"):
        return
    plain = vae.dtype
    if plain == torch.float16:
        vae.to(torch.float32)
    elif plain == torch.bfloat16:
        for part in filter(None, (vae.encoder, getattr(vae, "quant_conv", None))):
            part.to(torch.float32)
    if plain in (torch.float16, torch.bfloat16):
        vae.encode = _casting(vae.encode, torch.float32)
        vae.decode = _casting(vae.decode, torch.float32 if plain == torch.float16 else plain)
        if vae.device.type == "mps":  # there the pipelines cast any VAE of another type than their latents
            vae.to = lambda *_, **__: vae
    vae.register_to_config(force_upcast=False)


def _casting(plain: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(plain)
    def cast(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(sample.to(dtype), *args, **kwargs)

    return cast


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


def _classes(base: DiffusionPipeline, family: Family) -> dict[Task, type[DiffusionPipeline]]:
    """The class for each task that can run over the modules of `base`, itself among them.

    A denoiser with more input channels than the latents have (2 x 4 + 1 in Stable Diffusion's inpainting models)
    wants a mask with every call and can do nothing else. Of a class that diffusers' mapping does not know, what it
    can do is read off its arguments.
    """
    cls = type(base)
    if family.pipelines:
        return {task: getattr(diffusers, name) for task, name in family.pipelines.items()}
    key = next((key for known in PIPELINES.values() for key, member in known.items() if member is cls), None)
    if key is None:
        takes = inspect.signature(cls.__call__).parameters
        if "mask_image" in takes:
            return {"inpainting": cls}
        return {"text-to-image": cls, "image-to-image": cls} if "image" in takes else {"text-to-image": cls}
    classes = {task: known[key] for task, known in PIPELINES.items() if key in known}
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
