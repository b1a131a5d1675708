"""The rules of the structure that a tool can hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Server


def test_the_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_the_api_process_has_no_torch_and_idles_small(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert resident is not None
    assert int(resident[1]) < 150 * 1024, "after the tests' own traffic; the bench measures it idle"


def test_importing_the_app_imports_no_heavy_library() -> None:
    script = (
        "import sys; import hub.app, hub.cli, uvicorn; "
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'httpx2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_weights_are_loaded_by_pickle() -> None:
    for source in (ROOT / "hub").rglob("*.py"):
        text = source.read_text()
        means = r"import pickle|\bpickle\.|torch\.load\b|trust_remote_code\s*=\s*True|custom_pipeline\s*="
        assert not re.search(means, text), source
