"""What a process with torch tells of this machine to one without: which devices there are, and what models take there.

`ask` starts `python -m hub.engine.probe` with what a worker would be started with. No torch here.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
from msgspec import Struct

from hub.engine.protocol import DeviceMemory, EngineModel

PATIENCE = 120.0
"""Seconds: the first import of the libraries from a slow disk takes most of them."""


class Question(Struct):
    """The devices as the settings name them, the owner's own word for them, the models whose weights are there, and the
    noise schedulers that manifests name."""

    devices: list[str]
    setting: str
    models: list[EngineModel]
    schedulers: list[str] = []


class Seen(Struct, kw_only=True):
    """What torch sees: its version, what it was built for (`CUDA 13.0`; None for a CPU alone), its `warnings`, the
    `devices` that can be used, why the others cannot (by their names), main memory in all and available, and the bytes
    that each model takes once it is loaded (by id and device); and why noise schedulers cannot be used (by name).
    `failure`: why nothing is known."""

    torch: str = ""
    built_for: str | None = None
    warnings: list[str] = []
    devices: list[DeviceMemory] = []
    refused: dict[str, str] = {}
    main: tuple[int, int] = (0, 0)
    sizes: dict[str, dict[str, int]] = {}
    schedulers: dict[str, str] = {}
    failure: str | None = None

    @property
    def uses_gpu(self) -> bool:
        """Whether any of the devices is one."""
        return any(device.name != "cpu" for device in self.devices)


def ask(question: Question) -> Seen:
    """Asks a process of its own; whatever becomes of that is told as `failure`, and never raised."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    variables.pop("HUB_API_KEY", None)
    try:
        done = subprocess.run(  # ourselves
            [sys.executable, "-m", "hub.engine.probe"],
            input=msgspec.json.encode(question),
            capture_output=True,
            timeout=PATIENCE,
            env=variables,
            check=False,
        )
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Seen)
    except subprocess.TimeoutExpired:
        return Seen(failure=f"torch had not told within {PATIENCE:.0f} seconds which devices there are")
    except OSError as error:
        return Seen(failure=f"no process could be started: {error.strerror}")
    except (IndexError, msgspec.DecodeError):
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        end = f"ended with {done.returncode}"
        return Seen(failure=f"the libraries cannot be imported, or {end}: {words[-1][:300] if words else 'no words'}")
