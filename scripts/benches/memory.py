"""Memory at rest and at its peak."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benches import machine
from benches.material import BUILTIN, PROGRAMS, Model, model
from benches.report import Report
from benches.sides import Hub, scripting, serving, wish
from benches.throughput import mixed

API_LIMIT = 80.0
GROWTH_LIMIT = 3.0
"""Per cent."""
WAITING = 8
SIDE = 64
"""Pixels: beside the modules there is to be room for what they compute, and for no other module."""
SHARE = 0.25


def measure(report: Report) -> None:
    """RSS and VRAM, at rest, at their peak and after many switches of models; uploads to a device that is too small."""
    if not Path("/proc/self/status").is_file():
        report.note("Skipped: memory is read from Linux's /proc.")
        return
    small = model("small", report.options)
    with serving(BUILTIN) as hub:
        time.sleep(1)
        report.at_most("API process at rest, RSS", machine.memory(hub.process.pid, "VmRSS"), API_LIMIT, "MB")
    with _video_memory() as used, serving(small) as hub:
        hub.draw(wish(small))
        report.row("worker after one picture, peak RSS", _peak(hub.worker))
        report.row("API process after one picture, peak RSS", _peak(hub.process.pid))
        hub.burst(mixed(small, 16, (4, 8)))
        report.row("worker after 16 clients at once, peak RSS", _peak(hub.worker))
        report.row("API process after 16 clients at once, peak RSS", _peak(hub.process.pid))
        hub.burst([wish(small, 2, side=1024) for _ in range(16)])
        report.row("API process after 16 answers of 1024x1024 at once, peak RSS", _peak(hub.process.pid))
        if used:
            report.row("hub, peak VRAM", f"{used():.0f} MB")
    with _video_memory() as used, scripting(small) as script:
        script.draw(wish(small))
        report.row("bare script after one picture, peak RSS", _peak(script.process.pid))
        if used:
            report.row("bare script, peak VRAM", f"{used():.0f} MB")

    _switch(report)
    _upload(report)


def _switch(report: Report) -> None:
    """A, B, A …, of which one is in memory at a time."""
    first, second, rounds = model("small", report.options), model("small-2", report.options), report.rounds(50)
    with serving(first, second, keep_alive="0") as hub:
        sizes = []
        for _ in range(rounds):
            for each in (first, second):
                hub.ask(hub.connect(), hub.body(wish(each, 1), each.id))
            hub.post(hub.connect(), "/v1/engine/unload", {"model": "*"})  # it answers when nothing is left
            sizes.append(machine.memory(hub.worker, "VmRSS"))
    settled = sizes[min(10, rounds // 2)]
    growth = 100 * (sizes[-1] - settled) / settled
    report.at_most(f"worker, RSS growth over {rounds} rounds of A, B", growth, GROWTH_LIMIT, "%")
    report.row("worker after them, no model loaded, RSS", f"{sizes[-1]:.0f} MB")


def _engine(hub: Hub) -> list[dict[str, Any]]:
    status, raw = hub.get("/v1/engine")
    if status != 200:
        sys.exit(f"/v1/engine answered {status}: {raw[:200]!r}")
    return list(json.loads(raw)["devices"])


def _upload(report: Report) -> None:
    """Requests that wait at once, on a device with room for the largest module, and the same with diffusers' offload.
    A CPU plays a device of that size, with copies in main memory."""
    small = model("small", report.options)
    steps = [taken.steps for taken in mixed(small, WAITING, (8, 24))]
    offload = _offload(small, steps)
    with serving(small) as hub:
        hub.draw(wish(small, 1, side=SIDE))
        (modules,) = ([each["bytes"] for each in loaded["modules"]] for loaded in _engine(hub)[0]["models"])
    room = math.ceil(max(modules) / 2**20) + (SIDE * SIDE * 128 * 2 * 7 >> 20) + 1
    with serving(small, device_memory_mb=str(room)) as hub:
        hub.draw(wish(small, 1, side=SIDE))
        time.sleep(3)  # until the worker has told
        before = _engine(hub)[0]
        start = time.perf_counter()
        hub.burst([wish(small, taken, side=SIDE) for taken in steps])
        seconds = time.perf_counter() - start
        time.sleep(3)
        after = _engine(hub)[0]
    uploads = after["uploads"] - before["uploads"]
    sent = after["uploaded_bytes"] - before["uploaded_bytes"]
    report.row(f"device for the test (modules: {', '.join(f'{each / 1e6:.0f}' for each in modules)} MB)", f"{room} MiB")
    for name, count, size, took in (
        ("enable_model_cpu_offload, one after another", offload["uploads"], offload["bytes"], offload["seconds"]),
        ("hub, all at once", uploads, sent, seconds),
    ):
        words = f"{count:.0f} uploads, {size / 1e6:.0f} MB, {count / WAITING:.2f} a picture"
        report.row(f"{WAITING} pictures, {min(steps)} to {max(steps)} steps: {name}", f"{words}, {took:.1f} s")
    report.at_most("hub's uploads / enable_model_cpu_offload's", uploads / offload["uploads"], SHARE, "x")


def _offload(chosen: Model, steps: list[int]) -> dict[str, float]:
    program = [sys.executable, "-P", str(PROGRAMS / "offload.py"), str(chosen.path), chosen.dtype, machine.device()]
    done = subprocess.run([*program, str(SIDE), *map(str, steps)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"offload.py failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak(pid: int) -> str:
    return f"{machine.memory(pid, 'VmHWM'):.0f} MB"


@contextlib.contextmanager
def _video_memory() -> Iterator[Callable[[], float] | None]:
    if machine.device() == "cuda":
        with machine.VideoMemory().watching() as seen:
            yield lambda: seen.above
    else:
        yield None
