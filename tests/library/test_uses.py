"""Weights that something else uses stay, in whatever way it comes to them, and whichever hub it belongs to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from hub.errors import HubError
from hub.library.layout import Weights
from hub.library.library import Library
from hub.library.orders import Add, Clean, Gone, Order, Remove
from hub.library.places import Places
from hub.library.progress import Note, Progress, silent
from hub.settings import Settings
from tests.library.shelves import COMMIT, age, everything, in_folder, places_in, shelve, write_shelved

UNET = "unet/diffusion_pytorch_model.safetensors"
STAY = "Another model uses the weights of base; they stay."


def do(places: Places, order: Order, notes: list[str] | None = None) -> Gone:
    def hear(event: Progress | Note) -> None:
        if notes is not None and isinstance(event, Note):
            notes.append(event.message)

    result = Library(places).perform(order, hear)
    assert isinstance(result, Gone)
    return result


def base(places: Places, model: Path) -> Path:
    """A model `base` in weights_dir; its snapshot."""
    source = shelve(model, Path(places.weights_dir), repo="org/base")
    write_shelved(Path(places.owned), source, "base")
    return Weights(Path(places.weights_dir)).snapshot(source)


def link(place: Path, target: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def component(snapshot: Path, own: Path) -> tuple[Path, str]:
    return own, f'[components]\nvae = "{snapshot / "vae"}"'


def linked_component(snapshot: Path, own: Path) -> tuple[Path, str]:
    return own, f'[components]\nvae = "{link(own.parent / "elsewhere", snapshot)}/vae"'


def linked_file(snapshot: Path, own: Path) -> tuple[Path, str]:
    """By a link to a link: the file's own name is a link into the blobs."""
    place = link(own.parent / "second.safetensors", link(own.parent / "unet.safetensors", snapshot / UNET))
    return own, f'[components]\nunet = "{place}"'


def small_decoder(snapshot: Path, own: Path) -> tuple[Path, str]:
    return own, f'[lossy]\nvae = "{snapshot}/../{snapshot.name}/vae"'


def configurations(snapshot: Path, own: Path) -> tuple[Path, str]:
    shutil.copyfile(own / UNET, own / "all.safetensors")
    return own / "all.safetensors", f'[pipeline]\nconfig = "{snapshot}"'


def folder_by_reference(snapshot: Path, own: Path) -> tuple[Path, str]:
    return snapshot, ""


def folder_through_a_link(snapshot: Path, own: Path) -> tuple[Path, str]:
    return link(own.parent / "snapshots" / "mine", snapshot), ""


def folder_of_links(snapshot: Path, own: Path) -> tuple[Path, str]:
    shutil.rmtree(own / "unet")
    link(own / "unet", snapshot / "unet")
    return own, ""


WAYS = [
    component,
    linked_component,
    linked_file,
    small_decoder,
    configurations,
    folder_by_reference,
    folder_through_a_link,
    folder_of_links,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("folder", ["plain", "snapshots/of/mine"])
def test_what_another_model_is_made_of_stays(
    tmp_path: Path,
    small_stable_diffusion: Path,
    way: Callable[[Path, Path], tuple[Path, str]],
    folder: str,
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    places = places_in(tmp_path / folder)
    root = Path(places.weights_dir)
    snapshot = base(places, small_stable_diffusion)
    own = tmp_path / "own"
    shutil.copytree(small_stable_diffusion, own)
    path, more = way(snapshot, own)
    in_folder(write_shelved(Path(places.owned), shelve(own, tmp_path / "nowhere"), "fine"), path, more)
    before, notes = everything(root), list[str]()
    assert do(places, Remove(model="base"), notes) == Gone(models=["base"], deleted=[], bytes=0)
    assert notes == [STAY]
    age(root)
    assert do(places, Clean()).deleted == []
    assert everything(root) == before
    do(places, Remove(model="fine"))
    assert do(places, Clean()).deleted[0] == f"org/base@{COMMIT[:12]}"
    assert everything(root) == []


def test_a_blob_that_a_model_has_by_a_link_of_its_owner_stays_when_its_snapshot_goes(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    places = places_in(tmp_path)
    blob = (base(places, small_stable_diffusion) / UNET).resolve()
    own = tmp_path / "own"
    shutil.copytree(small_stable_diffusion, own)
    (own / UNET).unlink()
    link(own / UNET, blob)
    in_folder(write_shelved(Path(places.owned), shelve(own, tmp_path / "nowhere"), "fine"), own)
    assert do(places, Remove(model="base")).deleted == [f"org/base@{COMMIT[:12]}"]
    age(Path(places.weights_dir))
    do(places, Clean())
    assert [file.name for file in blob.parent.iterdir()] == [blob.name]


def two_hubs(folder: Path, weights_dir: Path | None) -> tuple[Places, Places]:
    """With models of their own and one cache."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    first, second = (
        Places.of(Settings(models_dir=folder / name, cache_dir=folder / "cache", weights_dir=weights_dir))
        for name in ("a", "b")
    )
    return first, second


@pytest.mark.parametrize("named", [False, True])
def test_a_hub_deletes_nothing_that_another_one_in_the_same_folder_uses(
    tmp_path: Path, small_stable_diffusion: Path, named: bool
) -> None:
    first, second = two_hubs(tmp_path, tmp_path / "weights" if named else None)
    root = Path(first.weights_dir)
    root.mkdir(parents=True)
    Library(second).perform(Add(path=str(small_stable_diffusion), id="theirs", copy=True), silent)
    base(second, small_stable_diffusion)
    base(first, small_stable_diffusion)
    age(root)
    before, notes = everything(root), list[str]()
    assert do(first, Clean()).deleted == []
    assert do(first, Remove(model="base"), notes).deleted == []
    assert (everything(root), notes) == (before, [STAY])
    assert do(second, Remove(model="base")).deleted == [f"org/base@{COMMIT[:12]}"]
    assert len(do(second, Remove(model="theirs")).deleted) == 1
    assert everything(root) == []


def test_what_a_hub_used_whose_folder_is_away_stays_until_its_owner_says_that_it_is_gone(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    first, second = two_hubs(tmp_path, None)
    root = Path(first.weights_dir)
    base(second, small_stable_diffusion)
    do(second, Clean())
    (tmp_path / "b").rename(tmp_path / "not mounted")
    age(root)
    before, notes = everything(root), list[str]()
    assert do(first, Clean(dry_run=True), notes).deleted == do(first, Clean()).deleted == []
    assert everything(root) == before
    assert len(notes) == 1
    assert str(tmp_path) not in notes[0]
    file = next(
        (root / ".hubs" / name)
        for name in notes[0].split()
        for name in [name.removeprefix(".hubs/")]
        if name.endswith(".json")
    )
    file.unlink()
    assert do(first, Clean()).deleted[0] == f"org/base@{COMMIT[:12]}"


def test_what_a_manifest_of_another_hub_used_before_it_was_broken_stays(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    first, second = two_hubs(tmp_path, None)
    root = Path(first.weights_dir)
    base(second, small_stable_diffusion)
    do(second, Clean())
    (tmp_path / "b" / "base.toml").write_text("id =")
    with pytest.raises(Exception, match=r"base\.toml"):
        do(second, Clean())
    age(root)
    assert do(first, Clean()).deleted == []


def test_where_it_cannot_be_known_what_others_use_nothing_is_deleted(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    first, _ = two_hubs(tmp_path, None)
    base(first, small_stable_diffusion)
    do(first, Clean())
    (Path(first.weights_dir) / ".hubs" / "0123.json").write_text("{")
    before = everything(tmp_path)
    for order in (Clean(), Remove(model="base")):
        with pytest.raises(HubError, match=r"\.hubs/0123\.json in weights_dir cannot be read"):
            do(first, order)
    assert set(everything(tmp_path)) - {"a/.models.lock"} == set(before)


def test_a_manifest_that_comes_while_others_are_looked_at_counts(tmp_path: Path, small_stable_diffusion: Path) -> None:
    places = places_in(tmp_path)
    root = Path(places.weights_dir)
    shelve(small_stable_diffusion, root, repo="org/a")
    source = shelve(small_stable_diffusion, root, repo="org/b")
    age(root)

    def pulled(event: Progress | Note) -> None:
        assert event == Note(message="Another process works on org/a; it was left alone.")
        write_shelved(Path(places.owned), source, "late")

    (root / ".locks").mkdir()
    with FileLock(root / ".locks" / "models--org--a.lock"):
        result = Library(places).perform(Clean(), pulled)
    assert isinstance(result, Gone)
    assert result.deleted == []
    assert (places.weights.snapshot(source) / "model_index.json").is_file()
