"""Runs a family's pipelines twice: as diffusers' documentation has it, and through the engine beside strangers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from hub.engine.arguments import arguments_for
from hub.engine.halting import Halt, blocks_of
from hub.engine.held import Held
from hub.engine.jobs import Job
from hub.engine.loras import Adapters, Outfit
from hub.engine.meeting import MeetingPoint
from hub.engine.memo import Memo
from hub.engine.protocol import EngineModel, Generate, Notice, Picture, WornLora
from hub.engine.residency import Residency
from hub.engine.streams import Streams
from hub.engine.weave import Weave
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from hub.types import Size, Task
from tests.families import parts

CPU = torch.device("cpu")
STREAMS = Streams(2, least=1)
"""Every batch is shared out, however small."""


def noise(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random picture: all frequencies of a natural one, none of its content."""
    pixels = np.random.RandomState(seed).rand(8, 8, 3) * 255
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def box_mask(width: int, height: int) -> Image.Image:
    """The middle may change. On the borders of whole latents, as the engine grows masks to these."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    return mask


def request(task: Task, size: tuple[int, int], images: list[Image.Image], mask: Image.Image | None, **wish: Any) -> Any:
    """The engine's frame."""
    return Generate(
        id=wish.pop("id", 1),
        model=EngineModel("small", "", "float32"),
        task=task,
        prompt=wish.pop("prompt"),
        seeds=[wish.pop("seed")],
        native=Size(*size),
        output=Size(*size),
        images=[Picture(*each.size, each.tobytes()) for each in images],
        mask=mask.tobytes() if mask else None,
        **wish,
    )


class Engine:
    """The weave with one model, as the worker puts it together, without the worker's process."""

    def __init__(self, folder: Path, dtype: str = "float32", *, fits: str | None = None) -> None:
        """`fits`: what the device has room for: all, or only the largest `module`, or of that a `block` at a time."""
        self.pipeline: LoadedPipeline = load_pipeline(str(folder), dtype, CPU)
        self.residency = Residency(CPU, self._limit(fits) if fits else None)
        self.rows: list[int] = []
        self.notices: list[list[Notice]] = []
        self.steps: dict[int, list[tuple[int, int]]] = {}
        self._halt = Halt(lambda picture: picture)
        self.adapters = Adapters(self.pipeline)
        memo = Memo()
        shared_methods = list(self.pipeline.shared_methods())
        for module in self.pipeline.modules.values():
            self.residency.hold(module, travels=any(module is shared.module for shared in shared_methods))
        for shared in shared_methods:
            memory = memo if shared.reading else None
            streams = STREAMS if shared.denoising else None
            point = MeetingPoint(
                *(shared.module, shared.method),
                denoising=shared.denoising,
                memo=memory,
                streams=streams,
                residency=self.residency,
                wardrobe=self.adapters.wardrobe(shared.module),
            )
            if shared.denoising:
                self._count(point)
                self._denoiser = shared.module
                self._halt.watch(shared.module)

    def _limit(self, fits: str) -> int:
        held = [Held(module) for module in self.pipeline.modules.values()]
        travels = max(each.bytes - each.fixed if fits == "module" else each.least for each in held)
        return travels + sum(each.fixed for each in held)

    def _count(self, point: MeetingPoint) -> None:
        plain = point.forward

        def counted(calls: Any) -> Any:
            self.rows.append(len(calls))
            return plain(calls)

        point.forward = counted  # type: ignore[method-assign]

    def draw_halted(self, frame: Generate) -> int:
        """Cancels the frame's picture within its third forward's first block. How many blocks were begun after that."""
        first, *others = blocks_of(self._denoiser)
        begun = [0, 0]

        def count(*_: Any) -> None:
            begun[0] += 1
            if begun[0] == 3:
                self._halt.cancel(0)

        def count_others(*_: Any) -> None:
            begun[1] += begun[0] == 3

        hooks = [first.register_forward_pre_hook(count)]
        hooks += [block.register_forward_pre_hook(count_others) for block in others]
        outcomes: dict[int, Any] = {}
        weave = Weave(64, lambda *_: None, outcomes.__setitem__, halt=self._halt)
        draw, steps, done = Job(frame, self.pipeline, lambda _: None, lambda *_: None, Residency(CPU)).body(0)
        weave.start(0, draw, steps, done=done)
        while begun[0] < 3:
            weave.tick()
        weave.cancel(0)
        self._halt.forget(0)
        for hook in hooks:
            hook.remove()
        assert not weave.busy and not outcomes
        return begun[1]

    def _outfit(self, frame: Generate) -> Outfit | None:
        for file in self.adapters.missing(frame.loras):
            self.adapters.put(file, self.adapters.wearable.read(file.name, file.path, file.identity))
        return self.adapters.outfit(frame.loras) if frame.loras else None

    def draw(self, frames: list[Generate], *, cancel: int | None = None) -> list[Any]:
        """Every frame's picture as pixels, or the exception that it ended with; all are in the weave at once.
        `cancel`: the frame that is cancelled after its second step."""
        outcomes: dict[int, Any] = {}
        self.rows.clear()
        self.notices.clear()
        self.steps = {number: [] for number in range(len(frames))}

        def on_step(number: int, done: int, total: int) -> None:
            self.steps[number].append((done, total))

        weave = Weave(64, on_step, outcomes.__setitem__, residency=self.residency)
        for number, frame in enumerate(frames):
            job = Job(frame, self.pipeline, lambda _: None, lambda *_: None, Residency(CPU), outfit=self._outfit(frame))
            self.notices.append(arguments_for(frame, self.pipeline)[1])
            draw, steps, done = job.body(0)
            weave.start(number, draw, steps, done=done)
        while weave.busy:
            weave.tick()
            if cancel is not None and len(self.steps[cancel]) >= 2:
                weave.cancel(cancel)
        return [outcomes.get(number) for number in range(len(frames))]


class Bare:
    """diffusers alone, in another copy of the weights."""

    def __init__(self, folder: Path) -> None:
        more = {"processor": parts.qwen_processor()} if Path(folder, "processor").is_dir() else {}
        self._base = diffusers.DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **more
        )
        self._base.set_progress_bar_config(disable=True)

    @contextlib.contextmanager
    def wearing(self, loras: list[WornLora]) -> Iterator[None]:
        """What is drawn within has these LoRAs, as diffusers' documentation puts them on."""
        with warnings.catch_warnings(action="ignore"), torch.inference_mode(False):  # PEFT's, of a second one
            for number, lora in enumerate(loras):
                file = Path(lora.file.path)
                self._base.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{number}")
        self._base.set_adapters([f"a{number}" for number in range(len(loras))], [lora.weight for lora in loras])
        yield
        self._base.unload_lora_weights()

    def draw(self, class_name: str, scheduler: str | None, seed: int, **arguments: Any) -> Any:
        """`pipe(...)` with a fresh pipeline of that class over the loaded modules; pixels, height x width x 3."""
        components = {**self._base.components}
        if "scheduler" in components:
            own = components["scheduler"]
            cls = getattr(diffusers, scheduler) if scheduler else type(own)
            # What every published Stable Diffusion has, and diffusers warns of where it is missing.
            more = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
            components["scheduler"] = cls.from_config(own.config, **more)
        cls = getattr(diffusers, class_name)
        takes = inspect.signature(cls.__init__).parameters
        options = {k: v for k, v in self._base.config.items() if k in takes and isinstance(v, (bool, int, float))}
        pipe = cls(**{k: v for k, v in {**options, **components}.items() if k in takes})
        pipe.set_progress_bar_config(disable=True)
        accepted = inspect.signature(cls.__call__).parameters
        sized = {"width", "height"} - set(accepted)  # where the picture decides
        given = {name: value for name, value in arguments.items() if value is not None and name not in sized}
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            images = pipe(generator=generator, output_type="np", **given).images
        return (np.asarray(images[0]).clip(0, 1) * 255).round().astype(np.uint8)
