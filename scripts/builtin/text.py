"""Second training stage of the built-in model: the text encoder.

Its table holds what the autoencoder sees of each thing's picture, part by part (`builtin.tokens`), so the denoiser
learns once, for all things, to put parts where a scene has them. What words mean (layout, background, time, style,
position, size) it first learns by answering questions with small heads that are thrown away later.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from builtin.captions import Captions
from builtin.landscapes import PLACES, TIMES
from builtin.looking import FINE
from builtin.loop import Stage
from builtin.scenes import LAYOUTS, POSITIONS, SIZES, STYLES, Scene, draw_scene, shape_picture
from builtin.shapes import COLOURS, SHAPES
from builtin.things import Material, Thing
from builtin.tokens import FIRST, LENGTH, PATCHES, new_tokenizer
from builtin.vae import load_vae

log = logging.getLogger("train_builtin")
WIDTH = 256
CODE = 80
"""Of a token's WIDTH numbers, those that tell how its part of the picture looks."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "layout": LAYOUTS, "ground": (*COLOURS, *PLACES), "time": TIMES, "style": STYLES, "position": POSITIONS,
    "extent": SIZES, "colour": COLOURS, "second": COLOURS, "count": ("1", "2", "3", "4"),
}  # fmt: skip


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
    side = given.pictures.shape[1]
    return np.concatenate([given.pictures, np.stack([shape_picture(name, side) for name in SHAPES])])


@torch.no_grad()
def planted(vae: AutoencoderTiny, pictures: np.ndarray) -> Tensor:
    """[things * PATCHES, WIDTH]: the things' part of the text encoder's table.

    Of each part of a picture: how it looks and where it is transparent, as principal components with the deviation of
    all together 0.8; which part it is; and that it is one.
    """
    rows = []
    for start in range(0, len(pictures), 64):
        some = torch.from_numpy(np.array(pictures[start : start + 64])).permute(0, 3, 1, 2).float() / 255
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
    table = 0.1 * torch.randn(len(pictures), PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))
    table[..., :CODE] = (codes / codes.std()).reshape(-1, PATCHES, CODE) * 0.8
    table[..., CODE : CODE + PATCHES] += 1.5 * torch.eye(PATCHES)
    table[..., CODE + PATCHES] += 1.5
    return table.flatten(0, 1)


class Table(nn.Module):
    """The text encoder's table while it is trained: words learn, things stay as they were planted."""

    def __init__(self, words: Tensor, things: Tensor) -> None:
        super().__init__()
        self.words = nn.Parameter(words.clone())
        self.register_buffer("things", things)  # in checkpoints, too: components may be found in other signs elsewhere

    @property
    def weight(self) -> Tensor:
        """[vocabulary, WIDTH], as the shipped text encoder has it."""
        return torch.cat([self.words, self.things])

    def forward(self, ids: Tensor) -> Tensor:
        """[n, length] -> [n, length, WIDTH]."""
        border = len(self.words)
        word = F.embedding(ids.clamp(max=border - 1), self.words)
        return torch.where((ids < border)[..., None], word, F.embedding((ids - border).clamp(min=0), self.things))


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


def new_trained_text(work: Path, reader: Reader, pictures: np.ndarray) -> CLIPTextModel:
    """An untrained text encoder as it is trained: the things planted in its Table."""
    text = new_text_encoder(reader.tokenizer.get_vocab_size())
    words = text.get_input_embeddings().weight[: reader.first].detach()
    text.set_input_embeddings(Table(words, planted(load_vae(work), pictures)))
    return text


def train_text(work: Path, given: Material, steps: int, seed: int, device: str) -> None:
    """Teach the text encoder what captions say; leaves ``work/text.pt``."""
    torch.manual_seed(seed)
    things, reader = given.things, Reader(given.things)
    text = new_trained_text(work, reader, with_shapes(given)).to(device)
    heads = AttributeHeads().to(device)
    optimizer = torch.optim.AdamW([*text.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    stage = Stage("text", work, steps, {"text": text, "heads": heads, "optimizer": optimizer})
    for step, factor in stage.steps():
        rng = np.random.default_rng((seed, 10, step))
        scenes = [draw_scene(rng, len(things)) for _ in range(64)]
        texts = [reader.captions.of(scene, rng) for scene in scenes]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        with torch.autocast(torch.device(device).type, torch.bfloat16):
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
