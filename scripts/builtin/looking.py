"""What training shows the denoiser: where to look in the caption, and to hand on what is there.

Nothing of this is left in the model that ships.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from builtin.scenes import ACROSS, CELL, SQUARE, Scene
from builtin.shapes import SHAPES
from builtin.tokens import LENGTH, PATCHES

FINE = 4 * ACROSS
"""Latents on a side of a thing's picture, as its codes have it."""
CHANNELS = 128
"""Of the denoiser at the level at which attention looks at parts: its places are as large as a CELL."""
HEADS = 8
"""Of each of that level's attentions to the caption."""
QUARTERS, WHOLE = 4, 2
"""Heads that are watched: one for each quarter of a part of a large object, and some for small objects, of which a
place shows a whole part. The others are free to read words."""
NOTHING = 0
"""The caption's first token, [BOS]: where a head looks that has nothing to bring."""


class Watched:
    """An attention processor of diffusers that can keep what some of its heads look at. Written out, because on a CPU
    that learns faster than torch's fused attention."""

    def __init__(self) -> None:
        self.watched = False
        self.looked: Tensor | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        """[n, places, channels] -> the same; `looked` becomes [n, QUARTERS + WHOLE, places, tokens] log shares."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(source)), split(attn.to_v(source))
        logits = query @ key.transpose(-1, -2) * attn.scale
        if self.watched:
            self.looked = logits[:, : QUARTERS + WHOLE].float().log_softmax(-1)
        return attn.to_out[0]((logits.softmax(-1) @ value).transpose(1, 2).flatten(-2))


def watch(unet: UNet2DConditionModel) -> list[Watched]:
    """Watches the attention to captions on the way up, where it sees places as large as a CELL."""
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(Watched())
    found = [layer.transformer_blocks[0].attn2.processor for layer in unet.up_blocks[1].attentions]
    for processor in found:
        processor.watched = True
    return found


def parts_of(scenes: Sequence[Scene | None], ids: Tensor, alphas: np.ndarray, first: int) -> Tensor:
    """Which token each head looks at from each place of the picture: [n, QUARTERS + WHOLE, places], -1 where the place
    shows no part of a thing. Scenes are of one shape; for None, whose caption is empty, all is -1.

    An object lies on the grid of its parts. Of a large one, each place shows a quarter of a part, and the head for that
    quarter looks at the part, while the others look at NOTHING; of a small one it shows a whole part, which the heads
    for whole parts look at. So what attention brings is the place's content as it is, and nothing has to be chosen from
    it or shifted; a denoiser that had to, with objects of any size anywhere, drew blurred ones.

    `alphas`: [things, FINE, FINE], how much of each thing covers; `first`: the first thing's first token.
    """
    width, height = next((scene.shape for scene in scenes if scene), SQUARE)
    wanted = np.full((len(scenes), QUARTERS + WHOLE, height // CELL, width // CELL), -1)
    for rows, scene, tokens in zip(wanted, scenes, ids.numpy(), strict=True):
        for each in scene.objects if scene else ():
            number = each.what if isinstance(each.what, int) else len(alphas) - len(SHAPES) + SHAPES.index(each.what)
            at = np.flatnonzero(tokens == first + number * PATCHES)
            if not len(at) or at[0] + PATCHES > LENGTH:
                continue
            places = each.side // CELL
            across, down = np.meshgrid(np.arange(places), np.arange(places))
            x, y = across + each.left // CELL, down + each.top // CELL
            fine = (np.array([down, across]) * 2 + 1) * FINE // (2 * places)
            shown = (x >= 0) & (x < width // CELL) & (y >= 0) & (y < height // CELL) & (alphas[number][*fine] > 0.4)
            across, down, x, y = across[shown], down[shown], x[shown], y[shown]
            each_way = places // ACROSS  # places that show a part: two or one
            part = at[0] + down // each_way * ACROSS + across // each_way
            rows[:, y, x] = NOTHING
            if each_way == 1:
                rows[QUARTERS:, y, x] = part
            else:
                rows[down % 2 * 2 + across % 2, y, x] = part
    return torch.from_numpy(wanted).flatten(2)


def looking_loss(watched: Sequence[Watched], wanted: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of where the watched heads look, and the share of those that have something to bring that look
    right.

    `wanted`: [n, QUARTERS + WHOLE, places] of token numbers, -1 where anything is right.
    """
    bringing = wanted > NOTHING
    weights = torch.where(bringing, 1.0, 0.2) * (wanted >= 0)  # else most of it is about those with nothing to bring
    weights = weights / weights.sum().clamp(min=1)
    losses = [-(one.looked.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] * weights).sum() for one in watched]
    right = ((watched[-1].looked.argmax(-1) == wanted) & bringing).sum() / bringing.sum().clamp(min=1)
    return sum(losses) / len(losses), float(right)


class Painters(nn.ModuleList):
    """Read the picture off the denoiser's middle: after each attention that is watched, and after that level. Linear,
    and only there to teach it to hand on what attention brought; without them it learns that, too, but late."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(CHANNELS, channels, 1) for channels in (16, 16, 4))
        self.seen: dict[int, Tensor] = {}

    def watch(self, unet: UNet2DConditionModel) -> None:
        """From now on `loss` is about this denoiser's last forward."""
        level = unet.up_blocks[1]
        for at, module in enumerate((*level.attentions, level)):
            module.register_forward_hook(lambda _module, _given, made, at=at: self._see(at, made))

    def _see(self, at: int, made: Tensor | tuple[Tensor] | BaseOutput) -> None:
        self.seen[at] = made if isinstance(made, Tensor) else made[0]

    def loss(self, latents: Tensor) -> Tensor:
        """Mean squared error. `latents`: [n, 4, h, w], without noise."""
        wanted = F.pixel_unshuffle(latents, 2), F.pixel_unshuffle(latents, 2), latents
        return sum(F.mse_loss(paint(self.seen[at]).float(), wanted[at]) for at, paint in enumerate(self)) / len(self)
