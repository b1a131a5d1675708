"""Bundles that nobody should take in: each is refused by a name, and leaves both folders as they were."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.errors import HubError, ModelRefused
from hub.library.bundles import read_bundle
from hub.library.bundles.archive import header_of
from tests.library.bundling import (
    COMMIT,
    FILES,
    Machine,
    good,
    index_of,
    members_of,
    model_entry,
    safetensors,
    sha256,
    tar_of,
)

LARGEST = "vae/diffusion_pytorch_model.safetensors"
BLOB = f"blobs/{sha256(FILES[LARGEST])}"
MEMBERS = members_of(index_of(model_entry(FILES)), FILES)


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    """With a model of its owner's, which shares a repository and blobs with nobody."""
    machine = Machine(tmp_path / "there")
    machine.install(FILES, "mine", "org/mine")
    return machine


def refused(machine: Machine, data: bytes, words: str, kind: type[HubError] = ModelRefused, **options: Any) -> None:
    """Its words are fit for strangers, and nothing has changed."""
    bundle, before = machine.models.parent / "bundle.hubmodels", machine.tree()
    bundle.write_bytes(data)
    with pytest.raises(kind, match=words) as error:
        machine.take(bundle, **options)
    told = error.value.message
    assert str(machine.models.parent) not in told and told.isprintable() and len(told) < 400
    assert machine.tree() == before


def info(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in more.items():
        setattr(found, key, value)
    return found


def test_what_is_changed_in_these_tests_is_taken_where_it_is_not_changed(there: Machine, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(good())
    assert there.take(tmp_path / "b").models == ("small",)


# The tar


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../evil", tarfile.REGTYPE, r"'\.\./evil' in the bundle is nothing that bundle\.json tells of"),
        ("/etc/evil", tarfile.REGTYPE, "'/etc/evil' in the bundle is nothing"),
        ("blobs/../../evil", tarfile.REGTYPE, "is nothing that"),
        ("blobs/" + "0" * 64, tarfile.REGTYPE, "is nothing that"),
        ("bundle.json", tarfile.REGTYPE, "is nothing that"),
        ("bundle.json.sig", tarfile.REGTYPE, "is nothing that"),
        (BLOB, tarfile.SYMTYPE, "is a symbolic link; a bundle has plain files only"),
        (BLOB, tarfile.LNKTYPE, "is a hard link"),
        (BLOB, tarfile.CHRTYPE, "is a device"),
        (BLOB, tarfile.BLKTYPE, "is a device"),
        (BLOB, tarfile.FIFOTYPE, "is a FIFO"),
        ("blobs", tarfile.DIRTYPE, "'blobs/?' in the bundle is a folder"),
        (BLOB, tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        (BLOB, tarfile.AREGTYPE, "is of an unknown kind"),
        (BLOB, tarfile.CONTTYPE, "is of an unknown kind"),
    ],
)
@pytest.mark.parametrize("place", [1, 3, len(MEMBERS)])
def test_a_member_that_is_no_plain_announced_file_is_refused(
    there: Machine, name: str, kind: bytes, words: str, place: int
) -> None:
    link = {"linkname": "../../../there/models/mine.toml"} if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else {}
    members = [*MEMBERS[:place], (info(name, kind, **link), b""), *MEMBERS[place:]]
    if name == "bundle.json.sig" and place == 1:
        words = "is no signature"
    refused(there, tar_of(members), words)


def test_a_member_is_there_once(there: Machine) -> None:
    refused(there, tar_of([*MEMBERS, MEMBERS[-1]]), "is in the bundle twice")


@pytest.mark.parametrize("lost", range(len(MEMBERS)))
def test_no_member_is_missing(there: Machine, lost: int) -> None:
    data = tar_of(MEMBERS[:lost] + MEMBERS[lost + 1 :])
    words = r"it begins with 'blobs/.*, where bundle\.json should be" if lost == 0 else "The bundle lacks 'blobs/"
    refused(there, data + bytes(10240 if lost else 0), words)


def test_extended_headers_and_long_names_change_no_name(there: Machine) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        long = [("blobs/" + "a" * 150, b""), *MEMBERS]
        refused(there, tar_of([MEMBERS[0], *long], form), "is (a long name|an extended header)")
    renamed = info(MEMBERS[1][0], pax_headers={"path": "../evil"})
    refused(there, tar_of([MEMBERS[0], (renamed, MEMBERS[1][1]), *MEMBERS[2:]], tarfile.PAX_FORMAT), "an extended head")
    spread = info(MEMBERS[1][0], pax_headers={"GNU.sparse.major": "1"})
    refused(there, tar_of([MEMBERS[0], (spread, b"")], tarfile.PAX_FORMAT), "an extended header")


def test_a_header_with_more_in_it_is_refused(there: Machine) -> None:
    whole = good()
    for place, data in ((345, b"../../evil"), (157, b"target"), (100 - 8, b"x"), (500, b"x")):
        raw = bytearray(whole[:512])
        raw[place : place + len(data)] = data
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw)
        refused(there, bytes(raw) + whole[512:], "has more in its header")


@pytest.mark.parametrize("change", [-1, 1, -100, 600])
def test_a_member_of_another_size_than_announced_is_refused(there: Machine, change: int) -> None:
    members = [(name, data[:change] if change < 0 else data + bytes(change)) for name, data in MEMBERS[1:]]
    refused(
        there, tar_of([MEMBERS[0], *members]) + bytes(10240), "has another size than bundle.json says|has more in it"
    )


def test_a_bundle_that_is_cut_off_anywhere_is_refused_before_anything_is_written(there: Machine) -> None:
    whole = good()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 1024
    for length in sorted({*range(0, end, 509), *range(end - 5, end), 1, 511, 512, 513, 1024}):
        refused(there, whole[:length], "cut off|is broken|is no bundle|is none")
    bundle = there.models.parent / "exact"
    bundle.write_bytes(whole[: end + 512])
    there.take(bundle)


def test_nothing_but_zeros_follows_the_end(there: Machine) -> None:
    whole = good()
    refused(there, whole + b"x", "goes on after its end")
    refused(there, whole + good(), "goes on after its end|has more in it")
    refused(there, whole + bytes(2 << 20), "has more in it than it tells of")
    start = len(MEMBERS[0][1]) + 512
    raw = bytearray(whole)
    assert raw[start] == 0  # the padding
    raw[start] = 1
    refused(there, bytes(raw), "something between its members")


@pytest.mark.parametrize("path", FILES)
def test_a_bit_that_flipped_is_found_in_every_file(there: Machine, path: str) -> None:
    data = bytearray(FILES[path])
    data[-1] ^= 1
    members = [(name, bytes(data) if each == FILES[path] else each) for name, each in MEMBERS]
    refused(there, tar_of(members), "is damaged in the bundle: it is not what bundle.json says")


def test_compressed_files_and_other_archives_are_told_as_such(there: Machine) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("bundle.json", MEMBERS[0][1])
    refused(there, gzip.compress(good()), r"compressed \(gzip\); a bundle is a plain tar")
    refused(there, bz2.compress(good()), r"compressed \(bzip2\)")
    refused(there, zipped.getvalue() + bytes(1024), "a zip archive")
    refused(there, os.urandom(4096).replace(b"PK", b""), "no bundle|compressed")
    refused(there, bytes(10240), "it is empty, where")
    refused(there, b"", "cut off")


def test_a_giant_size_costs_nothing(there: Machine) -> None:
    files = model_entry(FILES)["files"]
    files[0]["size"] = 1 << 59
    refused(there, tar_of(members_of(index_of(model_entry(FILES, files=files)), FILES)), "is cut off: it has")
    refused(there, header_of("bundle.json", 1 << 50) + bytes(10240), r"bundle\.json is too large")
    files[0]["size"] = -1
    refused(there, tar_of(members_of(index_of(model_entry(FILES, files=files)), FILES)), "bundle.json is broken")


def test_a_giant_file_of_nothing_is_refused_by_the_disks_room(there: Machine) -> None:
    """A sparse one, which takes no place on its own disk."""
    files = [*model_entry(FILES)["files"], {"path": "big.safetensors", "size": 1 << 42, "sha256": "0" * 64}]
    entry = model_entry(FILES, source={"kind": "huggingface", "repo": "org/big", "revision": COMMIT}, files=files)
    members = members_of(index_of(entry), FILES)
    bundle, before = there.models.parent / "bundle.hubmodels", there.tree()
    with bundle.open("wb") as stream:
        stream.write(tar_of(members).rstrip(b"\0"))
        stream.truncate(sum(512 + -(-len(data) // 512) * 512 for _, data in members) + 512 + (1 << 42) + 1024)
    with pytest.raises(HubError, match="GB free"):
        there.take(bundle)
    assert there.tree() == before
    bundle.unlink()


# bundle.json


def with_index(index: Any) -> bytes:
    return tar_of(members_of(index, FILES))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is broken"),
        (b"[]", "is broken"),
        (b"{}", "is broken"),
        (b"\xff\xfe", "is broken"),
        (b'{"format": 1, "hub": "\\ud800", "created": "", "models": []}', "is broken"),
        (b"[" * 200_000, "is broken"),
        (b'{"format": 1, "models": ' + b"[" * 200_000, "is broken"),
        (b'{"x": ' * 100_000 + b"1" + b"}" * 100_000, "is broken"),
        (json.dumps(index_of(model_entry(FILES), format=2)).encode(), "has format 2, and this hub reads 1"),
        (json.dumps(index_of(model_entry(FILES), further=1)).encode(), "unknown field `further`"),
        (json.dumps(index_of(model_entry(FILES, further=1))).encode(), "unknown field `further`"),
        (json.dumps(index_of()).encode(), "is broken"),
        (json.dumps(index_of(model_entry(FILES), model_entry(FILES))).encode(), "has the model 'small' twice"),
        (json.dumps(index_of(model_entry(FILES), hub="a\nb")).encode(), "control characters"),
    ],
)
def test_an_index_that_is_none_is_refused(there: Machine, raw: bytes, words: str) -> None:
    refused(there, with_index(raw), words)


@pytest.mark.parametrize(
    "path",
    [
        "../evil.json", "/etc/evil.json", "a/../../evil.json", "a//b.json", "./a.json", ".git/config.json", "a\\b.json",
        "a\0.json", "a\n.json", "\u202ea.json", "a/b/c/d/e.json", "-x.json", "x" * 200 + ".json", "", "unet/", "C:/a",
    ],
)  # fmt: skip
def test_a_files_name_that_leads_elsewhere_is_refused(there: Machine, path: str) -> None:
    refused(there, good({**FILES, path: b"{}"}), "is not a file name that a model may have")


@pytest.mark.parametrize("path", ["unet/code.py", "unet/a.bin", "a.ckpt", "a.pt", "a.gguf", "unet/LICENSE", "setup.sh"])
def test_a_file_of_another_kind_is_refused(there: Machine, path: str) -> None:
    refused(there, good({**FILES, path: b"x"}), "is no kind of file that a model may have")


@pytest.mark.parametrize(
    ("path", "words"),
    [("unet/CONFIG.json", "is there twice"), ("LICENSE.md/a.json", "would be a file and a folder")],
)
def test_names_that_clash_on_a_disk_are_refused(there: Machine, path: str, words: str) -> None:
    refused(there, good({**FILES, path: b"{}"}), words)


HUGGING_FACE = {"kind": "huggingface", "repo": "org/x", "revision": COMMIT}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"revision": COMMIT}, "The source of 'small' is not what its files say"),
        ({"repo": "local/other"}, "The source of 'small' is not what its files say"),
        ({**HUGGING_FACE, "repo": "../evil"}, "is broken"),
        ({**HUGGING_FACE, "repo": "org/.."}, "is broken"),
        ({**HUGGING_FACE, "repo": "org/x--y"}, "is broken"),
        ({**HUGGING_FACE, "revision": "main"}, "is broken"),
        ({**HUGGING_FACE, "revision": f"{COMMIT}\n"}, "is broken|control characters"),
        ({**HUGGING_FACE, "repo": "org/x\n"}, "is broken|control characters"),
        ({**HUGGING_FACE, "file": "../a.safetensors"}, "is broken"),
        ({**HUGGING_FACE, "file": "a.safetensors"}, "needs both source.file and pipeline.config"),
        ({**HUGGING_FACE, "kind": "elsewhere"}, "is broken"),
    ],
)
def test_a_source_that_is_none_is_refused(there: Machine, source: dict[str, str], words: str) -> None:
    refused(there, good(source=source), words)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"id": 'id = "other"'}, "says otherwise than bundle.json"),
        ({"id": "id = ["}, "The manifest of 'small' is not one"),
        ({"id": 'id = "small"\nx = ' + "[" * 100_000}, "The manifest of 'small' is not one"),
        ({"more": "further = 1"}, "is not one: Object contains unknown field `further`"),
        ({"p": 'path = "/etc"'}, "is not one"),
        ({"p": 'aliases = ["a\\n"]'}, "is not one|control characters"),
        ({"p": 'pipeline.config = "."'}, "needs both source.file and pipeline.config"),
        ({"p": 'lossy.vae = "../../../x"'}, "is not a file name"),
        ({"p": 'lossy.vae = "/etc"'}, "is not a file name"),
        ({"p": 'lossy.vae = "small_vae"'}, r"lacks 'small_vae/config\.json', which lossy\.vae of 'small' needs"),
        ({"p": 'lossy.vae = "unet"'}, "is not a model that can be loaded"),
        ({"p": 'vocabulary = "words.json"'}, r"lacks 'words\.json', which vocabulary of 'small' needs"),
        ({"p": 'vocabulary = "../words.json"'}, "is not one"),
        ({"p": 'components.unet = "/etc/x.safetensors"'}, "is not a file name"),
        ({"p": 'components.unet = "../x.gguf"'}, "is not a file name"),
        ({"p": 'components.unet = "x.gguf"'}, r"lacks 'x\.gguf', which components\.unet of 'small' needs"),
        ({"p": 'components."../x" = "unet"'}, "is not one"),
        (
            {"p": 'sha256 = { "x.safetensors" = "' + "0" * 64 + '" }'},
            "The table sha256 of 'small' says of 'x.safetensors'",
        ),
        ({"p": f'sha256 = {{ "{LARGEST}" = "' + "0" * 64 + '" }'}, "The table sha256 of 'small' says of 'vae/"),
        ({"p": 'provider = "openai"'}, "is not one"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(there: Machine, lines: dict[str, str], words: str) -> None:
    refused(there, good(lines=lines), words)


def test_two_models_whose_manifests_would_be_one_file_are_refused(there: Machine) -> None:
    index = index_of(model_entry(FILES, "a/b"), model_entry(FILES, "a--b"))
    refused(there, with_index(index), r"two models whose manifests would be a--b\.toml")


def test_a_model_that_lacks_its_index_is_refused(there: Machine) -> None:
    files = {path: data for path, data in FILES.items() if path != "model_index.json"}
    refused(there, good(files), r"lacks 'model_index\.json', which pipeline\.config of 'small' needs")


def test_one_blob_with_two_sizes_is_refused(there: Machine) -> None:
    entry = model_entry({**FILES, "vae/a.safetensors": FILES[LARGEST]})
    entry["files"][-1]["size"] += 1
    refused(there, with_index(index_of(entry)), "has two sizes in bundle.json")


# What files hold


class Bomb:
    """Its marker tells whether anybody has read it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_pickles_in_disguise_are_refused_and_never_run(there: Machine, tmp_path: Path) -> None:
    import torch

    marker, buffer = tmp_path / "marker", io.BytesIO()
    torch.save(Bomb(marker), buffer)
    for data in (pickle.dumps(Bomb(marker)), pickle.dumps(Bomb(marker), protocol=2), buffer.getvalue()):
        for path in (
            "unet/diffusion_pytorch_model.safetensors",
            "tokenizer/spiece.model",
            "tokenizer/a.txt",
            "LICENSE.md",
        ):
            refused(there, good({**FILES, path: data}), "is a pickle under another name")
    refused(there, good({**FILES, "unet/config.json": pickle.dumps(Bomb(marker), protocol=0)}), "is missing or broken")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet/config.json": b'{"auto_map": {"AutoModel": "code.Model"}}'}, "asks for code of its own"),
        ({"unet/config.json": b'{"a": [{"trust_remote_code": true}]}'}, "asks for code of its own"),
        ({"model_index.json": b'{"custom_pipeline": "x"}'}, "asks for code of its own"),
        ({"unet/config.json": b"[" * 100_000}, "is missing or broken"),
        ({"tokenizer/vocab.json": b"{"}, "is missing or broken"),
        ({LARGEST: b""}, "is cut off"),
        ({LARGEST: safetensors()[:-1]}, "is cut off"),
        ({LARGEST: safetensors() + b"x"}, "is longer than it was"),
        ({LARGEST: b"<html>" + b" " * 100}, "no safetensors file"),
    ],
)
def test_files_that_no_model_may_have_are_refused(there: Machine, change: dict[str, bytes], words: str) -> None:
    refused(there, good({**FILES, **change}), words)


def test_a_damaged_gguf_file_is_refused_where_its_manifest_names_it(there: Machine) -> None:
    lines = {"p": 'components.unet = "unet/x.gguf"'}
    refused(there, good({**FILES, "unet/x.gguf": b"GGUF" + bytes(100)}, lines=lines), "unet/x.gguf is no GGUF file")
    refused(
        there, good({**FILES, "unet/x.gguf": b"GGUF\3\0\0\0" + b"\xff" * 99}, lines=lines), "unet/x.gguf is cut off"
    )


def test_a_blob_that_is_there_already_is_looked_at_under_its_new_name(there: Machine) -> None:
    """What is harmless as a text is not as a configuration."""
    text = b'{"auto_map": {"a": "b"}}'
    files = {**FILES, "unet/a.txt": text, "model_index.json": text}
    source = {"kind": "huggingface", "repo": "org/mine", "revision": "f" * 40}
    there.install({**FILES, "unet/a.txt": text}, "mine", "org/mine")
    refused(there, good(files, source=source), r"model_index\.json asks for code of its own")


WHOLE = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
    ).encode(),
    "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "unet/diffusion_pytorch_model.safetensors": safetensors(),
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version: 0.2",
    "scheduler/scheduler_config.json": b'{"_class_name": "DDIMScheduler"}',
}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "Evil", "unet": ["evil_lib", "X"]}, "has 'unet' of a class that neither diffusers nor"),
        ({"_class_name": "a.b"}, "names no pipeline of diffusers"),
        ([1, 2], r"model_index\.json is no configuration: it is not an object of JSON"),
    ],
)
def test_a_bundle_whose_index_asks_for_code_is_refused(there: Machine, index: Any, words: str) -> None:
    refused(there, good({**WHOLE, "model_index.json": json.dumps(index).encode()}), words)


@pytest.mark.parametrize("path", [path for path in WHOLE if path != "model_index.json"])
def test_a_bundle_with_a_model_that_is_incomplete_is_refused(there: Machine, path: str) -> None:
    files = {name: data for name, data in WHOLE.items() if name != path}
    part = path.partition("/")[0]
    words = (
        "the folder scheduler is missing" if part == "scheduler" else f"{path} is missing|there are no weights in unet"
    )
    refused(there, good(files), f"incomplete: ({words})")
    (there.models.parent / "whole").write_bytes(good(WHOLE))
    assert there.take(there.models.parent / "whole").models == ("small",)


def test_a_bundle_without_a_shard_or_with_a_list_for_a_configuration_is_refused(there: Machine) -> None:
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    files = {path: data for path, data in WHOLE.items() if not path.endswith(".safetensors")}
    files[f"unet/{shard}"] = safetensors()
    named = {"a": shard, "b": "other\n.safetensors"}
    files["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps({"weight_map": named}).encode()
    refused(there, good(files), r"unet/other\?\.safetensors is missing, a part of the weights")
    for path in ("unet/config.json", "scheduler/scheduler_config.json"):
        refused(there, good({**WHOLE, path: b"[1, 2]"}), f"{path} is no configuration")


def test_what_was_there_before_stays_when_a_bundle_is_refused(there: Machine) -> None:
    """It claims a repository that is here, and shares all but one file with it."""
    source = {"kind": "huggingface", "repo": "org/mine", "revision": "f" * 40}
    files = {**FILES, "zz/config.json": b'{"auto_map": {"a": "b"}}' + b" " * 2000}
    refused(there, good(files, source=source), "asks for code of its own")
    there.models.joinpath("mine.toml").unlink()
    refused(there, good(files, source=source, model="a/b"), "asks for code of its own")


# Anything at all


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("fuzzed"))


def harmless(machine: Machine, data: bytes) -> None:
    bundle, before = machine.models.parent / "bundle.hubmodels", machine.tree()
    bundle.write_bytes(data)
    try:
        machine.take(bundle)
    except HubError as error:
        assert error.status < 500 and error.message.isprintable()
        assert machine.tree() == before
    else:
        manifest = machine.read("small")
        assert manifest.source is not None
        for place in sorted(machine.weights.repo(manifest.source.repo).rglob("*"), reverse=True):
            place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
        machine.weights.repo(manifest.source.repo).rmdir()
        (machine.models / "small.toml").unlink()


BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BOUNDED
@given(places=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_refused_or_mean_nothing(fuzzed: Machine, places: list[tuple[int, int]]) -> None:
    data = bytearray(good())
    for place, value in places:
        data[place % len(data)] = value
    harmless(fuzzed, bytes(data))


@BOUNDED
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 3))
def test_blocks_in_another_order_are_refused_or_mean_nothing(fuzzed: Machine, seed: int, count: int) -> None:
    data, dice = good(), random.Random(seed)
    blocks = [data[place : place + 512] for place in range(0, len(data), 512)]
    for _ in range(count):
        what, first, second = dice.choice("dsr"), dice.randrange(len(blocks)), dice.randrange(len(blocks))
        if what == "d":
            del blocks[first]
        elif what == "s":
            blocks[first], blocks[second] = blocks[second], blocks[first]
        else:
            blocks.insert(first, blocks[second])
        if not blocks:
            break
    harmless(fuzzed, b"".join(blocks))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["models", "format", "hub", "created", "id", "manifest", "source", "files", "path", "size", "sha256", "repo"]


@BOUNDED
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_any_value_of_any_field_is_refused_or_means_nothing(fuzzed: Machine, field: str, value: Any) -> None:
    index = json.loads(json.dumps(index_of(model_entry(FILES))))
    model = index["models"][0]
    for holder in (index, model, model["source"], *model["files"]):
        if field in holder:
            holder[field] = value
            break
    harmless(fuzzed, with_index(index))


@BOUNDED
@given(
    line=st.text(max_size=60), key=st.sampled_from(["components.unet", "lossy.vae", "pipeline.config", "", "sha256"])
)
def test_any_line_in_a_manifest_is_refused_or_means_nothing(fuzzed: Machine, line: str, key: str) -> None:
    told = f"{key} = {json.dumps(line)}" if key else line
    harmless(fuzzed, good(lines={"zz": told}))


@BOUNDED
@given(data=st.binary(max_size=3000))
def test_any_bytes_are_refused(fuzzed: Machine, data: bytes) -> None:
    harmless(fuzzed, data)
    harmless(fuzzed, MEMBERS[0][1] + data)


def test_reading_the_list_is_as_strict_as_an_import(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(good({**FILES, "../evil.json": b"{}"}))
    with pytest.raises(ModelRefused):
        read_bundle(tmp_path / "b")
