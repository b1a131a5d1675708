"""The bare script, what one would write without a hub:  bare.py FOLDER DTYPE DEVICE [tuned]

Answers each line of JSON with a line of JSON. `{"load": FOLDER}` loads another pipeline instead. `tuned` gives it the
hub's memory layout and grad mode, so that what the hub itself adds can be told from what these gain.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image


def load(folder: str, dtype: str, device: str, tuned: bool) -> Any:
    """The pipeline, on the device."""
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    if tuned:
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pipe


def draw(pipe: Any, wish: dict[str, Any]) -> dict[str, float]:
    """One picture, saved; for `output: pt` only its tensor, and the seconds of its encoding apart."""
    start = time.perf_counter()
    size = {"width": wish["native"], "height": wish["native"]}
    made = pipe(
        prompt=wish["prompt"],
        num_inference_steps=wish["steps"],
        guidance_scale=wish["guidance"],
        generator=torch.Generator().manual_seed(wish["seed"]),
        output_type=wish["output"],
        **size,
    ).images[0]
    if wish["output"] == "pt":
        if made.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "encoding": encoding(made, wish)}
    if made.size != (wish["side"], wish["side"]):
        made = made.resize((wish["side"], wish["side"]), Image.Resampling.LANCZOS)
    made.save(wish["path"])
    return {"seconds": time.perf_counter() - start}


def encoding(made: torch.Tensor, wish: dict[str, Any]) -> float:
    """Seconds that the hub's own steps take from the tensor to the file."""
    from hub.imaging.encode import Finisher
    from hub.types import Size

    finisher = Finisher(Size(wish["side"], wish["side"]))
    start = time.perf_counter()
    pixels = made.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    finisher.encode(pixels, {})
    return time.perf_counter() - start


def main() -> None:
    """Loads, says so, and answers until the input ends."""
    folder, dtype, device, *tuned = sys.argv[1:]
    pipe = load(folder, dtype, device, bool(tuned))
    print(json.dumps({"ready": True}), flush=True)
    with torch.inference_mode() if tuned else contextlib.nullcontext():
        for line in sys.stdin:
            wish = json.loads(line)
            if "load" in wish:
                start = time.perf_counter()
                pipe = None
                pipe = load(wish["load"], dtype, device, bool(tuned))
                print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
            else:
                print(json.dumps(draw(pipe, wish)), flush=True)


if __name__ == "__main__":
    main()
