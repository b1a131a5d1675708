"""Whether the API answers while pictures are made."""

from __future__ import annotations

import http.client
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from benches.material import Model, model
from benches.peers import peer
from benches.report import Report
from benches.sides import Server, serving
from benches.throughput import mixed

INTERVAL = 0.02
CLIENTS = 8
NOTHING = """
import asyncio, sys

async def answer(reader, writer):
    while await reader.read(65536):
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""
"""A server that does nothing: what this machine's scheduler alone adds under the same load."""


def measure(report: Report) -> None:
    """GET /health, asked every 20 ms from outside: at rest, and while 8 clients generate; hf-serve's beside it."""
    small = model("small", report.options)
    with serving(small) as hub, _nothing() as idle:
        _load(hub, small)
        report.row("hub at rest", _words(_watch(hub.port, lambda: time.sleep(3))))
        seen = _under_load(hub, small, report.rounds(3), hub.port, idle)
        report.row(f"hub, {CLIENTS} clients", _words(seen[0]))
        report.row("a server that does nothing, at the same time", _words(seen[1]))
    if "hf-serve" in report.options.sides:
        with peer("hf-serve", small, report) as server:
            seen = _under_load(server, small, 1, server.port)
            report.row(f"hf-serve, {CLIENTS} clients", _words(seen[0]))
    report.note(
        "Latencies count from the moment at which a request was due, so that a long stall weighs as much as it is."
    )


def _load(server: Server, chosen: Model) -> None:
    server.burst(mixed(chosen, CLIENTS, (chosen.steps // 2, chosen.steps)))


def _under_load(server: Server, chosen: Model, bursts: int, *ports: int) -> list[list[float]]:
    """Latencies of each port while the server works."""
    over = threading.Event()
    with ThreadPoolExecutor(len(ports)) as pool:
        watching = [pool.submit(_watch, port, over.wait) for port in ports]
        for _ in range(bursts):
            _load(server, chosen)
        over.set()
        return [each.result() for each in watching]


def _watch(port: int, wait: Callable[[], Any]) -> list[float]:
    """Seconds of each GET, one due every INTERVAL until `wait` returns."""
    waiting = threading.Thread(target=wait)
    waiting.start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1200)
    latencies: list[float] = []
    due = time.perf_counter()
    while waiting.is_alive():
        due += INTERVAL
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("GET", "/health")
        connection.getresponse().read()
        latencies.append(time.perf_counter() - due)
    return latencies


def _words(latencies: Sequence[float]) -> str:
    ordered = sorted(1e3 * seconds for seconds in latencies)
    middle, late = statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))]
    return f"p50 {middle:.1f} ms, p99 {late:.1f} ms, most {ordered[-1]:.0f} ms ({len(ordered)} asked)"


@contextmanager
def _nothing() -> Iterator[int]:
    """The port of a server that does nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-c", NOTHING, str(port)])
    try:
        time.sleep(1)
        yield port
    finally:
        process.kill()
        process.wait()
