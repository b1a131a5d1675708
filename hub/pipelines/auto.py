"""Any diffusers folder as a set of runnable pipelines, one per task, over the same modules."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers import ConsistencyDecoderVAE, DiffusionPipeline
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

from hub.pipelines.families import Family, family_of
from hub.pipelines.loras import Wearable
from hub.pipelines.previews import LatentViewer, viewer_for
from hub.pipelines.schedulers import UnknownScheduler, rescheduled
from hub.types import Task

log = logging.getLogger("hub.worker")

PIPELINES: dict[Task, dict[str, type[DiffusionPipeline]]] = {
    "text-to-image": AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    "image-to-image": AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    "inpainting": AUTO_INPAINT_PIPELINES_MAPPING,
}
"""For each task, diffusers' pipelines by family."""

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


class LoadedPipeline:
    """A model in memory: one pipeline per task that diffusers knows for its class."""

    def __init__(self, base: DiffusionPipeline) -> None:
        self.weights = ""
        """A hash of them, where it was asked for (see `weights`)."""
        self.identities: Mapping[str, str] = {}
        """Of its modules, by name, where that was asked for (see `sharing`)."""
        self.bring: Callable[[Any], Any] = lambda module: None  # noqa: ARG005
        """Puts a module where it computes; whoever moves modules sets it."""
        self._base = base
        self.family: Family = family_of(type(base).__name__)
        self._tasks: dict[Task, DiffusionPipeline] = {}
        for task, cls in _classes(base, self.family).items():
            self._tasks[task] = base if cls is type(base) else _over_same_modules(cls, base)
        calls = {task: inspect.signature(type(pipeline).__call__) for task, pipeline in self._tasks.items()}
        self._accepted = {task: frozenset(call.parameters) for task, call in calls.items()}

    @property
    def dtype(self) -> str:
        """In which it computes, as torch names it."""
        return str(self._base.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The kind of device that it is on."""
        return self._base.device.type  # type: ignore[no-any-return]

    @property
    def scheduler(self) -> str | None:
        """Class name of the model's own noise scheduler; None where its pipeline takes no other."""
        own = getattr(self._base, "scheduler", None)
        return type(own).__name__ if isinstance(own, SchedulerMixin) else None

    @property
    def tasks(self) -> frozenset[Task]:
        """What this model can be asked for."""
        return frozenset(self._tasks)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """By their names in the pipeline."""
        found = self._base.components.items()
        return {name: module for name, module in found if isinstance(module, torch.nn.Module)}

    def shared_methods(self) -> Iterator[SharedMethod]:
        """Every method that pipelines call on the modules that all requests share."""
        for name, module in self._base.components.items():
            if not isinstance(module, torch.nn.Module) or name == "safety_checker":  # its verdicts cannot be split
                continue
            if isinstance(module, ConsistencyDecoderVAE):
                continue  # its decoder draws noise of its own, by the request's generator
            if type(module).forward is torch.nn.Module.forward:
                continue  # it has none, and is used in some other way
            if hasattr(module, "decode") and hasattr(module, "encode"):
                yield SharedMethod(module, "encode")
                yield SharedMethod(module, "decode")
            else:
                yield SharedMethod(module, "forward", denoising=name in DENOISERS, reading=name.startswith(READERS))

    def wearable(self) -> Wearable:
        """What of it LoRAs can change. To be asked before there is one."""
        return Wearable(self._base)

    def own_copy(self, task: Task, scheduler: str | None = None) -> DiffusionPipeline:
        """A pipeline for one picture: the modules are shared, but the noise scheduler and all that a pipeline
        writes to itself while it runs (guidance, step counts, interrupts) are its own.

        `scheduler` is the class name of one that suits the model. Raises UnknownScheduler.
        """
        kept: dict[int, Any] = {}
        if scheduler is not None:
            if not isinstance(getattr(self._base, "scheduler", None), SchedulerMixin):
                raise UnknownScheduler("this model's pipeline takes none")
            kept[id(self._base.scheduler)] = rescheduled(self._base.scheduler, scheduler, {}, self.family.schedulers)
        return _own(self._tasks[task], kept)

    def accepts(self, task: Task) -> frozenset[str]:
        """The names of the arguments that the task's pipeline takes."""
        return self._accepted[task]

    @functools.cached_property
    def _viewer(self) -> LatentViewer | None:
        vae = getattr(self._base, "vae", None)
        if isinstance(vae, torch.nn.Module):
            self.bring(vae)
        return viewer_for(self._base)

    @property
    def viewer(self) -> LatentViewer | None:
        """What shows this model's latents as previews; None where it has none. The first use may fit it to the VAE:
        outside of a run."""
        try:
            return self._viewer
        except torch.OutOfMemoryError:  # there may be more at another time
            return None
        except Exception:  # an encoder of another kind; the picture itself may still be made
            log.exception("this model's latents cannot be shown; it gives no previews")
            self.__dict__["_viewer"] = None
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
