#!/usr/bin/env python3
"""Measure how well the built-in model follows prompts, by looking at pixels only.

Five questions, each with its gate; exits 1 when one is missed:

  shapes       is a shape's colour, its background and its position right, in combinations never drawn in training
  things       is the prompted thing named, among all names, for 300 common nouns
  pairs        are both things of "a cat and a pizza" found, each in its half
  combinations are thing, background and style right, in combinations never drawn in training
  seconds      one picture at 256x256 and at 1024x1024, the model loaded

Things are named by a classifier that was trained on real renders alone (namer.py); it is trained when it is
asked for the first time, and says how well it does on real renders itself.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import time
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from builtin.captions import Captions
from builtin.judge import ShapeSeen, grounds_of, shape_in, style_of
from builtin.namer import Namer, Renders, ranks, train_namer
from builtin.scenes import Scene, draw_scene
from builtin.things import Material, common, material
from builtin.words import SHEET
from diffusers import DiffusionPipeline
from numpy.random import Generator

ROOT = Path(__file__).resolve().parents[1]
GATES = {
    "shapes: colour": 0.95, "shapes: background": 0.95, "shapes: position": 0.95,
    "shapes: shape": 0.95,
    "things: named first of all names": 0.5, "things: among the first five": 0.8,
    "pairs: both among the first five of their half": 0.6,
    "combinations: thing, background and style": 0.6,
}  # fmt: skip
SECONDS = {256: 1.0, 1024: 2.0}
BATCH = 25
PROMPTS = 200
"""Of shapes, pairs and combinations each."""


def load(model: Path) -> DiffusionPipeline:
    """The pipeline as anyone would load it, without progress bars."""
    pipe = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Painter:
    """The model with its settings: pictures of prompts, always the same ones."""

    def __init__(self, model: Path, steps: int, guidance: float, seed: int) -> None:
        self.pipe, self.steps, self.guidance, self.seed = load(model), steps, guidance, seed

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """[n, h, w, 3] uint8; picture i always starts from noise seeded seed + i."""
        made: list[np.ndarray] = []
        for start in range(0, len(prompts), BATCH):
            batch = list(prompts[start : start + BATCH])
            noise = [torch.Generator().manual_seed(self.seed + start + i) for i in range(len(batch))]
            pictures = self.pipe(
                batch, num_inference_steps=self.steps, guidance_scale=self.guidance, generator=noise
            ).images
            made += [np.asarray(picture.convert("RGB")) for picture in pictures]
        return np.stack(made)


def shapes(paint: Painter, given: Material, count: int, rng: Generator) -> dict[str, float]:
    """Shapes on plain colours."""
    captions = Captions(given.things)
    scenes = [draw_scene(rng, len(given.things), "shape") for _ in range(count)]
    found = [shape_in(picture) for picture in paint([captions.of(scene, rng, plain=True) for scene in scenes])]
    wanted = [
        ShapeSeen(str(scene.objects[0].colour), str(scene.ground), scene.position, str(scene.objects[0].what))
        for scene in scenes
    ]
    return {
        f"shapes: {key}": float(
            np.mean([getattr(a, key) == getattr(b, key) for a, b in zip(wanted, found, strict=True)])
        )
        for key in ("colour", "background", "position", "shape")
    }


def of_things(paint: Painter, namer: Namer, given: Material, names: Sequence[str]) -> dict[str, float]:
    """Common nouns."""
    numbers = given.numbers
    found = ranks(namer, paint([f"a {name}" for name in names]), np.array([numbers[name] for name in names]))
    return {
        "things: named first of all names": float(np.mean(found == 0)),
        "things: among the first five": float(np.mean(found < 5)),
    }


def pairs(paint: Painter, namer: Namer, given: Material, names: Sequence[str], rng: Generator) -> dict[str, float]:
    """Two common nouns: the first is drawn on the left."""
    numbers = given.numbers
    asked = [tuple(str(name) for name in rng.choice(names, 2, replace=False)) for _ in range(PROMPTS)]
    pictures = paint([f"a {left} and a {right}" for left, right in asked])
    half, height = pictures.shape[2] // 2, pictures.shape[1]
    places = []
    for side, crop in enumerate((pictures[:, :, :half], pictures[:, :, half:])):
        square = crop[:, height // 4 : height // 4 + half]
        places.append(ranks(namer, square, np.array([numbers[pair[side]] for pair in asked])))
    both = np.maximum(*places)
    return {
        "pairs: both named first in their half": float(np.mean(both == 0)),
        "pairs: both among the first five of their half": float(np.mean(both < 5)),
    }


def combinations(
    paint: Painter, namer: Namer, given: Material, names: Sequence[str], rng: Generator
) -> dict[str, float]:
    """Common nouns on plain colours, in styles, that were never drawn so."""
    captions, known = Captions(given.things), set(names)
    scenes: list[Scene] = []
    while len(scenes) < PROMPTS:
        scene = draw_scene(rng, len(given.things), "thing")
        if given.things[int(scene.objects[0].what)].name in known and scene.objects[0].colour is None:
            scenes.append(scene)
    pictures = paint([captions.of(scene, rng, plain=True) for scene in scenes])
    named = ranks(namer, pictures, np.array([scene.objects[0].what for scene in scenes])) < 5
    grounds = np.array(
        [scene.ground in grounds_of(picture, scene.style) for picture, scene in zip(pictures, scenes, strict=True)]
    )
    styles = np.array(
        [scene.style in style_of(picture, str(scene.ground)) for picture, scene in zip(pictures, scenes, strict=True)]
    )
    return {
        "combinations: thing among the first five": float(named.mean()),
        "combinations: background": float(grounds.mean()),
        "combinations: style": float(styles.mean()),
        "combinations: thing, background and style": float((named & grounds & styles).mean()),
    }


def contact_sheet(paint: Painter, file: Path, columns: int = 8) -> None:
    """Draws SHEET as one PNG."""
    made = paint(SHEET)
    rows = [np.hstack(list(made[at : at + columns])) for at in range(0, len(made), columns)]
    Image.fromarray(np.vstack(rows)).save(file, optimize=True)


def seconds(paint: Painter, side: int) -> float:
    """Median of five single pictures, enlarged and written as PNG."""
    taken = []
    for _ in range(6):
        started = time.perf_counter()
        picture = Image.fromarray(paint(["a cat and a pizza on a blue background"])[0])
        picture.resize((side, side), Image.Resampling.LANCZOS).save(io.BytesIO(), "PNG")
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def on_real_renders(namer: Namer, pictures: np.ndarray, numbers: Sequence[int]) -> float:
    """How often the classifier names real renders, as varied as those it learned from."""
    which = torch.tensor(numbers)
    made = Renders(pictures).batch(torch.Generator().manual_seed(987_654_321), which)
    found = ranks(namer, (made.permute(0, 2, 3, 1) * 255).byte().numpy(), which.numpy())
    return float(np.mean(found == 0))


def main(argv: list[str] | None = None) -> int:
    """Generate, judge, time, print; 0 when every gate is reached."""
    defaults = tomllib.loads((ROOT / "models" / "builtin.toml").read_text())["defaults"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "builtin")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "cache" / "train", help="the real renders and the classifier"
    )
    parser.add_argument("--steps", type=int, default=defaults["num_inference_steps"], help="sampling steps")
    parser.add_argument("--guidance", type=float, default=defaults["guidance_scale"], help="guidance scale")
    parser.add_argument("--seed", type=int, default=1234, help="draws other prompts and other noise")
    parser.add_argument("--namer-steps", type=int, default=2_500, help="for training the classifier, once")
    parser.add_argument("--sheet", type=Path, help="only draw the contact sheet of the docs into this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)

    if args.sheet:
        contact_sheet(Painter(args.model, args.steps, args.guidance, 0), args.sheet)
        return 0
    given, names = material(args.work), common(args.work)
    namer = train_namer(args.work, given.pictures, args.namer_steps, 0)
    paint = Painter(args.model, args.steps, args.guidance, args.seed)
    rng = np.random.default_rng(args.seed)
    numbers = [given.numbers[name] for name in names]
    right = {"(the classifier on real renders)": on_real_renders(namer, given.pictures, numbers)}
    right |= shapes(paint, given, PROMPTS, rng)
    right |= of_things(paint, namer, given, names)
    right |= pairs(paint, namer, given, names, rng)
    right |= combinations(paint, namer, given, names, rng)
    taken = {side: seconds(paint, side) for side in SECONDS}
    passed = all(right[key] >= gate for key, gate in GATES.items()) and all(
        taken[side] < gate for side, gate in SECONDS.items()
    )
    if args.json:
        print(json.dumps({"right": right, "seconds": taken, "passed": passed, "steps": args.steps}))
        return 0 if passed else 1
    for key, share in right.items():
        print(f"{key:<50} {share:7.1%}  " + (f"gate {GATES[key]:.0%}" if key in GATES else ""))
    for side, second in taken.items():
        print(f"{f'one picture of {side}x{side}':<50} {second:5.2f} s  gate {SECONDS[side]} s")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
