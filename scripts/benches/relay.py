"""A remote model through the hub, against LiteLLM's proxy and against its provider itself."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches import machine, material
from benches.litellm_proxy import VENV, openai_model, proxying
from benches.report import Report, milliseconds, ratios, spread
from benches.sides import Hub, Server, scratch

ADDED = 4.0
"""Milliseconds that the hub may add to the provider's own answer, at the median."""


@dataclass(frozen=True)
class Kind:
    """What is asked for. `model`: how its provider answers, in base64 or with a link of its own; `asked`: how the
    client wants it; `gain`: the least one in answers per second over LiteLLM's proxy."""

    model: str
    asked: str
    gain: float

    def __str__(self) -> str:
        provider = "base64" if self.model == "b64_json" else "a link"
        return f"{self.asked}, provider sends {provider}"


KINDS = (Kind("b64_json", "b64_json", 6.0), Kind("b64_json", "url", 4.0), Kind("url", "url", 4.0))
CROWDS = (8, 16)
"""Clients at once; a single one for the latency."""
PATHS = {"b64_json": "/v1/images/generations", "url": "/link/v1/images/generations"}
"""The provider's: two models of one server, whose answers differ."""
FILE_SIZE = 1_125_000
"""Bytes of the picture: 1.5 MB in base64."""
MANIFEST = """
id = "{format}"
name = "{format}"
description = "the provider of the bench"
provider = "openai_compatible"
tasks = ["text-to-image"]
remote = {{ model = "{format}", base_url = "{base}" }}
"""


@dataclass
class Side:
    """Whom the clients ask. `times`: seconds of each answer; `rates`: answers per second, by round; `spent`: processor
    seconds per answer, by round. `kept`: a folder whose files are emptied after each round, so that the disk does
    not fill."""

    server: Server
    kept: Path | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    middles: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def path(self, kind: Kind) -> str:
        """Where a picture is asked for."""
        return PATHS[kind.model] if self.server.name == "upstream" else "/v1/images/generations"

    def clear(self) -> None:
        """For the next comparison."""
        for found in (self.times, self.middles, self.rates, self.spent):
            found.clear()


class Upstream(Server):
    """The provider that has its answer ready."""

    def __init__(self, place: Path, picture: bytes) -> None:
        super().__init__("upstream", place)
        file = place / "picture.png"
        file.write_bytes(picture)
        program = str(material.PROGRAMS / "relay_upstream.py")
        self.start([sys.executable, "-P", program, str(self.port), str(file)])


class Clients:
    """The program that asks."""

    def __init__(self, place: Path) -> None:
        self._sample = place / "sample"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(material.PROGRAMS / "relay_client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def ask(self, side: Side, kind: Kind, clients: int, **more: Any) -> tuple[float, list[float]]:
        """Seconds of all, and of each answer."""
        order = {
            "port": side.server.port,
            "path": side.path(kind),
            "headers": side.headers,
            "body": {"model": kind.model, "prompt": "a lighthouse", "n": 1, "response_format": kind.asked},
            "clients": clients,
            **more,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the clients of {side.server.name} failed")
        found = json.loads(line)
        return found["seconds"], found["times"]

    def check(self, side: Side, kind: Kind, picture: bytes) -> None:
        """The side must answer with the provider's picture, byte for byte; and it becomes warm."""
        linked = kind.model == "url" or (kind.asked == "url" and side.server.name == "hub")
        self.ask(side, kind, 4, requests=24, fetch=linked, sample=str(self._sample))
        sample = self._sample.read_bytes()
        if not linked:
            sample = base64.b64decode(json.loads(sample)["data"][0]["b64_json"])
        if sample != picture:
            sys.exit(f"{side.server.name} answered with another picture")

    def turn(self, side: Side, kind: Kind, clients: int, seconds: float, *, fetch: bool) -> None:
        """One round of a side."""
        before = cpu_seconds(side.server.process.pid)
        taken, times = self.ask(side, kind, clients, seconds=seconds, fetch=fetch)
        side.spent.append((cpu_seconds(side.server.process.pid) - before) / len(times))
        side.times += times
        side.middles.append(statistics.median(times))
        side.rates.append(len(times) / taken)
        for file in side.kept.glob("*.png") if side.kept else ():
            os.truncate(file, 0)  # not deleted: ext4 takes long to avoid names that were just in use


def measure(report: Report) -> None:
    """Answers of 1.5 MB from one provider: its own, through the hub, and through LiteLLM's proxy."""
    with sides() as (every, clients, picture):
        for kind in KINDS:
            for side in every:
                clients.check(side, kind, picture)
            for crowd in (1, *CROWDS):
                compare(report, every, clients, kind, crowd)
        for crowd in CROWDS:
            compare(report, every, clients, KINDS[-1], crowd, fetch=True)
    report.note(f"LiteLLM: {machine.versions(VENV / 'bin' / 'python', 'litellm', 'uvicorn', 'uvloop')}; one process.")
    report.note("The hub looks at each picture, stores it, and serves it by its own link; LiteLLM does none of these.")
    report.note("Where a link is asked for and the provider sends base64, LiteLLM hands on the base64.")


def compare(
    report: Report, every: list[Side], clients: Clients, kind: Kind, crowd: int, *, fetch: bool = False
) -> None:
    """The sides in turn; then their numbers."""
    rounds = report.rounds(9)
    for turn in range(rounds):
        for side in every[turn % len(every) :] + every[: turn % len(every)]:
            clients.turn(side, kind, crowd, 0.3 if report.options.trial else 1.5, fetch=fetch)
    direct, hub, litellm = every
    what = f"{kind}{', and its picture' if fetch else ''}, {crowd} client{'s' if crowd > 1 else ''}"
    if crowd == 1:
        added = [1e3 * (one - other) for one, other in zip(hub.middles, direct.middles, strict=True)]
        report.row(
            f"{what}: added by the hub, p50",
            spread(added, "ms"),
            f"≤ {ADDED:g} ms",
            statistics.median(added) <= ADDED,
        )
        for side in every:
            report.row(f"{what}: {side.server.name}, p50 and p95", percentiles(side.times))
    else:
        wanted = kind.gain if not fetch else None
        middle, measured = ratios(hub.rates, litellm.rates)
        report.row(
            f"{what}: hub / LiteLLM, answers/s",
            f"{measured}; {spread(hub.rates, '/s')} against {spread(litellm.rates, '/s')}",
            f"≥ {wanted:g} x" if wanted else "",
            middle >= wanted if wanted else None,
        )
        report.row(f"{what}: the provider itself", spread(direct.rates, "answers/s"))
        spent = " against ".join(milliseconds(side.spent) for side in (hub, litellm))
        report.row(f"{what}: processor time of hub and LiteLLM for each", spent)
    for side in every:
        side.clear()


def percentiles(times: list[float]) -> str:
    """Of seconds, in milliseconds."""
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    return f"{1e3 * cuts[9]:.2f} ms, {1e3 * cuts[18]:.2f} ms"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@contextlib.contextmanager
def sides() -> Iterator[tuple[list[Side], Clients, bytes]]:
    """The provider, a hub and LiteLLM's proxy before it, who asks them, and the picture that all must give."""
    picture = noise(FILE_SIZE)
    with scratch() as place, contextlib.ExitStack() as stack:
        upstream = Upstream(place, picture)
        stack.callback(upstream.stop)
        upstream.wait_listening()
        bases = {
            form: f"http://127.0.0.1:{upstream.port}{path.partition('/images')[0]}" for form, path in PATHS.items()
        }
        (place / "models").mkdir()
        for form, base in bases.items():
            (place / "models" / f"{form}.toml").write_text(MANIFEST.format(format=form, base=base))
        hub = Hub(place)
        stack.callback(hub.stop)
        hub.wait_ready()
        models = [openai_model(form, base) for form, base in bases.items()]
        litellm = stack.enter_context(proxying(place, models, drop_params=True))
        clients = Clients(place)
        stack.callback(clients.stop)
        yield (
            [Side(upstream), Side(hub, kept=place / "cache" / "files"), Side(litellm, headers=litellm.headers)],
            clients,
            picture,
        )


def noise(size: int) -> bytes:
    """A PNG file of nearly so many bytes: grey noise, which no compression makes smaller."""
    width = 1024
    height = size // width
    bits = random.Random(1).randbytes(width * height)  # no secret
    rows = b"".join(b"\0" + bits[start : start + width] for start in range(0, len(bits), width))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
