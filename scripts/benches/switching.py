"""Another model and back: A, B, A."""

from __future__ import annotations

import time

from benches.material import model
from benches.report import Report, milliseconds, ratios
from benches.sides import Hub, scripting, serving, wish

STEPS = 4


def measure(report: Report) -> None:
    """The first request after a switch of models, against one without a switch, and against loading in a script."""
    first, second = model("small", report.options), model("small-2", report.options)
    times: dict[str, list[float]] = {name: [] for name in ("stay", "switch", "bare")}

    def ask(hub: Hub, name: str) -> float:
        time.sleep(0.05)
        return hub.ask(hub.connect(), hub.body(wish(first, STEPS), name))[0]

    with serving(first, second) as hub, scripting(first) as script:
        cold = {name: ask(hub, name) for name in (first.id, second.id)}
        for _ in range(report.rounds(9)):
            ask(hub, first.id)
            times["stay"].append(ask(hub, first.id))
            ask(hub, second.id)
            times["switch"].append(ask(hub, first.id))
            script.load(second)
            time.sleep(0.05)
            times["bare"].append(script.load(first) + script.draw(wish(first, STEPS))["seconds"])
    report.row("first request of all to A", f"{1e3 * cold[first.id]:.0f} ms")
    report.row("first request to B, while A stays loaded", f"{1e3 * cold[second.id]:.0f} ms")
    report.row(f"A after A, {STEPS} steps", milliseconds(times["stay"]))
    report.row("A after B", milliseconds(times["switch"]))
    report.row("A after B / A after A", ratios(times["switch"], times["stay"])[1])
    report.row("a script that holds one pipeline and loads A again", milliseconds(times["bare"]))
