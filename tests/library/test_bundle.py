from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from hub.errors import HubError, InvalidRequest, ModelExists, ModelRefused, NotFound, StorageFull
from hub.hub import Hub
from hub.library.bundles import ExportResult, export, read_bundle
from hub.library.bundles import tree as bundles_tree
from hub.library.bundles.archive import header_of
from hub.library.layout import Weights
from hub.library.manifests import file_for
from hub.library.progress import Note, Progress, silent
from hub.manifest import SourceSection
from hub.pipelines import auto
from hub.pipelines.parts import places_of
from hub.pipelines.weights import weights_hash
from hub.registry import absence, read_manifest
from hub.settings import Settings
from hub.types import ImageRequest, Size
from tests.conftest import ROOT, with_hub
from tests.library.bundling import (
    COMMIT,
    FILES,
    Machine,
    contents,
    good,
    manifest_text,
    members_in,
    safetensors,
    sha256,
    tree,
)

IDS = ["small", "single", "parts", "quantized"]


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "there")


def carry(here: Machine, target: Path, *models: str, report: Any = silent, **options: Any) -> ExportResult:
    texts = {model: here.text(model) for model in models}
    return export([here.read(model) for model in models], texts, target, here.weights, report, **options)


# Real pipelines


@pytest.fixture(scope="module")
def studio(small_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Four models: one that was pulled, a single file, one with parts elsewhere, and one with a GGUF file."""
    from diffusers import AutoencoderTiny, DiffusionPipeline

    from tests.families.builders import build
    from tests.pipelines.checkpoints import write_ldm
    from tests.pipelines.test_quantizing import TRANSFORMER, write_gguf

    folder = tmp_path_factory.mktemp("studio")
    machine = Machine(folder)
    machine.install({**contents(small_stable_diffusion), "README.md": b"# Small"}, "small")
    pipe = DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    single = write_ldm(pipe, folder / "my model (v2).safetensors")
    configs = shutil.copytree(small_stable_diffusion, folder / "configs")  # with weights, which are not needed
    shutil.rmtree(configs / "text_encoder")
    (configs / "text_encoder").mkdir()
    shutil.copy(small_stable_diffusion / "text_encoder" / "config.json", configs / "text_encoder")
    (configs / "LICENSE").write_text("Take it.")
    machine.write("single", manifest_text("single", path=f'path = "{single}"', p=f'pipeline.config = "{configs}"'))
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), upsampling_scaling_factor=2,
    )  # fmt: skip
    tiny.save_pretrained(folder / "tiny")
    base = shutil.copytree(small_stable_diffusion, folder / "base")
    (base / "text_encoder").rename(folder / "encoder")  # a link to a folder, as those who save room have them
    (base / "text_encoder").symlink_to(folder / "encoder")
    unet = shutil.copy(
        small_stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors", folder / "u.safetensors"
    )
    lines = {
        "path": f'path = "{base}"',
        "c": f'components = {{ unet = "{unet}", vae = "{small_stable_diffusion}/vae" }}',
    }
    machine.write("parts", manifest_text("parts", **lines, lossy=f'lossy.vae = "{folder / "tiny"}"'))
    (folder / "build").mkdir()
    flux = build("flux-schnell", folder / "build")
    gguf = write_gguf(load_file(flux / TRANSFORMER), folder / "flux-Q8_0.gguf")
    lines = {"path": f'path = "{flux}"', "components": f'components.transformer = "{gguf}"'}
    machine.write("quantized", manifest_text("quantized", **lines))
    return machine


@pytest.fixture(scope="module")
def carried(studio: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Machine]:
    """A bundle of them all, and the machine that has taken it."""
    folder = tmp_path_factory.mktemp("carried")
    carry(studio, folder / "all.hubmodels", *IDS)
    machine = Machine(folder)
    assert machine.take(folder / "all.hubmodels").models == tuple(IDS)
    return folder / "all.hubmodels", machine


def pictures(machine: Machine, folder: Path) -> dict[str, bytes]:
    found = {}

    async def test(hub: Hub) -> None:
        for model in IDS:
            wish = ImageRequest(prompt="a", size=Size(64, 64), seed=7)
            picture = (await hub.generate(model, wish)).images[0]
            found[model] = Image.open(io.BytesIO(picture)).convert("RGB").tobytes()

    settings = Settings(
        cache_dir=folder, models_dir=machine.models, weights_dir=machine.weights.root, device="cpu", reuse_results=False
    )
    with_hub(settings, test)
    return found


@pytest.mark.slow
def test_every_kind_of_model_draws_the_same_pixels_on_the_other_side(
    studio: Machine, carried: tuple[Path, Machine], tmp_path: Path
) -> None:
    before, after = pictures(studio, tmp_path / "before"), pictures(carried[1], tmp_path / "after")
    assert before == after and len({*before.values()}) > 1


def test_a_model_that_was_pulled_is_carried_as_it_is(studio: Machine, carried: tuple[Path, Machine]) -> None:
    _, machine = carried
    assert machine.text("small") == studio.text("small")
    source = SourceSection(repo="org/small", revision=COMMIT)
    assert contents(machine.weights.snapshot(source)) == contents(studio.weights.snapshot(source))


def test_a_single_file_brings_its_configurations_and_no_weights_but_its_own(carried: tuple[Path, Machine]) -> None:
    manifest = carried[1].read("single")
    assert manifest.source is not None and manifest.source.kind == "local"
    assert manifest.source.file == "my_model_v2.safetensors"
    files = contents(carried[1].weights.snapshot(manifest.source))
    assert {path for path in files if path.endswith(".safetensors")} == {"my_model_v2.safetensors"}
    assert {"config/model_index.json", "config/unet/config.json", "LICENSE.config"} <= {*files}
    assert "# as its owner calls it" in carried[1].text("single")


def test_parts_from_elsewhere_come_into_the_tree_and_what_they_replace_stays_behind(
    carried: tuple[Path, Machine],
) -> None:
    manifest = carried[1].read("parts")
    assert manifest.source is not None
    files = contents(carried[1].weights.snapshot(manifest.source))
    weights = {path for path in files if path.endswith(".safetensors")}
    assert weights == {
        "components/unet/u.safetensors",
        "components/vae/diffusion_pytorch_model.safetensors",
        "lossy_vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert {*manifest.sha256} == weights


@pytest.mark.parametrize("model", ["single", "parts", "quantized"])
def test_the_table_sha256_of_a_model_that_was_gathered_names_what_is_read_and_nothing_else(
    carried: tuple[Path, Machine], model: str
) -> None:
    manifest = carried[1].read(model)
    config = manifest.pipeline.config
    places = places_of(manifest.path, config, manifest.components, manifest.lossy.vae)
    assert weights_hash(places, None, manifest.sha256) == weights_hash(places, None) and manifest.sha256
    manifest.sha256["other.safetensors"] = "0" * 64
    with pytest.raises(Exception, match=r"other\.safetensors is missing"):
        weights_hash(places, None, manifest.sha256)


def test_a_single_file_has_the_same_weights_hash_wherever_it_lies(studio: Machine, tmp_path: Path) -> None:
    here, there = studio.read("single"), Machine(tmp_path)
    plain = shutil.copy(here.path, tmp_path / "plain.safetensors")
    text = studio.text("single").replace(here.path, str(plain))
    studio.write("plain", text.replace('id = "single"', 'id = "plain"'))
    carry(studio, tmp_path / "b", "plain")
    (studio.models / "plain.toml").unlink()
    there.take(tmp_path / "b")
    after = there.read("plain")
    before = weights_hash(places_of(str(plain), here.folder, {}, None), None)
    assert weights_hash(places_of(after.path, after.folder, {}, None), None) == before


@pytest.mark.parametrize("kind", ["the folder has them", "both have them", "both have them and the manifest tells"])
def test_weights_beside_a_single_file_are_carried_where_they_may_be_read(
    small_stable_diffusion: Path, here: Machine, there: Machine, tmp_path: Path, kind: str
) -> None:
    from diffusers import DiffusionPipeline

    from tests.pipelines.checkpoints import write_ldm

    pipe = DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    file = write_ldm(pipe, tmp_path / "one.safetensors")
    if kind == "the folder has them":
        names = [name for name in load_file(file) if name.startswith("cond_stage_model.")]
        write_ldm(pipe, file, **dict.fromkeys(names))
    lines = {"path": f'path = "{file}"', "pipeline": f'pipeline.config = "{small_stable_diffusion}"'}
    if kind.endswith("tells"):
        lines["zz"] = f'[sha256]\n"one.safetensors" = "{sha256(file.read_bytes())}"'
    here.write("one", manifest_text("one", **lines))
    carry(here, tmp_path / "b", "one")
    there.take(tmp_path / "b")
    manifest = there.read("one")
    assert manifest.source is not None
    found = {path for path in contents(there.weights.snapshot(manifest.source)) if path.endswith(".safetensors")}
    encoder = {"config/text_encoder/model.safetensors"}
    assert found == {"one.safetensors"} | (set() if kind.endswith("tells") else encoder)
    assert {*manifest.sha256} == (set() if kind == "both have them" else found)
    weights_hash(places_of(manifest.path, manifest.pipeline.config, {}, None), None, manifest.sha256)


def test_what_a_single_file_always_has_is_known_as_the_pipelines_know_it() -> None:
    assert bundles_tree.DENOISERS == auto.DENOISERS


def test_what_several_models_share_is_carried_once(carried: tuple[Path, Machine]) -> None:
    bundle, machine = carried
    names = [name for name, _ in members_in(bundle)]
    assert names[0] == "bundle.json" and len(names) == len({*names})
    owners = json.loads(members_in(bundle)[0][1])["models"]
    assert sum(len(each["files"]) for each in owners) > len(names)
    first, second = (machine.read(model).source for model in ("small", "parts"))
    assert first and second
    shared = "text_encoder/model.safetensors"
    assert (machine.weights.snapshot(first) / shared).samefile(machine.weights.snapshot(second) / shared)


def test_a_carried_model_can_be_carried_on_and_is_the_same(carried: tuple[Path, Machine], tmp_path: Path) -> None:
    _, machine = carried
    carry(machine, tmp_path / "again.hubmodels", *IDS)
    third = Machine(tmp_path)
    third.take(tmp_path / "again.hubmodels")
    assert {model: third.text(model) for model in IDS} == {model: machine.text(model) for model in IDS}


def test_the_built_in_model_can_be_carried(tmp_path: Path, there: Machine) -> None:
    source = ROOT / "models" / "builtin.toml"
    manifest = read_manifest(source)
    export([manifest], {"builtin": source.read_text()}, tmp_path / "b", Weights(tmp_path / "w"), silent)
    there.take(tmp_path / "b")
    assert absence(there.read("builtin")) is None
    assert there.read("builtin").sha256 == manifest.sha256 and there.read("builtin").aliases == manifest.aliases


def test_tar_lists_a_bundle(carried: tuple[Path, Machine]) -> None:
    told = subprocess.run(["tar", "tvf", carried[0]], capture_output=True, text=True, check=True)
    assert "bundle.json" in told.stdout.splitlines()[0] and "blobs/" in told.stdout and not told.stderr


def test_the_list_of_a_bundle_tells_models_licences_and_sizes(carried: tuple[Path, Machine]) -> None:
    bundle = read_bundle(carried[0])
    assert [model.id for model in bundle.index.models] == IDS and bundle.signer is None
    assert bundle.manifests["small"].license == "Apache-2.0" and bundle.size == carried[0].stat().st_size
    assert all(model.size > 100_000 for model in bundle.index.models)


# The same model again, and names that are taken


def worked_on(events: list[Progress | Note]) -> dict[str, int]:
    """Bytes by what was done with them."""
    return {event.action: event.all_done for event in events if isinstance(event, Progress)}


def test_what_is_there_is_not_copied_again(here: Machine, there: Machine, tmp_path: Path) -> None:
    here.install(FILES)
    carry(here, tmp_path / "b", "small")
    events: list[Progress | Note] = []
    there.take(tmp_path / "b", report=events.append)
    assert worked_on(events) == {"copy": sum(map(len, FILES.values()))}
    before = there.tree()
    events.clear()
    there.take(tmp_path / "b", report=events.append)
    assert worked_on(events) == {"verify": sum(map(len, FILES.values()))}
    assert there.tree() == before


def test_a_blob_that_is_damaged_on_the_disk_is_mended(here: Machine, there: Machine, tmp_path: Path) -> None:
    here.install(FILES)
    carry(here, tmp_path / "b", "small")
    there.take(tmp_path / "b")
    before, path = there.tree(), "unet/diffusion_pytorch_model.safetensors"
    place = there.weights.snapshot(SourceSection(repo="org/small", revision=COMMIT)) / path
    place.write_bytes(safetensors(b"x" * 64))
    events: list[Progress | Note] = []
    there.take(tmp_path / "b", report=events.append)
    assert worked_on(events)["copy"] == len(FILES[path])
    assert there.tree() == before


def test_an_id_that_is_taken_is_refused_unless_it_is_to_be_replaced(there: Machine, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(good())
    there.models.joinpath("mine.toml").write_text(manifest_text("small", path='path = "."'))
    before = there.tree()
    with pytest.raises(ModelExists, match="There is a model 'small' already"):
        there.take(tmp_path / "b")
    assert there.tree() == before
    there.take(tmp_path / "b", replace=True)
    assert [file.name for file in there.models.iterdir()] == ["mine.toml"]
    assert absence(there.read("mine")) is None


def test_an_alias_that_another_model_has_is_refused_until_it_is_decided(there: Machine, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(good(lines={"aliases": 'aliases = ["quick", "mine"]'}))
    there.write("mine", manifest_text("mine", path='path = "."'))
    with pytest.raises(ModelExists, match="'mine' of the model 'small' is a name of 'mine' already"):
        there.take(tmp_path / "b", replace=True)
    (there.models / "aliases.toml").write_text('mine = "small"\n')
    there.take(tmp_path / "b")


@pytest.mark.parametrize("model", ["hub", "aliases"])
def test_a_model_called_as_another_file_of_the_folder_does_not_take_its_place(
    there: Machine, tmp_path: Path, model: str
) -> None:
    (tmp_path / "b").write_bytes(good(model=model))
    there.take(tmp_path / "b")
    assert [file.name for file in there.models.iterdir()] == [f"{model}-model.toml"]
    assert file_for(there.models, model).exists()


def test_a_bundle_cannot_change_the_files_of_a_model_by_claiming_its_source(
    here: Machine, there: Machine, tmp_path: Path
) -> None:
    here.install({**FILES, "unet/diffusion_pytorch_model.safetensors": safetensors(b"w" * 64)}, "other")
    there.install(FILES)
    carry(here, tmp_path / "b", "other")
    before = there.tree()
    with pytest.raises(ModelRefused, match=r"org/small is here already, and has another unet/diffusion_pytorch"):
        there.take(tmp_path / "b")
    assert there.tree() == before


def test_the_manifests_folder_is_made_where_it_is_not_there(tmp_path: Path, there: Machine) -> None:
    (tmp_path / "b").write_bytes(good())
    there.models = tmp_path / "new" / "models"
    there.take(tmp_path / "b")
    assert absence(there.read("small")) is None


# What is not exported


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", FILES["unet/diffusion_pytorch_model.safetensors"][:-1], "damaged"),
        ("unet/diffusion_pytorch_model.safetensors", safetensors(b"x" * 64), "is damaged: it is not what it was"),
        ("tokenizer/merges.txt", b"#version: 0.3\n", r"tokenizer/merges\.txt is damaged"),
    ],
)
def test_a_damaged_model_is_not_exported(here: Machine, tmp_path: Path, path: str, data: bytes, words: str) -> None:
    here.install(FILES)
    (here.weights.snapshot(SourceSection(repo="org/small", revision=COMMIT)) / path).write_bytes(data)
    with pytest.raises(ModelRefused, match=words):
        carry(here, tmp_path / "b", "small")
    assert not list(tmp_path.glob("b*"))


def test_weights_that_are_not_what_the_manifest_says_are_not_exported(here: Machine, tmp_path: Path) -> None:
    write_files(tmp_path / "m", FILES)
    table = {path: sha256(data) for path, data in FILES.items() if path.endswith(".safetensors")}
    told = "\n".join(["[sha256]", *(f'"{path}" = "{digest}"' for path, digest in table.items())])
    here.write("small", manifest_text("small", path=f'path = "{tmp_path / "m"}"', zz=told))
    (tmp_path / "m" / "vae/diffusion_pytorch_model.safetensors").write_bytes(safetensors(b"w" * 600))
    with pytest.raises(ModelRefused, match=r"'small' is damaged: vae/diffusion_pytorch_model\.safetensors is not what"):
        carry(here, tmp_path / "b", "small")


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet/config.json": b'{"auto_map": {"a": "b"}}'}, "asks for code of its own"),
        ({"unet/diffusion_pytorch_model.safetensors": b"\x80\x02pickle"}, "is a pickle under another name"),
        ({"model_index.json": None}, "not all of its files are in their places"),
        ({"model_index.json": b'{"_class_name": "P", "unet": ["evil_lib", "X"]}'}, "no other code is run"),
        ({"model_index.json": b'{"_class_name": "P", "text": ["transformers", "X"]}'}, "the folder text is missing"),
        (
            {"model_index.json": b'{"_class_name": "P", "unet": ["diffusers", "X"]}', "unet/config.json": None},
            r"incomplete: unet/config\.json is missing\.",
        ),
        ({"unet/config.json": b"[1, 2]"}, "not an object of JSON"),
    ],
)
def test_a_model_that_an_import_would_refuse_is_not_exported(
    here: Machine, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    files = {path: data for path, data in {**FILES, **change}.items() if data is not None}
    here.write("small", manifest_text("small", path=f'path = "{write_files(tmp_path / "m", files)}"'))
    with pytest.raises(ModelRefused, match=words) as refused:
        carry(here, tmp_path / "b", "small")
    assert str(tmp_path) not in str(refused.value) and not list(tmp_path.glob("b*"))


def test_what_no_bundle_may_carry_is_left_out_and_told(here: Machine, there: Machine, tmp_path: Path) -> None:
    files = {
        **FILES,
        "unet/code.py": b"boom",
        "unet/weights.bin": b"\x80\x02",
        "notes of mine.txt": b"",
        ".x.json": b"",
    }
    here.write("small", manifest_text("small", path=f'path = "{write_files(tmp_path / "m", files)}"'))
    notes: list[Progress | Note] = []
    carry(here, tmp_path / "b", "small", report=notes.append)
    assert [note.message for note in notes if isinstance(note, Note)] == [
        "'notes of mine.txt' is not carried: a bundle has plainer names."
    ]
    there.take(tmp_path / "b")
    source = there.read("small").source
    assert source is not None and contents(there.weights.snapshot(source)) == FILES


def test_a_bundle_that_is_there_is_not_overwritten_and_two_do_not_write_one(here: Machine, tmp_path: Path) -> None:
    import fcntl

    here.install(FILES)
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(InvalidRequest, match="b is there already"):
        carry(here, tmp_path / "b", "small")
    (tmp_path / "f").mkdir()
    with pytest.raises(InvalidRequest, match="f is a folder: name the bundle's file"):
        carry(here, tmp_path / "f", "small")
    with (tmp_path / "c.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InvalidRequest, match="Another process writes c now"):
            carry(here, tmp_path / "c", "small")
    with pytest.raises(InvalidRequest):
        carry(here, tmp_path / "d")
    with pytest.raises(HubError, match="e cannot be written"):
        carry(here, tmp_path / "nowhere" / "e", "small")


def test_a_file_that_changes_while_it_is_exported_is_told(here: Machine, tmp_path: Path) -> None:
    files = write_files(tmp_path / "m", FILES)
    here.write("small", manifest_text("small", path=f'path = "{files}"'))

    def report(event: Progress | Note) -> None:
        if isinstance(event, Progress) and event.action == "copy":
            (files / "vae/diffusion_pytorch_model.safetensors").write_bytes(safetensors(b"w" * 600))

    with pytest.raises(ModelRefused, match="has changed while it was exported"):
        carry(here, tmp_path / "b", "small", report=report)
    assert not (tmp_path / "b").exists()
    carry(here, tmp_path / "b", "small")


def test_a_disk_without_room_is_told_before_anything_is_written(
    here: Machine, there: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.install(FILES)
    carry(here, tmp_path / "b", "small")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    before = there.tree()
    with pytest.raises(StorageFull):
        there.take(tmp_path / "b")
    with pytest.raises(StorageFull, match="c takes"):
        carry(here, tmp_path / "c", "small")
    assert there.tree() == before and not list(tmp_path.glob("c*"))


def test_a_size_of_more_than_eight_gigabytes_is_read_as_others_write_it(tmp_path: Path) -> None:
    from hub.library.bundles.archive import Reader

    for size in (0, 8**11 - 1, 8**11, 1 << 45):
        (tmp_path / "t").write_bytes(header_of("blobs/a", size))
        with (tmp_path / "t").open("rb") as stream:
            member = Reader(stream).next()
        assert member is not None and (member.name, member.size) == ("blobs/a", size)
        with tarfile.open(tmp_path / "t") as tar:
            first = tar.next()
            assert first is not None and first.size == size


def test_a_bundle_that_is_not_there_is_told(there: Machine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("nothing", "fifo", "."):
        with pytest.raises(NotFound):
            there.take(tmp_path / name)


# Killed, and again

KILLED = """
import os, signal, sys
from pathlib import Path
import hub.library.progress as progress
progress.INTERVAL = 0
from hub.library.bundles import export, import_bundle
from hub.library.layout import Weights
from hub.library.progress import Progress
from hub.registry import read_manifest
folder, what, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
count = 0
def report(event):
    global count
    if isinstance(event, Progress) and event.action == "copy":
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)
bundle = folder / "b.hubmodels"
moves = 0
def hook(event, arguments):
    global moves
    if event in ("os.rename", "os.symlink", "os.mkdir", "os.link", "os.remove"):
        moves += 1
        if moves == after:
            os.kill(os.getpid(), signal.SIGKILL)
if what.startswith("move:"):
    what, report = what.removeprefix("move:"), lambda event: None
    sys.addaudithook(hook)
if what == "export":
    source = folder / "here" / "models" / "small.toml"
    weights = Weights(folder / "here" / "weights")
    export([read_manifest(source, weights.root)], {"small": source.read_text()}, bundle, weights, report)
else:
    import_bundle(bundle, Weights(folder / "there" / "weights"), folder / "there" / "models", report)
print(count, moves)
"""


def run_killed(folder: Path, what: str, after: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(folder), what, str(after)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


LARGE = {**FILES, "unet/diffusion_pytorch_model.safetensors": safetensors(os.urandom(13 << 20))}


def test_an_export_that_is_killed_goes_on(here: Machine, tmp_path: Path) -> None:
    here.install(LARGE)
    bundle, part = tmp_path / "b.hubmodels", tmp_path / "b.hubmodels.part"
    for after in (1, 4, 7, 9):  # small files, and within the large one
        assert run_killed(tmp_path, "export", after).returncode == -signal.SIGKILL
        assert part.exists() and not bundle.exists()
    with tarfile.open(part) as tar:
        index, first = tar.next(), tar.next()
        assert index is not None and first is not None
        stream = tar.extractfile(index)
        assert stream is not None
        created = json.loads(stream.read())["created"]
    with part.open("r+b") as raw:  # and the disk was not kind
        raw.seek(first.offset_data)
        raw.write(b"x")
    carry(here, bundle, "small")
    assert json.loads(members_in(bundle)[0][1])["created"] == created
    assert {sha256(data) for _, data in members_in(bundle)[1:]} == {sha256(data) for data in LARGE.values()}
    assert not part.exists()


def test_members_that_are_whole_are_not_written_again(here: Machine, tmp_path: Path) -> None:
    here.install(LARGE)
    run_killed(tmp_path, "export", 9)
    events: list[Progress | Note] = []
    carry(here, tmp_path / "b.hubmodels", "small", report=events.append)
    told = [event for event in events if isinstance(event, Progress) and event.action == "copy"]
    assert sum(event.speed is None for event in told) >= 5


def test_an_import_that_is_killed_goes_on(here: Machine, there: Machine, tmp_path: Path) -> None:
    here.install(LARGE)
    carry(here, tmp_path / "b.hubmodels", "small")
    for after in (1, 4, 4, 3):  # what has come is not copied again: counted from there
        assert run_killed(tmp_path, "import", after).returncode == -signal.SIGKILL
        assert not list(there.models.iterdir()) and not list(there.weights.root.glob("*/snapshots"))
    events: list[Progress | Note] = []
    there.take(tmp_path / "b.hubmodels", report=events.append)
    assert worked_on(events) == {
        "copy": len(LARGE["unet/diffusion_pytorch_model.safetensors"]),
        "verify": sum(len(data) for path, data in LARGE.items() if not path.startswith("unet/diff")),
    }
    assert contents(there.weights.snapshot(SourceSection(repo="org/small", revision=COMMIT))) == LARGE
    assert not list(there.weights.root.rglob("*.incomplete"))


def test_an_import_that_is_killed_at_any_change_of_the_disk_shows_no_half_of_a_model(
    here: Machine, tmp_path: Path
) -> None:
    here.install(FILES)
    carry(here, tmp_path / "b.hubmodels", "small")
    whole = Machine(tmp_path / "whole")
    whole.take(tmp_path / "b.hubmodels")
    expected = {place.removeprefix(str(tmp_path / "whole")): data for place, data in whole.tree().items()}
    Machine(tmp_path / "there")
    moves = int(run_killed(tmp_path, "move:import", 0).stdout.split()[1])
    assert moves > 20
    for after in (*range(2, moves - 2, 5), moves - 2, moves - 1, moves):
        shutil.rmtree(tmp_path / "there")
        there = Machine(tmp_path / "there")
        assert run_killed(tmp_path, "move:import", after).returncode == -signal.SIGKILL
        assert not (there.models / "small.toml").exists() or absence(there.read("small")) is None
        there.take(tmp_path / "b.hubmodels")
        left = {place.removeprefix(str(tmp_path / "there")): data for place, data in there.tree().items()}
        of_links = {place for place in left if place.endswith(".tmp") and "/snapshots/" in place}
        assert {place: data for place, data in left.items() if place not in of_links} == expected


def test_an_import_that_is_killed_as_it_writes_manifests_goes_on(there: Machine, tmp_path: Path) -> None:
    from tests.library.bundling import index_of, members_of, model_entry, tar_of

    two = index_of(model_entry(FILES, "a"), model_entry(FILES, "b"))
    (tmp_path / "b").write_bytes(tar_of(members_of(two, FILES)))
    there.take(tmp_path / "b")
    whole = tree(there.models, there.weights.root)
    (there.models / "b.toml").unlink()  # as if it had been killed between the two
    there.take(tmp_path / "b")
    assert tree(there.models, there.weights.root) == whole
