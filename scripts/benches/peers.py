"""Public servers, on the same models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benches import machine, material
from benches.material import Model
from benches.report import Report
from benches.sides import Server, Wish, scratch


class HfServe(Server):
    """Hugging Face's own server. `dtype` is named: left to it, half of a bfloat16 folder is loaded in float32."""

    def __init__(self, folder: Path, model: Model, report: Report, dtype: str) -> None:
        super().__init__("hf-serve", folder)
        program = str(material.peers(report).parent / "hf-serve")
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--device", machine.device(), "--dtype", dtype]
        self.start([program, "--model-dir", str(model.path), "--task", "text-to-image", *options])

    def draw(self, wanted: Wish) -> bytes:
        """One picture."""
        size = {"width": wanted.native, "height": wanted.native}
        numbers = {"num_inference_steps": wanted.steps, "guidance_scale": wanted.guidance, "seed": wanted.seed}
        body = {"inputs": wanted.prompt, "parameters": {**numbers, **size}}
        return self.post(self.connect(), "/predict", body, Accept="image/png")


class ExampleServer(Server):
    """diffusers' server example, made anew in programs/example_server.py; `threads` 0 lets asyncio decide."""

    def __init__(self, folder: Path, model: Model, report: Report, threads: int) -> None:
        super().__init__("example", folder)
        program = [str(material.peers(report)), "-P", str(material.PROGRAMS / "example_server.py")]
        self.start([*program, str(self.port), str(model.path), model.dtype, machine.device(), str(threads)])

    def draw(self, wanted: Wish) -> bytes:
        """One picture."""
        body = {
            "prompt": wanted.prompt,
            "num_inference_steps": wanted.steps,
            "guidance_scale": wanted.guidance,
            "seed": wanted.seed,
            "width": wanted.native,
            "height": wanted.native,
        }
        return self.post(self.connect(), "/v1/images/generations", body)


@contextlib.contextmanager
def peer(name: str, model: Model, report: Report) -> Iterator[Server]:
    """`hf-serve`, `hf-serve-float32`, `example` or `example-threads`, ready."""
    with scratch() as folder:
        server: Server
        if name.startswith("hf-serve"):
            server = HfServe(folder, model, report, "float32" if name.endswith("float32") else model.dtype)
        else:
            server = ExampleServer(folder, model, report, 0 if name.endswith("threads") else 1)
        try:
            server.wait_listening()
            yield server
        finally:
            server.stop()
