"""The wheel, installed in an empty environment without a network, is the whole hub: command, built-in model, a picture.

It gets there as docs/air-gap.md says, by the document's own commands.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from tests.conftest import ROOT, status, wait_for
from tests.test_offline import CLIENT, IN_NAMESPACE, can_make_namespaces

ALONE = ["unshare", "-rn", "sh", "-ec"] if can_make_namespaces() else ["sh", "-ec"]
"""Runs a line where there is no network."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_manifest_the_weights_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "hub/_models/builtin.toml" in names
    assert "hub/_models/builtin/unet/diffusion_pytorch_model.safetensors" in names
    assert "hub/_models/builtin/LICENSE" in names
    assert {"hub/web/docs/index.html", "hub/web/docs/swagger-ui-bundle.js"} <= set(names)
    assert "hub/web/docs/LICENSE.swagger-ui.txt" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "cache/"))]
    assert wheel.stat().st_size < 40 * 2**20


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a hub that was carried over an air gap: two minutes, and more than a gigabyte of disk."""
    import torch

    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name in ("hub", "models", *("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, here / name)
    connected, closed = commands_of_step_1()
    build = next(
        line for line in connected if "pip wheel" in line and ("+cpu" in line) == ("+cpu" in torch.__version__)
    )
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tried = {**os.environ, "PATH": python}
    # As scripts/lib.sh does: the usual index first. PyTorch's own may be out of reach, which pip takes minutes to say.
    usual = build.partition(" --extra-index-url")[0]
    if subprocess.run(usual, shell=True, cwd=here, env=tried).returncode:
        subprocess.run(build, shell=True, cwd=here, env=tried, check=True, timeout=900)
    carry = next(line for line in connected if line.startswith("tar "))
    subprocess.run(carry, shell=True, cwd=here, env=tried, check=True)
    (here / "hub.tar").rename(there / "hub.tar")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PATH": python, "PIP_CONFIG_FILE": os.devnull}
    for line in closed:
        if "hub serve" not in line:
            alone = ALONE if "pip install" in line else ["sh", "-ec"]
            subprocess.run([*alone, line], cwd=there, env=environment, check=True)
    return there / ".venv" / "bin" / "hub"


def commands_of_step_1() -> tuple[list[str], list[str]]:
    """Those for the connected machine, and for the closed one."""
    section = (ROOT / "docs" / "air-gap.md").read_text().partition("## 1.")[2].partition("## 2.")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return blocks[0].splitlines(), blocks[1].splitlines()


def home(folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("HUB_")}
    return {**clean, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "xdg")}


def assert_red_circle_on_white(file: BinaryIO | Path) -> None:
    with Image.open(file) as drawn:
        red, green, blue = drawn.convert("RGB").getpixel((128, 128))
        assert red > 150
        assert max(green, blue) < 110
        assert min(drawn.convert("RGB").getpixel((4, 4))) > 215


@pytest.mark.slow
def test_the_installed_command_draws_a_red_circle(installed: Path, tmp_path: Path) -> None:
    wish = ["a red circle on a white background", "--size", "256x256", "--seed", "1"]
    subprocess.run([installed, "generate", *wish], cwd=tmp_path, env=home(tmp_path), check=True)
    assert_red_circle_on_white(tmp_path / "image.png")


@pytest.mark.slow
@pytest.mark.skipif(not can_make_namespaces(), reason="needs unshare with user namespaces, and ip or ifconfig")
def test_the_installed_command_serves_pictures_offline_where_there_is_no_network(
    installed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", IN_NAMESPACE, "sh", installed.with_name("python"), "-c", CLIENT],
        cwd=tmp_path,
        env={**home(tmp_path), "HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["bytes"] > 1000


@pytest.mark.slow
def test_the_installed_command_serves_a_red_circle(installed: Path, tmp_path: Path) -> None:
    command = [installed, "serve", "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, env=home(tmp_path), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    with server.stderr:
        url = next(word for word in server.stderr.readline().split() if word.startswith("http://"))
        wait_for(lambda: status(f"{url}/health") == 200)
        body = {"prompt": "a red circle on a white background", "size": "256x256", "seed": 1}
        request = urllib.request.Request(
            f"{url}/api/images/generations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            link = json.load(answer)["data"][0]["url"]
        with urllib.request.urlopen(link, timeout=10) as picture:
            assert_red_circle_on_white(io.BytesIO(picture.read()))
        server.terminate()
        server.stderr.read()
    server.wait(20)
