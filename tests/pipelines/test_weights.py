from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from hub.pipelines import Unsupported
from hub.pipelines.weights import forget, weights_hash


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.safetensors").write_bytes(b"one")
    (folder / "vae").mkdir()
    (folder / "vae" / "b.safetensors").write_bytes(b"two")
    (folder / "all-in-one.safetensors").write_bytes(b"nobody reads it")
    (folder / "model_index.json").write_text("{}")
    return folder


def test_it_is_a_hash_over_names_and_contents(model: Path, tmp_path: Path) -> None:
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    wanted = hashlib.sha256(f"unet/a.safetensors {one}\nvae/b.safetensors {two}\n".encode()).hexdigest()
    assert weights_hash([str(model)], None) == wanted
    assert weights_hash([str(model.rename(tmp_path / "elsewhere"))], None) == wanted


def test_other_weights_or_another_decoder_give_another_one(model: Path, tmp_path: Path) -> None:
    before = weights_hash([str(model)], None)
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "c.safetensors").write_bytes(b"three")
    assert weights_hash([str(model), str(decoder)], None) != before
    (model / "vae" / "b.safetensors").write_bytes(b"twq")
    assert weights_hash([str(model)], None) != before


def test_a_change_that_sets_the_time_back_is_seen(model: Path, tmp_path: Path) -> None:
    file, cache = model / "vae" / "b.safetensors", tmp_path / "weights.json"
    before, status = weights_hash([str(model)], cache), file.stat()
    file.write_bytes(b"twq")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_hash([str(model)], cache) != before
    other = model / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert weights_hash([str(model)], cache) == before


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"vae/b.safetensors": sha256(b"twp")},
            r"^vae/b\.safetensors is not what the manifest's table sha256 says: it was dam",
        ),
        (
            {"vae/b.safetensors": None},
            r"^vae/b\.safetensors is not in the manifest's table sha256, which must name all weights",
        ),
        ({"c.safetensors": sha256(b"two")}, r"^c\.safetensors is missing, which the manifest's table sha256 names"),
    ],
)
def test_weights_that_are_not_what_the_manifest_says_are_refused_by_name(
    model: Path, changes: dict[str, str | None], words: str
) -> None:
    table = {"vae/b.safetensors": sha256(b"two"), "unet/a.safetensors": sha256(b"one")}
    assert weights_hash([str(model)], None, table) == weights_hash([str(model)], None)
    wrong = {name: digest for name, digest in {**table, **changes}.items() if digest is not None}
    with pytest.raises(Unsupported, match=words):
        weights_hash([str(model)], None, wrong)


def test_what_lies_outside_of_the_folder_is_named_from_there(model: Path, tmp_path: Path) -> None:
    (tmp_path / "d.safetensors").write_bytes(b"four")
    places = [str(model), str(tmp_path / "d.safetensors")]
    table = {"vae/b.safetensors": sha256(b"two"), "unet/a.safetensors": sha256(b"one")}
    with pytest.raises(Unsupported, match=r"^\.\./d\.safetensors is not in the manifest"):
        weights_hash(places, None, table)
    weights_hash(places, None, {**table, "../d.safetensors": sha256(b"four")})


def test_in_hugging_faces_cache_a_blob_is_what_it_is_called(model: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    blob = (model / "vae" / "b.safetensors").rename(blobs / sha256(b"two"))
    (model / "vae" / "b.safetensors").symlink_to(blob)
    (blobs / "0123abcd").write_bytes(b"a small file of git's, called otherwise")
    (model / "c.safetensors").symlink_to(blobs / "0123abcd")
    weights_hash([str(model)], None)
    blob.write_bytes(b"twq")
    with pytest.raises(
        Unsupported, match=r"^vae/b\.safetensors is not what Hugging Face's cache calls it: it was damaged"
    ):
        weights_hash([str(model)], None)
    blob.unlink()
    with pytest.raises(Unsupported, match=r"^vae/b\.safetensors cannot be read, or is a link that leads nowhere"):
        weights_hash([str(model)], None)


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
    status = (model / "vae" / "b.safetensors").stat()
    os.utime(model / "vae" / "b.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_hash([str(model)], cache) == first
    assert read == [str(model / "vae" / "b.safetensors")]


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


def test_what_is_forgotten_is_read_again_and_all_else_is_not(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "weights.json"
    weights_hash([str(model)], cache)
    files = [model / "vae" / "b.safetensors"]
    known = json.loads(cache.read_bytes())
    forget(cache, files[0])
    left = json.loads(cache.read_bytes())
    assert set(known) - set(left) == {key for key in known if key.startswith(f"{files[0].resolve()} ")} != set()


def test_other_variants_than_the_one_that_is_read_are_neither_hashed_nor_missed(model: Path) -> None:
    part = model / "unet"
    file = next(iter(part.glob("*.safetensors")))
    before = weights_hash([str(model)], None)
    variant = file.with_name(f"{file.stem}.fp16.safetensors")
    variant.write_bytes(file.read_bytes() + b"other")
    assert weights_hash([str(model)], None) == before
    assert weights_hash([str(model)], None, variant="fp16") != before
    table = {
        str(each.relative_to(model)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in model.rglob("*.safetensors")
    }
    only = {name: digest for name, digest in table.items() if name != str(variant.relative_to(model))}
    weights_hash([str(model)], None, only)
    weights_hash([str(model)], None, table)
    with pytest.raises(Unsupported, match="is not in the manifest's table"):
        weights_hash([str(model)], None, only, variant="fp16")


def test_a_component_that_is_replaced_counts_where_it_is_read_and_once(model: Path, tmp_path: Path) -> None:
    part = model / "unet"
    own = tmp_path / "own"
    shutil.copytree(part, own)
    outside = weights_hash([str(model), str(own)], None, replaced=[part.name])
    inside = model / "components" / part.name
    inside.parent.mkdir()
    own.rename(inside)
    shutil.rmtree(part)
    assert weights_hash([str(model), str(inside)], None, replaced=[part.name]) == outside
