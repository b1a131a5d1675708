"""The wheel, installed in an empty environment elsewhere, is the whole hub: command, built-in model, a picture."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from tests.conftest import ROOT, status, wait_for


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
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the wheel, installed with torch and all else anew: a minute, and more than a gigabyte of disk."""
    import torch

    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=True)
    pip = folder / "venv" / "bin" / "pip"
    subprocess.run([pip, "install", "-q", f"torch=={torch.__version__.partition('+')[0]}"], check=True)
    subprocess.run([pip, "install", "-q", str(wheel)], check=True)
    return folder / "venv" / "bin" / "hub"


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
