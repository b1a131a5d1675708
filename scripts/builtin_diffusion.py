"""Second and third training stages of the built-in model: the text encoder, then the diffusion.

The text encoder starts from nothing, so it first learns to answer what a caption says (shape,
colour, background, position, size, style) with small heads that are thrown away later.  That takes
minutes and gives the diffusion a text embedding worth conditioning on from its first step; it then
goes on learning jointly with the UNet.

The diffusion is a rectified flow in the convention of ``DPMSolverMultistepScheduler`` with
``use_flow_sigmas``: x = (1 - s) * latent + s * noise, the UNet sees s * 1000 and predicts
noise - latent.  Its noisiest point is pure noise, hence plain white and plain black come out plain.
"""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from builtin_captions import Caption, caption, training_caption, write_tokenizer
from builtin_data import COLOURS, POSITIONS, SHAPES, SIZES, STYLES, Spec, draw_spec, render
from builtin_loop import Stage
from builtin_vae import SIDE, save_sheet
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

log = logging.getLogger("train_builtin")
WIDTH = 128
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": COLOURS, "background": COLOURS,
    "position": POSITIONS, "size": SIZES, "style": STYLES,
}  # fmt: skip
BATCH = 48
POOL = 2048
TEXT_EVERY = 2  # the text encoder is good already; it joins in every so many steps
FRESH_PER_STEP = 6
EMA_DECAY = 0.997
FLOW_SHIFT = 3.0


def new_tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer, written to ``work/tokenizer`` from the captions' vocabulary."""
    write_tokenizer(work / "tokenizer")
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer CLIP text encoder: [n, 77] token ids -> [n, 77, 128]."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet on [n, 4, 16, 16] latents, 4.5 million parameters.

    ``addition_embed_type="text"`` pools the whole caption into the time embedding, so that every
    ResNet block at every resolution is told the colours; cross-attention alone, which is only
    affordable at the low resolutions, left the shape's colour wrong now and then.
    """
    return UNet2DConditionModel(
        sample_size=SIDE // 8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 128), layers_per_block=1, norm_num_groups=16,
        cross_attention_dim=WIDTH, attention_head_dim=4,
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


class AttributeHeads(nn.Module):
    """Reads each attribute off a caption's token embeddings; only there to teach the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), WIDTH) * WIDTH**-0.5)
        self.answers = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in ATTRIBUTES.values())

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """[n, 77, 128] -> per attribute, [n, number of its values] logits."""
        weights = (hidden @ self.queries.T).softmax(1)
        pooled = torch.einsum("nta,ntc->anc", weights, hidden)
        return [answer(pooled[i]) for i, answer in enumerate(self.answers)]


def labels(specs: list[Spec], captions: list[Caption]) -> Tensor:
    """[n, attributes] class indices; -100, which the loss skips, where the caption leaves it open."""
    rows = [
        [names.index(getattr(spec, key)) if key in said.settles else -100 for key, names in ATTRIBUTES.items()]
        for spec, said in zip(specs, captions, strict=True)
    ]
    return torch.tensor(rows)


def attribute_loss(logits: list[Tensor], wanted: Tensor) -> Tensor:
    """Cross-entropy averaged over the attributes; wanted: [n, attributes]."""
    return sum(F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(logits)) / len(logits)


def token_ids(tokenizer: CLIPTokenizer, captions: list[Caption], device: str) -> Tensor:
    """[n, 77] token ids, padded just as the pipeline pads them."""
    found = tokenizer([said.text for said in captions], padding="max_length", max_length=77, truncation=True)
    return torch.tensor(found.input_ids, device=device)


def train_text(work: Path, minutes: float, seed: int, device: str) -> None:
    """Teach the text encoder what captions say; leaves ``work/text.pt``."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(work)
    text, heads = new_text_encoder(tokenizer).to(device), AttributeHeads().to(device)
    optimizer = torch.optim.AdamW([*text.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    stage = Stage("text", work, minutes, {"text": text, "heads": heads, "optimizer": optimizer})
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 10, step))
        specs = [draw_spec(rng) for _ in range(BATCH)]
        captions = [caption(spec, rng) for spec in specs]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - progress)
        logits = heads(text(token_ids(tokenizer, captions, device))[0])
        wanted = labels(specs, captions).to(device)
        loss = attribute_loss(logits, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            right = [
                float((part.argmax(1) == wanted[:, i])[wanted[:, i] >= 0].float().mean())
                for i, part in enumerate(logits)
            ]
            shares = " ".join(f"{key} {share:.2f}" for key, share in zip(ATTRIBUTES, right, strict=True))
            log.info("text step %d loss %.4f right: %s", step, loss.item(), shares)


class LatentPool:
    """Latents of drawn pictures: encoded once, then a few replaced by new ones at every step."""

    def __init__(self, vae: AutoencoderKL, seed: int, device: str) -> None:
        self.vae, self.device = vae, device
        rng = np.random.default_rng((seed, 20))
        self.specs = [draw_spec(rng) for _ in range(POOL)]
        self.latents = torch.cat([self.encode(self.specs[i : i + 64]) for i in range(0, POOL, 64)])
        log.info("pool of %d latents, deviation %.3f", POOL, self.latents.std().item())
        self.oldest = 0

    @torch.no_grad()
    def encode(self, specs: list[Spec]) -> Tensor:
        """[n, 4, 16, 16] latents of the specs' pictures."""
        pictures = torch.from_numpy(np.stack([render(spec, SIDE) for spec in specs]))
        pictures = pictures.permute(0, 3, 1, 2).to(self.device, memory_format=torch.channels_last) / 127.5 - 1
        return self.vae.encode(pictures).latent_dist.mode() * self.vae.config.scaling_factor

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Spec], Tensor]:
        """Replace the oldest few, then draw ``count`` specs with their latents."""
        fresh = [draw_spec(rng) for _ in range(FRESH_PER_STEP)]
        places = [(self.oldest + i) % POOL for i in range(FRESH_PER_STEP)]
        self.latents[places] = self.encode(fresh)
        for place, spec in zip(places, fresh, strict=True):
            self.specs[place] = spec
        self.oldest = (self.oldest + FRESH_PER_STEP) % POOL
        chosen = rng.integers(POOL, size=count)
        return [self.specs[i] for i in chosen], self.latents[chosen]


def flow_loss(unet: UNet2DConditionModel, latents: Tensor, hidden: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the predicted velocity, sampled mostly at the noisy end.

    A flat picture's colours are settled while it is still nearly pure noise, so that is where the
    training looks most.
    """
    uniform = rng.random(len(latents))
    shifted = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
    sigma = np.where(rng.random(len(latents)) < 0.8, shifted, uniform).astype(np.float32)
    level = torch.from_numpy(sigma).to(latents.device)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape), dtype=np.float32)).to(latents.device)
    steps = torch.from_numpy((sigma * 1000).astype(np.int64)).to(latents.device)
    guess = unet((1 - level) * latents + level * noise, steps, hidden).sample
    return F.mse_loss(guess, noise - latents)


def build_pipeline(work: Path, nets: nn.ModuleDict) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline around the given networks and the finished autoencoder."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=nets["text"], tokenizer=new_tokenizer(work),
        unet=nets["unet"], scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def sample_sheet(work: Path, nets: nn.ModuleDict) -> None:
    """Pictures for 32 held-out captions, always the same ones, as ``work/samples.png``."""
    pipe = build_pipeline(work, nets)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(5)
    prompts = [caption(draw_spec(rng, held_out=True), rng, plain=True).text for _ in range(32)]
    (work / "samples.txt").write_text("\n".join(prompts) + "\n")
    made = pipe(prompts, num_inference_steps=16, guidance_scale=3.0, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    save_sheet(made * 2 - 1, work / "samples.png")


def load_nets(work: Path) -> nn.ModuleDict:
    """Untrained UNet and text encoder; the text encoder as ``train_text`` left it, if it did."""
    nets = nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder(new_tokenizer(work))})
    if (work / "text.pt").exists():
        nets["text"].load_state_dict(torch.load(work / "text.pt", weights_only=True)["parts"]["text"])
    return nets


def train_diffusion(work: Path, minutes: float, seed: int, device: str) -> None:
    """Train UNet and text encoder together; leaves ``work/diffusion.pt`` with averaged weights."""
    torch.manual_seed(seed)
    tokenizer, nets, heads = new_tokenizer(work), load_nets(work).to(device), AttributeHeads().to(device)
    if (work / "text.pt").exists():
        heads.load_state_dict(torch.load(work / "text.pt", weights_only=True)["parts"]["heads"])
    average = copy.deepcopy(nets).requires_grad_(False)
    rates = {"unet": 1e-3, "text": 2e-4, "heads": 2e-4}
    groups = [{"params": list(part.parameters()), "name": name} for name, part in (*nets.items(), ("heads", heads))]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    stage = Stage("diffusion", work, minutes,
                  {"nets": nets, "average": average, "heads": heads, "optimizer": optimizer})  # fmt: skip
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    pool = LatentPool(vae.requires_grad_(False), seed + stage.step, device)
    recent: list[float] = []
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 30, step))
        specs, latents = pool.draw(rng, BATCH)
        captions = [training_caption(spec, rng) for spec in specs]
        decay = 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]] * min(1.0, (step + 1) / 100) * decay
        with torch.set_grad_enabled(step % TEXT_EVERY == 0):
            hidden = nets["text"](token_ids(tokenizer, captions, device))[0]
            answers = attribute_loss(heads(hidden), labels(specs, captions).to(device))
        loss = flow_loss(nets["unet"], latents, hidden, rng)
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.05 * answers).backward()
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(nets.parameters()), 1 - keep)
        recent.append(loss.item())
        if step % 50 == 0:
            log.info("diffusion step %d loss %.4f text %.4f (%d threads)",
                     step, np.mean(recent), answers.item(), torch.get_num_threads())  # fmt: skip
            recent.clear()
        if step % 300 == 299:
            sample_sheet(work, copy.deepcopy(average).to("cpu"))
