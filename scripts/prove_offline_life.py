"""A hub's whole life under strace, for scripts/prove-offline."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from network_watch import NOWHERE, Attempt, attempts_in, plain_environment, strace

ROOT = Path(__file__).resolve().parent.parent
PICTURE = {"prompt": "a red circle on a white background", "size": "128x128", "num_inference_steps": 4}
PLANTED = '''
"""Found by every Python of the server's: waits for a sign, then dials, and writes down what came of it."""
import json, os, sys, threading, time

def dial(folder):
    import socket
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.1)
    try:
        socket.create_connection((os.environ.get("PLANTED_DIALS", "192.0.2.1"), 9), 1)
        outcome = "connected"
    except OSError as error:
        outcome = type(error).__name__
    with open(f"{folder}/{os.getpid()}.tmp", "w") as file:
        json.dump({"outcome": outcome, "command": sys.orig_argv}, file)
    os.rename(f"{folder}/{os.getpid()}.tmp", f"{folder}/{os.getpid()}.json")

if os.environ.get("PLANTED"):
    threading.Thread(target=dial, args=(os.environ["PLANTED"],), daemon=True).start()
'''


class NotProven(Exception):
    """What was seen instead, in words."""


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    """Status and body of a GET, or of a POST where there is a body; by no proxy."""
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body else {})
    try:
        with _opener.open(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def expect(holds: bool, words: str) -> None:
    """Raises NotProven with the words where it does not hold."""
    if not holds:
        raise NotProven(words)


def seen(found: list[Attempt]) -> str:
    """Attempts in words."""
    return ", ".join(sorted({f"{each.call} to {each.address} (process {each.pid})" for each in found})[:10])


class Life:
    """A server under strace, from its start to its end."""

    def __init__(self, name: str, folder: Path, **environment: str) -> None:
        self.name, self.offline = name, environment.get("HUB_OFFLINE") == "1"
        self._folder = folder / name
        self._planted = self._folder / "planted"
        self._planted.mkdir(parents=True)
        (self._folder / "site").mkdir()
        (self._folder / "site" / "sitecustomize.py").write_text(PLANTED)
        self._environment = plain_environment(
            HUB_CACHE_DIR=str(self._folder / "cache"),
            HF_HOME=str(self._folder / "hf"),
            PYTHONPATH=os.pathsep.join([str(self._folder / "site"), str(ROOT)]),
            PLANTED=str(self._planted),
            **environment,
        )
        self._log = self._folder / "log"
        self._traces: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def begin(self) -> None:
        """Starts it, and waits until it is ready."""
        self._traces.append(self._folder / "trace")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*strace(self._traces[0]), sys.executable, "-m", "hub", "serve", "--port", "0"],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._wait(lambda: " listens on " in self._log.read_text(), 120)
        self._url = self._log.read_text().partition(" listens on ")[2].split()[0]
        self._wait(lambda: ask(f"{self._url}/ready")[0] == 200, 180)

    def live(self, idle: float) -> None:
        """All that a hub does."""
        self.begin()
        made = self._draw()
        status, picture = ask(made["data"][0]["url"])
        expect(status == 200 and picture.startswith(b"\x89PNG"), f"{self.name}: the link gave {status}")
        encoded = self._draw(response_format="b64_json")["data"][0]["b64_json"]
        expect(base64.b64decode(encoded).startswith(b"\x89PNG"), f"{self.name}: no picture as base64")
        self._edit(picture)
        self._stream()
        self._remote_picture()
        self._admin_order()
        self._commands()
        self._kill_worker()
        self._draw(seed=7)
        time.sleep(idle)
        expect(ask(f"{self._url}/ready")[0] == 200, f"{self.name}: it is not ready after idling")

    def _draw(self, **more: object) -> dict[str, Any]:
        status, answer = ask(f"{self._url}/v1/images/generations", json.dumps(PICTURE | more).encode())
        expect(status == 200, f"{self.name}: a generation was answered {status}: {answer[:300]!r}\n{self._tail()}")
        return dict(json.loads(answer))

    def _edit(self, picture: bytes) -> None:
        line = b"\r\n--life\r\n"
        texts = {"prompt": "a blue star", "response_format": "b64_json"}
        parts = [
            f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in texts.items()
        ]
        head = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        body = line[2:] + line.join([*parts, head + picture]) + b"\r\n--life--\r\n"
        status, answer = ask(f"{self._url}/v1/images/edits", body, "multipart/form-data; boundary=life")
        expect(status == 200, f"{self.name}: an edit was answered {status}: {answer[:300]!r}\n{self._tail()}")

    def _stream(self) -> None:
        wish = json.dumps(PICTURE | {"stream": True, "partial_images": 1}).encode()
        status, events = ask(f"{self._url}/v1/images/generations", wish)
        whole = status == 200 and b"event: image_generation.completed" in events
        expect(whole, f"{self.name}: a stream ended without its picture: {events[-300:]!r}")

    def _remote_picture(self) -> None:
        """Offline it is a typed 503, though the owner allows the host. Else the host is not allowed, as it comes."""
        wish = json.dumps(PICTURE | {"image": f"http://{NOWHERE}/a.png"}).encode()
        status, answer = ask(f"{self._url}/v1/images/generations", wish)
        error = json.loads(answer).get("error", {})
        told = (status, error.get("code"), error.get("param"))
        right = (503, "offline", "image") if self.offline else (400, "image_host_not_allowed", "image")
        expect(told == right, f"{self.name}: another machine's picture was answered {told} and not {right}")

    def _admin_order(self) -> None:
        """All weights are verified, in a process of the library's, and its events followed to the end."""
        status, answer = ask(f"{self._url}/v1/admin/models/verify", b"{}")
        expect(status == 202, f"{self.name}: an order to verify was answered {status}: {answer[:300]!r}")
        status, events = ask(f"{self._url}/v1/admin/tasks/{json.loads(answer)['id']}/events")
        told = [json.loads(line[6:]) for line in events.splitlines() if line.startswith(b"data: ")]
        result = told[-1]["task"]["result"] if told else None
        expect(bool(result and result["models"] and not result["faults"]), f"{self.name}: verifying ended in {told}")
        expect(b'"hub.library.process"' in self._traces[0].read_bytes(), f"{self.name}: strace saw no library process")

    def _commands(self) -> None:
        """What an owner types beside a hub that runs."""
        bundle = str(self._folder / "all.hubmodels")
        self._command("models", "list", says="builtin")
        self._command("models", "verify", says=": all as it should be.")
        self._command("models", "export", "builtin", "-o", bundle, says="all.hubmodels: builtin")
        self._command("models", "import", bundle, "--list", says="builtin")
        there = {"HUB_MODELS_DIR": self._folder / "there" / "models", "HUB_CACHE_DIR": self._folder / "there" / "cache"}
        there["HUB_MODELS_DIR"].mkdir(parents=True)
        environ = {name: str(place) for name, place in there.items()}
        self._command("models", "import", bundle, "--replace", says="builtin: ready", **environ)
        port = self._url.rpartition(":")[2]
        self._command("doctor", *(["--offline"] if self.offline else []), says=" 0 problems.", HUB_PORT=port)

    def _command(self, *arguments: str, says: str, **environ: str) -> None:
        self._traces.append(self._folder / f"trace-{len(self._traces)}")
        command = [*strace(self._traces[-1]), sys.executable, "-m", "hub", *arguments]
        environment = self._environment | environ
        said = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        words = f"{self.name}: `hub {' '.join(arguments)}` said {said.stdout[-500:]} {said.stderr[-500:]}"
        expect(said.returncode == 0 and says in said.stdout, words)

    def _server(self) -> psutil.Process:
        """strace's child."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()[0]

    def _worker(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in self._server().children():
                if "hub.engine.worker" in each.cmdline():
                    return each
        return None

    def _kill_worker(self) -> None:
        worker = self._worker()
        assert worker is not None
        worker.kill()
        self._wait(lambda: (now := self._worker()) is not None and now.pid != worker.pid, 60)
        self._wait(lambda: ask(f"{self._url}/ready")[0] == 200, 180)

    def dial(self) -> list[str]:
        """Has the planted threads dial; what came of it, for the server and then for its worker."""
        server, worker = self._server().pid, self._worker()
        assert worker is not None
        files = [self._planted / f"{pid}.json" for pid in (server, worker.pid)]
        (self._planted / "go").touch()
        self._wait(lambda: all(file.exists() for file in files), 30)
        return [json.loads(file.read_text())["outcome"] for file in files]

    def end(self) -> None:
        """SIGTERM, upon which all its processes end, without a traceback."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._server().send_signal(signal.SIGTERM)
        code = self._process.wait(40)
        expect(code in (0, 128 + signal.SIGTERM, -signal.SIGTERM), f"{self.name}: it ended with {code}\n{self._tail()}")
        _, left = psutil.wait_procs(family, timeout=10)
        expect(not left, f"{self.name}: left behind: {left}")
        expect("Traceback" not in self._log.read_text(), f"{self.name}: {self._tail()}")

    def kill(self) -> None:
        """Whatever is left of it."""
        if self._process is not None and self._process.poll() is None:
            for each in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            self._process.wait()

    def attempts(self) -> list[Attempt]:
        """So far."""
        return [each for trace in self._traces for each in attempts_in(trace)]

    def is_silent(self) -> None:
        """Raises NotProven where anything was tried."""
        found = self.attempts()
        expect(not found, f"{self.name}: it tried {seen(found)}\n{self._tail()}")

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):  # it does not listen yet
                if condition():
                    return
            died = self._process is not None and self._process.poll() is not None
            expect(not died and time.monotonic() < end, f"{self.name}: waited in vain\n{self._tail()}")
            time.sleep(0.1)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
