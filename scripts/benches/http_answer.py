"""A whole answer over HTTP against what the bare script does for the same picture."""

from __future__ import annotations

import base64
import time

from benches.material import BUILTIN
from benches.report import Report, milliseconds, ratios
from benches.sides import check_same, scripting, serving, wish

TARGETS = {256: 1.02, 1024: 1.00}
"""Largest allowed ratio of the hub to the bare script, by the answer's side in pixels."""


def measure(report: Report) -> None:
    """One request over HTTP against `pipe(...)` and `image.save(...)`, in base64 and as a link, built-in model."""
    with serving(BUILTIN) as hub, scripting(BUILTIN) as script:
        connection = hub.connect()
        for side, limit in TARGETS.items():
            for response_format in ("b64_json", "url"):
                times: dict[str, list[float]] = {"bare": [], "hub": []}
                for turn in range(report.rounds(30) + 3):
                    wanted, taken = wish(BUILTIN, side=side), {}
                    for name in ("bare", "hub") if turn % 2 else ("hub", "bare"):
                        time.sleep(0.05)  # the other side's idle threads come to rest
                        if name == "bare":
                            taken[name] = script.draw(wanted)["seconds"]
                        else:
                            body = hub.body(wanted, response_format=response_format)
                            taken[name], answer = hub.ask(connection, body)
                    if turn >= 3:  # the first ones warm up
                        for name, seconds in taken.items():
                            times[name].append(seconds)
                if response_format == "b64_json":
                    drawn = base64.b64decode(answer["data"][0]["b64_json"])
                    check_same(script.path.read_bytes(), drawn, BUILTIN.dtype, "http")
                middle, measured = ratios(times["hub"], times["bare"], digits=3)
                words = f"{milliseconds(times['hub'])} against {milliseconds(times['bare'])}"
                label = f"{side}x{side}, {response_format}: hub / bare"
                report.row(label, f"{measured}; {words}", f"≤ {limit:.2f} x", middle <= limit)
