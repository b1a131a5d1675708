"""Measures the hub on this machine, always as a ratio: both sides in one run, in turn, on the same pictures.

  http         one request over HTTP against the bare script (`pipe(...)` and `image.save(...)`)
  concurrent   eight unlike requests at once against the same eight one after another
  startup      time until the port listens; the idle API process's memory; whether it holds torch

Quote the medians; on a noisy machine run it again. Exits 1 when a target of docs/benchmarks.md is missed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "builtin"
PROMPT = "a red circle on a white background"
MANIFEST = tomllib.loads((ROOT / "models" / "builtin.toml").read_text())
STEPS, GUIDANCE = MANIFEST["defaults"]["num_inference_steps"], MANIFEST["defaults"]["guidance_scale"]
NATIVE = int(MANIFEST["size"]["native"].partition("x")[0])
HTTP_TARGETS = {256: 1.02, 1024: 1.00}
"""Largest allowed ratio of the hub to the bare script, by the answer's side in pixels."""
missed: list[str] = []
"""Targets that this run did not meet; any makes the command fail."""

BARE = """
import json, sys, time
import torch
from PIL import Image
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]), local_files_only=True)
pipe.set_progress_bar_config(disable=True)
print("ready", flush=True)
for line in sys.stdin:
    wish = json.loads(line)
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(wish["seed"])
    image = pipe(wish["prompt"], num_inference_steps=wish["steps"], guidance_scale=wish["guidance"],
                 width=wish["native"], height=wish["native"], generator=generator).images[0]
    if image.size != (wish["side"], wish["side"]):
        image = image.resize((wish["side"], wish["side"]), Image.Resampling.LANCZOS)
    image.save(wish["path"])
    print(time.perf_counter() - start, flush=True)
"""


class Hub:
    """A `hub serve` process and one kept-alive connection to it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.started = time.perf_counter()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HUB_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hub", "serve", "--port", str(self.port)],
            cwd=folder,
            env={**environment, "HUB_CACHE_DIR": str(folder / "cache"), "HUB_LOG_LEVEL": "warning"},
        )

    def wait_listening(self) -> float:
        """Seconds from the process's start until it accepts a connection."""
        while True:
            if self.process.poll() is not None:
                sys.exit("the hub did not start")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return time.perf_counter() - self.started
            time.sleep(0.005)

    def wait_ready(self) -> None:
        """Returns when the engine takes requests."""
        while self.get("/ready") != 200:
            time.sleep(0.05)

    def get(self, path: str) -> int:
        """The status of a GET on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, open already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.connect()
        return connection


def ask(connection: http.client.HTTPConnection, **body: Any) -> tuple[float, dict[str, Any]]:
    """One request on a kept-alive connection: seconds until the whole answer is here, and the answer."""
    start = time.perf_counter()
    connection.request(
        "POST", "/v1/images/generations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    raw = answer.read()
    seconds = time.perf_counter() - start
    if answer.status != 200:
        sys.exit(f"the hub answered {answer.status}: {raw[:500]!r}")
    return seconds, json.loads(raw)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a fresh cache, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        hub = Hub(Path(folder))
        try:
            hub.wait_listening()
            hub.wait_ready()
            yield hub
        finally:
            hub.process.terminate()
            hub.process.wait(30)


@contextlib.contextmanager
def bare_script() -> Iterator[subprocess.Popen[str]]:
    """The bare script with its pipeline loaded; it answers each line of JSON with its seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", BARE, str(MODEL), MANIFEST["dtype"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            sys.exit("the bare script did not start; is models/builtin whole?")
        yield process
    finally:
        process.kill()
        process.wait()


def bare(process: subprocess.Popen[str], seed: int, side: int, path: Path) -> float:
    """One picture by the bare script: seconds of `pipe` and `save`."""
    wish = {
        "prompt": PROMPT,
        "seed": seed,
        "side": side,
        "native": NATIVE,
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({**wish, "path": str(path)}) + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def summary(label: str, numbers: Sequence[float], unit: str = "ms", scale: float = 1e3) -> str:
    """A line with the median, minimum and maximum of `numbers`, each times `scale`."""
    low, middle, high = (value * scale for value in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{label:<34}{middle:9.1f} {unit}   (min {low:.1f}, max {high:.1f})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratio, pair by pair."""
    pairs = [one / other for one, other in zip(numerators, denominators, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return low, middle, high


def bench_http(rounds: int, sides: Sequence[int]) -> None:
    """HTTP against the bare script, at each answer size, with base64 in the answer and with a link."""
    with serving() as hub, bare_script() as script, tempfile.TemporaryDirectory() as folder:
        connection, path = hub.connect(), Path(folder) / "bare.png"
        wish = {"prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        for side in sides:
            for response_format in ("b64_json", "url"):
                request = {**wish, "size": f"{side}x{side}", "response_format": response_format}
                times: dict[str, list[float]] = {"bare": [], "hub": []}
                for turn in range(rounds + 3):
                    taken = {}
                    for name in ("bare", "hub") if turn % 2 else ("hub", "bare"):
                        time.sleep(0.05)  # the other side's idle threads come to rest
                        if name == "bare":
                            taken[name] = bare(script, turn, side, path)
                        else:
                            taken[name], answer = ask(connection, seed=turn, **request)
                    if turn >= 3:  # the first ones warm up
                        for name, seconds in taken.items():
                            times[name].append(seconds)
                if response_format == "b64_json":
                    check_same_picture(path, answer["data"][0]["b64_json"])
                report_http(side, response_format, times)


def check_same_picture(path: Path, encoded: str) -> None:
    """Both sides must have made the same picture, or the comparison is void.

    Where a value lies between two levels, kernels of another memory layout may round it the other way; enlarging
    with Lanczos makes of that one level at most two.
    """
    one = np.asarray(Image.open(path), np.int16)
    other = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), np.int16)
    difference = int(np.abs(one - other).max())
    if difference > 2:
        sys.exit(f"the two sides drew different pictures (largest difference {difference}/255)")


def report_http(side: int, response_format: str, times: dict[str, list[float]]) -> None:
    """Prints both sides' times and the ratio of each pair."""
    low, middle, high = ratio(times["hub"], times["bare"])
    print(f"\nAnswer {side}x{side}, {response_format}, {len(times['hub'])} pairs")
    print(summary("bare script, pipe() + save()", times["bare"]))
    print(summary("hub over HTTP", times["hub"]))
    print(f"{'ratio hub / bare':<34}{middle:9.3f}      (quartiles {low:.3f}, {high:.3f})")
    expect(f"ratio at {side}, {response_format}", middle <= HTTP_TARGETS.get(side, 1.02), f"{middle:.3f}")


def expect(what: str, met: bool, seen: str) -> None:
    """Notes a target that was missed."""
    if not met:
        missed.append(f"{what}: {seen}")


def bench_concurrent(rounds: int, requests: int) -> None:
    """Unlike requests at once against the same ones one after another."""
    wishes = [
        {
            "prompt": f"a {('red', 'blue', 'green', 'pink')[k % 4]} {('circle', 'star', 'heart')[k % 3]}",
            "num_inference_steps": 12 + 2 * k,
            "guidance_scale": 2.0 + 0.25 * k,
            "seed": k,
            "size": "256x256",
            "response_format": "b64_json",
        }
        for k in range(requests)
    ]
    with serving() as hub, ThreadPoolExecutor(requests) as pool:
        connections = [hub.connect() for _ in wishes]
        ask(connections[0], **wishes[0])
        times: dict[str, list[float]] = {"at once": [], "in turn": []}
        for turn in range(rounds + 1):
            for name in ("at once", "in turn") if turn % 2 else ("in turn", "at once"):
                time.sleep(0.1)
                start = time.perf_counter()
                if name == "at once":
                    list(pool.map(lambda pair: ask(pair[0], **pair[1]), zip(connections, wishes, strict=True)))
                else:
                    for wish in wishes:
                        ask(connections[0], **wish)
                if turn:
                    times[name].append(time.perf_counter() - start)
    low, middle, high = ratio(times["in turn"], times["at once"])
    print(f"\n{requests} requests of 12 to {10 + 2 * requests} steps, {rounds} pairs")
    for name, taken in times.items():
        print(summary(name, [requests / seconds for seconds in taken], "images/s", 1))
    print(f"{'gain of going at once':<34}{middle:9.2f} x    (quartiles {low:.2f}, {high:.2f})")
    expect("gain of going at once, at least 1.3", middle >= 1.3, f"{middle:.2f}")


def bench_startup(rounds: int) -> None:
    """Start of `hub serve` in an existing environment, and the idle API process."""
    listening, memory, torch_found = [], [], False
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
            hub = Hub(Path(folder))
            try:
                listening.append(hub.wait_listening())
                hub.wait_ready()
                time.sleep(1.0)
                memory.append(psutil.Process(hub.process.pid).memory_info().rss / 2**20)
                torch_found |= "libtorch" in Path(f"/proc/{hub.process.pid}/maps").read_text()
            finally:
                hub.process.terminate()
                hub.process.wait(30)
    print(f"\n{rounds} starts")
    print(summary("listening after", listening))
    print(summary("idle API process, RSS", memory, "MiB", 1))
    print(f"{'torch in the API process':<34}{'yes' if torch_found else 'no':>9}")
    expect("listening within 0.8 s", statistics.median(listening) < 0.8, f"{statistics.median(listening):.2f} s")
    expect("idle below 90 MiB", max(memory) < 90, f"{max(memory):.0f} MiB")
    expect("no torch in the API process", not torch_found, "found")


def main() -> None:
    """Parses the command line and runs what it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["http", "concurrent", "startup", "all"])
    parser.add_argument("--rounds", type=int, help="pairs to measure (default: 30, 7 and 5)")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024], help="answer sizes for http")
    parser.add_argument("--requests", type=int, default=8, help="requests for concurrent")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    if options.what in ("startup", "all"):
        bench_startup(options.rounds or 5)
    if options.what in ("http", "all"):
        bench_http(options.rounds or 30, options.sides)
    if options.what in ("concurrent", "all"):
        bench_concurrent(options.rounds or 7, options.requests)
    if missed:
        sys.exit("\nTargets missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
