"""Cold start: until the port listens, the engine is ready, the first picture is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benches.material import BUILTIN, model
from benches.peers import peer
from benches.report import Report, milliseconds, quartiles, ratios
from benches.sides import Bare, Hub, scratch, wish

LISTENING, READY = 0.6, 1.1
IMPORT = "import torch; from diffusers import DiffusionPipeline"


def measure(report: Report) -> None:
    """Starts, with warm file caches: listening, ready, first picture; against the bare script and hf-serve."""
    chosen = BUILTIN if not report.options.trial else model("small", report.options)
    times: dict[str, list[float]] = {name: [] for name in ("listening", "ready", "import", "hub", "bare", "hf-serve")}
    for _ in range(report.rounds(5)):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True)
        times["import"].append(time.perf_counter() - start)
        with scratch() as folder:
            hub = Hub(folder, chosen)
            try:
                times["listening"].append(hub.wait_listening())
                hub.draw(wish(chosen))  # sent at once: it waits for the engine
                times["hub"].append(time.perf_counter() - hub.started)
            finally:
                hub.stop()
        with scratch() as folder:
            hub = Hub(folder, chosen)
            try:
                times["ready"].append(hub.wait_ready())
                torch_found = "libtorch" in Path(f"/proc/{hub.process.pid}/maps").read_text()
            finally:
                hub.stop()
        with scratch() as folder:
            bare = Bare(folder, chosen)
            bare.draw(wish(chosen))
            times["bare"].append(time.perf_counter() - bare.started)
            bare.stop()
        if "hf-serve" in report.options.sides:
            with peer("hf-serve", chosen, report) as server:
                server.draw(wish(chosen))
                times["hf-serve"].append(time.perf_counter() - server.started)
    listening = quartiles(times["listening"])
    report.row("listening", milliseconds(times["listening"]), f"≤ {LISTENING} s", listening[1] <= LISTENING)
    middle, measured = ratios(times["ready"], times["import"])
    report.row("engine ready / `import torch, diffusers`", measured, f"≤ {READY} x", middle <= READY)
    report.row("the same in time", f"{milliseconds(times['ready'])} against {milliseconds(times['import'])}")
    report.row("start to first picture, hub", milliseconds(times["hub"]))
    report.row("start to first picture, bare script", milliseconds(times["bare"]))
    if times["hf-serve"]:
        report.row("start to first picture, hf-serve (it warms up before it listens)", milliseconds(times["hf-serve"]))
    report.row("torch in the API process", "yes" if torch_found else "no", "no", not torch_found)
