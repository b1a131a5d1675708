"""Many clients at once, each with another number of steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from benches.material import BUILTIN, Model, model
from benches.peers import peer as open_peer
from benches.report import Report, ratios, spread
from benches.sides import Side, Wish, check_same, scripting, serving, wish

BARE, PEER = 1.25, 1.6
"""Least gains in images/s at eight clients: over the bare loop in the same dtype, over hf-serve in float32."""
LABELS = {
    "bare": "bare loop",
    "hf-serve": "hf-serve",
    "hf-serve-float32": "hf-serve in float32",
    "example": "diffusers' server example",
    "example-threads": "the same with asyncio's threads",
}


def measure(report: Report) -> None:
    """A burst of 1, 4, 8 and 16 clients with 8 to 30 steps: images/s against the bare loop, hf-serve, the example."""
    small = model("small", report.options)
    sides = list(report.options.sides)
    peer = "hf-serve" if small.dtype == "float32" else "hf-serve-float32"
    if "hf-serve" in sides and peer not in sides:
        sides.append(peer)
    compare(report, small, sides, report.options.clients, (8, 30), gains={"bare": BARE, peer: PEER})
    if not report.options.trial:
        compare(report, BUILTIN, ["hub", "bare"], [8], (12, 26), gains={"bare": BARE})
    report.note(
        f"`small`: a Stable Diffusion with a U-Net of 25 million random parameters at {small.native}x{small.native}, "
        f"guidance of 5 to 8.5, {small.dtype} on all sides."
    )


def compare(
    report: Report,
    chosen: Model,
    names: Sequence[str],
    clients: Sequence[int],
    steps: tuple[int, int],
    *,
    gains: dict[str, float],
    guided: bool = True,
) -> dict[int, list[float]]:
    """Measures the named sides in turn; returns the hub's images/s by clients. `gains` are wanted at eight clients."""
    found = {}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name in names:
            if name == "hub":
                sides[name] = stack.enter_context(serving(chosen))
            elif name == "bare":
                sides[name] = stack.enter_context(scripting(chosen))
            else:
                sides[name] = stack.enter_context(open_peer(name, chosen, report))
        _warm_up(sides, chosen, steps, guided)
        for count in clients:
            times: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(report.rounds(7 if count <= 8 else 5)):
                wishes = mixed(chosen, count, steps, guided)
                order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
                for name in order:
                    time.sleep(0.2)  # the other side's idle threads come to rest
                    start = time.perf_counter()
                    sides[name].burst(wishes)
                    times[name].append(time.perf_counter() - start)
            found[count] = [count / seconds for seconds in times["hub"]]
            _report(report, chosen, count, times, gains if count == 8 else {})
    return found


def mixed(chosen: Model, count: int, steps: tuple[int, int], guided: bool = True) -> list[Wish]:
    """Wishes whose steps are spread evenly over the range, in an order that neither rises nor falls."""
    least, most = steps
    each = [round(least + (most - least) * (k + 0.5) / count) for k in range(count)]
    shuffled = [each[k] for k in sorted(range(count), key=lambda k: (k * 5 % 8, k))]
    base = 5.0 if chosen.guidance > 2.5 else chosen.guidance
    guidances = [base + 0.5 * (k % 8) if guided else chosen.guidance for k in range(count)]
    return [wish(chosen, taken, guidance=scale) for taken, scale in zip(shuffled, guidances, strict=True)]


def _warm_up(sides: dict[str, Side], chosen: Model, steps: tuple[int, int], guided: bool) -> None:
    """One burst on each side, of the same wishes; all sides must have drawn the same."""
    wishes = mixed(chosen, 4, (steps[0], steps[0] + 4), guided)
    drawn = {name: side.burst(wishes) for name, side in sides.items() if not name.endswith("-float32")}
    first, *others = drawn
    for name in others:
        for one, other in zip(drawn[first], drawn[name], strict=True):
            check_same(one, other, chosen.dtype, f"{first} and {name}")


def _report(report: Report, chosen: Model, count: int, times: dict[str, list[float]], gains: dict[str, float]) -> None:
    people = f"{chosen.id}, {count} client{'s' if count > 1 else ''}"
    rates = {name: [count / seconds for seconds in taken] for name, taken in times.items()}
    report.row(f"{people}: hub", spread(rates["hub"], "images/s", digits=3))
    for name in list(times)[1:]:
        middle, measured = ratios(times[name], times["hub"])
        wanted = gains.get(name)
        report.row(
            f"{people}: gain over {LABELS[name]}",
            f"{measured}; {spread(rates[name], 'images/s', digits=3)}",
            f"≥ {wanted} x" if wanted else "",
            middle >= wanted if wanted else None,
        )
