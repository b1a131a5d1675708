"""Second and third training stages of the built-in model: the text encoder, then the diffusion.

The text encoder's table begins with what the autoencoder sees of each thing's picture, part by part
(`builtin.words`), so that the denoiser learns once, for all things, to put parts where a scene has them.
The words' meanings (layout, background, time, style, position, size) it first learns by answering
questions with small heads that are thrown away later: minutes that give the diffusion a text embedding
worth conditioning on from its first step. Then all learn together.

The diffusion is a rectified flow in the convention of ``DPMSolverMultistepScheduler`` with
``use_flow_sigmas``: x = (1 - s) * latent + s * noise, the UNet sees s * 1000 and predicts
noise - latent.  Its noisiest point is pure noise, hence plain white and plain black come out plain.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from builtin_data import COLOURS
from builtin_loop import Stage
from builtin_vae import save_sheet
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from builtin.scenes import LAYOUTS, PLACES, POSITIONS, SIDE, SIZES, STYLES, TIMES, Scene, draw_scene, render
from builtin.things import Material, Thing
from builtin.words import FIRST, LENGTH, PATCHES, Captions, new_tokenizer, write_tokenizer

log = logging.getLogger("train_builtin")
WIDTH = 256
CODE = 128
"""Of a token's WIDTH numbers, those that tell how its part of the picture looks."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "layout": LAYOUTS, "ground": (*COLOURS, *PLACES), "time": TIMES, "style": STYLES, "position": POSITIONS,
    "extent": SIZES, "colour": COLOURS, "second": COLOURS, "count": ("1", "2", "3", "4"),
}  # fmt: skip
BATCH = 48
POOL = 4096
FRESH_PER_STEP = 12
EMA_DECAY = 0.997
FLOW_SHIFT = 3.0
UNCONDITIONAL = 0.08


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    """An untrained two-layer CLIP text encoder: [n, 77] token ids -> [n, 77, WIDTH]."""
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=3 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=8, max_position_embeddings=LENGTH,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    ))  # fmt: skip
    embeddings = text.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=0.5)
    return text


@torch.no_grad()
def picture_codes(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> Tensor:
    """[things, PATCHES, CODE]: how each part of each thing's picture looks, and where it is transparent; the
    principal components of that, with the deviation of all together 1."""
    rows = []
    for start in range(0, len(pictures), 64):
        some = torch.from_numpy(np.array(pictures[start : start + 64])).to(device).permute(0, 3, 1, 2).float() / 255
        colours, alpha = some[:, :3], some[:, 3:]
        latents = vae.encode((colours * alpha + 0.5 * (1 - alpha)) * 2 - 1).latent_dist.mode()
        seen = torch.cat([latents, F.avg_pool2d(alpha, 4) * 2 - 1], 1)  # [n, 5, 32, 32]
        rows.append(seen.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(len(seen), PATCHES, -1))
    flat = torch.cat(rows).flatten(0, 1)
    flat = flat - flat.mean(0)
    _, sizes, components = torch.linalg.svd(flat, full_matrices=False)
    log.info("codes hold %.1f %% of the variance", 100 * float(sizes[:CODE].square().sum() / sizes.square().sum()))
    codes = flat @ components[:CODE].T
    # Small components count as well: half way between as they are and all alike.
    codes = codes / codes.std(0).sqrt()
    return (codes / codes.std()).reshape(-1, PATCHES, CODE)


@torch.no_grad()
def plant_codes(text: CLIPTextModel, tokenizer: Tokenizer, codes: Tensor) -> None:
    """Puts the codes into the table, beside which part of a picture a token is."""
    table = text.get_input_embeddings().weight
    first = tokenizer.token_to_id(chr(FIRST))
    parts = table[first : first + codes.shape[0] * PATCHES].view(codes.shape[0], PATCHES, WIDTH)
    parts[..., :CODE] = codes.to(table) * 0.8
    parts[..., CODE:] *= 0.2
    parts[..., CODE : CODE + PATCHES] += 1.5 * torch.eye(PATCHES, device=table.device)
    parts[..., CODE + PATCHES] += 1.5


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet on [n, 4, 32, 32] latents.

    ``addition_embed_type="text"`` pools the whole caption into the time embedding, so that every
    ResNet block at every resolution is told the colours and the layout.
    """
    return UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96, 144, 192), layers_per_block=1, norm_num_groups=16,
        only_cross_attention=(False, True, False, False),
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
        """[n, 77, WIDTH] -> per attribute, [n, number of its values] logits."""
        weights = (hidden @ self.queries.T).softmax(1)
        pooled = torch.einsum("nta,ntc->anc", weights, hidden)
        return [answer(pooled[i]) for i, answer in enumerate(self.answers)]


def labels(scenes: Sequence[Scene | None]) -> Tensor:
    """[n, attributes] class indices; -100, which the loss skips, where there is nothing to tell."""
    rows = []
    for scene in scenes:
        if scene is None:
            rows.append([-100] * len(ATTRIBUTES))
            continue
        place, time = scene.ground if isinstance(scene.ground, tuple) else (scene.ground, None)
        colours = [each.colour for each in scene.objects]
        told = {
            "layout": scene.layout, "ground": place, "time": time, "style": scene.style,
            "position": scene.position if scene.layout == "single" else None,
            "extent": scene.extent if scene.layout == "single" else None,
            "colour": colours[0] if colours else None, "second": colours[1] if len(colours) > 1 else None,
            "count": str(scene.count),
        }  # fmt: skip
        rows.append([-100 if told[key] is None else names.index(told[key]) for key, names in ATTRIBUTES.items()])
    return torch.tensor(rows)


def attribute_loss(logits: list[Tensor], wanted: Tensor) -> Tensor:
    """Cross-entropy averaged over the attributes; wanted: [n, attributes]."""
    parts = [F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(logits) if (wanted[:, i] >= 0).any()]
    return sum(parts) / max(1, len(parts))


class Reader:
    """Captions of scenes as token ids."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.captions = Captions(things, as_tokens=True)
        self.tokenizer = new_tokenizer(things, names=False)
        self.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=LENGTH)
        self.tokenizer.enable_truncation(LENGTH)

    def ids(self, texts: list[str]) -> Tensor:
        """[n, 77], padded just as the pipeline pads them."""
        return torch.tensor([found.ids for found in self.tokenizer.encode_batch(texts)])


def load_nets(work: Path, things: Sequence[Thing]) -> nn.ModuleDict:
    """Untrained UNet and text encoder; the text encoder as ``train_text`` left it, if it did."""
    vocabulary = new_tokenizer(things, names=False).get_vocab_size()
    nets = nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder(vocabulary)})
    if (work / "text.pt").exists():
        nets["text"].load_state_dict(torch.load(work / "text.pt", weights_only=True)["parts"]["text"])
    return nets


def train_text(work: Path, given: Material, minutes: float, seed: int, device: str) -> None:
    """Teach the text encoder what captions say; leaves ``work/text.pt``."""
    torch.manual_seed(seed)
    things, reader = given.things, Reader(given.things)
    text = new_text_encoder(reader.tokenizer.get_vocab_size()).to(device)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    plant_codes(text, reader.tokenizer, picture_codes(vae, given.pictures, device))
    heads = AttributeHeads().to(device)
    table = text.get_input_embeddings().weight
    rest = [weight for weight in text.parameters() if weight is not table]
    optimizer = torch.optim.AdamW([
        {"params": [*rest, *heads.parameters()], "rate": 1e-3}, {"params": [table], "rate": 5e-4, "weight_decay": 0.0}
    ], lr=1e-3, weight_decay=0.01)  # fmt: skip
    first = reader.tokenizer.token_to_id(chr(FIRST))
    stage = Stage("text", work, minutes, {"text": text, "heads": heads, "optimizer": optimizer})
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 10, step))
        scenes = [draw_scene(rng, len(things)) for _ in range(96)]
        texts = [reader.captions.of(scene, rng) for scene in scenes]
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / 50) * max(0.05, 1 - progress)
        logits = heads(text(reader.ids(texts).to(device))[0])
        wanted = labels(scenes).to(device)
        loss = attribute_loss(logits, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        table.grad[first:] = 0  # these questions are not about how things look
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
    """Latents of drawn scenes: encoded once, then a few replaced by new ones at every step."""

    def __init__(self, vae: AutoencoderKL, pictures: np.ndarray, seed: int, device: str, size: int = POOL) -> None:
        self.vae, self.pictures, self.device, self.size = vae, pictures, device, size
        rng = np.random.default_rng((seed, 20))
        self.scenes = [draw_scene(rng, len(pictures)) for _ in range(size)]
        self.latents = torch.cat([self.encode(self.scenes[i : i + 64]) for i in range(0, size, 64)])
        log.info("pool of %d latents, deviation %.3f", size, self.latents.std().item())
        self.oldest = 0

    @torch.no_grad()
    def encode(self, scenes: Sequence[Scene]) -> Tensor:
        """[n, 4, 32, 32] latents of the scenes' pictures."""
        pictures = torch.from_numpy(np.stack([render(scene, self.pictures) for scene in scenes]))
        pictures = pictures.permute(0, 3, 1, 2).to(self.device, memory_format=torch.channels_last) / 127.5 - 1
        return self.vae.encode(pictures).latent_dist.mode() * self.vae.config.scaling_factor

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Scene], Tensor]:
        """Replace the oldest few, then draw ``count`` scenes with their latents."""
        fresh = [draw_scene(rng, len(self.pictures)) for _ in range(FRESH_PER_STEP)]
        places = [(self.oldest + i) % self.size for i in range(FRESH_PER_STEP)]
        self.latents[places] = self.encode(fresh)
        for place, scene in zip(places, fresh, strict=True):
            self.scenes[place] = scene
        self.oldest = (self.oldest + FRESH_PER_STEP) % self.size
        chosen = rng.integers(self.size, size=count)
        return [self.scenes[i] for i in chosen], self.latents[chosen]


def flow_loss(unet: UNet2DConditionModel, latents: Tensor, hidden: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the predicted velocity, sampled mostly at the noisy end.

    A picture's colours and layout are settled while it is still nearly pure noise, so that is where the
    training looks most.
    """
    uniform = rng.random(len(latents))
    shifted = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
    sigma = np.where(rng.random(len(latents)) < 0.7, shifted, uniform).astype(np.float32)
    level = torch.from_numpy(sigma).to(latents.device)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(tuple(latents.shape), dtype=np.float32)).to(latents.device)
    steps = torch.from_numpy((sigma * 1000).astype(np.int64)).to(latents.device)
    guess = unet((1 - level) * latents + level * noise, steps, hidden).sample
    return F.mse_loss(guess.float(), noise - latents)


def build_pipeline(work: Path, things: Sequence[Thing], nets: nn.ModuleDict) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline around the given networks and the finished autoencoder."""
    write_tokenizer(work / "tokenizer", things)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=nets["text"], tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"),
        unet=nets["unet"], scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


SHEET = (
    "a cat", "a rocket", "a pizza", "a laptop", "a dog on the left", "a small owl at the top, blue background",
    "a photorealistic image of a cat programming on a laptop",
    "an oil painting of a futuristic city skyline at sunset, with flying cars",
    "a red circle on a white background", "a small blue star on the left, green background", "three apples",
    "a sailboat on the ocean at sunset", "a fox in the forest", "a castle in the mountains at night",
    "an airplane flying over a house", "a banana and a guitar on a yellow background",
)  # fmt: skip
"""Prompts of the sheets that training leaves behind."""


@torch.no_grad()
def sample_sheet(work: Path, things: Sequence[Thing], nets: nn.ModuleDict, steps: int = 14) -> None:
    """SHEET twice, with two seeds, as ``work/samples.png``."""
    pipe = build_pipeline(work, things, nets)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(list(SHEET) * 2, num_inference_steps=steps, guidance_scale=2.0, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    save_sheet(made * 2 - 1, work / "samples.png")


def train_diffusion(work: Path, given: Material, minutes: float, seed: int, device: str) -> None:
    """Train UNet and text encoder together; leaves ``work/diffusion.pt`` with averaged weights."""
    torch.manual_seed(seed)
    things = given.things
    reader, nets, heads = Reader(things), load_nets(work, things).to(device), AttributeHeads().to(device)
    if (work / "text.pt").exists():
        heads.load_state_dict(torch.load(work / "text.pt", weights_only=True)["parts"]["heads"])
    average = copy.deepcopy(nets).requires_grad_(False)
    table = nets["text"].get_input_embeddings().weight
    rest = [weight for weight in nets["text"].parameters() if weight is not table]
    optimizer = torch.optim.AdamW([
        {"params": list(nets["unet"].parameters()), "rate": 1.2e-3},
        {"params": [*rest, *heads.parameters()], "rate": 3e-4},
        {"params": [table], "rate": 1e-4, "weight_decay": 0.0},
    ], lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))  # fmt: skip
    stage = Stage("diffusion", work, minutes,
                  {"nets": nets, "average": average, "heads": heads, "optimizer": optimizer})  # fmt: skip
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    pool = LatentPool(vae.requires_grad_(False), given.pictures, seed + stage.step, device)
    recent: list[float] = []
    for step, progress in stage.steps():
        rng = np.random.default_rng((seed, 30, step))
        scenes, latents = pool.draw(rng, BATCH)
        said = [scene if rng.random() >= UNCONDITIONAL else None for scene in scenes]
        texts = ["" if scene is None else reader.captions.of(scene, rng) for scene in said]
        decay = 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / 100) * decay
        with torch.autocast(device, torch.bfloat16, enabled=HALF):
            hidden = nets["text"](reader.ids(texts).to(device))[0]
            answers = attribute_loss(heads(hidden), labels(said).to(device))
            loss = flow_loss(nets["unet"], latents, hidden, rng)
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.03 * answers).backward()
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
        if step % 250 == 249:
            sample_sheet(work, things, copy.deepcopy(average).to("cpu"))


HALF = False
"""Whether to multiply in bfloat16."""
