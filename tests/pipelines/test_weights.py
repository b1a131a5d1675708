from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hub.pipelines.weights import weights_hash


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.safetensors").write_bytes(b"one")
    (folder / "b.safetensors").write_bytes(b"two")
    (folder / "model_index.json").write_text("{}")
    return folder


def test_it_is_a_hash_over_names_and_contents(model: Path, tmp_path: Path) -> None:
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    wanted = hashlib.sha256(f"b.safetensors {two}\nunet/a.safetensors {one}\n".encode()).hexdigest()
    assert weights_hash([str(model)], None) == wanted
    assert weights_hash([str(model.rename(tmp_path / "elsewhere"))], None) == wanted


def test_other_weights_or_another_decoder_give_another_one(model: Path, tmp_path: Path) -> None:
    before = weights_hash([str(model)], None)
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "c.safetensors").write_bytes(b"three")
    assert weights_hash([str(model), str(decoder)], None) != before
    (model / "b.safetensors").write_bytes(b"twq")
    assert weights_hash([str(model)], None) != before


def test_what_was_read_once_is_not_read_again_until_it_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "weights.json"
    first = weights_hash([str(model)], cache)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    assert weights_hash([str(model)], cache) == first
    assert read == []
    os.utime(model / "b.safetensors", (1, 1))
    assert weights_hash([str(model)], cache) == first
    assert read == [str(model / "b.safetensors")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_a_damaged_file_of_hashes_is_made_anew(model: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "weights.json"
    cache.write_bytes(content)
    assert weights_hash([str(model)], cache) == weights_hash([str(model)], None)
    assert b".safetensors" in cache.read_bytes()


def test_where_none_can_be_written_it_is_only_slower(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert weights_hash([str(model)], tmp_path / "file" / "weights.json") == weights_hash([str(model)], None)
    assert "read again at each start" in caplog.text
