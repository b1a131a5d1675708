"""Second and third training stages of the built-in model: the text encoder, then the diffusion.

The text encoder's table holds what the autoencoder sees of each thing's picture, part by part (`builtin.words`), so
the denoiser learns once, for all things, to put parts where a scene has them. It is shown where: some heads of its
attention to the caption are taught to look, from each place of the picture, at the part that belongs there, which is
known of every scene. Left alone it doesn't find out in an hour.

The words' meanings (layout, background, time, style, position, size) the text encoder first learns by answering
questions with small heads that are thrown away later. Then all learn together.

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

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from builtin.looking import CHANNELS, FINE, HEADS, Painters, looking_loss, parts_of, watch
from builtin.loop import Stage
from builtin.scenes import (
    LAYOUTS,
    PLACES,
    POSITIONS,
    SIDE,
    SIZES,
    SIZES_DRAWN,
    STYLES,
    TIMES,
    Scene,
    draw_scene,
    render,
    shape_picture,
)
from builtin.shapes import COLOURS, SHAPES
from builtin.things import Material, Thing
from builtin.vae import save_sheet
from builtin.words import FIRST, LENGTH, PATCHES, Captions, new_tokenizer, write_tokenizer

log = logging.getLogger("train_builtin")
WIDTH = 256
CODE = 80
"""Of a token's WIDTH numbers, those that tell how its part of the picture looks."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "layout": LAYOUTS, "ground": (*COLOURS, *PLACES), "time": TIMES, "style": STYLES, "position": POSITIONS,
    "extent": SIZES, "colour": COLOURS, "second": COLOURS, "count": ("1", "2", "3", "4"),
}  # fmt: skip
BATCH = 16
POOL = 2048
FRESH_PER_STEP = 4
EMA_DECAY = 0.999
FLOW_SHIFT = 3.0
UNCONDITIONAL = 0.08
LOOKING, PAINTING = 0.3, 1.0
"""Weights of what attention is taught: where to look, and to bring what is there."""


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    """An untrained two-layer CLIP text encoder: [n, LENGTH] token ids -> [n, LENGTH, WIDTH]."""
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=3 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=2, num_attention_heads=8, max_position_embeddings=LENGTH,
        bos_token_id=2, eos_token_id=3, pad_token_id=0, attn_implementation="eager",
    ))  # fmt: skip
    nn.init.normal_(text.get_input_embeddings().weight, std=0.5)
    return text


def with_shapes(given: Material) -> np.ndarray:
    """Pictures of the things, then of the shapes: [things + shapes, side, side, 4] uint8."""
    return np.concatenate([given.pictures, np.stack([shape_picture(name, SIDE) for name in SHAPES])])


@torch.no_grad()
def planted(vae: AutoencoderTiny, pictures: np.ndarray, device: str) -> Tensor:
    """[things * PATCHES, WIDTH]: the things' part of the text encoder's table.

    Of each part of a picture: how it looks and where it is transparent, as principal components with the deviation of
    all together 0.8; which part it is; and that it is one.
    """
    rows = []
    for start in range(0, len(pictures), 64):
        some = torch.from_numpy(np.array(pictures[start : start + 64])).to(device).permute(0, 3, 1, 2).float() / 255
        some = torch.cat([some[:, :3] * some[:, 3:], some[:, 3:]], 1)
        some = F.interpolate(some, (4 * FINE, 4 * FINE), mode="area")
        alpha = some[:, 3:]
        latents = vae.encode((some[:, :3] + 0.5 * (1 - alpha)) * 2 - 1).latents
        seen = torch.cat([latents, F.avg_pool2d(alpha, 4) * 2 - 1], 1)  # [n, 5, FINE, FINE]
        rows.append(seen.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(seen), PATCHES, -1))
    flat = torch.cat(rows).flatten(0, 1)
    flat = flat - flat.mean(0)
    _, _, components = torch.linalg.svd(flat, full_matrices=False)
    codes = flat @ components[:CODE].T
    codes = codes / codes.std(0).sqrt()  # small components count as well: half way between as they are and all alike
    table = 0.1 * torch.randn(len(pictures), PATCHES, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
    table[..., :CODE] = (codes / codes.std()).reshape(-1, PATCHES, CODE) * 0.8
    table[..., CODE : CODE + PATCHES] += 1.5 * torch.eye(PATCHES, device=device)
    table[..., CODE + PATCHES] += 1.5
    return table.flatten(0, 1)


class Table(nn.Module):
    """The text encoder's table while it is trained: words learn, things stay as they were planted."""

    def __init__(self, words: Tensor, things: Tensor) -> None:
        super().__init__()
        self.words = nn.Parameter(words.clone())
        self.register_buffer("things", things, persistent=False)

    @property
    def weight(self) -> Tensor:
        """[vocabulary, WIDTH], as the shipped text encoder has it."""
        return torch.cat([self.words, self.things])

    def forward(self, ids: Tensor) -> Tensor:
        """[n, length] -> [n, length, WIDTH]."""
        border = len(self.words)
        word = F.embedding(ids.clamp(max=border - 1), self.words)
        return torch.where((ids < border)[..., None], word, F.embedding((ids - border).clamp(min=0), self.things))


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


class AttributeHeads(nn.Module):
    """Reads each attribute off a caption's token embeddings; only there to teach the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), WIDTH) * WIDTH**-0.5)
        self.answers = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in ATTRIBUTES.values())

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """[n, LENGTH, WIDTH] -> per attribute, [n, number of its values] logits."""
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
    parts = [F.cross_entropy(part.float(), wanted[:, i]) for i, part in enumerate(logits) if (wanted[:, i] >= 0).any()]
    return sum(parts) / max(1, len(parts))


class Reader:
    """Captions of scenes as token ids."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.captions = Captions(things, as_tokens=True)
        self.tokenizer = new_tokenizer(things, names=False)
        self.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=LENGTH)
        self.tokenizer.enable_truncation(LENGTH)
        self.first = self.tokenizer.token_to_id(chr(FIRST))
        """The first thing's first token; all things' tokens follow it, and no other does."""

    def ids(self, texts: list[str]) -> Tensor:
        """[n, LENGTH], padded just as the pipeline pads them."""
        return torch.tensor([found.ids for found in self.tokenizer.encode_batch(texts)])


def new_nets(work: Path, reader: Reader, pictures: np.ndarray) -> nn.ModuleDict:
    """Untrained UNet and text encoder, with the things planted."""
    text = new_text_encoder(reader.tokenizer.get_vocab_size())
    vae = AutoencoderTiny.from_pretrained(work / "vae")
    words = text.get_input_embeddings().weight[: reader.first].detach()
    text.set_input_embeddings(Table(words, planted(vae, pictures, "cpu")))
    return nn.ModuleDict({"unet": new_unet(), "text": text, "heads": AttributeHeads(), "painters": Painters()})


def train_text(work: Path, given: Material, steps: int, seed: int, device: str) -> None:
    """Teach the text encoder what captions say; leaves ``work/text.pt``."""
    torch.manual_seed(seed)
    things, reader = given.things, Reader(given.things)
    nets = new_nets(work, reader, with_shapes(given)).to(device)
    text, heads = nets["text"], nets["heads"]
    optimizer = torch.optim.AdamW([*text.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    stage = Stage("text", work, steps, {"text": text, "heads": heads, "optimizer": optimizer})
    for step, factor in stage.steps():
        rng = np.random.default_rng((seed, 10, step))
        scenes = [draw_scene(rng, len(things)) for _ in range(64)]
        texts = [reader.captions.of(scene, rng) for scene in scenes]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        with torch.autocast(device, torch.bfloat16):
            logits = heads(text(reader.ids(texts).to(device))[0])
        wanted = labels(scenes).to(device)
        loss = attribute_loss(logits, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            right = [
                float((part.argmax(1) == wanted[:, i])[wanted[:, i] >= 0].float().mean())
                for i, part in enumerate(logits)
            ]
            shares = " ".join(f"{key} {share:.2f}" for key, share in zip(ATTRIBUTES, right, strict=True))
            log.info("text step %d loss %.4f right: %s", step, loss.item(), shares)


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
        vae=AutoencoderTiny.from_pretrained(work / "vae"),
        text_encoder=text, tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"),
        unet=unet, scheduler=new_scheduler(),
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


def train_diffusion(work: Path, given: Material, steps: int, seed: int, device: str) -> None:
    """Train UNet and text encoder together; leaves ``work/diffusion.pt`` with averaged weights."""
    torch.manual_seed(seed)
    things, reader, pictures = given.things, Reader(given.things), with_shapes(given)
    nets = new_nets(work, reader, pictures)
    if (work / "text.pt").exists():
        learned = torch.load(work / "text.pt", weights_only=True)["parts"]
        for name in ("text", "heads"):
            nets[name].load_state_dict(learned[name])
    nets = nets.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(nets).requires_grad_(False)
    watched = watch(nets["unet"])
    nets["painters"].watch(nets["unet"])
    alphas = F.interpolate(torch.from_numpy(pictures[..., 3]).float()[:, None] / 255, (FINE, FINE), mode="area")
    alphas = F.max_pool2d(alphas, 5, 1, 2)  # the places around a thing show how its parts end
    optimizer = torch.optim.AdamW([
        {"params": list(nets["unet"].parameters()), "rate": 8e-4},
        {"params": [*nets["text"].parameters(), *nets["heads"].parameters()], "rate": 3e-4},
        {"params": list(nets["painters"].parameters()), "rate": 8e-4},
    ], lr=8e-4, weight_decay=0.01, betas=(0.9, 0.99), fused=True)  # fmt: skip
    stage = Stage("diffusion", work, steps, {"nets": nets, "average": average, "optimizer": optimizer})
    vae = AutoencoderTiny.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    pools = [LatentPool(vae.requires_grad_(False), given.pictures, shape, seed + stage.step) for shape in SIZES_DRAWN]
    shares = list(SIZES_DRAWN.values())
    recent: list[tuple[float, ...]] = []
    for step, factor in stage.steps():
        started = time.perf_counter()
        rng = np.random.default_rng((seed, 30, step))
        scenes, latents = pools[rng.choice(len(pools), p=shares)].draw(rng, BATCH)
        said = [scene if rng.random() >= UNCONDITIONAL else None for scene in scenes]
        ids = reader.ids(["" if scene is None else reader.captions.of(scene, rng) for scene in said])
        shown = parts_of(said, ids, alphas[:, 0].numpy(), reader.first).to(device)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        with torch.autocast(device, torch.bfloat16):
            hidden = nets["text"](ids.to(device))[0]
            answers = attribute_loss(nets["heads"](hidden), labels(said).to(device))
            loss = flow_loss(nets["unet"], latents, emphasis(scenes), hidden, rng)
            looking, right = looking_loss(watched, shown)
            painting = nets["painters"].loss(latents)
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.03 * answers + LOOKING * looking + PAINTING * painting).backward()
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(nets.parameters()), 1 - keep)
        recent.append(
            (loss.item(), answers.item(), looking.item(), right, painting.item(), time.perf_counter() - started)
        )
        if step % 50 == 0:
            words = "loss %.4f text %.4f looking %.3f, at the right part %.2f, painting %.3f; %.2f s a step"
            log.info(f"diffusion step %d {words}", step, *np.mean(recent, axis=0))
            recent.clear()
        if step % 500 == 499:
            sample_sheet(work, things, average)
