"""Third training stage of the built-in model: the diffusion.

The denoiser is shown where each thing's parts belong: some heads of its attention to the caption are taught to look,
from each place of the picture, at the part that it shows, which is known of every scene (`builtin.looking`). Left
alone it doesn't find out in an hour. The text encoder learns on with it.

The diffusion is a rectified flow in the convention of ``DPMSolverMultistepScheduler`` with
``use_flow_sigmas``: x = (1 - s) * latent + s * noise, the UNet sees s * 1000 and predicts
noise - latent. Its noisiest point is pure noise, hence plain white and plain black come out plain.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.random import Generator
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from builtin.looking import CHANNELS, FINE, HEADS, Painters, looking_loss, parts_of, watch
from builtin.loop import Stage
from builtin.scenes import SIDE, SIZES_DRAWN, Scene, draw_scene, render
from builtin.text import (
    WIDTH,
    AttributeHeads,
    Reader,
    attribute_loss,
    labels,
    new_text_encoder,
    new_trained_text,
    with_shapes,
)
from builtin.things import Material, Thing
from builtin.tokens import write_tokenizer
from builtin.vae import load_vae, save_sheet
from builtin.words import SHEET

log = logging.getLogger("train_builtin")
BATCH = 16
POOL = 2048
FRESH_PER_STEP = 4
EMA_DECAY = 0.999
FLOW_SHIFT = 3.0
UNCONDITIONAL = 0.08
ANSWERING, LOOKING, PAINTING = 0.03, 0.3, 1.0
"""Weights of what is taught beside drawing: to tell what was said, where to look, and to bring what is there."""


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet on [n, 4, 32, 32] latents.

    ``addition_embed_type="text"`` pools the whole caption into the time embedding, so that every
    ResNet block at every resolution is told the colours and the layout.
    """
    return UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, CHANNELS, 192), layers_per_block=1, norm_num_groups=16,
        only_cross_attention=(False, True, False),
        cross_attention_dim=WIDTH, attention_head_dim=(4, HEADS, 4),  # diffusers means the number of heads
        addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler that ships with the model: deterministic, flow sigmas denser at the noisy end."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
        solver_order=2,
        steps_offset=1,  # unused with flow sigmas, but the pipeline warns about 0
    )


def new_nets(work: Path, reader: Reader, pictures: np.ndarray) -> nn.ModuleDict:
    """Untrained UNet and text encoder, with the things planted, and what teaches them."""
    text = new_trained_text(work, reader, pictures)
    return nn.ModuleDict({"unet": new_unet(), "text": text, "heads": AttributeHeads(), "painters": Painters()})


class LatentPool:
    """Latents of drawn scenes of one shape: encoded once, then a few replaced by new ones at every step."""

    def __init__(self, vae: AutoencoderTiny, pictures: np.ndarray, shape: tuple[int, int], seed: int) -> None:
        self.vae, self.pictures, self.shape = vae, pictures, shape
        size = round(POOL * SIZES_DRAWN[shape])
        self.scenes = self._draw(np.random.default_rng((seed, 20, *shape)), size)
        self.latents = torch.cat([self._encode(self.scenes[i : i + 64]) for i in range(0, size, 64)])
        self.oldest = 0

    def _draw(self, rng: np.random.Generator, count: int) -> list[Scene]:
        return [draw_scene(rng, len(self.pictures), shape=self.shape) for _ in range(count)]

    @torch.no_grad()
    def _encode(self, scenes: Sequence[Scene]) -> Tensor:
        """[n, 4, height / 4, width / 4] latents of the scenes' pictures."""
        pictures = torch.from_numpy(np.stack([render(scene, self.pictures) for scene in scenes]))
        pictures = pictures.permute(0, 3, 1, 2).to(self.vae.device, memory_format=torch.channels_last) / 127.5 - 1
        return self.vae.encode(pictures).latents

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Scene], Tensor]:
        """Replace the oldest few, then draw ``count`` scenes with their latents."""
        places = [(self.oldest + i) % len(self.scenes) for i in range(FRESH_PER_STEP)]
        fresh = self._draw(rng, FRESH_PER_STEP)
        self.latents[places] = self._encode(fresh)
        for place, scene in zip(places, fresh, strict=True):
            self.scenes[place] = scene
        self.oldest = (self.oldest + FRESH_PER_STEP) % len(self.scenes)
        chosen = rng.integers(len(self.scenes), size=count)
        return [self.scenes[i] for i in chosen], self.latents[chosen]


def emphasis(scenes: Sequence[Scene]) -> Tensor:
    """How much each latent counts: [n, 1, height / 4, width / 4], 1 on average. Those of objects count more, those of
    small ones most; else a small star's five tips are lost in the error of the ground."""
    width, height = (side // 4 for side in scenes[0].shape)
    weights = np.ones((len(scenes), 1, height, width), np.float32)
    for (plane,), scene in zip(weights, scenes, strict=True):
        for each in scene.objects:
            left, top, side = each.left // 4, each.top // 4, each.side // 4
            plane[max(top, 0) : top + side, max(left, 0) : left + side] += 0.5 * SIDE / each.side
    return torch.from_numpy(weights / weights.mean())


def flow_loss(
    unet: UNet2DConditionModel, latents: Tensor, weights: Tensor, hidden: Tensor, rng: np.random.Generator
) -> Tensor:
    """Weighted mean squared error of the predicted velocity, sampled mostly at the noisy end.

    A picture's colours and layout are settled while it is still nearly pure noise, so that is where the
    training looks most.
    """
    uniform = rng.random(len(latents))
    shifted = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
    sigma = np.where(rng.random(len(latents)) < 0.7, shifted, uniform).astype(np.float32)
    level = torch.from_numpy(sigma).to(latents.device)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape), dtype=np.float32)).to(latents.device)
    steps = torch.from_numpy((sigma * 1000).astype(np.int64)).to(latents.device)
    noisy = ((1 - level) * latents + level * noise).contiguous(memory_format=torch.channels_last)
    guess = unet(noisy, steps, hidden).sample
    return F.mse_loss(guess.float(), noise - latents, weight=weights.to(latents.device).expand_as(latents))


def shipped(nets: nn.ModuleDict) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The networks as they ship: nothing watched, the table whole."""
    unet = new_unet()
    unet.load_state_dict(nets["unet"].state_dict())
    table = nets["text"].get_input_embeddings().weight.detach().cpu()
    text = new_text_encoder(len(table))
    state = {key: value for key, value in nets["text"].state_dict().items() if "token_embedding" not in key}
    text.load_state_dict(state | {"embeddings.token_embedding.weight": table})
    return unet.eval(), text.eval()


def build_pipeline(work: Path, things: Sequence[Thing], nets: nn.ModuleDict) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline around the given networks and the finished autoencoder."""
    write_tokenizer(work / "tokenizer", things)
    unet, text = shipped(nets)
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=text, tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"),
        unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def sample_sheet(work: Path, things: Sequence[Thing], nets: nn.ModuleDict, steps: int = 14) -> None:
    """SHEET as ``work/samples.png``."""
    pipe = build_pipeline(work, things, nets)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(list(SHEET), num_inference_steps=steps, guidance_scale=2.0, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    save_sheet(made * 2 - 1, work / "samples.png")


class Lessons:
    """What each step learns from: scenes of one shape, what is said of them, and where to look."""

    def __init__(self, reader: Reader, given: Material, vae: AutoencoderTiny, seed: int) -> None:
        self.reader = reader
        self.pools = [LatentPool(vae, given.pictures, shape, seed) for shape in SIZES_DRAWN]
        alphas = torch.from_numpy(with_shapes(given)[..., 3]).float()[:, None] / 255
        alphas = F.interpolate(alphas, (FINE, FINE), mode="area")
        self.alphas = F.max_pool2d(alphas, 5, 1, 2)[:, 0].numpy()  # the places around a thing show how its parts end

    def draw(self, rng: Generator) -> Lesson:
        """BATCH scenes; of some the caption is empty, for guidance."""
        pool = self.pools[rng.choice(len(self.pools), p=list(SIZES_DRAWN.values()))]
        scenes, latents = pool.draw(rng, BATCH)
        said = [scene if rng.random() >= UNCONDITIONAL else None for scene in scenes]
        ids = self.reader.ids(["" if scene is None else self.reader.captions.of(scene, rng) for scene in said])
        return Lesson(latents, emphasis(scenes), ids, labels(said), parts_of(said, ids, self.alphas, self.reader.first))


class Lesson(NamedTuple):
    """`latents`: [n, 4, h, w], and `weights` of their errors; `ids`: of the captions; `answers`: `labels` of the
    scenes; `shown`: `parts_of` them."""

    latents: Tensor
    weights: Tensor
    ids: Tensor
    answers: Tensor
    shown: Tensor

    def to(self, device: str) -> Lesson:
        """The same on a device."""
        return Lesson(*(part.to(device) for part in self))


def train_diffusion(work: Path, given: Material, steps: int, seed: int, device: str) -> None:
    """Train UNet and text encoder together; leaves ``work/diffusion.pt`` with averaged weights."""
    torch.manual_seed(seed)
    reader = Reader(given.things)
    nets = new_nets(work, reader, with_shapes(given))
    learned = torch.load(work / "text.pt", weights_only=True)["parts"]
    for name in ("text", "heads"):
        nets[name].load_state_dict(learned[name])
    nets = nets.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(nets).requires_grad_(False)
    watched = watch(nets["unet"])
    nets["painters"].watch(nets["unet"])
    optimizer = new_optimizer(nets)
    stage = Stage("diffusion", work, steps, {"nets": nets, "average": average, "optimizer": optimizer})
    vae = load_vae(work).to(device, memory_format=torch.channels_last).requires_grad_(False)
    lessons = Lessons(reader, given, vae, seed + stage.step)
    recent: list[tuple[float, ...]] = []
    for step, factor in stage.steps():
        started = time.perf_counter()
        rng = np.random.default_rng((seed, 30, step))
        lesson = lessons.draw(rng).to(device)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            hidden = nets["text"](lesson.ids)[0]
            answers = attribute_loss(nets["heads"](hidden), lesson.answers)
            loss = flow_loss(nets["unet"], lesson.latents, lesson.weights, hidden, rng)
            looking, right = looking_loss(watched, lesson.shown)
            painting = nets["painters"].loss(lesson.latents)
        optimizer.zero_grad(set_to_none=True)
        (loss + ANSWERING * answers + LOOKING * looking + PAINTING * painting).backward()
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(nets.parameters()), 1 - keep)
        taken = time.perf_counter() - started
        recent.append((loss.item(), answers.item(), looking.item(), right, painting.item(), taken))
        if step % 50 == 0:
            log.info("diffusion step %d loss %.4f text %.4f looking %.3f, at the right part %.2f, painting %.3f; "
                     "%.2f s a step", step, *np.mean(recent, axis=0))  # fmt: skip
            recent.clear()
        if step % 500 == 499:
            sample_sheet(work, given.things, average)


def new_optimizer(nets: nn.ModuleDict) -> torch.optim.AdamW:
    """Each group's `rate` is its learning rate before the last quarter of the steps."""
    groups = [
        {"params": list(nets["unet"].parameters()), "rate": 8e-4},
        {"params": [*nets["text"].parameters(), *nets["heads"].parameters()], "rate": 3e-4},
        {"params": list(nets["painters"].parameters()), "rate": 8e-4},
    ]
    return torch.optim.AdamW(groups, lr=8e-4, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
