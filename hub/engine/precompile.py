"""Compiles one forward for arguments of one form: `python -m hub.engine.precompile ORDER.json`, started by the worker.

In a process of its own: to trace and to compile takes a minute of a Python interpreter, which the device thread would
have to share. The weights are not read: what is compiled takes them, like its arguments, when it is called.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import diffusers
import msgspec
import torch

from hub.engine.compiling import Order
from hub.engine.forms import call, example


def build(order: Order) -> torch.nn.Module:
    """The module with parameters of no particular value, laid out as the worker's are (see pipelines.loading)."""
    device = torch.device(order.device)
    cls: Any = getattr(diffusers, order.module)
    with accelerate.init_empty_weights(include_buffers=False):
        module = cls.from_config(msgspec.json.decode(order.config))
    module.to(getattr(torch, order.dtype))
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(part, name, torch.nn.Parameter(empty, requires_grad=False))
    for key, dtype in order.other_dtypes.items():
        owner, _, name = key.rpartition(".")
        tensor = getattr(module.get_submodule(owner), name)
        tensor.data = tensor.data.to(getattr(torch, dtype))
    module.to(device).eval()
    if not any(parameter.dim() > 4 for parameter in module.parameters()):
        module.to(memory_format=torch.channels_last)
    return module  # type: ignore[no-any-return]


def compile_to_file(order: Order) -> None:
    """Raises whatever torch does where it cannot."""
    torch.set_num_threads(order.threads)
    module = build(order)
    with torch.inference_mode():
        arguments = example(order.form, torch.device(order.device))
        # No guards: what the arguments must be like stands in the order's form, and the module's own state in its
        # config. Those that torch would set cannot be kept in a file, or take the worker's tensors for others.
        guards: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        forward: Any = torch.compile(call, fullgraph=True, dynamic=False, options=guards)
        compiled = forward.aot_compile(((module, arguments), {}))
    file = Path(order.file)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been deleted while this compiled
    try:
        compiled.save_compiled_function(str(unfinished))
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _end_with_parent() -> None:
    """The worker holds the other end of standard input, and writes nothing."""
    if not os.read(0, 1):
        os._exit(1)


def main() -> None:
    """Reads the order, carries it out, and ends."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m hub.engine.precompile ORDER.json\n\n{__doc__}")
    os.nice(10)  # requests go first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    compile_to_file(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order))


if __name__ == "__main__":
    main()
