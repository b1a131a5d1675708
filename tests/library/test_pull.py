"""Pulls: real bytes from a stand-in of Hugging Face, through every fault that a network and a stranger can think of."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from hub.errors import (
    HubError,
    InvalidRequest,
    JobCancelled,
    ModelRefused,
    Offline,
    PullFailed,
    RepoForbidden,
    RepoNotFound,
)
from hub.library.hugging_face import Patience
from hub.library.layout import Weights
from hub.library.progress import Note, Progress, silent
from hub.library.pull import Found, Wanted, fetch, look_up, parse_repo
from tests.conftest import ROOT, wait_for
from tests.hugging_face import StandIn

Files = dict[str, bytes | Path]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
HASTY = Patience(stall=0.5, tries=3, wait=0.01, longest=0.2)
TOKEN = "hf_CanaryThatMustNotSing"
WANTED = Wanted(repo="org/name")

CHILD = """
import json, os, sys, threading, time
from pathlib import Path
from hub.errors import HubError
from hub.library import layout
from hub.library.hugging_face import Patience
from hub.library.progress import silent
from hub.library.pull import Wanted, fetch, look_up
weights = layout.Weights(Path(sys.argv[1]))
report = silent
patience = Patience(wait=0.05)
def pull(**more):
    found = look_up(Wanted(repo="org/name"), patience=patience)
    return fetch(found, weights, more.pop("report", report), patience=patience, **more)
"""


def safetensors(size: int, seed: int = 0) -> bytes:
    """A file with one tensor of so many bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    body = bytes((index * 31 + seed) % 251 for index in range(1009)) * (size // 1009 + 1)
    return len(header).to_bytes(8, "little") + header + body[:size]


def model(**changes: bytes | None) -> Files:
    """A diffusers folder that no library reads; __ stands for / in the changes, and None removes."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# A model\n",
        "LICENSE": b"Do as you like.\n",
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b'{"_class_name": "DDIMScheduler"}',
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        UNET: safetensors(3_000_000),
        "vae/config.json": b'{"_class_name": "AutoencoderKL"}',
        VAE: safetensors(1_500_000, 1),
    } | changes  # type: ignore[operator]


KEPT = {path for path in model() if path != ".gitattributes"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in
    huggingface_hub.close_session()


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path / "weights")


def find(wanted: Wanted = WANTED, **more: Any) -> Found:
    return look_up(wanted, patience=HASTY, **more)


def pull(weights: Weights, wanted: Wanted = WANTED, **more: Any) -> dict[str, str]:
    return fetch(find(wanted), weights, more.pop("report", silent), patience=HASTY, **more)


def tree(folder: Path) -> list[str]:
    """Everything below but locks and folders."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and ".locks" not in path.parts
    )


def check_whole(there: StandIn, weights: Weights, digests: dict[str, str], repo: str = "org/name") -> None:
    """All is there, is what it should be, and huggingface_hub itself finds it."""
    commit = there.repos[repo].revisions["main"]
    entries = there.repos[repo].commits[commit]
    snapshot = weights.repo(repo) / "snapshots" / commit
    assert digests == {path: entries[path].sha256 for path in digests}
    for path in digests:
        with entries[path].open() as stream:
            assert (snapshot / path).read_bytes() == stream.read()
    assert set(tree(snapshot)) == set(digests)
    found = huggingface_hub.snapshot_download(repo, cache_dir=weights.root, local_files_only=True)
    assert found == str(snapshot)
    cache = huggingface_hub.scan_cache_dir(weights.root)
    assert not cache.warnings
    assert not [name for name in tree(weights.root) if name.endswith((".incomplete", ".tmp"))]


@contextlib.contextmanager
def child(weights: Weights, script: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A process that pulls; it is killed at the end where it has not ended."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", CHILD + script, str(weights.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        process.kill()


# --- what somebody asks for ---


def test_a_repository_is_named_with_or_without_its_revision() -> None:
    assert parse_repo("stabilityai/sdxl-turbo") == Wanted(repo="stabilityai/sdxl-turbo")
    assert parse_repo("a/b.c@fp16") == Wanted(repo="a/b.c", revision="fp16")
    assert parse_repo("a/b@refs/pr/1").revision == "refs/pr/1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://huggingface.co/org/name", "as org/name"),
        ("huggingface.co/org/name/tree/main", "as org/name"),
        ("http://evil/../x", "ORG/NAME"),
        ("gpt2", "no namespace"),
        ("", "no namespace"),
        ("../../etc", "not a repository's name"),
        ("/etc/passwd", "not a repository's name"),
        ("org/..", "not a repository's name"),
        ("org/a--b", "not a repository's name"),
        ("org/name/more", "not a repository's name"),
        ("org/na\nme", "not a repository's name"),
        ("org/na\x00me", "not a repository's name"),
        ("org/name.git", "not a repository's name"),
        ("org/" + "a" * 97, "not a repository's name"),
        ("org/name@", "not a branch"),
        ("org/name@../x", "not a branch"),
        ("org/name@/x", "not a branch"),
        ("org/name@x/", "not a branch"),
        ("org/name@a b", "not a branch"),
        ("org/name@" + "a" * 200, "not a branch"),
    ],
)
def test_what_is_no_repository_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        parse_repo(text)
    assert refused.value.param in ("repo", "revision")
    assert "\n" not in refused.value.message
    assert "\x00" not in refused.value.message


# --- what there is ---


def test_what_a_pull_would_bring_is_told_before_it(there: StandIn) -> None:
    more = {"unet/diffusion_pytorch_model.fp16.safetensors": safetensors(1_000_000, 2)}
    more |= {"sd.safetensors": safetensors(10), "unet/diffusion_pytorch_model.bin": b"x", "unet/x.py": b"boom()"}
    commit = there.add("org/name", model() | more, licence="openrail++", gated=False)
    told: list[Progress | Note] = []
    found = find(report=told.append)
    assert told == [Note(message="4 files of other kinds or variants are left out (.bin, .py, .safetensors).")]
    assert found.source.revision == commit
    assert set(found.files) == KEPT
    assert found.license == "openrail++"
    assert found.gated is None
    assert found.skipped == sorted({*more, ".gitattributes"})
    plain, small = (len(content) for content in (safetensors(3_000_000), safetensors(1_000_000, 2)))
    assert found.variants == {"fp16": found.total - plain + small}
    half = find(Wanted(repo="org/name", variant="fp16"))
    assert set(half.files) == KEPT - {UNET} | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert half.total == found.variants["fp16"]


def test_files_of_every_form_of_name_are_found(there: StandIn) -> None:
    encoder = {
        "text_encoder/config.json": b"{}",
        "text_encoder/model-00001-of-00002.safetensors": safetensors(10),
        "text_encoder/model-00002-of-00002.safetensors": safetensors(11),
        "text_encoder/model.safetensors.index.json": b"{}",
        "text_encoder/model.fp16-00001-of-00002.safetensors": safetensors(12),
        "text_encoder/model.fp16-00002-of-00002.safetensors": safetensors(13),
        "text_encoder/model.safetensors.index.fp16.json": b'{"a": 1}',
        "text_encoder/model-00001-of-00001.bf16.safetensors": safetensors(14),
        "text_encoder/model.safetensors.bf16.index.json": b'{"a": 2}',
        "text_encoder/pytorch_model.bin.index.json": b'{"a": 3}',
        "text_encoder/flax_model.msgpack": b"x",
        "text_encoder/adapter.safetensors": safetensors(15),
    }
    files = model() | encoder
    index = json.loads(bytes(files["model_index.json"])) | {"text_encoder": ["transformers", "CLIPTextModel"]}  # type: ignore[arg-type]
    there.add("org/name", files | {"model_index.json": json.dumps(index).encode()})

    def of(variant: str | None) -> set[str]:
        found = find(Wanted(repo="org/name", variant=variant))
        return {path.removeprefix("text_encoder/") for path in set(found.files) - KEPT}

    two = "00001-of-00002", "00002-of-00002"
    assert of(None) == {"config.json", "model.safetensors.index.json", *(f"model-{at}.safetensors" for at in two)}
    assert of("fp16") == {
        "config.json",
        "model.safetensors.index.fp16.json",
        *(f"model.fp16-{at}.safetensors" for at in two),
    }
    assert of("bf16") == {
        "config.json",
        "model.safetensors.bf16.index.json",
        "model-00001-of-00001.bf16.safetensors",
    }
    assert set(find().variants) == {"fp16", "bf16"}
    with pytest.raises(InvalidRequest, match="no variant 'fp8'; it has bf16, fp16") as unknown:
        of("fp8")
    assert unknown.value.param == "variant"


@pytest.mark.parametrize(
    ("files", "tags", "words"),
    [
        ({"pytorch_lora_weights.safetensors": b""}, ("lora",), "LoRA"),
        ({"model.Q4_0.gguf": b""}, (), "GGUF"),
        ({"config.json": b"{}", "model.safetensors": b""}, (), "transformers"),
        ({"config.json": b"{}", "diffusion_pytorch_model.safetensors": b""}, (), "single component"),
        ({"sd_xl_base_1.0.safetensors": b""}, (), "single-file"),
        ({"modular_model_index.json": b"{}"}, (), "modular"),
        ({"README.md": b""}, (), "no model for pictures"),
    ],
)
def test_what_is_no_pipeline_is_called_what_it_is(
    there: StandIn, files: Files, tags: tuple[str, ...], words: str
) -> None:
    there.add("org/name", files, tags=tags)
    with pytest.raises(ModelRefused, match=words):
        find()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({UNET: None, "unet/diffusion_pytorch_model.fp16.safetensors": b""}, r"unet .*only .*fp16.*--variant fp16"),
        ({UNET: None, "unet/diffusion_pytorch_model.bin": b""}, "unet has no safetensors, only pickles.*Convert"),
        ({UNET: None}, "unet has no weights"),
        ({"scheduler/scheduler_config.json": None}, "scheduler.*no files"),
        ({UNET: None, "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b""}, "1 of 2 files"),
        ({"../evil.json": b"{}"}, r"'\.\./evil\.json'"),
        ({"/etc/evil.json": b"{}"}, "'/etc/evil.json'"),
        ({"unet/../../evil.json": b"{}"}, "evil"),
        ({"unet/e\nvil.json": b"{}"}, r"e\?vil"),
        ({"unet\\evil.json": b"{}"}, "evil"),
        ({"unet//evil.json": b"{}"}, "evil"),
        ({"unet/./evil.json": b"{}"}, "evil"),
        ({"unet/\u202eevil.json": b"{}"}, "evil"),
        ({"unet/config.json": None}, r"incomplete: unet/config\.json is missing\."),
        ({"unet/config.json": None, "unet/größe.json": b"{}"}, r"unet/config\.json is missing\."),
        ({"scheduler/scheduler_config.json": None, "scheduler/a.json": b"{}"}, r"scheduler/scheduler_config\.json is"),
        ({"model_index.json": b"[1, 2]"}, "not an object of JSON"),
        ({"model_index.json": b"{"}, "model_index.json is missing or broken"),
        ({"model_index.json": b"[" * 100_000}, "model_index.json is missing or broken"),
        ({"model_index.json": b'{"_class_name": ["pipeline", "Mine"]}'}, "code of its own"),
        ({"model_index.json": b'{"_class_name": "P", "unet": ["my_unet", "Mine"]}'}, "`unet` needs code of its own"),
        ({"model_index.json": b'{"_class_name": "P", "unet": ["diffusers.x", "Mine"]}'}, "`unet` needs code"),
        ({"model_index.json": b'{"_class_name": "P", "unet": [null, "Mine"]}'}, "`unet` is not"),
        ({"model_index.json": b'{"_class_name": "P", "custom_pipeline": "x/y"}'}, "custom_pipeline"),
        ({"model_index.json": b'{"_class_name": "P", "a/b": ["diffusers", "X"]}'}, "'a/b' is not the name"),
        ({"model_index.json": b'{"_class_name": "P", "..": ["diffusers", "X"]}'}, r"'\.\.' is not"),
        ({"model_index.json": b'{"_class_name": "P"}'}, "names no components"),
        ({"model_index.json": b" " * (2 << 20)}, "absurd"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_kept(
    there: StandIn, weights: Weights, changes: dict[str, bytes | None], words: str
) -> None:
    there.add("org/name", {path: content for path, content in (model() | changes).items() if content is not None})
    with pytest.raises(ModelRefused, match=words):
        pull(weights)
    assert not weights.root.exists()
    assert not there.of(UNET)


def indexed(**parts: list[str]) -> bytes:
    return json.dumps(json.loads(bytes(model()["model_index.json"])) | parts).encode()  # type: ignore[arg-type]


def test_a_model_without_its_tokenizer_is_refused_before_anything_is_fetched(there: StandIn, weights: Weights) -> None:
    more = {"model_index.json": indexed(tokenizer=["transformers", "CLIPTokenizer"]), "tokenizer/vocab.json": b"{}"}
    there.add("org/name", model() | more)
    with pytest.raises(ModelRefused, match=r"incomplete: tokenizer/merges\.txt is missing"):
        find()
    there.add("org/name", model() | more | {"tokenizer/merges.txt": b""})
    check_whole(there, weights, pull(weights))


def test_a_shard_that_only_the_index_of_shards_tells_of_is_missed_before_weights_are_fetched(
    there: StandIn, weights: Weights
) -> None:
    shards = {f"unet/diffusion_pytorch_model-0000{at}-of-00002.safetensors": safetensors(10, at) for at in (1, 2)}
    named = {str(at): path.removeprefix("unet/") for at, path in enumerate(shards)}
    files = {path: content for path, content in model().items() if path != UNET} | shards
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    there.add("org/name", files | {index: json.dumps({"weight_map": named | {"a": "größe.safetensors"}}).encode()})
    with pytest.raises(ModelRefused, match=r"unet/gr\?\?e\.safetensors is missing, a part of the weights"):
        pull(weights)
    assert tree(weights.root) == []
    assert not [path for path in shards if there.of(path)]
    there.add("org/name", files | {index: json.dumps({"weight_map": named}).encode()})
    check_whole(there, weights, pull(weights))


def test_odd_names_that_nothing_needs_are_left_out_and_told(there: StandIn, weights: Weights) -> None:
    odd = ["unet/a b.json", "unet/größe.json", "unet/.x/config.json", "unet/a..b.json", "a/b/c/d/e.json"]
    there.add("org/name", model() | dict.fromkeys(odd, b"{}"))
    told: list[Progress | Note] = []
    assert set(find(report=told.append).files) == KEPT
    notes = [note.message for note in told if isinstance(note, Note)]
    assert notes[0] == "5 files of other kinds or variants are left out (.json)."
    assert notes[1].endswith("may not have: 'a/b/c/d/e.json' and 4 more.")
    check_whole(there, weights, pull(weights))


def test_absurd_sizes_are_refused(there: StandIn) -> None:
    there.add("org/name", model())
    for path, size in ((UNET, 5 << 40), (UNET, -1), ("unet/config.json", 1 << 30)):
        lfs = {"lfs": {"sha256": "0" * 64, "size": size, "pointerSize": 1}}
        there.repos["org/name"].listing = {path: {"size": size} if path.endswith(".json") else lfs}
        with pytest.raises(ModelRefused, match="absurd"):
            find()


def test_a_listing_that_makes_no_sense_is_not_followed(there: StandIn) -> None:
    there.add("org/name", model())
    for change in ({"blobId": "../../x"}, {"size": None}, {"lfs": {"sha256": "../x", "size": 1, "pointerSize": 1}}):
        there.repos["org/name"].listing = {"unet/config.json": change}
        with pytest.raises(PullFailed, match=r"did not say what unet/config.json is"):
            find()
    there.fault("api", "garbage", times=9)
    with pytest.raises(PullFailed, match="not the list of files, 3 times"):
        find()


# --- whole pulls ---


def test_a_real_pipeline_is_pulled_verified_and_found_by_others(
    there: StandIn, weights: Weights, small_stable_diffusion: Path
) -> None:
    there.add("org/name", small_stable_diffusion)
    told: list[Progress | Note] = []
    digests = pull(weights, report=told.append)
    check_whole(there, weights, digests)
    assert {"model_index.json", UNET, VAE, "text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= set(digests)
    last = [each for each in told if isinstance(each, Progress)][-1]
    assert last.all_done == last.all_total
    ref = weights.repo("org/name") / "refs" / "main"
    assert ref.read_text() == there.repos["org/name"].revisions["main"]
    before = there.sent
    assert pull(weights) == digests
    assert there.sent - before < 2000  # the index alone
    assert {seen.headers["accept-encoding"] for seen in there.of(UNET)} == {"identity"}


def test_others_go_on_with_what_was_pulled(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    pull(weights)
    before = there.sent
    huggingface_hub.snapshot_download("org/name", cache_dir=weights.root, endpoint=there.url, token=False)
    assert there.sent - before == len(bytes(model()[".gitattributes"]))  # type: ignore[arg-type]


def test_what_others_have_fetched_is_verified_and_healed(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    huggingface_hub.snapshot_download("org/name", cache_dir=weights.root, endpoint=there.url, token=False)
    digests = find().files
    blob = weights.blob("org/name", digests[UNET].digest)
    damaged = bytearray(blob.read_bytes())
    damaged[1000] ^= 1
    blob.write_bytes(damaged)
    before = there.sent
    told: list[Progress | Note] = []
    pulled = pull(weights, report=told.append)
    assert 3_000_000 < there.sent - before < 3_100_000
    assert any(isinstance(each, Note) and "damaged on the disk" in each.message for each in told)
    assert pulled[UNET] == digests[UNET].digest
    assert (weights.snapshot(find().source) / UNET).read_bytes() == model()[UNET]


def test_a_branch_with_a_slash_is_named_as_others_name_it(there: StandIn, weights: Weights) -> None:
    commit = there.add("org/name", model(), "refs/pr/7")
    pull(weights, Wanted(repo="org/name", revision="refs/pr/7"))
    found = huggingface_hub.snapshot_download(
        "org/name", revision="refs/pr/7", cache_dir=weights.root, local_files_only=True
    )
    assert Path(found).name == commit
    pull(weights, Wanted(repo="org/name", revision=commit))
    assert [name for name in tree(weights.root) if "refs/" in name] == ["models--org--name/refs/refs/pr/7"]


def test_files_that_hold_the_same_are_fetched_once(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model() | {VAE: safetensors(3_000_000)})
    digests = pull(weights)
    assert digests[UNET] == digests[VAE]
    assert len(there.of(UNET)) + len(there.of(VAE)) == 1
    check_whole(there, weights, digests)


# --- killed ---


def at_work(there: StandIn, path: str, sent: int) -> Callable[[], bool]:
    return lambda: any(seen.sent >= sent for seen in there.of(path))


@pytest.mark.parametrize("point", ["in a file", "between files", "before the link"])
def test_a_pull_that_is_killed_goes_on_where_it_was(there: StandIn, weights: Weights, point: str) -> None:
    there.add("org/name", model())
    total = find().total
    there.seen.clear()
    script = "pull(workers=1)"
    if point == "in a file":
        there.fault(UNET, "stall", at=2_000_000, seconds=60)
    if point == "between files":
        there.fault(VAE, "stall", at=0, seconds=60)
    if point == "before the link":
        script = "layout.Weights.link_all = lambda *_: (print('linking', flush=True), time.sleep(60))\n" + script
    with child(weights, script) as process:
        if point == "before the link":
            assert process.stdout is not None
            assert process.stdout.readline() == "linking\n"
        else:
            wait_for(at_work(there, *((UNET, 2_000_000) if point == "in a file" else (VAE, 0))), 20)
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (weights.repo("org/name") / "snapshots").exists()
    digests = pull(weights)
    check_whole(there, weights, digests)
    assert there.sent < 1.2 * total
    if point == "in a file":
        ranges = [seen.range for seen in there.of(UNET)]
        assert ranges[0] is None
        assert int(str(ranges[1]).removeprefix("bytes=").removesuffix("-")) > 1_800_000
        assert len(ranges) == 2


def test_two_processes_that_pull_the_same_fetch_it_once(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    there.fault(UNET, "drip", at=300_000, seconds=0.1)
    script = "print(len(pull(report=lambda told: print(told) if 'waiting' in str(told) else None)), flush=True)"
    with child(weights, script) as one, child(weights, script) as other:
        said = [process.communicate(timeout=60)[0] for process in (one, other)]
    assert [lines.splitlines()[-1] for lines in said] == [str(len(KEPT))] * 2, said
    assert sum("Another process works on org/name" in lines for lines in said) == 1
    assert [sum(seen.sent for seen in there.of(path)) for path in (UNET, VAE)] == [
        len(safetensors(3_000_000)),
        len(safetensors(1_500_000, 1)),
    ]
    check_whole(there, weights, pull(weights))


# --- faults ---


@pytest.mark.parametrize(
    ("kind", "at", "ranges"),
    [
        ("cut", 1_000_000, [None, "bytes=1000000-"]),
        ("stall", 1_000_000, [None, "bytes=1000000-"]),
        ("length", 1000, [None]),
        ("length", -1000, [None, "bytes=2999085-"]),
        ("flip", 1_000_000, [None, None]),
        ("flip", 10, [None, None]),
        ("status", 503, [None, None]),
        ("status", 429, [None, None]),
        ("status", 500, [None, None]),
        ("garbage", 0, [None, "bytes=49-", None]),
        ("more", 10, [None]),
    ],
)
def test_one_fault_costs_one_try(
    there: StandIn, weights: Weights, kind: Any, at: int, ranges: list[str | None]
) -> None:
    there.add("org/name", model())
    there.fault(UNET, kind, at, seconds={"stall": 3, "status": 1}.get(kind, 0))
    told: list[Progress | Note] = []
    digests = pull(weights, report=told.append)
    check_whole(there, weights, digests)
    assert [seen.range for seen in there.of(UNET)] == ranges
    notes = [each.message for each in told if isinstance(each, Note)]
    assert len(notes) == len(ranges) - 1, notes
    last = [each for each in told if isinstance(each, Progress)][-1]
    assert last.all_done == last.all_total == find().total


@pytest.mark.parametrize("kind", ["ignore_range", "shift", "shorter", "longer"])
def test_a_server_that_cannot_resume_is_asked_for_all_of_it(there: StandIn, weights: Weights, kind: Any) -> None:
    there.add("org/name", model())
    found = find()
    there.fault(UNET, "cut", 1_000_000, times=99)
    with pytest.raises(PullFailed):
        fetch(found, weights, silent, patience=Patience(tries=1))
    there._faults.clear()
    there.seen.clear()
    part = next(weights.root.rglob("*.incomplete"))
    if kind == "longer":  # what lies there is longer than the file
        part.write_bytes(b"x" * 4_000_000)
    elif kind == "shorter":  # what lies there is damaged
        part.write_bytes(b"x" * 1_000_000)
    else:
        there.fault(UNET, kind, 10)
    check_whole(there, weights, pull(weights))
    ranges = [seen.range for seen in there.of(UNET)]
    assert (
        ranges
        == {
            "ignore_range": ["bytes=1000000-"],
            "shift": ["bytes=1000000-", "bytes=1000000-"],
            "shorter": ["bytes=1000000-", None],
            "longer": [None],
        }[kind]
    )


def test_a_file_that_has_become_shorter_is_no_endless_loop(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    found = find()
    entry = there.repos["org/name"].commits[found.source.revision][UNET]
    entry.content, entry.size = bytes(entry.content)[:1_000_000], 1_000_000  # type: ignore[arg-type]
    with pytest.raises(PullFailed, match="3 times") as failed:
        fetch(found, weights, silent, patience=HASTY)
    assert "pull again" in failed.value.message
    assert [seen.status for seen in there.of(UNET)] == [200, 416, 200]
    assert not (weights.repo("org/name") / "snapshots").exists()


def test_a_slow_answer_is_borne_as_long_as_something_comes(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    there.fault(UNET, "drip", at=200_000, seconds=0.1)  # three times as long as a stall may be
    check_whole(there, weights, pull(weights))
    assert len(there.of(UNET)) == 1


def test_what_stays_wrong_is_removed_and_named(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    there.fault(UNET, "flip", 1000, times=99)
    with pytest.raises(PullFailed, match=f"{UNET} is not what the repository lists"):
        pull(weights)
    assert len(there.of(UNET)) == 2
    digest = find().files[UNET].digest
    assert not [name for name in tree(weights.root) if digest in name]
    there._faults.clear()
    check_whole(there, weights, pull(weights))


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (400, 1), (418, 1)])
def test_what_fails_for_good_says_how_and_keeps_what_came(
    there: StandIn, weights: Weights, status: int, tries: int
) -> None:
    there.add("org/name", model())
    there.fault(UNET, "status", status, times=99)
    with pytest.raises(PullFailed, match=str(status)):
        pull(weights, workers=1)
    assert len(there.of(UNET)) == tries
    there._faults.clear()
    there.seen.clear()
    check_whole(there, weights, pull(weights))
    assert not there.of("unet/config.json")


def test_a_server_that_is_not_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullFailed, match="cannot be reached"):
        find()
    huggingface_hub.close_session()


def test_an_endpoint_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(PullFailed, match="HF_ENDPOINT"):
        find()


def test_retry_after_is_honoured_and_capped(there: StandIn) -> None:
    there.add("org/name", model())
    for said, low, high in ((1, 0.9, 3), (3600, 0.1, 2)):
        there.fault("api", "status", 429, seconds=said)
        began = time.monotonic()
        look_up(WANTED, patience=Patience(wait=0.01, longest=60 if said == 1 else 0.2))
        assert low < time.monotonic() - began < high


def test_a_cancelled_pull_stops_soon_and_keeps_what_came(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    there.fault(UNET, "drip", at=100_000, seconds=0.05)
    cancelled = threading.Event()

    def report(told: Progress | Note) -> None:
        if isinstance(told, Progress) and told.file == UNET and told.done > 500_000:
            cancelled.set()

    began = time.monotonic()
    with pytest.raises(JobCancelled):
        pull(weights, cancelled=cancelled, report=report)
    assert time.monotonic() - began < 1.5
    came = next(path for path in weights.root.rglob("*.incomplete")).stat().st_size
    assert came > 500_000
    there.seen.clear()
    check_whole(there, weights, pull(weights))
    assert [seen.range for seen in there.of(UNET)] == [f"bytes={came}-"]
    with pytest.raises(JobCancelled):
        pull(weights, cancelled=cancelled)


def test_what_is_resumed_counts_as_done_and_not_for_the_speed(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    there.fault(UNET, "cut", 2_900_000, times=99)
    with pytest.raises(PullFailed):
        fetch(find(), weights, silent, patience=Patience(tries=1))
    there._faults.clear()
    there.fault(UNET, "drip", at=20_000, seconds=0.1)
    told: list[Progress | Note] = []
    pull(weights, report=told.append)
    of_unet = [each for each in told if isinstance(each, Progress) and each.file == UNET]
    assert of_unet[0].done >= 2_900_000
    speeds = [each.speed for each in of_unet if each.speed is not None and each.done < each.total]
    assert speeds
    assert all(speed < 5_000_000 for speed in speeds[-1:])
    assert all(each.total == find().files[UNET].size for each in of_unet)


# --- room ---

FULL_DISK = """
from hub.library import download
(weights.root).mkdir()
def attempt(**more):
    try:
        return {"files": len(pull(**more))}
    except HubError as error:
        return {"code": error.code, "words": error.message}
print(json.dumps(attempt()))
layout.MARGIN = 0
filler = weights.root.parent / "filler"
def fill(told):
    if getattr(told, "file", "").startswith("unet/d") and told.done > 500_000 and not filler.exists():
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(b"x" * 65536)
            except OSError:
                pass
print(json.dumps(attempt(report=fill)))
came = sum(file.stat().st_size for file in weights.root.rglob("*.incomplete"))
filler.unlink()
print(json.dumps({"came": came}))
print(json.dumps(attempt()))
"""


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
        == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs unshare with user and mount namespaces")
def test_a_full_disk_is_told_of_and_what_came_stays(there: StandIn, tmp_path: Path) -> None:
    there.add("org/name", model())
    there.fault(UNET, "drip", at=200_000, seconds=0.05, times=9)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"', str(disk)]
    with child(Weights(disk / "weights"), FULL_DISK, *mount) as process:
        output = process.communicate(timeout=60)[0]
    before, meanwhile, came, after = [json.loads(line) for line in output.splitlines()]
    assert before["code"] == meanwhile["code"] == "storage_full"
    assert "GB free" in before["words"]
    assert "is full" in meanwhile["words"]
    assert str(disk) not in output
    assert came["came"] > 500_000
    assert after == {"files": len(KEPT)}
    assert there.sent < 1.2 * find().total


def test_a_folder_that_cannot_be_written_is_told_of(there: StandIn, tmp_path: Path) -> None:
    there.add("org/name", model())
    (tmp_path / "file").write_text("x")
    with pytest.raises(PullFailed, match="weights_dir cannot be used") as failed:
        pull(Weights(tmp_path / "file"))
    assert str(tmp_path) not in failed.value.message


# --- poison ---


class Marker:
    """Whose unpickling leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


POISON: dict[str, tuple[str, bytes, str]] = {
    "auto_map": ("unet/config.json", b'{"auto_map": {"AutoModel": "evil.Evil"}}', "auto_map"),
    "remote code": ("unet/config.json", b'{"a": [{"trust_remote_code": true}]}', "trust_remote_code"),
    "kernel": ("vae/config.json", b'{"attn_implementation": "evil/kernel"}', "kernel"),
    "list": ("unet/config.json", b"[1, 2]", r"unet/config\.json is no configuration: it is not an object"),
    "broken config": ("vae/config.json", b"{", "vae/config.json is missing or broken"),
    "pickle": (UNET, b"", f"{UNET} is a pickle under another name"),
    "damaged header": (UNET, safetensors(1000)[:500], f"{UNET} is cut off"),
    "lfs pointer": (UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
}


@pytest.mark.parametrize("poison", POISON)
def test_poison_leaves_nothing_behind_and_is_never_run(
    there: StandIn, weights: Weights, tmp_path: Path, poison: str
) -> None:
    path, content, words = POISON[poison]
    marker = tmp_path / "marker"
    content = content or pickle.dumps(Marker(marker)) + b"." * 1000
    there.add("org/name", model() | {path: content})
    with pytest.raises(ModelRefused, match=words):
        pull(weights)
    assert tree(weights.root) == []
    assert not marker.exists()
    if path.endswith(".json"):
        assert not there.of(UNET)
        assert not there.of(VAE)


def test_a_poisoned_revision_does_not_touch_a_good_one(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model())
    digests = pull(weights)
    before = tree(weights.root)
    there.add("org/name", model() | {VAE: pickle.dumps([1]) + b"." * 1000}, "bad")
    with pytest.raises(ModelRefused, match="pickle"):
        pull(weights, Wanted(repo="org/name", revision="bad"))
    assert tree(weights.root) == before
    check_whole(there, weights, digests)


def test_poison_that_lies_there_already_is_not_linked(there: StandIn, weights: Weights) -> None:
    there.add("org/name", model() | {UNET: pickle.dumps([1]) + b"." * 1000})
    found = find()
    blob = weights.blob("org/name", found.files[UNET].digest)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(pickle.dumps([1]) + b"." * 1000)
    with pytest.raises(ModelRefused, match="pickle"):
        pull(weights)
    assert tree(weights.root) == []


# --- who may ---


def refusal(work: Callable[[], object], kind: type[HubError]) -> str:
    with pytest.raises(kind) as refused:
        work()
    return refused.value.message


def test_what_may_not_be_read_says_what_to_do(there: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add("org/name", model())
    there.add("org/gated", model(), gated="auto")
    there.add("org/private", model(), private=True)
    there.tokens = {TOKEN: set(), f"{TOKEN}2": {"org/gated", "org/private"}}
    gated, private, nothing = (Wanted(repo=f"org/{name}") for name in ("gated", "private", "nothing"))
    words = refusal(lambda: find(gated), RepoForbidden)
    assert "accept its terms on the model's page, then set HF_TOKEN" in words
    for hidden in (private, nothing):
        assert "there is none, or it is private" in refusal(lambda hidden=hidden: find(hidden), RepoForbidden)  # type: ignore[misc]
    assert "no revision 'v2'" in refusal(lambda: find(Wanted(repo="org/name", revision="v2")), RepoNotFound)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "your token's account has no access" in refusal(lambda: find(gated), RepoForbidden)
    for hidden in (private, nothing):
        assert "no repository" in refusal(lambda hidden=hidden: find(hidden), RepoNotFound)  # type: ignore[misc]
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}2")
    assert find(gated).gated == "auto"
    assert find(private).gated is None
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}3")
    assert "does not accept your token" in refusal(find, RepoForbidden)
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN} ÿ")
    assert "odd characters" in refusal(find, RepoForbidden)


def test_a_token_goes_to_hugging_face_alone_and_is_never_told(
    there: StandIn, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    there.add("org/name", model(), gated="manual")
    there.tokens = {TOKEN: {"org/name"}}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told: list[Progress | Note] = []
    there.fault("api", "status", 503)
    for kind, at in (("cut", 1000), ("status", 429), ("stall", 100), ("flip", 9000)):
        there.fault(UNET, kind, at, seconds=1)  # type: ignore[arg-type]
    patient = Patience(stall=0.5, wait=0.01, longest=0.2, tries=9)
    fetch(look_up(WANTED, patience=patient, report=told.append), weights, told.append, patience=patient)
    said = [str(each) for each in told if isinstance(each, Note)]
    assert len(said) == 6 and "org/name is gated" in said[1]
    for status in (400, 403, 404, 500, 503):
        there.fault("api", "status", status, times=3)
        with pytest.raises(HubError) as failed:
            find()
        said += [failed.value.message, str(failed.value), repr(failed.value.__cause__)]
        there._faults.clear()
    for bad in (f"{TOKEN}\u2028x", f"{TOKEN}3"):
        monkeypatch.setenv("HF_TOKEN", bad)
        said.append(refusal(find, RepoForbidden))
    assert TOKEN not in "".join(said) + caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert all("authorization" not in seen.headers for seen in there.seen if seen.server == "cdn")
    hub = [seen for seen in there.seen if seen.server == "hub"]
    assert {seen.headers["authorization"] for seen in hub} <= {f"Bearer {TOKEN}", f"Bearer {TOKEN}3"}
    assert there.url not in "".join(said)
    assert "X-Amz" not in "".join(said)


def test_a_token_is_also_found_in_its_file_by_a_fresh_process(
    there: StandIn, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add("org/name", model(), gated="auto")
    there.tokens = {TOKEN: {"org/name"}}
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    script = (
        "assert 'huggingface_hub' not in sys.modules\nprint(len(pull()))\n"
        "from huggingface_hub import constants\nassert 'torch' not in sys.modules\n"
        "print(constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    with child(weights, script) as process:
        assert process.communicate(timeout=60)[0] == f"{len(KEPT)}\nTrue True\n"


@pytest.mark.parametrize("variable", ["HUB_OFFLINE", "HF_HUB_OFFLINE", None])
def test_offline_nothing_is_asked(
    there: StandIn, weights: Weights, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    there.add("org/name", model())
    found = find()
    there.seen.clear()
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(Offline, match=variable or "`offline`"):
        find(offline=variable is None)
    with pytest.raises(Offline):
        fetch(found, weights, silent, offline=variable is None)
    assert not there.seen


def test_a_mirror_with_other_weights_than_the_manifest_says_is_refused_and_its_table_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_stable_diffusion: Path
) -> None:
    from hub.errors import ModelExists, ModelRefused
    from hub.library.library import Library
    from hub.library.orders import Pull
    from hub.library.progress import silent
    from tests.hugging_face import StandIn
    from tests.library.shelves import places_in

    places = places_in(tmp_path)
    library = Library(places)
    with StandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        stand_in.add("org/pinned", small_stable_diffusion)
        library.perform(Pull(repo="org/pinned"), silent)
        source = tmp_path / "models" / "org--pinned.toml"
        name, digest = next(iter(places.registry().get("org/pinned").manifest.sha256.items()))
        source.write_text(source.read_text().replace(digest, "0" * 64))
        before, sent = source.read_text(), stand_in.sent
        with pytest.raises(ModelRefused, match=f"{name} there is not what the table sha256"):
            library.perform(Pull(repo="org/pinned"), silent)
        assert source.read_text() == before
        assert stand_in.sent - sent < 10_000
        with pytest.raises(ModelExists, match="'dall-e-3' is an alias of 'builtin'"):
            library.perform(Pull(repo="org/pinned", id="dall-e-3"), silent)
