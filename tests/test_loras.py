"""The folder of LoRAs: names, what is no LoRA, and what is another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hub.errors import ConfigurationError, InvalidRequest
from hub.loras import Loras
from hub.types import Lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "loras"
    for name in ("ink", "styles/oil", "styles/deep/chalk", ".hidden", ".git/config"):
        path = found / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (found / "readme.md").write_text("no LoRA")
    (found / "folder.safetensors").mkdir()
    os.mkfifo(found / "pipe.safetensors")
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    return found


def test_all_files_are_listed_by_name_and_nothing_else(folder: Path) -> None:
    assert [file.name for file in Loras(folder)] == ["ink", "styles/deep/chalk", "styles/oil"]
    assert Loras(folder).get("styles/oil").path == str(folder / "styles" / "oil.safetensors")
    assert list(Loras(folder / "nowhere")) == []


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "styles/../../secret", "styles/../ink", "./ink", "styles//oil", "/ink", "ink/", ".hidden"),
        *("", "ink\0", "ink.safetensors", "folder", "pipe", "\ud800", "a" * 300, ".git/config"),
    ],
)
def test_a_name_leads_to_a_file_of_the_folder_or_nowhere(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="does not exist") as caught:
        Loras(folder).get(name)
    assert caught.value.param == "loras"
    assert "secret" not in caught.value.message.partition("Near")[2]


def test_an_absolute_name_is_no_path(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Loras(folder).get(str(tmp_path / "secret"))


def test_links_may_stay_inside_and_not_lead_out(folder: Path, tmp_path: Path) -> None:
    (folder / "same.safetensors").symlink_to("ink.safetensors")
    (folder / "out.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "far").symlink_to(tmp_path)
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    loras = Loras(folder)
    assert loras.get("same").path == loras.get("ink").path
    for name in ("out", "far/secret", "loop"):
        with pytest.raises(InvalidRequest):
            loras.get(name)
    assert [file.name for file in loras] == ["ink", "same", "styles/deep/chalk", "styles/oil"]
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert Loras(linked).get("ink").path == loras.get("ink").path, "the folder itself may be one"


def test_an_unknown_name_is_told_with_near_ones(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"'styles/oi\?' does not exist\. Near names: styles/oil"):
        Loras(folder).get("styles/oi\x1b")
    with pytest.raises(InvalidRequest, match="This hub has none"):
        Loras(folder / "nowhere").get("ink")


def test_the_same_one_twice_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="named twice"):
        Loras(folder).find([Lora(name="ink"), Lora(name="ink", weight=0.5)])


def test_a_file_that_was_written_or_replaced_is_another_one(folder: Path) -> None:
    loras, path = Loras(folder), folder / "ink.safetensors"
    seen = {loras.get("ink").identity}
    assert seen == {loras.get("ink").identity}
    status = path.stat()
    path.write_bytes(b"INK")  # as long as it was
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(loras.get("ink").identity)
    (folder / "other").write_bytes(b"ink")
    os.utime(folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "other").rename(path)
    seen.add(loras.get("ink").identity)
    assert len(seen) == 3


def test_a_folder_that_the_owner_names_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"loras_dir: .*nowhere is not a folder"):
        Loras(tmp_path / "nowhere", must_be=True)
