"""What an import leaves as it is: other models' names, files and manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub.errors import HubError, ModelExists, ModelRefused
from hub.library.bundles import export
from hub.library.library import Library
from hub.library.orders import Import
from hub.library.places import Places
from hub.library.progress import Note, Progress, silent
from hub.manifest import SourceSection
from hub.registry import absence, open_registry
from tests.library.bundling import (
    COMMIT,
    FILES,
    Machine,
    good,
    index_of,
    manifest_text,
    members_of,
    model_entry,
    safetensors,
    tar_of,
    tree,
)
from tests.library.shelves import places_in

FP16 = "unet/diffusion_pytorch_model.fp16.safetensors"
SOURCE = SourceSection(repo="org/small", revision=COMMIT)


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "there")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Of a hub with its own folder of models beside the shipped ones."""
    return places_in(tmp_path)


def bundle_in(folder: Path, data: bytes) -> Path:
    (folder / "b").write_bytes(data)
    return folder / "b"


def perform(places: Places, data: bytes, **options: Any) -> None:
    bundle = bundle_in(Path(places.owned).parent, data)
    Library(places).perform(Import(bundle=str(bundle), **options), silent)


def claiming(files: dict[str, bytes], model: str = "small", repo: str = "org/small") -> bytes:
    """A bundle with files of what it says is a repository on Hugging Face."""
    return good(files, model, source={"kind": "huggingface", "repo": repo, "revision": COMMIT})


# Names


def test_a_shipped_models_id_is_taken_unless_it_is_to_be_replaced(places: Places) -> None:
    with pytest.raises(ModelExists, match="There is a model 'builtin' already"):
        perform(places, good(model="builtin"))
    assert tree(Path(places.owned), Path(places.weights_dir)) == {}
    assert places.registry().get("builtin").manifest.name != "Small"
    perform(places, good(model="builtin"), replace=True)
    assert places.registry().get("builtin").manifest.name == "Small"


def test_a_shipped_models_alias_is_taken_until_it_is_decided(places: Places) -> None:
    data = good(lines={"aliases": 'aliases = ["dall-e-2"]'})
    for replace in (False, True):
        with pytest.raises(ModelExists, match=r"'dall-e-2' of the model 'small' is a name of 'builtin' already"):
            perform(places, data, replace=replace)
    assert tree(Path(places.owned), Path(places.weights_dir)) == {}
    (Path(places.owned) / "aliases.toml").write_text('"dall-e-2" = "builtin"\n')
    perform(places, data)
    assert places.registry().get("dall-e-2").manifest.id == "builtin"


def test_an_alias_that_hub_toml_decides_stays_what_it_is(places: Places) -> None:
    decided = msgspec.structs.replace(places, aliases={"dall-e-2": "builtin"})
    perform(decided, good(lines={"aliases": 'aliases = ["dall-e-2"]'}))
    assert decided.registry().get("dall-e-2").manifest.id == "builtin"


@pytest.mark.parametrize("where", ["shipped", "aliases.toml", "hub.toml"])
def test_an_alias_does_not_become_another_models_id(places: Places, where: str) -> None:
    name = "dall-e-2" if where == "shipped" else "mine"
    if where == "aliases.toml":
        (Path(places.owned) / where).write_text('mine = "builtin"\n')
    if where == "hub.toml":
        places = msgspec.structs.replace(places, aliases={"mine": "builtin"})
    for replace in (False, True):
        with pytest.raises(ModelExists, match=rf"'{name}' of the model '{name}' is a name of 'builtin' already"):
            perform(places, good(model=name), replace=replace)
    assert places.registry().get(name).manifest.id == "builtin"


# Files


def refused(there: Machine, data: bytes, words: str, kind: type[HubError] = ModelRefused, **options: Any) -> None:
    before = there.tree()
    with pytest.raises(kind, match=words):
        there.take(bundle_in(there.models.parent, data), **options)
    assert there.tree() == before


@pytest.mark.parametrize("path", [FP16, "vae/z.safetensors", "text_encoder/config.json", "NOTICE"])
def test_a_snapshot_that_is_whole_is_given_no_further_files(there: Machine, path: str) -> None:
    data = safetensors(b"w" * 64) if path.endswith("safetensors") else b"{}"
    there.install(FILES)
    bundle = claiming({**FILES, path: data}, "other")
    refused(there, bundle, rf"org/small is here already, without the bundle's {path} at the same revision")
    refused(there, claiming({**FILES, path: data}), "an import adds nothing to it", replace=True)
    (there.models / "small.toml").unlink()  # another program may use it
    refused(there, bundle, "an import adds nothing to it")


def test_a_snapshot_that_is_whole_serves_a_bundle_with_the_same_files_or_fewer(there: Machine) -> None:
    there.install(FILES)
    before = {place: data for place, data in there.tree().items() if not place.endswith(".toml")}
    fewer = {path: data for path, data in FILES.items() if path != "LICENSE.md"}
    for model, files in (("same", FILES), ("fewer", fewer)):
        there.take(bundle_in(there.models.parent, claiming(files, model)))
        assert absence(there.read(model)) is None
    assert {place: data for place, data in there.tree().items() if not place.endswith(".toml")} == before


def test_a_folder_without_an_index_that_a_model_uses_is_given_no_further_files(there: Machine) -> None:
    vae = {"vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": safetensors()}
    there.install(vae, "vae", "org/vae")
    (there.models / "vae.toml").unlink()
    place = there.weights.snapshot(SourceSection(repo="org/vae", revision=COMMIT)) / "vae"
    there.install(FILES, "mine", "org/mine", c=f'components.vae = "{place}"')
    bundle = claiming({**FILES, **vae, "vae/z.safetensors": safetensors()}, repo="org/vae")
    known = open_registry([there.models], {}, there.weights.root)
    refused(there, bundle, "an import adds nothing to it", known=known)
    (there.models / "mine.toml").unlink()  # nobody uses it, and it is no whole snapshot
    there.take(bundle_in(there.models.parent, bundle))


def test_what_is_missing_of_a_snapshot_that_was_taken_apart_comes_again(there: Machine) -> None:
    there.install(FILES)
    whole = there.tree()
    snapshot = there.weights.snapshot(SOURCE)
    for path in ("model_index.json", "vae/diffusion_pytorch_model.safetensors"):
        (snapshot / path).unlink()
    there.take(bundle_in(there.models.parent, claiming(FILES)), replace=True)
    after = there.tree()
    assert {place: after[place] for place in whole if not place.endswith(".toml")} == {
        place: data for place, data in whole.items() if not place.endswith(".toml")
    }


def test_models_of_one_source_bring_all_their_files_in_whatever_order(there: Machine) -> None:
    source = {"kind": "huggingface", "repo": "org/small", "revision": COMMIT}
    more = {**FILES, FP16: safetensors(b"w" * 64)}
    for order in (("small", "large"), ("large", "small")):
        entries = [model_entry({"small": FILES, "large": more}[name], name, source=source) for name in order]
        data = tar_of(members_of(index_of(*entries), more))
        for _ in range(2):
            there.take(bundle_in(there.models.parent, data))
        assert (there.weights.snapshot(SOURCE) / FP16).is_file()
        there = Machine(there.models.parent / "next")


def test_models_of_one_source_do_not_differ_in_a_file(there: Machine) -> None:
    source = {"kind": "huggingface", "repo": "org/small", "revision": COMMIT}
    other = {**FILES, "unet/config.json": b"{}"}
    entries = [model_entry(FILES, "a", source=source), model_entry(other, "b", source=source)]
    words = r"Two models of the bundle have one source, and two different unet/config\.json in it"
    refused(there, tar_of(members_of(index_of(*entries), FILES, other)), words)


# Manifests


def test_a_model_that_comes_while_a_bundle_is_read_keeps_its_manifest(there: Machine) -> None:
    text = manifest_text("small", path='path = "."')

    def report(event: Progress | Note) -> None:
        there.write("small", text)

    with pytest.raises(ModelExists, match="has come meanwhile"):
        there.take(bundle_in(there.models.parent, good()), report=report)
    assert there.text("small") == text
    assert [file.name for file in there.models.iterdir()] == ["small.toml"]


def test_a_folder_that_takes_no_manifests_is_told_before_anything_is_copied(there: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    there.models = tmp_path / "file"
    told: list[Progress | Note] = []
    with pytest.raises(HubError, match="The folder of manifests cannot be written"):
        there.take(bundle_in(tmp_path, good()), report=told.append)
    assert told == [] and not there.weights.root.exists()


# Whoever is reported to


@pytest.mark.parametrize("work", ["import", "export"])
def test_a_pipe_that_breaks_interrupts_and_undoes_nothing(tmp_path: Path, there: Machine, work: str) -> None:
    """As of `hub models import … --json | head -1`."""
    here, count = Machine(tmp_path / "here"), 0
    here.install(FILES)

    def report(event: Progress | Note) -> None:
        nonlocal count
        count += isinstance(event, Progress) and event.action == "copy"
        if count == 4:
            raise BrokenPipeError

    def carry(target: Path, report: Any) -> None:
        export([here.read("small")], {"small": here.text("small")}, target, here.weights, report)

    if work == "export":
        with pytest.raises(BrokenPipeError):
            carry(tmp_path / "b", report)
        assert (tmp_path / "b.part").stat().st_size > 512
    else:
        carry(tmp_path / "b", silent)
        with pytest.raises(BrokenPipeError):
            there.take(tmp_path / "b", report=report)
        blobs = list(there.weights.repo("org/small").glob("blobs/*"))
        assert len([blob for blob in blobs if not blob.name.endswith(".incomplete")]) == 3
