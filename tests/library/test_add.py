"""Models added where they lie, or copied: what is written draws, what is refused is told, nothing is left behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hub.errors import HubError, InvalidRequest, ModelExists, ModelRefused, StorageFull
from hub.library.add import Added, add
from hub.library.layout import Weights
from hub.library.progress import Note, Progress, silent
from hub.manifest import ModelManifest
from hub.registry import ListedModel, absence, open_registry, read_manifest
from hub.settings import Settings
from hub.types import ImageRequest, Size
from tests.conftest import with_hub, write_manifest
from tests.pipelines.checkpoints import write_ldm

if TYPE_CHECKING:
    from hub.hub import Hub


class Marker:
    """A pickle that would leave a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


@pytest.fixture
def model(small_stable_diffusion: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_stable_diffusion, tmp_path / "mine" / "My model"))


@pytest.fixture
def adding(tmp_path: Path) -> Callable[..., Added]:
    def call(path: Path, **options: Any) -> Added:
        given = {"models": [], "report": silent, **options}
        return add(path, weights=Weights(tmp_path / "weights"), manifests_dir=tmp_path / "models", **given)

    return call


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def left(folder: Path) -> list[str]:
    """Files below a folder, but for locks."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found if ".locks" not in path.parts)


def draws(tmp_path: Path, *names: str) -> list[bytes]:
    """A picture of each model, by a hub with the manifests that were written."""
    settings = Settings(
        models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", device="cpu", weights_dir=tmp_path / "weights"
    )
    pictures = []

    async def draw(hub: Hub) -> None:
        for name in names:
            asked = ImageRequest(prompt="a cat", seed=5, size=Size(64, 64), num_inference_steps=2, guidance_scale=5.0)
            (image,) = (await hub.generate(name, asked)).images
            with Image.open(io.BytesIO(image)) as picture:
                pictures.append(picture.tobytes())

    with_hub(settings, draw)
    return pictures


def test_a_folder_is_added_where_it_lies_and_draws(model: Path, tmp_path: Path, adding: Callable[..., Added]) -> None:
    before, told = left(model), []
    added = adding(model, report=told.append, license="openrail")
    assert added.file == tmp_path / "models" / "My-model.toml"
    read = read_manifest(added.file)
    assert read == added.manifest
    assert (read.id, read.name, read.path, read.source) == ("My-model", "My model", str(model), None)
    assert read.license == "openrail"
    assert read.sha256 == {path.relative_to(model).as_posix(): sha256(path) for path in model.rglob("*.safetensors")}
    assert left(model) == before and not (tmp_path / "weights").exists()
    last = [each for each in told if isinstance(each, Progress)][-1]
    assert (last.action, last.all_done) == ("verify", last.all_total)
    assert absence(read) is None
    assert draws(tmp_path, "My-model")


@pytest.mark.slow
def test_a_copied_folder_is_whole_without_its_original_and_draws_the_same(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    (model / "LICENSE").write_text("My own terms\n")
    (model / "unet" / "notes.md").write_text("not kept")
    referred = adding(model, id="referred")
    told: list[Progress | Note] = []
    added = adding(model, id="org/copied", copy=True, report=told.append)
    source = added.manifest.source
    assert source is not None
    assert (source.kind, source.repo, added.manifest.path) == ("local", "local/org.copied", "")
    snapshot = source.folder_in(tmp_path / "weights")
    assert left(snapshot) == sorted(each for each in left(model) if not each.endswith("notes.md"))
    assert all(path.resolve().name == sha256(path) for path in snapshot.rglob("*") if path.is_file())
    assert added.manifest.sha256 == referred.manifest.sha256
    assert added.manifest.license == "My own terms"
    last = [each for each in told if isinstance(each, Progress)][-1]
    assert (last.action, last.all_done) == ("copy", last.all_total)
    second = shutil.copytree(model, tmp_path / "second")
    other = adding(second, id="other")
    shutil.rmtree(model)
    referred.file.unlink()
    one, two = draws(tmp_path, "org/copied", "other")
    assert one == two
    assert other.manifest.sha256 == added.manifest.sha256
    assert "--copy" in added.file.read_text()


def test_the_same_files_are_kept_once_and_a_taken_id_is_refused(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    added = adding(model, id="a", copy=True)
    before = left(tmp_path / "weights")
    with pytest.raises(ModelExists):
        adding(model, id="a", copy=True)
    assert left(tmp_path / "weights") == before
    for known in ([added.manifest], open_registry([tmp_path / "models"], {"b": "a"}, tmp_path / "weights")):
        with pytest.raises(ModelExists, match="--id"):
            adding(model, id="a", models=known)
    with pytest.raises(ModelExists):
        adding(model, id="b", models=[ListedModel("b", added.manifest, "")])
    added.file.unlink()
    assert adding(model, id="a", copy=True).manifest == added.manifest
    assert left(tmp_path / "weights") == before


@pytest.mark.slow
def test_a_folder_with_a_variant_alone_is_read_by_it(model: Path, tmp_path: Path, adding: Callable[..., Added]) -> None:
    for file in list(model.rglob("*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    added = adding(model)
    assert added.manifest.pipeline.variant == "fp16"
    assert any("variant fp16" in note for note in added.notes)
    assert draws(tmp_path, "My-model")
    with pytest.raises(ModelRefused, match="No component of My model has weights of the variant 'bf16'"):
        adding(model, id="b", variant="bf16")
    assert adding(model, id="c", variant="fp16").manifest.pipeline.variant == "fp16"


@pytest.fixture(scope="module")
def checkpoint(small_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    return write_ldm(pipe, tmp_path_factory.mktemp("checkpoint") / "Dream like (v2).safetensors")


@pytest.fixture
def base(small_stable_diffusion: Path, tmp_path: Path) -> ModelManifest:
    """A known model of the file's kind: its configurations alone."""
    folder = tmp_path / "base"
    shutil.copytree(small_stable_diffusion, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    models = write_manifest(tmp_path / "known", folder, id='id = "base"')
    return open_registry([models], {}).get("base").manifest


@pytest.mark.parametrize("copy", [False, True])
def test_a_single_file_takes_the_configurations_of_a_known_model_and_draws(
    copy: bool, checkpoint: Path, base: ModelManifest, tmp_path: Path, adding: Callable[..., Added], model: Path
) -> None:
    builtin = read_manifest(Path(__file__).resolve().parents[2] / "models" / "builtin.toml")  # of the family, and small
    added = adding(checkpoint, models=[builtin, base], copy=copy)
    assert (
        added.notes[0] == "Configurations and tokenizers come from base, which is of the same family (StableDiffusion)."
    )
    read = read_manifest(added.file, tmp_path / "weights")
    assert (read.id, read.name, read.pipeline.config) == ("Dream-like-v2", "Dream like (v2)", base.folder)
    assert (read.is_single_file, absence(read)) == (True, None)
    assert read.size.native == "64x64"
    assert list(read.sha256.values()) == [sha256(checkpoint)]
    assert (read.source is not None) == copy
    adding(model, id="folder")
    one, two = draws(tmp_path, "Dream-like-v2", "folder")
    assert one == two


@pytest.mark.slow
def test_what_a_file_lacks_is_read_from_the_folder_and_named_in_the_table(
    checkpoint: Path, model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    from safetensors.torch import load_file

    tensors = {name: each for name, each in load_file(checkpoint).items() if name.startswith("model.diffusion_model")}
    file = tmp_path / "files" / "unet only.safetensors"
    file.parent.mkdir()
    save_file(tensors, file)
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelRefused, match="there are no weights in text_encoder; there are no weights in vae"):
        adding(file, config=bare)
    added = adding(file, config=str(model))
    assert set(added.manifest.sha256) == {
        "unet only.safetensors",
        "../mine/My model/text_encoder/model.safetensors",
        "../mine/My model/vae/diffusion_pytorch_model.safetensors",
    }
    copied = adding(file, id="copied", config=str(model), copy=True)
    assert sorted(copied.manifest.sha256.values()) == sorted(added.manifest.sha256.values())
    one, two = draws(tmp_path, "unet-only", "copied")
    assert one == two


def test_without_configurations_a_file_is_refused_with_what_to_do(
    checkpoint: Path, base: ModelManifest, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    with pytest.raises(ModelRefused, match=r"hub models pull REPO.*--config"):
        adding(checkpoint)
    builtin = read_manifest(Path(__file__).resolve().parents[2] / "models" / "builtin.toml")
    with pytest.raises(ModelRefused, match=r"Of builtin they do not suit: the file has \d+ "):
        adding(checkpoint, models=[builtin])
    with pytest.raises(ModelRefused, match="do not go together"):
        adding(checkpoint, models=[builtin], config="builtin")
    with pytest.raises(ModelRefused, match="neither the id of a model nor a diffusers folder"):
        adding(checkpoint, config=tmp_path / "nowhere")
    index = Path(base.folder) / "model_index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps({**values, "_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(
        ModelRefused, match="the file is for StableDiffusion pipelines, and the folder one of a StableDiff"
    ):
        adding(checkpoint, config=base.folder)
    assert not (tmp_path / "models").exists()


def refused(adding: Callable[..., Added], path: Path, tmp_path: Path, **options: Any) -> str:
    """The words, which name no path and leave nothing; the same with and without copying."""
    words = set()
    for copy in (False, True):
        with pytest.raises(ModelRefused) as error:
            adding(path, copy=copy, **options)
        words.add(str(error.value))
        assert str(tmp_path) not in str(error.value)
        assert not (tmp_path / "models").exists()
        assert left(tmp_path / "weights") == []
    (told,) = words
    return told


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: change(m / "unet/config.json", auto_map={"A": "b.C"}), "unet/config.json asks for code of its own"),
        (lambda m: change(m / "model_index.json", custom_pipeline="x"), "model_index.json asks for code of its own"),
        (lambda m: change(m / "model_index.json", unet=["my_unet", "Unet"]), "'unet' of a class that neither"),
        (lambda m: (m / "unet/config.json").write_text("{"), "unet/config.json is missing or broken"),
        (lambda m: (m / "unet/config.json").unlink(), "incomplete: unet/config.json is missing"),
        (lambda m: shutil.rmtree(m / "vae"), "incomplete: the folder vae is missing"),
        (lambda m: shutil.rmtree(m / "tokenizer"), "incomplete: the folder tokenizer is missing"),
        (lambda m: (m / "scheduler/scheduler_config.json").unlink(), "the folder scheduler is missing, or empty"),
        (lambda m: os.truncate(m / "unet/diffusion_pytorch_model.safetensors", 999), "safetensors is cut off"),
        (lambda m: (m / "extra.safetensors").write_bytes(b"version https://git-lfs"), "pointer of Git LFS"),
        (
            lambda m: (m / "unet/diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Marker(m / "run"))),
            "a pickle under another name",
        ),
        (
            lambda m: (m / "unet/diffusion_pytorch_model.safetensors").rename(m / "unet/diffusion_pytorch_model.bin"),
            "diffusion_pytorch_model.bin, a pickle, which is never read",
        ),
        (lambda m: (m / "unet/diffusion_pytorch_model.safetensors").unlink(), "there are no weights in unet"),
    ],
)
def test_what_no_model_may_have_is_refused_before_anything_is_written(
    spoil: Spoil, words: str, model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    spoil(model)
    assert words in refused(adding, model, tmp_path)
    assert not (model / "run").exists()


def test_code_that_lies_beside_is_told_and_neither_run_nor_copied(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    (model / "pipeline.py").write_text("raise SystemExit")
    added = adding(model, copy=True)
    assert any("pipeline.py is code, which is never run" in note for note in added.notes)
    assert not any(name.endswith(".py") for name in left(tmp_path / "weights"))


def test_links_may_lead_out_of_a_folder_that_stays_and_not_out_of_one_that_is_copied(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    outside = file.rename(tmp_path / "outside.safetensors")
    file.symlink_to(outside)
    with pytest.raises(ModelRefused, match="is a link that leads out of the model's folder"):
        adding(model, copy=True)
    assert left(tmp_path / "weights") == [] and not (tmp_path / "models").exists()
    assert adding(model).manifest.sha256["unet/diffusion_pytorch_model.safetensors"] == sha256(outside)
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelRefused, match="cannot be read"):
        adding(model, id="b")


def test_a_snapshot_of_hugging_faces_cache_can_be_added_and_copied(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    repo = tmp_path / "cache" / "models--a--b"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    for name in left(model):
        blob = (model / name).rename(repo / "blobs" / sha256(model / name))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert adding(snapshot, id="a").manifest.path == str(snapshot)
    assert len(adding(snapshot, id="b", copy=True).manifest.sha256) == 3
    with pytest.raises(ModelRefused, match="add the folder of a snapshot in it"):
        adding(repo, id="c")


def lora(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2, 2)}, folder / "style.safetensors")
    return folder / "style.safetensors"


def test_what_is_no_model_is_told_what_it_is(model: Path, tmp_path: Path, adding: Callable[..., Added]) -> None:
    def words(path: Path) -> str:
        return refused(adding, path, tmp_path)

    assert "is a LoRA" in words(lora(tmp_path / "loras"))
    assert "loras_dir" in words(lora(tmp_path / "loras"))
    assert "it looks like a LoRA" in words(tmp_path / "loras")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert "[components]" in words(tmp_path / "a.gguf")
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Marker(tmp_path / "run")))
    assert "a pickle, which is never read; convert it" in words(tmp_path / "a.ckpt")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.ckpt").read_bytes())
    assert "a pickle under another name" in words(tmp_path / "b.safetensors")
    assert not (tmp_path / "run").exists()
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "neither a diffusers folder nor a .safetensors file" in words(tmp_path / "a.zip")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "c.safetensors")
    assert "no checkpoint of a kind that is known" in words(tmp_path / "c.safetensors")
    assert "There is no file or folder nowhere" in words(tmp_path / "nowhere")
    assert "that of a model lies in its folder My model" in words(model.parent)
    assert "one component of a model" in words(model / "unet")
    (tmp_path / "empty").mkdir()
    assert "has no model_index.json, which every diffusers folder has" in words(tmp_path / "empty")
    (tmp_path / "files").mkdir()
    (tmp_path / "c.safetensors").rename(tmp_path / "files" / "c.safetensors")
    assert "add one of them, such as c.safetensors" in words(tmp_path / "files")
    (tmp_path / "old").mkdir()
    (tmp_path / "a.ckpt").rename(tmp_path / "old" / "a.ckpt")
    assert "it holds pickles" in words(tmp_path / "old")


def test_a_file_without_a_latin_letter_is_copied_under_another_name(
    checkpoint: Path, base: ModelManifest, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    file = Path(shutil.copy(checkpoint, tmp_path / "日本.safetensors"))
    added = adding(file, models=[base], copy=True)
    assert added.manifest.source is not None and added.manifest.source.file == "model.safetensors"
    assert (added.manifest.id, added.manifest.name) == ("model", "日本")
    assert absence(read_manifest(added.file, tmp_path / "weights")) is None


def test_a_folder_takes_no_configurations_from_elsewhere(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    assert "it is for a single file" in refused(adding, model, tmp_path, config=model)


def test_a_blob_of_weights_dir_is_no_model(checkpoint: Path, tmp_path: Path, adding: Callable[..., Added]) -> None:
    blobs = tmp_path / "weights" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    file = Path(shutil.copy(checkpoint, blobs / "0.safetensors"))
    with pytest.raises(ModelRefused, match="among the blobs of weights_dir"):
        adding(file)


@pytest.mark.parametrize("name", ["a\udcff", "control\x1b[31m\nname", "日本 model"])
def test_names_of_any_kind_are_refused_or_become_printable(
    name: str, model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    place = model.rename(model.with_name(name))
    if "\udcff" in name:
        with pytest.raises(ModelRefused, match="not text in UTF-8"):
            adding(place)
        return
    added = adding(place)
    assert added.manifest.name.isprintable() and added.manifest.description.isprintable()
    assert read_manifest(added.file).path == str(place)


def test_a_full_disk_and_an_interruption_leave_nothing(
    model: Path, tmp_path: Path, adding: Callable[..., Added], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(StorageFull, match="The copy takes"):
            adding(model, copy=True)
    assert left(tmp_path / "weights") == []

    class Stopped(BaseException):
        pass

    calls = 0

    def stop(_: Progress | Note) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise Stopped

    with pytest.raises(Stopped):
        adding(model, copy=True, report=stop)
    assert left(tmp_path / "weights") == [] and not (tmp_path / "models").exists()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(StorageFull, match="The copy in weights_dir cannot be written"):
            adding(model, copy=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path / "weights") == []


@pytest.mark.parametrize("copy", [True, False])
def test_what_can_be_known_is_refused_before_the_weights_are_read(
    model: Path, tmp_path: Path, adding: Callable[..., Added], copy: bool
) -> None:
    told: list[Progress | Note] = []
    for bad in ("bad id", "", "../up"):
        with pytest.raises(InvalidRequest, match="cannot be a model's id"):
            adding(model, id=bad, copy=copy, report=told.append)
    adding(model, id="a/b")
    with pytest.raises(ModelExists, match="of another model"):
        adding(model, id="a--b", copy=copy, report=told.append)
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(HubError, match="The folder of manifests cannot be written"):
        adding(model, copy=copy, report=told.append)
    assert told == [] and left(tmp_path / "weights") == []


def test_a_model_called_aliases_takes_no_other_files_place(
    model: Path, tmp_path: Path, adding: Callable[..., Added]
) -> None:
    assert adding(model, id="aliases").file.name == "aliases-model.toml"
    assert [listed.id for listed in open_registry([tmp_path / "models"], {})] == ["aliases"]
