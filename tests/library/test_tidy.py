"""Removing models, what no model uses, and names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from hub.errors import ModelExists, ModelNotFound
from hub.library.library import Library
from hub.library.orders import Alias, Clean, Gone, Order, Remove, Renamed, Result
from hub.library.places import Places
from hub.library.progress import Note
from hub.settings import Settings
from tests.library.shelves import COMMIT, age, everything, places_in, shelve, write_shelved


@pytest.fixture
def places(tmp_path: Path, small_stable_diffusion: Path) -> Places:
    found = places_in(tmp_path)
    write_shelved(tmp_path / "models", shelve(small_stable_diffusion, Path(found.weights_dir)))
    return found


def do(places: Places, order: Order, notes: list[str] | None = None) -> Result:
    heard = [] if notes is None else notes
    return Library(places).perform(
        order, lambda event: heard.append(event.message) if isinstance(event, Note) else None
    )


def gone(result: Result) -> Gone:
    assert isinstance(result, Gone)
    return result


def test_a_removed_model_is_gone_with_its_weights(places: Places) -> None:
    before = sum(file.stat().st_size for file in Path(places.weights_dir).rglob("blobs/*"))
    result = gone(do(places, Remove(model="small")))
    assert (result.models, result.bytes) == (["small"], before)
    assert everything(Path(places.weights_dir)) == []
    assert [listed.id for listed in places.registry() if not listed.is_alias] == ["builtin"]


def test_weights_that_another_model_uses_stay(places: Places, tmp_path: Path, small_stable_diffusion: Path) -> None:
    again = shelve(small_stable_diffusion, Path(places.weights_dir), revision="f" * 40)
    write_shelved(tmp_path / "models", again, "again")
    twin = places.registry().get("small").manifest.source
    assert twin is not None
    write_shelved(tmp_path / "models", twin, "twin")
    notes: list[str] = []
    before = everything(Path(places.weights_dir))
    assert gone(do(places, Remove(model="twin"), notes)).bytes == 0
    assert everything(Path(places.weights_dir)) == before
    assert notes == ["Another model uses the weights of twin; they stay."]
    result = gone(do(places, Remove(model="small")))
    assert result.deleted == [f"org/small@{COMMIT[:12]}"]
    assert result.bytes == 0, "every blob is the other revision's, too"
    manifest = places.registry().get("again").manifest
    assert all(file.resolve().is_file() for file in Path(manifest.path).rglob("*") if not file.is_dir())


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("builtin", ModelExists, "part of the hub"),
        ("dall-e-2", ModelExists, "is an alias of 'builtin'"),
        ("nobody", ModelNotFound, "does not exist"),
        ("../small", ModelNotFound, "does not exist"),
    ],
)
def test_what_cannot_be_removed_is_told(places: Places, model: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        do(places, Remove(model=model))


def test_files_that_were_never_copied_stay(places: Places, tmp_path: Path, small_stable_diffusion: Path) -> None:
    source = tmp_path / "models" / "small.toml"
    lines = [line for line in source.read_text().splitlines() if not line.startswith("source")]
    source.write_text("\n".join([*lines, f'path = "{small_stable_diffusion}"']))
    result = gone(do(places, Remove(model="small")))
    assert (result.models, result.bytes, source.exists()) == (["small"], 0, False)
    assert (small_stable_diffusion / "model_index.json").is_file()


def test_what_no_model_uses_is_deleted_and_first_only_told(
    places: Places, tmp_path: Path, small_stable_diffusion: Path
) -> None:
    root = Path(places.weights_dir)
    kept = everything(root)
    shelve(small_stable_diffusion, root, repo="org/other")
    shelve(small_stable_diffusion, root, revision="e" * 40)
    blobs = root / "models--org--small" / "blobs"
    for name in ("a" * 64 + ".incomplete", "b" * 64 + ".quarantined", "c" * 64):
        (blobs / name).write_bytes(b"12345")
    age(root)
    before = everything(root)
    told = gone(do(places, Clean(dry_run=True)))
    assert everything(root) == before
    assert f"org/small@{'e' * 12}" in told.deleted
    assert f"org/small: interrupted download {'a' * 12}" in told.deleted
    done = gone(do(places, Clean()))
    assert (done.deleted, done.bytes) == (told.deleted, told.bytes)
    assert done.bytes > 100_000
    assert everything(root) == kept
    assert gone(do(places, Clean())).deleted == []


def test_what_somebody_may_be_about_to_name_is_left_alone(places: Places, small_stable_diffusion: Path) -> None:
    shelve(small_stable_diffusion, Path(places.weights_dir), repo="org/other")
    assert gone(do(places, Clean())).deleted == []


def test_a_repository_that_is_being_worked_on_is_left_alone(places: Places, small_stable_diffusion: Path) -> None:
    root = Path(places.weights_dir)
    shelve(small_stable_diffusion, root, repo="org/other")
    age(root)
    notes: list[str] = []
    (root / ".locks").mkdir(exist_ok=True)
    with FileLock(root / ".locks" / "models--org--other.lock"):
        assert gone(do(places, Clean(), notes)).deleted == []
    assert notes == ["Another process works on org/other; it was left alone."]


def test_in_a_folder_that_the_owner_named_other_programs_models_stay(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    (tmp_path / "models").mkdir()
    root = tmp_path / "shared"
    places = Places.of(Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", weights_dir=root))
    write_shelved(tmp_path / "models", shelve(small_stable_diffusion, root))
    shelve(small_stable_diffusion, root, repo="org/somebody-elses")
    shelve(small_stable_diffusion, root, revision="e" * 40)
    age(root)
    assert gone(do(places, Clean())).deleted == [f"org/small@{'e' * 12}"]
    assert (root / "models--org--somebody-elses").is_dir()


def test_an_alias_is_written_found_and_taken_away_and_the_owners_comments_stay(places: Places) -> None:
    source = Path(places.owned) / "aliases.toml"
    assert do(places, Alias(name="nice/name", target="small")) == Renamed(name="nice/name", target="small")
    source.write_text(source.read_text() + '# mine\n"other" = "small"\n')
    assert places.registry().get("nice/name").manifest.id == places.registry().get("other").manifest.id == "small"
    do(places, Alias(name="dall-e-3", target="small"))
    assert places.registry().get("dall-e-3").manifest.id == "small", "wins over the built-in model's own"
    do(places, Alias(name="nice/name", target=None))
    assert "# mine" in source.read_text()
    assert tomllib.loads(source.read_text()) == {"other": "small", "dall-e-3": "small"}
    with pytest.raises(ModelNotFound, match="no alias 'nice/name'"):
        do(places, Alias(name="nice/name", target=None))
    with pytest.raises(ModelExists, match="own id"):
        do(places, Alias(name="small", target="builtin"))
    with pytest.raises(ModelNotFound):
        do(places, Alias(name="x", target="nobody"))


def test_an_alias_of_an_alias_leads_to_the_model(places: Places) -> None:
    assert do(places, Alias(name="mine", target="dall-e-2")) == Renamed(name="mine", target="builtin")


def test_a_removed_models_aliases_go_with_it_and_the_others_stay(places: Places) -> None:
    source = Path(places.owned) / "aliases.toml"
    for name, target in (("mine", "small"), ("another", "builtin"), ("nice", "small")):
        do(places, Alias(name=name, target=target))
    source.write_text(source.read_text() + "# my own words\n")
    do(places, Remove(model="small"))
    with pytest.raises(ModelNotFound):
        places.registry().get("mine")
    assert tomllib.loads(source.read_text()) == {"another": "builtin"}
    assert "# my own words" in source.read_text()


def test_an_alias_whose_model_is_gone_stops_no_start(places: Places) -> None:
    do(places, Alias(name="mine", target="small"))
    (Path(places.owned) / "small.toml").unlink()
    with pytest.raises(ModelNotFound):
        places.registry().get("mine")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aliases": {"nice": "small"}}, r"names 'small' under \[aliases\], as 'nice': take that line out first"),
        ({"default_model": "small"}, "name no model get 'small'; set default_model to another first"),
        (
            {"default_model": "nice", "aliases": {"nice": "builtin", "other": "small"}},
            r"under \[aliases\], as 'other'",
        ),
    ],
)
def test_a_model_that_the_settings_name_stays_whole(
    places: Places, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    named = Places.of(Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", **settings))
    before = everything(tmp_path)
    with pytest.raises(ModelExists, match=words) as refused:
        do(named, Remove(model="small"))
    assert refused.value.status == 409
    assert set(everything(tmp_path)) - {"models/.models.lock"} == set(before)
    assert named.registry().get("small").manifest.id == "small"


def test_the_default_model_by_an_alias_of_aliases_toml_stays(places: Places) -> None:
    do(places, Alias(name="dall-e-2", target="small"))
    with pytest.raises(ModelExists, match=r"name no model get 'small' \(as 'dall-e-2'\)"):
        do(places, Remove(model="small"))
    do(places, Alias(name="dall-e-2", target=None))
    assert gone(do(places, Remove(model="small"))).models == ["small"]


def test_where_another_folder_has_the_model_too_its_names_stay(places: Places, tmp_path: Path) -> None:
    named = Places.of(Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", default_model="builtin"))
    own = shelve(Path(named.registry().get("small").manifest.path), Path(named.weights_dir), repo="org/own")
    write_shelved(tmp_path / "models", own, "builtin")
    do(places, Alias(name="mine", target="builtin"))
    assert gone(do(named, Remove(model="builtin"))).bytes > 0
    assert named.registry().get("mine").manifest.id == "builtin"


@pytest.fixture
def shared(tmp_path: Path, small_stable_diffusion: Path) -> Places:
    """Of a hub whose owner has named weights_dir."""
    (tmp_path / "models").mkdir()
    root = tmp_path / "shared"
    write_shelved(tmp_path / "models", shelve(small_stable_diffusion, root))
    return Places.of(Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", weights_dir=root))


def test_in_a_shared_folder_what_other_programs_are_about_to_fetch_stays(shared: Places) -> None:
    repository = Path(shared.weights_dir) / "models--org--small"
    foreign = ["a" * 64 + ".incomplete", "b" * 64 + ".0a1b2c3d.incomplete", "c" * 64]
    for name in foreign:
        (repository / "blobs" / name).write_bytes(b"12345")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "next").write_text("9" * 40)
    result = gone(do(shared, Remove(model="small")))
    assert result.deleted == [f"org/small@{COMMIT[:12]}"]
    assert sorted(file.name for file in (repository / "blobs").iterdir()) == sorted(foreign)
    assert [file.name for file in (repository / "refs").iterdir()] == ["next"]


def test_what_others_have_left_for_long_goes_with_a_removed_model(shared: Places) -> None:
    repository = Path(shared.weights_dir) / "models--org--small"
    for name in ("a" * 64 + ".incomplete", "b" * 64 + ".0a1b2c3d.incomplete", "c" * 64):
        (repository / "blobs" / name).write_bytes(b"12345")
    age(repository)
    do(shared, Remove(model="small"))
    assert everything(Path(shared.weights_dir)) == []


def test_names_that_nobody_put_in_place_go_after_a_day(places: Places) -> None:
    snapshot = Path(places.registry().get("small").manifest.path)
    blob = snapshot.parent.parent / "blobs" / ("d" * 64)
    blob.write_bytes(b"12345")
    kept = everything(snapshot)
    (snapshot / "unet" / ".config.json.0a1b.tmp").symlink_to(blob)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / ".0a1b.tmp").write_text(COMMIT)
    age(Path(places.weights_dir))
    (snapshot / ".model_index.json.2c3d.tmp").symlink_to(blob)
    assert gone(do(places, Clean())).bytes == len(COMMIT)
    assert set(everything(snapshot)) - set(kept) == {".model_index.json.2c3d.tmp"}, "somebody may be at work on it"
    age(Path(places.weights_dir))
    assert gone(do(places, Clean())).bytes == 5
    assert (everything(snapshot), blob.exists()) == (kept, False)


def test_to_tell_what_would_go_nothing_is_written_and_nobody_waited_for(
    places: Places, small_stable_diffusion: Path
) -> None:
    root = Path(places.weights_dir)
    shelve(small_stable_diffusion, root, repo="org/other")
    age(root)
    before = sorted(map(str, root.parent.rglob("*")))
    assert gone(do(places, Clean(dry_run=True))).deleted == [f"org/other@{COMMIT[:12]}"] + [
        f"org/other: unused file {blob.name[:12]}" for blob in sorted((root / "models--org--other/blobs").iterdir())
    ]
    assert sorted(map(str, root.parent.rglob("*"))) == before
    (root / ".locks").mkdir()
    with FileLock(root / ".locks" / "models--org--other.lock"):
        assert len(gone(do(places, Clean(dry_run=True))).deleted) > 1


def test_an_alias_without_which_nothing_would_start_stays(places: Places, tmp_path: Path) -> None:
    source = places.registry().get("small").manifest.source
    assert source is not None
    for name in ("one", "two"):
        write_shelved(tmp_path / "models", source, name, aliases='aliases = ["both"]')
        do(places, Alias(name="both", target="one")) if name == "one" else None
    with pytest.raises(ModelExists, match=r"stays as it is: 'both' is claimed by one\.toml too"):
        do(places, Alias(name="both", target=None))
    assert places.registry().get("both").manifest.id == "one"
