"""diffusers' own offload, one picture after another:  offload.py FOLDER DTYPE DEVICE SIDE STEPS...

Draws a picture of each number of steps with `enable_model_cpu_offload`, and prints as JSON how often a module was
brought to the device, how many bytes that was, and the seconds of it all. On a CPU its hooks run as they would, and
nothing is copied.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline

brought: list[int] = []
"""Bytes, of each time."""
away: set[int] = set()


def counted_init(hook: Any, module: Any, plain: Any = CpuOffload.init_hook) -> Any:
    """The hook sends its module away."""
    away.add(id(module))
    return plain(hook, module)


def counted_forward(hook: Any, module: Any, *args: Any, plain: Any = CpuOffload.pre_forward, **kwargs: Any) -> Any:
    """The hook brings its module, where it is away."""
    if id(module) in away:
        away.remove(id(module))
        brought.append(sum(each.numel() * each.element_size() for each in module.parameters()))
    return plain(hook, module, *args, **kwargs)


def main() -> None:
    """Draws and counts."""
    folder, dtype, device, side, *steps = sys.argv[1:]
    CpuOffload.init_hook, CpuOffload.pre_forward = counted_init, counted_forward
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload(device=device)
    start = time.perf_counter()
    for number, count in enumerate(steps):
        generator = torch.Generator().manual_seed(number)
        pipe("a cat", num_inference_steps=int(count), width=int(side), height=int(side), generator=generator)
    print(json.dumps({"uploads": len(brought), "bytes": sum(brought), "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
