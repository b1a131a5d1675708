"""The wheel, installed in an empty environment elsewhere, is the whole hub: command, built-in model, a picture."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT


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
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "cache/"))]
    assert wheel.stat().st_size < 40 * 2**20


@pytest.mark.slow
def test_the_installed_wheel_draws_a_red_circle(wheel: Path, tmp_path: Path) -> None:
    """Installs torch and everything else anew: minutes, and more than a gigabyte of disk."""
    import torch

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    bin_folder = environment / "bin"
    subprocess.run([bin_folder / "pip", "install", "-q", f"torch=={torch.__version__.partition('+')[0]}"], check=True)
    subprocess.run([bin_folder / "pip", "install", "-q", str(wheel)], check=True)
    home = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("HUB_")}}
    home |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    subprocess.run(
        [bin_folder / "hub", "generate", "a red circle on a white background", "--size", "256x256", "--seed", "1"],
        cwd=tmp_path,
        env=home,
        check=True,
    )
    with Image.open(tmp_path / "image.png") as drawn:
        red, green, blue = drawn.convert("RGB").getpixel((128, 128))
        assert red > 150
        assert max(green, blue) < 110
        assert min(drawn.convert("RGB").getpixel((4, 4))) > 215
