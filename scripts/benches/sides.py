"""What is compared: every side draws the same wish (prompt, seed, steps, guidance and size) in the same dtype."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benches import machine, material
from benches.material import Model

START_TIMEOUT = 600.0
seeds = itertools.count(1)
"""No seed and no prompt is asked twice, so that no cache answers, unless a section wants just that."""


@dataclass(frozen=True)
class Wish:
    """A picture to be drawn; `side` is the answer's size in pixels, `native` what the model draws."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    native: int
    side: int


def wish(model: Model, steps: int | None = None, *, side: int | None = None, guidance: float | None = None) -> Wish:
    """A new one."""
    seed = next(seeds)
    colour, shape = ("red", "blue", "green", "pink")[seed % 4], ("circle", "star", "heart")[seed % 3]
    return Wish(
        prompt=f"a {colour} {shape} number {seed}",
        seed=seed,
        steps=steps or model.steps,
        guidance=model.guidance if guidance is None else guidance,
        native=model.native,
        side=side or model.native,
    )


class Side(Protocol):
    """Something that draws; `burst` has all wishes at once and waits for the last."""

    def burst(self, wishes: Sequence[Wish]) -> list[bytes]:
        """The pictures' files."""


class Server:
    """A process that serves HTTP on a free port of this machine."""

    def __init__(self, name: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.name, self.folder, self._log = name, folder, folder / f"{name}.log"
        self.started = 0.0
        self.process: subprocess.Popen[bytes]

    def start(self, command: Sequence[str], **environ: str) -> None:
        """Starts it, in its folder, without HUB_* variables of the caller and without a network to ask."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HUB_")}
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        with self._log.open("ab") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                command, cwd=self.folder, env={**clean, **offline, **environ}, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_listening(self) -> float:
        """Seconds from the process's start until it accepts a connection."""
        while True:
            if self.process.poll() is not None or time.perf_counter() - self.started > START_TIMEOUT:
                sys.exit(f"{self.name} did not start:\n{self._log.read_text()[-3000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return time.perf_counter() - self.started
            time.sleep(0.005)

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, open already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1200)
        connection.connect()
        return connection

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return self.send(connection, "GET", path)

    @staticmethod
    def send(
        connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """One request; status and body."""
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, json.dumps(body).encode() if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def post(self, connection: http.client.HTTPConnection, path: str, body: Any, **headers: str) -> bytes:
        """A request that must succeed."""
        status, raw = self.send(connection, "POST", path, body, **headers)
        if status != 200:
            sys.exit(f"{self.name} answered {status}: {raw[:500]!r}\n{self._log.read_text()[-3000:]}")
        return raw

    def draw(self, wanted: Wish) -> bytes:
        """One picture, on a connection of its own."""
        raise NotImplementedError

    def burst(self, wishes: Sequence[Wish]) -> list[bytes]:
        """A client for each wish, all at once."""
        with ThreadPoolExecutor(len(wishes)) as pool:
            return list(pool.map(self.draw, wishes))


class Hub(Server):
    """A `hub serve` with its own cache and the models given."""

    def __init__(self, folder: Path, *models: Model, **settings: str) -> None:
        """`settings`: HUB_* variables, in small letters and without the prefix."""
        super().__init__("hub", folder)
        self._model = models[0].id if models else "builtin"
        manifests = folder / "models"
        manifests.mkdir(exist_ok=True)
        for model in models:
            if model is not material.BUILTIN:
                (manifests / f"{model.id}.toml").write_text(model.manifest())
        values = {"cache_dir": folder / "cache", "models_dir": manifests, "device": machine.device()}
        environ = {f"HUB_{name.upper()}": str(value) for name, value in {**values, **settings}.items()}
        self.start([sys.executable, "-m", "hub", "serve", "--port", str(self.port)], HUB_LOG_LEVEL="warning", **environ)

    def wait_ready(self) -> float:
        """Seconds from the process's start until the engine takes requests."""
        self.wait_listening()
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None:
                sys.exit("the hub ended")
            time.sleep(0.02)
        return time.perf_counter() - self.started

    @property
    def worker(self) -> int:
        """The engine process's id; the first device's, where there are several."""
        return next(pid for pid in machine.children(self.process.pid) if b"hub.engine.worker" in machine.command(pid))

    def body(self, wanted: Wish, model: str | None = None, **more: Any) -> dict[str, Any]:
        """A wish as the hub's JSON."""
        return {
            "model": model or self._model,
            "prompt": wanted.prompt,
            "seed": wanted.seed,
            "num_inference_steps": wanted.steps,
            "guidance_scale": wanted.guidance,
            "size": f"{wanted.side}x{wanted.side}",
            "response_format": "b64_json",
            **more,
        }

    def ask(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Seconds until the whole answer is here, and the answer."""
        start = time.perf_counter()
        raw = self.post(connection, "/v1/images/generations", body)
        seconds = time.perf_counter() - start
        return seconds, json.loads(raw)

    def draw(self, wanted: Wish) -> bytes:
        """One picture."""
        _, answer = self.ask(self.connect(), self.body(wanted))
        return base64.b64decode(answer["data"][0]["b64_json"])


class Bare:
    """The bare script of programs/bare.py with its pipeline loaded."""

    def __init__(self, folder: Path, model: Model, *, tuned: bool = False) -> None:
        self.path, self._log = folder / "bare.png", folder / "bare.log"
        program = [sys.executable, "-P", str(material.PROGRAMS / "bare.py"), str(model.path), model.dtype]
        self.started = time.perf_counter()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, machine.device(), *(["tuned"] if tuned else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if "ready" not in self._answer():
            sys.exit(f"the bare script did not start:\n{self._log.read_text()[-3000:]}")

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def tell(self, message: dict[str, Any]) -> dict[str, float]:
        """One line there and one back."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if not answer:
            sys.exit(f"the bare script ended:\n{self._log.read_text()[-3000:]}")
        return answer

    def draw(self, wanted: Wish, output: str = "pil") -> dict[str, float]:
        """One picture: its `seconds`; for `output="pt"` without the encoding, which is told apart."""
        return self.tell({**asdict(wanted), "output": output, "path": str(self.path)})

    def burst(self, wishes: Sequence[Wish]) -> list[bytes]:
        """One after another, each saved: what a loop over `pipe(...)` does."""
        pictures = []
        for wanted in wishes:
            self.draw(wanted)
            pictures.append(self.path.read_bytes())
        return pictures

    def load(self, model: Model) -> float:
        """Seconds to put another pipeline in the place of this one."""
        return self.tell({"load": str(model.path)})["seconds"]

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one measurement."""
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def serving(*models: Model, **settings: str) -> Iterator[Hub]:
    """A hub that is ready, on a fresh cache."""
    with scratch() as folder:
        hub = Hub(folder, *models, **settings)
        try:
            hub.wait_ready()
            yield hub
        finally:
            hub.stop()


@contextlib.contextmanager
def scripting(model: Model, *, tuned: bool = False) -> Iterator[Bare]:
    """The bare script, ready."""
    with scratch() as folder:
        bare = Bare(folder, model, tuned=tuned)
        try:
            yield bare
        finally:
            bare.stop()


def check_same(one: bytes, other: bytes, dtype: str, who: str) -> None:
    """Both sides must have drawn the same picture, or the comparison is void.

    Kernels for another memory layout or batch size round differently: in float32 that moves a value by one level, and
    by two where it is enlarged; bfloat16 has eight bits and drifts further from step to step, so only its mean counts.
    """
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.int16) for file in (one, other))
    if first.shape != second.shape:
        sys.exit(f"{who}: the sides drew different sizes: {first.shape} and {second.shape}")
    apart = np.abs(first - second)
    largest, mean = int(apart.max()), float(apart.mean())
    if (dtype == "float32" and largest > 2) or mean > 4:
        sys.exit(f"{who}: the sides drew different pictures (largest difference {largest}/255, mean {mean:.2f})")
