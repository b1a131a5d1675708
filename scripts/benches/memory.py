"""Memory at rest and at its peak."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benches import machine
from benches.material import BUILTIN, model
from benches.report import Report
from benches.sides import scripting, serving, wish
from benches.throughput import mixed

API_LIMIT = 80.0


def measure(report: Report) -> None:
    """RSS of the API process at rest; peak RSS of it and of the worker, and VRAM, after bursts; the bare script's."""
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


def _peak(pid: int) -> str:
    return f"{machine.memory(pid, 'VmHWM'):.0f} MB"


@contextlib.contextmanager
def _video_memory() -> Iterator[Callable[[], float] | None]:
    if machine.device() == "cuda":
        with machine.VideoMemory().watching() as seen:
            yield lambda: seen.above
    else:
        yield None
