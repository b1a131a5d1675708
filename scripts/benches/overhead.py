"""What the hub adds to the pipeline, the encoding aside."""

from __future__ import annotations

import time

from benches.material import BUILTIN, Model, model
from benches.report import Report, milliseconds, quartiles, spread
from benches.sides import scripting, serving, wish

SHARE, FIXED = 0.01, 0.005


def measure(report: Report) -> None:
    """One request over HTTP, less its encoding, against `pipe(..., output_type="pt")` with the hub's memory layout."""
    small = model("small", report.options)
    for chosen, steps, rounds in ((BUILTIN, 4, 40), (BUILTIN, 18, 30), (small, 8, 12)):
        _measure(report, chosen, steps, report.rounds(rounds))
    report.note("Encoding: from the tensor to the file, by the hub's own code, timed within the bare script.")


def _measure(report: Report, chosen: Model, steps: int, rounds: int) -> None:
    added: list[float] = []
    shares: list[float] = []
    bare: list[float] = []
    with serving(chosen) as hub, scripting(chosen, tuned=True) as script:
        connection = hub.connect()
        for turn in range(rounds + 3):
            wanted = wish(chosen, steps)
            for name in ("bare", "hub") if turn % 2 else ("hub", "bare"):
                time.sleep(0.05)
                if name == "bare":
                    alone = script.draw(wanted, output="pt")
                else:
                    seconds, _ = hub.ask(connection, hub.body(wanted))
            if turn >= 3:
                extra = seconds - alone["encoding"] - alone["seconds"]
                added.append(extra)
                bare.append(alone["seconds"])
                shares.append((extra - FIXED) / alone["seconds"])
    middle = quartiles(shares)[1]
    report.row(
        f"{chosen.id}, {steps} steps: added, less 5 ms, as a share of the pipeline",
        f"{spread(shares, '%', 100)}; {spread(added, 'ms', 1e3)} on {milliseconds(bare)}",
        f"≤ {100 * SHARE:.0f} %",
        middle <= SHARE,
    )
