#!/usr/bin/env python3
"""Train the hub's built-in model from scratch and export it as a diffusers pipeline folder.

Downloads the pictures and names of things (npm packages) and renders them, then runs four stages, each of a given
number of steps: the autoencoder, the text encoder, the diffusion, and the decoder once more. Interrupt whenever you
like; the same command goes on from the last checkpoint. Uses a CUDA device where there is one. `--stages export` writes
the folder from whatever the latest checkpoints hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from builtin.diffusion import build_pipeline, new_nets, train_diffusion
from builtin.text import Reader, train_text, with_shapes
from builtin.things import Material, material
from builtin.tokens import write_vocabulary
from builtin.vae import train_decoder, train_vae

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("vae", "text", "diffusion", "decoder", "export")
NEEDS = {"text": ("vae",), "diffusion": ("vae", "text"), "decoder": ("vae",), "export": ("vae", "diffusion")}
"""Whose checkpoints a stage reads."""
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
"""Folders of the exported pipeline; what else of them is there when it is written goes."""


def export(work: Path, given: Material, target: Path) -> float:
    """Write the averaged weights as bf16 into ``target`` and return its size in MB.

    The files are made elsewhere and moved in one by one, so that a reader of ``target`` never sees half a file. What
    else lies in PARTS goes, what else lies beside them (README.md, LICENSE) stays.
    """
    nets = new_nets(work, Reader(given.things), with_shapes(given))
    checkpoint = torch.load(work / "diffusion.pt", map_location="cpu", weights_only=True)
    nets.load_state_dict(checkpoint["parts"]["average"])
    pipe = build_pipeline(work, given.things, nets).to(dtype=torch.bfloat16)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pipe.save_pretrained(scratch, safe_serialization=True)
        write_vocabulary(Path(scratch, "vocabulary.json"), given.things)
        _tidy(Path(scratch))
        made = {file.relative_to(scratch): file for file in sorted(Path(scratch).rglob("*")) if file.is_file()}
        for name, file in made.items():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place.with_name(place.name + ".new"))
            os.replace(place.with_name(place.name + ".new"), place)
    for file in (found for part in PARTS for found in (target / part).rglob("*") if found.is_file()):
        if file.relative_to(target) not in made:
            file.unlink()
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 1e6


def _tidy(folder: Path) -> None:
    """Takes out of the configurations what tells of this machine, and what the library does not want back."""
    for file in (folder / "model_index.json", *folder.glob("*/config.json")):
        known = json.loads(file.read_text())
        known.pop("_name_or_path", None)
        if file.parent.name == "vae":  # diffusers puts it there, and is surprised to find it
            known.pop("block_out_channels", None)
        if file.parent.name == "text_encoder":  # half floats are for the disk; a CPU wants to compute in float32
            known["dtype"] = "float32"
        file.write_text(json.dumps(known, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the stages that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "cache" / "train", help="checkpoints and sample sheets")
    parser.add_argument("--out", type=Path, default=ROOT / "cache" / "builtin", help="the pipeline folder to write")
    parser.add_argument("--stages", default=",".join(STAGES), help="which stages to run (default: all, in order)")
    parser.add_argument("--vae-steps", type=int, default=2_300)
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--diffusion-steps", type=int, default=20_000)
    parser.add_argument("--decoder-steps", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: as many as torch picks)")
    args = parser.parse_args(argv)
    wanted = args.stages.split(",")
    if unknown := set(wanted) - set(STAGES):
        parser.error(f"unknown stages {sorted(unknown)}; there are {', '.join(STAGES)}")
    for stage in (each for each in STAGES if each in wanted):
        for needed in NEEDS.get(stage, ()):
            if needed not in wanted and not (args.work / f"{needed}.pt").exists():
                parser.error(f"stage {stage} goes on from stage {needed}, which has not run in {args.work}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    if args.threads:
        torch.set_num_threads(args.threads)
    given = material(args.work)
    if "vae" in wanted:
        train_vae(args.work, given.pictures, args.vae_steps, args.seed, args.device)
    if "text" in wanted:
        train_text(args.work, given, args.text_steps, args.seed, args.device)
    if "diffusion" in wanted:
        train_diffusion(args.work, given, args.diffusion_steps, args.seed, args.device)
    if "decoder" in wanted:
        train_decoder(args.work, given.pictures, args.decoder_steps, args.seed, args.device)
    if "export" in wanted:
        print(f"{args.out}: {export(args.work, given, args.out):.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
