"""LiteLLM's proxy, as a process on this machine: the neighbour that `relay` compares with, and a real client and server
for tests.

    with scratch() as place, proxying(place, [openai_model("painter", "http://127.0.0.1:9/v1")]) as proxy:
        proxy.post(proxy.connect(), "/v1/images/generations", {...}, **proxy.headers)

It has an environment of its own, `.venv-litellm`, made at the first use (750 MB, a minute). Nothing that it would look
up on the internet is looked up: prices, news and templates are those of its package, and it sends no telemetry.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benches.material import ROOT, folder
from benches.sides import Server

VERSION = "1.108.5"
"""Named exactly, since some were malicious (1.82.7, 1.82.8, 1.107.0). The extra of 1.108.9 to 1.110.2 could not be
installed: it names packages that were not published."""
VENV = ROOT / ".venv-litellm"
MASTER_KEY = "sk-litellm-loopback-0123456789"
QUIET = {
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
    "LITELLM_LOG": "ERROR",
}


class CannotInstall(Exception):
    """The package registry does not have it, or cannot be reached."""


def installed() -> bool:
    """Whether the environment is there, in the version that is wanted."""
    stamp = VENV / ".ready"
    return stamp.is_file() and stamp.read_text() == VERSION


def install() -> Path:
    """The proxy's program; makes its environment where it is not there yet. Raises CannotInstall."""
    program = VENV / "bin" / "litellm"
    with (folder() / "litellm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a bench and a test may want it at once
        if installed():
            return program
        print(f"  installing litellm[proxy] {VERSION} into {VENV.name} (750 MB, once)", file=sys.stderr, flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(VENV / "bin" / "pip"), "install", "--quiet", f"litellm[proxy]=={VERSION}"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotInstall(done.stderr[-2000:])
        (VENV / ".ready").write_text(VERSION)
    return program


def openai_model(name: str, base_url: str, *, model: str = "", key: str = "none", **more: Any) -> dict[str, Any]:
    """An entry of `model_list`: a model of a server that speaks OpenAI's API. `base_url`: with its /v1."""
    params = {"model": f"openai/{model or name}", "api_base": base_url, "api_key": key, **more}
    return {"model_name": name, "litellm_params": params, "model_info": {"mode": "image_generation"}}


class LiteLLM(Server):
    """The proxy. `headers`: what proves that one may ask it."""

    headers: ClassVar[dict[str, str]] = {"Authorization": f"Bearer {MASTER_KEY}"}

    def __init__(self, place: Path, models: Sequence[dict[str, Any]], **settings: Any) -> None:
        """`settings`: of its `litellm_settings`."""
        super().__init__("litellm", place)
        config = place / "litellm.yaml"
        config.write_text(  # JSON is YAML, too
            json.dumps(
                {
                    "model_list": list(models),
                    "general_settings": {"master_key": MASTER_KEY},
                    "litellm_settings": {"telemetry": False, **settings},
                }
            )
        )
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.start([str(install()), "--config", str(config), *where, "--telemetry", "False"], **QUIET)

    @property
    def url(self) -> str:
        """For a client's `base_url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_ready(self) -> float:
        """Seconds from the process's start until it answers; it takes some ten."""
        self.wait_listening()
        while self.get("/health/liveliness")[0] != 200:
            if self.process.poll() is not None:
                sys.exit("litellm ended")
            time.sleep(0.05)
        return time.perf_counter() - self.started


@contextlib.contextmanager
def proxying(place: Path, models: Sequence[dict[str, Any]], **settings: Any) -> Iterator[LiteLLM]:
    """A proxy that answers, with its configuration and log in the folder."""
    proxy = LiteLLM(place, models, **settings)
    try:
        proxy.wait_ready()
        yield proxy
    finally:
        proxy.stop()
