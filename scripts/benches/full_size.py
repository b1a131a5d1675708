"""Models of the published sizes with random weights, on a GPU."""

from __future__ import annotations

import time

from benches import machine
from benches.material import Model, model
from benches.report import Report, milliseconds, quartiles, ratios, spread
from benches.sides import check_same, scripting, serving, wish
from benches.throughput import compare

H100 = {"sdxl": 1.0, "klein": 0.45}
"""Seconds over HTTP at 1024x1024 on an H100."""
H100_RATE = 3.0
"""Images/s of eight clients with mixed steps, Z-Image at 512x512."""


def sdxl(report: Report) -> None:
    """SDXL at 1024x1024, 30 steps with guidance: HTTP against the bare script. Needs CUDA."""
    if _possible(report):
        _one_at_a_time(report, model("sdxl", report.options))


def klein(report: Report) -> None:
    """FLUX.2-klein-4B at 1024x1024, 4 steps: HTTP against the bare script. Needs CUDA."""
    if _possible(report):
        _one_at_a_time(report, model("klein", report.options))


def zimage(report: Report) -> None:
    """Z-Image (6B) at 512x512: one request, and eight clients with 6 to 10 steps. Needs CUDA."""
    if not _possible(report):
        return
    chosen = model("zimage", report.options)
    _one_at_a_time(report, chosen)
    rates = compare(report, chosen, ["hub", "bare"], [8], (6, 10), gains={}, guided=False)[8]
    if "H100" in (machine.gpu() or ""):
        fast = quartiles(rates)[1]
        words = spread(rates, "images/s", digits=2)
        report.row("zimage, 8 clients, on an H100", words, f"≥ {H100_RATE} images/s", fast >= H100_RATE)


def _possible(report: Report) -> bool:
    if machine.device() == "cuda" or report.options.trial:
        if report.options.short_text_encoder:
            report.note(
                "The text encoder is small (`--short-text-encoder`): it keeps its depth and width outside only."
            )
        return True
    report.note("Skipped: no CUDA device.")
    return False


def _one_at_a_time(report: Report, chosen: Model) -> None:
    times: dict[str, list[float]] = {"hub": [], "bare": []}
    with serving(chosen) as hub, scripting(chosen) as script:
        for turn in range(report.rounds(10) + 2):
            wanted = wish(chosen)
            for name in ("bare", "hub") if turn % 2 else ("hub", "bare"):
                time.sleep(0.1)
                start = time.perf_counter()
                if name == "hub":
                    drawn = hub.draw(wanted)
                    seconds = time.perf_counter() - start
                else:
                    seconds = script.draw(wanted)["seconds"]
                if turn >= 2:
                    times[name].append(seconds)
            if not turn:
                check_same(script.path.read_bytes(), drawn, chosen.dtype, chosen.id)
    limit = H100.get(chosen.id) if "H100" in (machine.gpu() or "") else None
    seconds = quartiles(times["hub"])[1]
    report.row(
        f"{chosen.id}, {chosen.native}x{chosen.native}, {chosen.steps} steps, over HTTP",
        milliseconds(times["hub"]),
        f"< {limit} s" if limit else "",
        seconds < limit if limit else None,
    )
    middle, measured = ratios(times["hub"], times["bare"], digits=3)
    report.row(
        f"{chosen.id}: hub / bare script",
        f"{measured}; bare {milliseconds(times['bare'])}",
        "≤ 1.00 x" if not report.options.trial else "",
        middle <= 1 if not report.options.trial else None,
    )
    if machine.device() == "cuda":
        for name in ("hub", "bare"):  # apart from each other: the GPU tells only what all processes use
            with machine.VideoMemory().watching() as seen:
                if name == "hub":
                    with serving(chosen) as hub:
                        hub.draw(wish(chosen))
                else:
                    with scripting(chosen) as script:
                        script.draw(wish(chosen))
            report.row(f"{chosen.id}: peak VRAM, {name}", f"{seen.above} MB")
