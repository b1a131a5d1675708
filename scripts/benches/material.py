"""What the sections need and git does not hold: models with random weights, and an environment of public peers.

All of it lies in `.bench/`, is made at its first use, and can be deleted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from benches import machine
from benches.report import Options, Report

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".bench"
PROGRAMS = Path(__file__).resolve().parent / "programs"
PEERS = FOLDER / "venv" / "bin" / "python"
HF_SERVE = "hf-serve==0.2.0"
KEYWORDS = "reprlib.Repr(maxstring=100, maxother=100, maxlist=10, maxdict=20, maxlevel=10)"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
TORCH = "import importlib.metadata as m; print(m.version('torch'))"


@dataclass(frozen=True)
class Model:
    """A diffusers folder and what its manifest has to say; `more` are further lines of it."""

    id: str
    path: Path
    native: int
    steps: int
    guidance: float
    dtype: str
    more: str = ""

    def manifest(self) -> str:
        """For the hub's models folder."""
        return f"""
id = "{self.id}"
name = "{self.id}"
description = "random weights"
license = "Apache-2.0"
path = {json.dumps(str(self.path))}
dtype = "{self.dtype}"
tasks = ["text-to-image"]
max_inference_steps = 1000
size = {{ native = "{self.native}x{self.native}", multiple = 16, min = 64, max = {self.native} }}
defaults = {{ num_inference_steps = {self.steps}, guidance_scale = {self.guidance} }}
{self.more}
"""


BUILTIN = Model("builtin", ROOT / "models" / "builtin", native=128, steps=18, guidance=2.5, dtype="float32")
SHAPES = {"small": (256, 20, 7.5), "sdxl": (1024, 30, 5.0), "klein": (1024, 4, 1.0), "zimage": (512, 8, 0.0)}
"""Side in pixels, steps and guidance of what programs/build.py makes."""


def folder() -> Path:
    """`.bench/`, which git does not see."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    return FOLDER


def model(name: str, options: Options) -> Model:
    """A model of programs/build.py, built where it is not there yet."""
    family, _, _ = name.partition("-")
    native, steps, guidance = SHAPES[family]
    kind = "-tiny" if options.trial else "-short" if options.short_text_encoder and family != "small" else ""
    dtype = machine.dtype()
    path = folder() / "models" / f"{name}{kind}-{dtype}"
    built, wanted = path / ".built", str(zlib.crc32((PROGRAMS / "build.py").read_bytes()))
    if not built.is_file() or built.read_text() != wanted:
        print(f"  building {path.name} with random weights", flush=True)
        program = [sys.executable, "-P", str(PROGRAMS / "build.py"), f"{family}{kind}", str(path), dtype]
        made = subprocess.run(
            [*program, machine.device(), str(zlib.crc32(name.encode()))], capture_output=True, text=True, check=False
        )
        if made.returncode:
            sys.exit(f"building {path.name} failed:\n{made.stderr[-2000:]}")
        built.write_text(wanted)
    return Model(name, path, 64 if options.trial else native, steps, guidance, dtype)


def peers(report: Report) -> Path:
    """The Python of an environment with hf-serve and FastAPI, installed at the first use; says how it was mended."""
    ready = folder() / "venv" / ".ready"
    if not ready.is_file():
        print(f"  installing {HF_SERVE} into .bench/venv (minutes, once)", flush=True)
        script = (
            'source "$1/scripts/lib.sh"; VENV="$1/.bench/venv"; "$2" -m venv --clear "$VENV"; install_torch; '
            '"$VENV/bin/pip" install "torch==$("$VENV/bin/python" -c "$4")" "$3"'
        )
        arguments = ["bash", "-c", script, "-", str(ROOT), sys.executable, HF_SERVE, TORCH]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{HF_SERVE} could not be installed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        ready.write_text("\n".join(_mend()))
    report.note(f"Peers: {machine.versions(PEERS, 'hf-serve', 'torch', 'diffusers', 'transformers', 'fastapi')}.")
    for words in filter(None, ready.read_text().splitlines()):
        report.note(words)
    return PEERS


def _mend() -> list[str]:
    """Makes hf-serve start, in the installed copy only; returns what was done, for the report."""
    done = []
    if sys.version_info < (3, 12):
        found = next(FOLDER.glob("venv/lib/python*/site-packages/hf_serve/tasks/predictor.py"))
        source = found.read_text()
        if KEYWORDS not in source:
            sys.exit(f"{found} has changed; mend it anew")
        found.write_text(source.replace(KEYWORDS, "reprlib.Repr()"))
        done.append("hf-serve was mended in its installed copy: it calls reprlib.Repr as only Python 3.12 can.")
    if subprocess.run([PEERS, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        pip = [str(PEERS), "-m", "pip", "uninstall", "--yes", *UNUSED]
        subprocess.run(pip, capture_output=True, check=True)
        done.append(
            f"{', '.join(UNUSED)} were taken out again: PyPI's are not for torch's CPU build, and no side uses them."
        )
    return done
