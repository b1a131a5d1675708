#!/usr/bin/env python3
"""Measure how well the built-in model follows prompts, by looking at pixels only.

Prompts describe combinations that training never drew.  The pictures come from the plain diffusers
pipeline at its native size.  Exits 1 when the shape's colour, the background's colour or the
position is right in fewer than 95 % of them; which shape it is gets reported but decides nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from builtin_captions import caption
from builtin_data import Spec, draw_spec
from builtin_judge import Verdict, judge, score
from diffusers import DiffusionPipeline
from numpy.random import Generator

ROOT = Path(__file__).resolve().parent.parent
SECONDS_GATE = 1.5
GATE = 0.95
GATED = ("colour", "background", "position")
TIMED_SIDE = 256
BATCH = 25


def held_out_prompts(count: int, rng: Generator) -> list[tuple[str, Spec]]:
    """Prompts, each with the spec it describes; no combination among them occurs in training."""
    specs = [draw_spec(rng, held_out=True) for _ in range(count)]
    return [(caption(spec, rng, plain=True).text, spec) for spec in specs]


def load(model: Path) -> DiffusionPipeline:
    """The pipeline as anyone would load it, without progress bars."""
    pipe = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: DiffusionPipeline, prompts: list[str], seed: int, steps: int, guidance: float) -> list[Image.Image]:
    """One picture for each prompt, in batches; picture i always starts from noise seeded seed + i."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        pictures += pipe(batch, num_inference_steps=steps, guidance_scale=guidance, generator=noise).images
    return pictures


def seconds_per_picture(pipe: DiffusionPipeline, steps: int, guidance: float) -> float:
    """Median of five single pictures, enlarged to 256x256, with the model already loaded."""
    taken = []
    for i in range(6):
        started = time.perf_counter()
        (picture,) = generate(pipe, ["a red circle on a white background"], i, steps, guidance)
        picture.resize((TIMED_SIDE, TIMED_SIDE), Image.Resampling.LANCZOS)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def save_sheet(pictures: list[Image.Image], path: Path, columns: int = 10) -> None:
    """All pictures on one sheet, in the prompts' order, row by row."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    sheet.save(path)


def report(asked: list[tuple[str, Spec]], verdicts: list[Verdict]) -> tuple[dict[str, float], list[str]]:
    """The share right of each measured thing, and one line for every wrong picture."""
    scores = [score(spec, verdict) for (_, spec), verdict in zip(asked, verdicts, strict=True)]
    shares = {key: float(np.mean([one[key] for one in scores])) for key in (*GATED, "shape")}
    wrong = []
    for i, ((prompt, _), verdict, one) in enumerate(zip(asked, verdicts, scores, strict=True)):
        missed = [f"{key}={getattr(verdict, key)}" for key, right in one.items() if not right]
        if missed:
            wrong.append(f"{i}: {prompt!r}: {', '.join(missed)}")
    return shares, wrong


def main(argv: list[str] | None = None) -> int:
    """Generate, judge, time, print; 0 when every gated share and the time reach their gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "builtin")
    parser.add_argument("--prompts", type=int, default=200, help="how many held-out prompts (default 200)")
    parser.add_argument("--steps", type=int, default=18, help="sampling steps (default 18)")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance scale (default 2.5)")
    parser.add_argument("--seed", type=int, default=1234, help="draws other prompts and other noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--sheet", type=Path, help="also write all pictures to this PNG")
    args = parser.parse_args(argv)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)

    asked = held_out_prompts(args.prompts, np.random.default_rng(args.seed))
    pipe = load(args.model)
    pictures = generate(pipe, [prompt for prompt, _ in asked], args.seed, args.steps, args.guidance)
    shares, wrong = report(asked, [judge(np.asarray(picture.convert("RGB"))) for picture in pictures])
    seconds = seconds_per_picture(pipe, args.steps, args.guidance)
    if args.sheet:
        save_sheet(pictures, args.sheet)
    passed = all(shares[key] >= GATE for key in GATED) and seconds < SECONDS_GATE
    if args.json:
        facts = {"prompts": args.prompts, "steps": args.steps, "guidance": args.guidance, "right": shares}
        facts |= {"gate": GATE, "passed": passed, "seconds_per_picture": round(seconds, 3), "wrong": wrong}
        print(json.dumps(facts | {"native_size": pictures[0].size}))
        return 0 if passed else 1
    for line in wrong:
        print(line)
    width, height = pictures[0].size
    print(f"{args.prompts} held-out prompts, {args.steps} steps, guidance {args.guidance}, {width}x{height}")
    for key, share in shares.items():
        print(f"{key:<11} {share:7.1%}  " + (f"gate {GATE:.0%}" if key in GATED else "not gated"))
    print(f"one picture, enlarged to {TIMED_SIDE}x{TIMED_SIDE}: {seconds:.2f} s  gate {SECONDS_GATE} s")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
