"""The machine: where and in which dtype both sides compute, what to write beside a number, a process's use of it."""

from __future__ import annotations

import datetime as dt
import functools
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSIONS = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"


@functools.cache
def gpu() -> str | None:
    """The name of the first NVIDIA GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    names = found.stdout.strip().splitlines() if found.returncode == 0 else []
    return names[0].strip() if names else None


def device() -> str:
    """`cuda` where there is an NVIDIA GPU, else `cpu`; all sides get the same."""
    return "cuda" if gpu() else "cpu"


@functools.cache
def processor() -> tuple[str, frozenset[str]]:
    """Its name and its flags; Linux only knows the latter."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines())
        fields = {key.strip(): value.strip() for key, value in lines.items()}
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    return fields.get("model name", platform.machine()), frozenset(fields.get("flags", "").split())


def dtype() -> str:
    """bfloat16 where the device computes it natively, else float32."""
    native = gpu() or processor()[1] & {"avx512_bf16", "amx_bf16"}
    return "bfloat16" if native else "float32"


def versions(python: Path | str, *names: str) -> str:
    """Versions of packages in an environment."""
    return subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True).stdout.strip()


def stamp(python: str) -> str:
    """Date, machine and versions, to stand over a table."""
    name, flags = processor()
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = versions(python, "torch", "diffusers", "transformers", "image-hub")
    able = ", ".join(kinds) or platform.machine()
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}; {os.cpu_count()} cores of {name} ({able}), "
        f"{memory:.0f} GiB, {gpu() or 'no GPU'}; Python {platform.python_version()}, {packages}"
    )


def busy(seconds: float = 2) -> str:
    """How much of the cores other programs use now, and a warning where they disturb. Call it while nothing runs."""

    def used() -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait

    try:
        before = used()
        time.sleep(seconds)
        cores = (used() - before) / seconds
    except OSError:
        return f"load average {os.getloadavg()[0]:.1f}"
    words = f"other programs used {cores:.1f} of {os.cpu_count()} cores"
    return f"{words}: NOT QUIET" if cores > 0.2 else words


def memory(pid: int, field: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (its peak) of a process, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def thread_seconds(pid: int) -> float:
    """Processor time of a process's main thread."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def command(pid: int) -> bytes:
    """A process's command line, with zeros between its words."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class VideoMemory:
    """The GPU's peak use in MB, of all processes, above what was used before."""

    def __init__(self) -> None:
        self._before = self.peak = self._used()

    @staticmethod
    def _used() -> int:
        asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)

    @property
    def above(self) -> int:
        """MB."""
        return self.peak - self._before

    @contextmanager
    def watching(self) -> Iterator[VideoMemory]:
        """Looks ten times a second as long as the context."""
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                self.peak = max(self.peak, self._used())
                time.sleep(0.1)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
