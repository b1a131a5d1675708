from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.errors import ConfigurationError, ModelNotFound
from hub.manifest import parse_size
from hub.pipelines.weights import weights_hash
from hub.registry import LiveRegistry, Registry, absence, drawn_by, open_registry, read_manifest, route_of
from hub.registry import revision as revision_module
from hub.routing import broken
from hub.settings import Settings
from hub.types import Size
from tests.conftest import write_manifest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """As much of a diffusers folder as the registry looks at."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def add(folder: Path, weights: Path, model: str, *aliases: str, **changes: str) -> Path:
    """A manifest `model.toml`; the folder is made where it is not there yet."""
    write_manifest(folder, weights, id=f'id = "{model}"', aliases=f"aliases = {list(aliases)}", **changes)
    return (folder / "small.toml").rename(folder / f"{model}.toml")


def ids(registry: Registry) -> set[str]:
    return {model.id for model in registry}


def test_the_shipped_manifest_answers_for_openais_names() -> None:
    registry = open_registry(Settings().models_dirs[:1], {})
    for name in ("dall-e-2", "dall-e-3", "gpt-image-1"):
        assert registry.get(name).is_alias
        assert registry.get(name).manifest.id == "builtin"
    assert not registry.get("builtin").is_alias


def test_the_shipped_manifest_says_what_all_its_weights_are() -> None:
    manifest = open_registry(Settings().models_dirs[:1], {}).get("builtin").manifest
    weights_hash([manifest.path], None, manifest.sha256)


def test_a_relative_path_is_relative_to_the_manifest(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    source = add(tmp_path / "models", Path("../weights"), "one")
    assert read_manifest(source).path == str(weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 'id = "../x"'}, r"\$\.id"),
        ({"id": 'id = ""'}, r"\$\.id"),
        ({"id": f'id = "{"x" * 129}"'}, r"\$\.id"),
        ({"id": r'id = "a\r\nb"'}, r"\$\.id"),
        ({"id": ""}, "missing required field `id`"),
        ({"colour": "colour = 1"}, "unknown field `colour`"),
        ({"tasks": "tasks = []"}, r"\$\.tasks"),
        ({"tasks": 'tasks = ["text-to-video"]'}, r"\$\.tasks"),
        ({"provider": 'provider = "openai"'}, "unknown field `path`"),
        ({"provider": 'provider = "Open AI"'}, "unknown field `path`"),
        ({"dtype": 'dtype = "int8"'}, r"\$\.dtype"),
        ({"device": 'device = "gpu"'}, r"\$\.device"),
        ({"device": 'device = "cuda:01"'}, r"\$\.device"),
        ({"device": 'device = "cuda:0,cuda:1"'}, r"\$\.device"),
        ({"quality": "quality = { ultra = 5 }"}, r"\$\.quality"),
        ({"quality": "quality = { low = 0 }"}, r"\$\.quality"),
        ({"style": 'style = { gothic = "dark" }'}, r"\$\.style"),
        ({"size": "size = { native = '60x64', multiple = 8, min = 32, max = 128 }"}, r"native must be.*\$\.size"),
        ({"size": "size = { native = '64x64', multiple = 8, min = 32, max = 56 }"}, r"native must be.*\$\.size"),
        ({"size": "size = { native = '٦٤x64', multiple = 8, min = 32, max = 128 }"}, r"\$\.size\.native"),
        ({"defaults": "defaults = { num_inference_steps = 0, guidance_scale = 5.0 }"}, r"num_inference_steps"),
        ({"defaults": "defaults = { num_inference_steps = 5, guidance_scale = nan }"}, r"guidance_scale"),
        ({"defaults": "defaults = { num_inference_steps = 5, guidance_scale = 5.0, strength = 0.0 }"}, r"strength"),
        ({"lossy": "lossy = { skip = 0 }"}, r"\$\.lossy\.skip"),
        ({"lossy": 'lossy = { storage_dtype = "int4" }'}, r"\$\.lossy\.storage_dtype"),
        ({"both": 'pipeline = { compile = true }\nlossy = { storage_dtype = "float8_e5m2" }'}, "do not go together"),
        ({"pipeline": 'pipeline = { config = "." }'}, r"pipeline\.config is for a `path` that is a single"),
        ({"components": 'components = { "../vae" = "gone" }'}, r"\$\.components"),
        ({"lossy": 'lossy = { quantization = "torchao:int1" }'}, r"\$\.lossy\.quantization"),
        (
            {"both": 'lossy = { quantization = "torchao:int8_weight_only", storage_dtype = "float8_e5m2" }'},
            r"lossy\.quantization and lossy\.storage_dtype do not go together",
        ),
        (
            {"both": 'pipeline = { compile = true }\nlossy = { quantization = "bitsandbytes:nf4" }'},
            r"lossy\.quantization and pipeline\.compile do not go together",
        ),
        (
            {"both": 'components = { unet = "a.gguf" }\nlossy = { quantization = "bitsandbytes:nf4" }'},
            r"lossy\.quantization and a GGUF file do not go together",
        ),
        (
            {"both": 'components = { unet = "a.gguf" }\npipeline = { compile = true }'},
            r"a GGUF file and pipeline\.compile do not go together",
        ),
        ({"sha256": 'sha256 = { "a.safetensors" = "abc" }'}, r"\$\.sha256"),
        ({"name": "name = "}, "line 2"),
    ],
)
def test_a_wrong_manifest_stops_the_start_with_file_and_field(
    tmp_path: Path, weights: Path, change: dict[str, str], words: str
) -> None:
    folder = write_manifest(tmp_path / "models", weights, **change)
    with pytest.raises(ConfigurationError, match=rf"small\.toml: .*{words}"):
        open_registry([folder], {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lossy": 'vocabulary = "nowhere.json"'}, r"vocabulary: .*nowhere\.json is missing or no list of words"),
        ({"lossy": 'lossy = { vae = "nowhere" }'}, "lossy.vae: .*nowhere is not the folder of an AutoencoderTiny"),
        (
            {"path": 'path = "gone.safetensors"\npipeline = { config = "." }'},
            r"path: there is no file .*gone\.safetensors",
        ),
        ({"path": 'path = "small.toml"'}, r"path: .*small\.toml is not a diffusers folder"),
        ({"components": 'components = { vae = "gone" }'}, r"components\.vae: .*gone is neither a \.safetensors or"),
        ({"components": 'components = { vae = "small.toml" }'}, r"components\.vae: .*small\.toml is neither"),
        ({"path": 'path = "nowhere"'}, "path: .*nowhere is not a diffusers folder"),
    ],
)
def test_weights_that_are_not_there_are_told_and_stop_no_start(
    tmp_path: Path, weights: Path, change: dict[str, str], words: str
) -> None:
    folder = write_manifest(tmp_path / "models", weights, **change)
    found = absence(open_registry([folder], {}).get("small").manifest)
    assert found is not None
    assert re.match(words, found)


def test_a_manifest_that_is_not_text_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary\.toml: "):
        open_registry([tmp_path], {})


def test_folders_without_any_manifest_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model manifest"):
        open_registry([tmp_path], {})
    with pytest.raises(ConfigurationError, match=r"models_dir: .*absent is not a folder"):
        open_registry([tmp_path / "absent"], {})


def test_of_two_manifests_with_one_id_the_later_folders_counts(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "shipped", weights, "one", "other")
    add(tmp_path / "own", weights, "one", name='name = "Mine"')
    registry = open_registry([tmp_path / "shipped", tmp_path / "own"], {})
    assert registry.get("one").manifest.name == "Mine"
    assert registry.get("other").manifest.name == "Mine"


def test_an_alias_in_a_later_folder_wins_over_an_earlier_ones(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "shipped", weights, "one", "dall-e-3")
    add(tmp_path / "own", weights, "two", "dall-e-3")
    registry = open_registry([tmp_path / "shipped", tmp_path / "own"], {})
    assert registry.get("dall-e-3").manifest.id == "two"


def test_two_claims_of_one_alias_in_one_folder_are_an_error_until_the_owner_decides(
    tmp_path: Path, weights: Path
) -> None:
    add(tmp_path / "models", weights, "one", "shared")
    add(tmp_path / "models", weights, "two", "shared")
    with pytest.raises(ConfigurationError, match=r"two\.toml: 'shared' is claimed by one\.toml too"):
        open_registry([tmp_path / "models"], {})
    for target in ("one", "two"):
        assert open_registry([tmp_path / "models"], {"shared": target}).get("shared").manifest.id == target


def test_two_manifests_with_one_id_in_one_folder_are_an_error_that_names_both(tmp_path: Path, weights: Path) -> None:
    first = add(tmp_path / "models", weights, "one")
    (first.parent / "two.toml").write_text(first.read_text())
    with pytest.raises(ConfigurationError, match=r"two\.toml: one\.toml has the id 'one', too\. Remove one of the two"):
        open_registry([tmp_path / "models"], {})


REMOTE = 'id = "a"\nname = "A"\ndescription = "x"\nprovider = "openai"\ntasks = ["text-to-image"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'id = "a"\nname = "A"\ndescription = "x"\ntargets = [{model = "b"}]\norder = "fast"',
            "Invalid enum value 'fast'; there are cheapest, listed, local-first - at `$.order`",
        ),
        (
            'id = "a"\nname = "A"\ndescription = "x"\ntargets = [{model = "b", tasks = ["draw"]}]',
            "'draw'; there are image-to-image, inpainting, text-to-image - at `$.targets[0].tasks[0]`",
        ),
        (f'{REMOTE}remote = {{model = "m", models = {{draw = "x"}}}}', "'draw'; there are image-to-image, inpainting"),
        (f'{REMOTE}[remote]\nmodel = "m"\n[defaults]\nquality = "hd"', "'hd'; there are high, low, medium"),
        (
            f'{REMOTE}[remote]\nmodel = "m"\n[prices.images]\n"1024x1024" = 0.1',
            'a price\'s key is written quality/size, such as "high/1024x1024", "high/*" or "*/*" - at',
        ),
        (
            f'{REMOTE}[remote]\nmodel = "m"\nsizes = ["512x512"]\nshapes = {{max = 512}}',
            "remote.sizes and remote.shapes do not go together",
        ),
    ],
)
def test_a_manifests_mistake_is_told_with_what_may_stand_there(tmp_path: Path, text: str, words: str) -> None:
    source = tmp_path / "a.toml"
    source.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_manifest(source)
    assert str(caught.value).startswith(f"{source}: ") and words in str(caught.value)


def test_an_alias_never_hides_a_models_own_id(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "shipped", weights, "one")
    add(tmp_path / "own", weights, "two", "one")
    registry = open_registry([tmp_path / "shipped", tmp_path / "own"], {})
    assert registry.get("one").manifest.id == "one"
    assert sorted(model.id for model in registry) == ["one", "two"]


@pytest.mark.parametrize(
    ("alias", "target", "words"),
    [
        ("mine", "absent", "aliases.mine: there is no model 'absent'"),
        ("mine", "other", "there is no model 'other'"),  # an alias of an alias
        ("one", "one", "aliases.one: is a model's own id"),
        ("a b", "one", "is not a possible model id"),
        ("mine\n", "one", "is not a possible model id"),
    ],
)
def test_an_owners_alias_that_cannot_work_is_an_error(
    tmp_path: Path, weights: Path, alias: str, target: str, words: str
) -> None:
    add(tmp_path / "models", weights, "one", "other")
    with pytest.raises(ConfigurationError, match=words):
        open_registry([tmp_path / "models"], {alias: target})


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "aliases.mine: the list is empty"),
        (["absent"], "it leads to absent, and none of them is a model"),
        (["absent", "mine"], "it leads to absent, mine, and none of them is a model"),
    ],
)
def test_an_alias_of_several_that_leads_to_no_model_is_an_error(
    tmp_path: Path, weights: Path, targets: list[str], words: str
) -> None:
    add(tmp_path / "models", weights, "one")
    with pytest.raises(ConfigurationError, match=words):
        open_registry([tmp_path / "models"], {"mine": targets})


def test_an_alias_of_several_is_there_while_one_of_them_is(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "models", weights, "one", "other")
    wanted = {"mine": ["not-pulled-yet", "one"], "yours": ["mine", "other"]}
    registry = open_registry([tmp_path / "models"], wanted)
    assert registry.tasks_of(registry.get("mine")) == registry.get("one").local.tasks
    left_out = {name: broken(route_of(name, wanted[name]), registry) for name in wanted}
    assert {name: [(each.model, each.code) for each in found] for name, found in left_out.items()} == {
        "mine": [("not-pulled-yet", "gone")],
        "yours": [("mine", "nested")],
    }


def test_a_ready_made_model_that_is_not_chosen_is_told_from_one_that_is_not_there(
    tmp_path: Path, weights: Path
) -> None:
    folder = add(tmp_path / "models", weights, "one").parent
    (folder / "remote").mkdir()
    (folder / "remote" / "openai-gpt-image-9.toml").write_text("it is not read")
    registry = open_registry([folder], {})
    with pytest.raises(ModelNotFound, match="ready-made remote model; the owner adds it to remote_models"):
        registry.get("openai/gpt-image-9")
    for name in ("openai/gpt-image-8", "openai-gpt-image-9", "../remote/openai-gpt-image-9"):
        with pytest.raises(ModelNotFound, match="does not exist"):
            registry.get(name)


def test_every_id_and_alias_is_listed_once(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "models", weights, "one", "a", "b")
    registry = open_registry([tmp_path / "models"], {"b": "one", "c": "one"})
    assert sorted(model.id for model in registry) == ["a", "b", "c", "one"]
    assert [model.id for model in registry if not model.is_alias] == ["one"]


def test_a_single_file_needs_a_folder_of_configurations(tmp_path: Path, weights: Path) -> None:
    file = tmp_path / "all.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"pipeline\.config: all\.safetensors is a single file, .* Set it to"):
        read_manifest(add(tmp_path / "models", file, "one"))
    absent = absence(read_manifest(add(tmp_path / "models", file, "one", pipeline='pipeline = { config = "." }')))
    assert absent is not None
    assert re.match(r"pipeline\.config: .*models is not a diffusers folder", absent)
    pipeline = 'pipeline = { config = "../weights" }'
    manifest = read_manifest(add(tmp_path / "models", Path("../all.safetensors"), "one", pipeline=pipeline))
    assert (manifest.path, manifest.folder) == (str(file), str(weights))
    assert manifest.pipeline.config == str(weights)


def test_every_file_that_a_model_is_made_of_counts_for_its_revision(tmp_path: Path, weights: Path) -> None:
    file, part = tmp_path / "all.safetensors", tmp_path / "part.gguf"
    for each in (file, part):
        each.write_bytes(b"1")
    more = {"pipeline": 'pipeline = { config = "../weights" }', "components": 'components = { vae = "../part.gguf" }'}
    add(tmp_path / "models", file, "one", **more)
    revisions = {open_registry([tmp_path / "models"], {}).get("one").revision for _ in range(2)}
    assert len(revisions) == 1
    for each in (file, part, weights / "model_index.json"):
        each.write_bytes(b"{} ")
        revisions.add(open_registry([tmp_path / "models"], {}).get("one").revision)
    assert len(revisions) == 4


def test_what_a_model_was_quantized_by_is_in_its_words(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    of_file = read_manifest(add(tmp_path / "models", weights, "one", more='components = { unet = "../a.gguf" }'))
    assert of_file.lossy_words == "unet comes from a GGUF file"
    lossy = 'lossy = { skip = 0.1, quantization = "bitsandbytes:nf4" }'
    words = read_manifest(add(tmp_path / "models", weights, "one", lossy=lossy)).lossy_words
    assert words.endswith("are skipped; the weights are quantized by bitsandbytes:nf4")


def test_the_date_of_a_model_is_unix_seconds_in_utc(tmp_path: Path, weights: Path) -> None:
    source = add(tmp_path / "models", weights, "one", created="created = 1970-01-02")
    assert read_manifest(source).created_at == 86_400


def test_sizes_in_a_manifest_are_width_by_height(tmp_path: Path, weights: Path) -> None:
    assert parse_size("1024x768") == Size(1024, 768)
    wide = "size = { native = '96x64', multiple = 32, min = 64, max = 96 }"
    shapes = read_manifest(add(tmp_path / "models", weights, "one", size=wide)).size.shapes
    assert shapes.holds(Size(96, 64))
    assert not shapes.holds(Size(80, 64))


def test_an_unknown_model_is_told_the_near_names(tmp_path: Path, weights: Path) -> None:
    add(tmp_path / "models", weights, "stable-diffusion", "dall-e-3")
    registry = open_registry([tmp_path / "models"], {})
    with pytest.raises(ModelNotFound, match=r"'DALL-E-33' does not exist. Near names: dall-e-3\.") as caught:
        registry.get("DALL-E-33")
    assert (caught.value.status, caught.value.param) == (404, "model")
    with pytest.raises(ModelNotFound, match="Near names: stable-diffusion"):
        registry.get("zzzz")


@pytest.fixture(scope="module")
def shipped() -> Registry:
    return open_registry(Settings().models_dirs[:1], {})


@given(st.text(max_size=200) | st.sampled_from(["../builtin", "builtin/", "/etc/passwd", "builtin\r\nX: y", "Builtin"]))
def test_whatever_is_asked_for_finds_a_listed_id_or_is_answered_in_short_printable_words(
    shipped: Registry, model: str
) -> None:
    if model in ids(shipped):
        return
    with pytest.raises(ModelNotFound) as caught:
        shipped.get(model)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def revision(folder: Path) -> str:
    (found,) = {model.revision for model in open_registry([folder], {})}
    return found


def test_a_revision_stays_as_long_as_nothing_changes_and_aliases_have_their_models(
    tmp_path: Path, weights: Path
) -> None:
    folder = add(tmp_path / "models", weights, "one", "alias").parent
    assert revision(folder) == revision(folder)
    add(tmp_path / "models", weights, "two")
    listed = open_registry([folder], {"mine": "two"})
    assert listed.get("alias").revision == listed.get("one").revision != listed.get("two").revision
    assert listed.get("mine").revision == listed.get("two").revision


@pytest.mark.parametrize(
    "change",
    [
        lambda weights, manifest: manifest.write_text(manifest.read_text() + "\n"),
        lambda weights, manifest: (weights / "unet" / "model.safetensors").write_bytes(b"other"),
        lambda weights, manifest: os.utime(weights / "unet" / "model.safetensors", (1, 1)),
        lambda weights, manifest: (weights / "unet" / "model.safetensors").rename(weights / "unet" / "b.safetensors"),
        lambda weights, manifest: (weights / "unet").rename(weights / "vae"),
        lambda weights, manifest: (weights / "more").write_text(""),
        lambda weights, manifest: os.utime(weights.parent / "blob", (1, 1)),
    ],
    ids=["manifest", "size", "time", "name", "folder", "file", "behind a link"],
)
def test_a_revision_changes_with_the_manifest_and_every_file_of_the_model(
    tmp_path: Path, weights: Path, change: Callable[[Path, Path], object]
) -> None:
    (weights / "unet").mkdir()
    (weights / "unet" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "blob").write_bytes(b"linked, as in Hugging Face's cache")
    (weights / "linked.safetensors").symlink_to(tmp_path / "blob")
    manifest = add(tmp_path / "models", weights, "one")
    before = revision(manifest.parent)
    change(weights, manifest)
    assert revision(manifest.parent) != before


def test_a_folder_with_links_that_lead_upwards_or_nowhere_has_a_revision(tmp_path: Path, weights: Path) -> None:
    (weights / "unet").mkdir()
    (weights / "unet" / "up").symlink_to(weights)
    (weights / "nowhere").symlink_to(tmp_path / "absent")
    (weights / "vae").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"1")
    folder = add(tmp_path / "models", weights, "one").parent
    before = revision(folder)
    assert before == revision(folder)
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"12")
    assert revision(folder) != before, "a component may lie elsewhere"


def test_a_revision_changes_with_the_hub_and_its_libraries(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(tmp_path / "models", weights, "one").parent
    found = {revision(folder)}
    for name, value in (("__version__", "9"), ("version", lambda name: "9")):
        with monkeypatch.context() as patch:
            patch.setattr(revision_module, name, value)
            drawn_by.cache_clear()
            found.add(revision(folder))
    drawn_by.cache_clear()
    assert len(found) == 3
    assert "registry/revision.py\t" in drawn_by(), "a checkout's sources count, whose version does not change"


def test_another_small_decoder_is_another_revision(tmp_path: Path, weights: Path) -> None:
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    folder = write_manifest(tmp_path / "models", weights, lossy='lossy = { vae = "../decoder" }')
    first = open_registry([folder], {}).get("small")
    assert first.manifest.lossy.vae == str(decoder)
    (decoder / "more.safetensors").write_text("x")
    assert open_registry([folder], {}).get("small").revision != first.revision


def live(folder: Path) -> LiveRegistry:
    return LiveRegistry(lambda: [folder], {})


def there(registry: LiveRegistry) -> list[str]:
    return sorted(listed.id for listed in registry.current)


def test_a_manifest_that_comes_changes_or_goes_counts_without_a_restart(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "models"
    first = add(folder, weights, "one")
    registry = live(folder)
    before = registry.current
    registry.refresh()
    assert registry.current is before, "nothing was read where nothing has changed"
    second = add(folder, weights, "two")
    registry.refresh()
    assert there(registry) == ["one", "two"]
    first.write_text(first.read_text().replace('id = "one"', 'id = "renamed"'))
    second.unlink()
    registry.refresh()
    assert there(registry) == ["renamed"]
    (folder / "aliases.toml").write_text('other = "renamed"\n')
    registry.refresh()
    assert there(registry) == ["other", "renamed"]


def test_a_manifest_that_is_broken_meanwhile_is_logged_once_and_the_others_go_on(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    add(folder, weights, "one")
    registry = live(folder)
    broken = folder / "broken.toml"
    broken.write_text("id = ")
    registry.refresh()
    registry.refresh()
    assert there(registry) == ["one"]
    assert len([record for record in caplog.records if "broken.toml" in record.message]) == 1
    broken.unlink()
    add(folder, weights, "two")
    registry.refresh()
    assert there(registry) == ["one", "two"]


def test_weights_that_go_and_come_make_other_pictures_possible(tmp_path: Path, weights: Path) -> None:
    registry = live(add(tmp_path / "models", weights, "one").parent)
    before = registry.current.get("one").revision
    aside = weights.rename(weights.with_name("aside"))
    registry.refresh()
    without = registry.current.get("one").revision
    aside.rename(weights)
    registry.refresh()
    assert without != before
    assert registry.current.get("one").revision == before


def test_a_place_that_cannot_be_read_is_an_absence_and_no_error(tmp_path: Path, weights: Path) -> None:
    manifest = read_manifest(add(tmp_path / "models", weights, "one"))
    manifest.path = str(tmp_path / ("x" * 300))  # ENAMETOOLONG stands for EACCES, EIO and a share that went away
    found = absence(manifest)
    assert found is not None
    assert found.startswith("path: ")


def test_the_folder_is_looked_at_while_the_hub_runs(tmp_path: Path, weights: Path) -> None:
    import asyncio
    import time

    folder = tmp_path / "models"
    add(folder, weights, "one")
    registry = live(folder)
    registry.INTERVAL = 0.02  # type: ignore[misc]

    async def main() -> None:
        async with registry.watching():
            add(folder, weights, "two")
            end = time.monotonic() + 20
            while "two" not in there(registry):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)

    asyncio.run(main())
