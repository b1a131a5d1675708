"""Hubs that must not leave the machine, while all their local targets fail; for tests/test_never_leaves.py, which runs
this program in namespaces of its own, where packets could leave and get nowhere. Prints JSON of what was seen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from network_watch import NOWHERE, WayOut, attempts_in, make_way_out, plain_environment, strace  # noqa: E402

from tests.routes import write_credentials, write_local, write_remote, write_route  # noqa: E402

STAR = {"prompt": "a star", "size": "128x128", "num_inference_steps": 4}
LONG = {"prompt": "a star", "size": "128x128", "num_inference_steps": 150, "n": 10}
FAR = {
    "literal": f"http://{NOWHERE}/v1",
    "lan": "http://10.255.255.1:8000/v1",
    "named": "http://provider.hub-test.invalid/v1",
}
"""Remote models by address. `own`, beside them, has none, which is the provider's own."""
KEYS = '[api_keys]\nalice = "sk-alice"\nbob = "sk-bob"\n'


def write_models(folder: Path) -> None:
    """Local models of which none can draw but the built-in one, remote ones, and routes of both."""
    write_local(folder, weights=False)
    shutil.copytree(ROOT / "models" / "builtin", folder / "cut")
    weights = folder / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    text = (ROOT / "models" / "builtin.toml").read_text()
    head, _, rest = text.partition("aliases = [")
    text = head + rest.partition("]\n")[2].partition("[sha256]")[0]
    (folder / "cut.toml").write_text(
        text.replace('id = "builtin"', 'id = "damaged"').replace('path = "builtin"', 'path = "cut"')
    )
    for name, url in FAR.items():
        write_remote(folder, name, url)
    write_remote(folder, "own", "http://unused.invalid")
    lines = (folder / "own.toml").read_text().splitlines()
    (folder / "own.toml").write_text(
        "\n".join(line for line in lines if not line.startswith(("base_url", "leaves"))) + "\n"
    )
    far = [*FAR, "own"]
    for here in ("small", "damaged", "builtin"):
        write_route(folder, here, *far, name=f"{here}-or-far", order="local-first")
        write_route(folder, here, *far, name=f"{here}-stays", order="listed", remote=False)
    write_route(folder, *far, "small", "damaged", name="far-first", order="listed")
    for name in far:
        write_route(folder, name, name=f"control-{name}", deadline=4)


class Watched:
    """A hub under strace."""

    def __init__(self, folder: Path, settings: str, **environment: str) -> None:
        folder.mkdir()
        write_models(folder / "models")
        credentials = write_credentials(folder, *FAR, "own")
        (folder / "hub.toml").write_text(settings)
        self.trace, self._log, self._url = folder / "trace", folder / "log", ""
        environ = plain_environment(
            HUB_CACHE_DIR=str(folder / "cache"),
            HUB_MODELS_DIR=str(folder / "models"),
            HUB_CREDENTIALS=str(credentials),
            HF_HOME=str(folder / "hf"),
            PYTHONPATH=str(ROOT),
            **environment,
        )
        with self._log.open("wb") as log:
            command = [*strace(self.trace), sys.executable, "-m", "hub", "serve", "--port", "0"]
            self._process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, path: str, body: dict[str, Any] | None = None, key: str = "sk-alice") -> tuple[int, str]:
        """Status and the error's code."""
        data = json.dumps(body).encode() if body else None
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers), timeout=120) as answer:
                whole = answer.read()
                told = [line for line in whole.splitlines() if line.startswith(b"data: ") and b'"error"' in line]
                return answer.status, json.loads(told[-1][6:])["error"]["code"] if told else ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()).get("error", {}).get("code", "")

    def begin(self) -> None:
        """Waits until it is ready."""
        self._wait(lambda: " listens on " in self.log)
        self._url = self.log.partition(" listens on ")[2].split()[0]
        self._wait(lambda: self.ask("/ready") == (200, ""))

    def draw(self, model: str, key: str = "sk-alice", **more: Any) -> tuple[int, str]:
        return self.ask("/v1/images/generations", {**STAR, "model": model, **more}, key)

    def killed(self, *asked: tuple[str, str]) -> list[tuple[int, str]]:
        """What comes of requests, as (model, key), whose worker is killed while it draws for all of them."""
        with ThreadPoolExecutor(len(asked)) as pool:
            begun = [
                pool.submit(self.ask, "/v1/images/generations", {**LONG, "model": model}, key) for model, key in asked
            ]
            self._wait(lambda: self.log.count(": 10 of builtin") == len(asked))
            time.sleep(0.3)
            self._worker().kill()
            return [each.result() for each in begun]

    def _worker(self) -> psutil.Process:
        server = psutil.Process(self._process.pid).children()[0]
        return next(each for each in server.children() if "hub.engine.worker" in each.cmdline())

    def attempts(self) -> list[str]:
        return [f"{each.call} {each.address}" for each in attempts_in(self.trace)]

    def end(self) -> None:
        if self._process.poll() is None:
            psutil.Process(self._process.pid).children()[0].send_signal(signal.SIGTERM)
            self._process.wait(40)

    def _wait(self, condition: Any) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                if condition():
                    return
            except OSError:  # it does not listen yet
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"waited in vain\n{self.log[-3000:]}")
            time.sleep(0.05)


def refused(hub: Watched, never: str, key: str) -> dict[str, Any]:
    """What becomes of requests whose local targets fail, each in another way; `never`: the routes' second half."""
    return {
        "absent": hub.draw(f"small-{never}", key),
        "damaged": hub.draw(f"damaged-{never}", key),
        "streamed": hub.draw(f"damaged-{never}", key, stream=True),
        "works": hub.draw(f"builtin-{never}", key),
    }


def far_ones(hub: Watched, key: str) -> dict[str, Any]:
    """What becomes of requests for remote models, and for a route that names these first."""
    return {name: hub.draw(name, key) for name in ("far-first", *FAR, "own")}


def of_keys(hub: Watched) -> dict[str, Any]:
    """Alice may leave, but not with every route; bob may not."""
    hub.begin()
    seen = {
        "key": refused(hub, "or-far", "sk-bob") | far_ones(hub, "sk-bob"),
        "route": refused(hub, "stays", "sk-alice"),
    }
    killed = hub.killed(("builtin-or-far", "sk-bob"), ("builtin-stays", "sk-alice"))
    seen["key"]["killed"], seen["route"]["killed"] = killed
    return seen


def of_offline(hub: Watched) -> dict[str, Any]:
    """Both may leave, and the hub may not."""
    hub.begin()
    seen = refused(hub, "or-far", "sk-alice") | far_ones(hub, "sk-alice")
    (seen["killed"],) = hub.killed(("builtin-or-far", "sk-alice"))
    return {"offline": seen}


def of_little_memory(hub: Watched) -> dict[str, Any]:
    """Nothing fits."""
    hub.begin()
    routes = {"key": hub.draw("builtin-or-far", "sk-bob"), "route": hub.draw("builtin-stays", "sk-alice")}
    return {"memory": routes}


def main(folder: Path) -> None:
    """Three hubs at once; last, the first of them does what it may."""
    way: WayOut = make_way_out()
    alice_may = f'remote_keys = ["alice"]\n{KEYS}'
    hubs = {
        "keys": Watched(folder / "keys", alice_may),
        "offline": Watched(folder / "offline", f'offline = true\nremote_keys = ["*"]\n{KEYS}'),
        "memory": Watched(folder / "memory", alice_may, HUB_DEVICE_MEMORY_MB="1"),
    }
    seen: dict[str, Any] = {"way": way.kind}
    try:
        with ThreadPoolExecutor(3) as pool:
            lives = zip((of_keys, of_offline, of_little_memory), hubs.values(), strict=True)
            for life in [pool.submit(each, hub) for each, hub in lives]:
                seen |= life.result()
        for name in ("offline", "memory"):
            hubs[name].end()
        seen["attempts"] = {name: hub.attempts() for name, hub in hubs.items()}
        seen["packets"] = way.packets
        seen["refused by the guard"] = hubs["offline"].log.count("refused ")
        with ThreadPoolExecutor(4) as pool:  # the same process, now that it may
            controls = [pool.submit(hubs["keys"].draw, f"control-{name}") for name in (*FAR, "own")]
            seen["control"] = [each.result() for each in controls]
        seen["attempts of the control"] = hubs["keys"].attempts()
        seen["packets of the control"] = way.packets - seen["packets"]
    finally:
        for hub in hubs.values():
            hub.end()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
