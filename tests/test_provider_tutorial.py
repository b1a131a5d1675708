"""The tutorial of docs/providers.md as it stands: its files are put where it says, into a copy of the hub, and run
there: by a real hub, and by the tests that all providers share."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import call, picture
from tests.conftest import ROOT, run_server
from tests.providers.upstream import KEY, Protocol, Upstream, serving

SECTION = (ROOT / "docs" / "providers.md").read_text().partition("## Add a provider in one file\n")[2]
FILES = {path: text for _, text, path in re.findall(r"```(\w+)\n(# (\S+)\n.*?)```", SECTION, re.DOTALL)}
ADAPTER, PROTOCOL, MANIFEST, SETTINGS = (
    "hub/providers/easel.py",
    "tests/providers/protocols/easel.py",
    "models/remote/easel-charcoal.toml",
    "hub.toml",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the tutorial's files in it."""
    tree = tmp_path_factory.mktemp("tutorial")
    for name in ("hub", "models", "tests/providers"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, tree / name)
    for path, text in FILES.items():
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_text(text)
    return tree


@pytest.fixture(scope="module")
def upstream(tree: Path) -> Iterator[Upstream]:
    """Easel, by the tutorial's protocol."""
    spec = importlib.util.spec_from_file_location("easel_protocol", tree / PROTOCOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    protocol: Protocol = module.protocol
    with serving(protocol) as running:
        yield running
    assert running.failures == []


def test_the_tutorial_has_the_files_that_it_speaks_of() -> None:
    assert set(FILES) == {ADAPTER, PROTOCOL, MANIFEST, SETTINGS}


def test_the_tutorial_s_code_is_as_clean_as_the_hub_s(tree: Path) -> None:
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", ADAPTER, PROTOCOL],
            cwd=tree,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_hub_with_the_tutorial_s_files_makes_the_pictures_of_its_last_step(tree: Path, upstream: Upstream) -> None:
    """Nothing is changed but where Easel lies: at a loopback address, and not at api.easel.example."""
    here = f'[remote]\nbase_url = "{upstream.url}"\ncredentials = "easel"\n'
    (tree / MANIFEST).write_text(FILES[MANIFEST].replace("[remote]\n", here))
    sent = re.search(r"curl (http://127\.0\.0\.1:8000)(\S+) .*?-d '([^']*)'", SECTION, re.DOTALL)
    assert sent
    with run_server(tree, ready=False, EASEL_API_KEY=KEY) as server:
        answer = call(server.url + sent[2], json.loads(sent[3]))
        assert answer.status == 200, answer.body
        assert [picture(call(each["url"]).body).size for each in answer.json["data"]] == [(768, 512)] * 6
        assert answer.json["seed"] == 7 and not answer.json.get("warnings")
        assert KEY not in server.log.read_text()
    (tree / MANIFEST).write_text(FILES[MANIFEST])
    bodies = [asked.json for asked in upstream.work]
    assert sorted((body["count"], body["seed"]) for body in bodies) == [(2, 11), (4, 7)]
    assert bodies[0]["brush"] == "charcoal-1"


def test_the_tutorial_s_provider_keeps_what_all_promise(tree: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/providers/test_{name}.py" for name in ("contract", "parameters")]
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([*command, "-k", "easel"], cwd=tree, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 30, done.stdout
