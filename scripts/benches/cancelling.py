"""From a client's leaving, or a job's DELETE, until the device is free."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from typing import Any

from benches import machine
from benches.material import Model, model
from benches.report import Report, milliseconds, quartiles
from benches.sides import Hub, serving, wish

QUIET, SLACK = 0.3, 0.002
"""The device is free from the moment after which its thread takes no more than SLACK s of processor time in QUIET s."""


def measure(report: Report) -> None:
    """The time until the engine's device thread rests, in forwards of the same request, by disconnect and by DELETE."""
    if sys.platform != "linux":
        report.note("Skipped: a thread's processor time is read from Linux's /proc.")
        return
    small = model("small", report.options)
    luck = random.Random(0)
    with serving(small) as hub:
        hub.draw(wish(small, 4))
        step = _forward(hub, small)
        report.row("one forward (one picture with guidance)", f"{1e3 * step:.0f} ms")
        for how in ("disconnect", "DELETE"):
            taken = [_cancel(hub, small, how, luck.uniform(0, step)) for _ in range(report.rounds(15))]
            share = [seconds / step for seconds in taken]
            late = quartiles(share)[2]
            report.row(
                f"{how}: free after, at a random moment of a step",
                f"{quartiles(share)[1]:.2f} forwards (upper quartile {late:.2f}, most {max(share):.2f}); "
                f"{milliseconds(taken)}",
                "< 1 forward",
                late < 1,
            )
    report.note(
        f"Free: the engine's device thread takes no more than {1e3 * SLACK:.0f} ms of processor time in the "
        f"{1e3 * QUIET:.0f} ms that follow. Half a forward is what is left of the running one on average."
    )


def _forward(hub: Hub, small: Model) -> float:
    """Seconds of one denoising step, from two requests of different length."""
    steps = (4, 16)
    spans = []
    for _ in range(3):
        short, long = (hub.ask(hub.connect(), hub.body(wish(small, count)))[0] for count in steps)
        spans.append((long - short) / (steps[1] - steps[0]))
    return statistics.median(spans)


def _newest(hub: Hub) -> dict[str, Any]:
    listed: list[dict[str, Any]] = json.loads(hub.get("/v1/images/jobs?limit=1")[1])["data"]
    return listed[0] if listed else {}


def _cancel(hub: Hub, small: Model, how: str, delay: float) -> float:
    """Seconds from the cancellation of a long request, well within its steps, until the device is free."""
    before = _newest(hub).get("id")
    connection = hub.connect()
    body = json.dumps(hub.body(wish(small, 900)))
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    while (job := _newest(hub)).get("id") == before or job["status"] != "in_progress":
        time.sleep(0.01)
    time.sleep(0.1 + delay)
    start = time.perf_counter()
    if how == "disconnect":
        connection.close()
    else:
        status, answer = hub.send(hub.connect(), "DELETE", f"/v1/images/jobs/{job['id']}")
        if status != 200:
            sys.exit(f"DELETE was answered {status}: {answer!r}")
    free = _free(hub.worker) - start
    if (ended := _newest(hub)["status"]) != "cancelled":
        sys.exit(f"the job is {ended}, not cancelled")
    return free


def _free(pid: int) -> float:
    """The moment from which on the device thread rests."""
    samples = [(time.perf_counter(), machine.thread_seconds(pid))]
    while True:
        time.sleep(0.001)
        samples.append((time.perf_counter(), machine.thread_seconds(pid)))
        now, used = samples[-1]
        while now - samples[0][0] > QUIET:
            if used - samples[0][1] <= SLACK:
                return samples[0][0]
            samples.pop(0)
