"""Names the thing in a picture: the judge of the built-in model's things.

A small convolutional classifier of all names. It is trained on real renders alone, laid over plain colours and
landscapes, moved, resized, in every style, a little blurred; never on anything that a model has made. So it can be
trusted about those: what it names, it knows from the originals.
"""

from __future__ import annotations

import hashlib
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builtin.landscapes import PLACES, TIMES, landscape
from builtin.loop import Stage
from builtin.shapes import COLOURS, LUMA, NATURAL_KEEP, colour_rgb

log = logging.getLogger("train_builtin")
SIDE = 64
BATCH = 128


class Namer(nn.Module):
    """[n, 3, 64, 64] pictures, 0..1 -> [n, names] logits."""

    def __init__(self, names: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 192)
        blocks = []
        for before, after in pairwise(widths):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                nn.MaxPool2d(2),
            ]  # fmt: skip
        self.features = nn.Sequential(*blocks, nn.Conv2d(192, 256, 3, bias=False), nn.BatchNorm2d(256), nn.ReLU())
        self.answer = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256 * 4, names))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits."""
        return self.answer(self.features(pictures * 2 - 1))


class Renders:
    """Real renders, each in another way every time."""

    def __init__(self, pictures: np.ndarray) -> None:
        """`pictures`: of the things, [n, side, side, 4] uint8."""
        found = torch.from_numpy(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 255
        colours, alpha = found[:, :3] * found[:, 3:], found[:, 3:]
        self.things = F.interpolate(torch.cat([colours, alpha], 1), (96, 96), mode="area")  # alpha is multiplied in
        plain = [np.broadcast_to(colour_rgb(name), (SIDE, SIDE, 3)) for name in COLOURS]
        scenes = [landscape(place, time)[::2, ::2] for place in PLACES for time in TIMES]
        self.grounds = torch.from_numpy(np.stack([*plain, *scenes]).astype(np.float32)).permute(0, 3, 1, 2) / 255
        self.plain = len(plain)

    def batch(self, generator: torch.Generator, which: Tensor) -> Tensor:
        """[n, 3, 64, 64] pictures of these things, 0..1."""
        count = len(which)

        def random(low: float, high: float) -> Tensor:
            return torch.rand(count, generator=generator) * (high - low) + low

        size = random(0.5, 1.1)  # share of the picture's side
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / size
        theta[:, 0, 2] = random(-0.3, 0.3) / size
        theta[:, 1, 2] = random(-0.3, 0.3) / size
        grid = F.affine_grid(theta, [count, 4, SIDE, SIDE], align_corners=False)
        drawn = F.grid_sample(self.things[which], grid, align_corners=False)
        ground = torch.where(random(0, 1) < 0.35, random(self.plain, len(self.grounds)), random(0, self.plain)).long()
        ground = torch.where(random(0, 1) < 0.3, torch.tensor(COLOURS.index("white")), ground)
        made = self.grounds[ground] * (1 - drawn[:, 3:]) + drawn[:, :3]
        grey = (made * torch.from_numpy(LUMA)[:, None, None]).sum(1, keepdim=True)
        keep = torch.where(random(0, 1) < 0.1, 0.0, torch.where(random(0, 1) < 0.1, NATURAL_KEEP, 1.0))[
            :, None, None, None
        ]
        made = made * keep + grey * (1 - keep)
        soft = F.avg_pool2d(F.pad(made, (1, 1, 1, 1), mode="replicate"), 3, 1)
        blocks = F.interpolate(F.avg_pool2d(made, 2), scale_factor=2.0)
        chance = random(0, 1)[:, None, None, None]
        made = torch.where(chance < 0.3, soft, torch.where(chance > 0.9, blocks, made))
        noise = torch.randn(made.shape, generator=generator) * random(0, 0.06)[:, None, None, None]
        return (made + noise).clamp(0, 1)


def train_namer(work: Path, pictures: np.ndarray, steps: int, seed: int) -> Namer:
    """The trained classifier of these pictures, from its checkpoint in ``work``."""
    torch.manual_seed(seed)
    namer, renders = Namer(len(pictures)).to(memory_format=torch.channels_last), Renders(pictures)
    optimizer = torch.optim.AdamW(namer.parameters(), lr=2e-3, weight_decay=0.02)
    digest = hashlib.sha256(np.ascontiguousarray(pictures)).hexdigest()
    stage = Stage(f"namer-{digest[:12]}", work, steps, {"namer": namer, "optimizer": optimizer})
    for step, factor in stage.steps():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        which = torch.randint(len(pictures), (BATCH,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * factor
        made = renders.batch(generator, which).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = namer(made)
        loss = F.cross_entropy(logits.float(), which, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            right = float((logits.argmax(1) == which).float().mean())
            log.info("namer step %d loss %.3f right %.2f", step, loss.item(), right)
    return namer.eval()


@torch.no_grad()
def ranks(namer: Namer, pictures: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """At which place of all names the wanted one stands, 0 being first. `pictures`: [n, h, w, 3] uint8, the thing
    somewhere in the middle of each."""
    given = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    logits = torch.cat([namer(some) for some in F.interpolate(given, (SIDE, SIDE), mode="area").split(64)])
    own = logits.gather(1, torch.from_numpy(wanted)[:, None])
    return (logits > own).sum(1).numpy()
