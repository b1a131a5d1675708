"""The conformance suite's own order: what it runs exists, is pinned, and is written about."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "conformance.py"


@pytest.fixture(scope="module")
def conformance() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


def test_every_client_has_a_section_and_a_row(conformance: ModuleType) -> None:
    assert conformance.missing_in_docs() == []


def test_a_client_that_is_not_written_about_is_noticed(
    conformance: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = conformance.DOCS.read_text().replace("## LiteLLM", "## Something else")
    shorter = tmp_path / "clients.md"
    shorter.write_text(re.sub(r"\| \[openai \(Node\)\].*\n", "", text))
    monkeypatch.setattr(conformance, "DOCS", shorter)
    missing = " ".join(conformance.missing_in_docs())
    assert "a section on LiteLLM" in missing
    assert "a row of openai (Node)" in missing


def test_no_documented_client_is_unknown(conformance: ModuleType) -> None:
    written = re.findall(r'^<a id="([^"]+)"></a>$', conformance.DOCS.read_text(), re.MULTILINE)
    assert written == [client.name for client in conformance.CLIENTS]


def test_every_requirement_is_pinned_and_every_program_exists(conformance: ModuleType) -> None:
    for client in conformance.CLIENTS:
        assert (conformance.PROGRAMS / client.program).is_file()
        pin = re.compile(r"@?[^@=]+@[0-9][^@]*" if client.node else r"[^=]+==[0-9][^=]*")
        for requirement in (*client.requirements, *client.unpacked):
            assert pin.fullmatch(requirement), requirement
        assert any(each.endswith(client.version) for each in (*client.requirements, *client.unpacked))


def test_results_replace_rows_and_leave_the_rest(
    conformance: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "clients.md"
    docs.write_text(f"above\n{conformance.TABLE_BEGIN}\n{conformance.TABLE_END}\nbelow\n")
    monkeypatch.setattr(conformance, "DOCS", docs)
    first, second = conformance.CLIENTS[:2]
    conformance.update_docs([conformance.Outcome(first, passed=["a", "b"], failed=["c"])])
    conformance.update_docs([conformance.Outcome(second, passed=["a"])])
    text = docs.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert f"(#{first.name}) | {first.version} | 2 passed, 1 failed |" in text
    assert f"(#{second.name}) | {second.version} | 1 passed |" in text


def test_its_help_needs_no_environment() -> None:
    done = subprocess.run([ROOT / "scripts" / "conformance", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--python" in done.stdout
