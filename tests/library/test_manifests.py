"""Manifests as files: what is written is what is read, and what their owner wrote stays."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from hub.errors import ConfigurationError, HubError, InvalidRequest, ModelExists
from hub.library.manifests import (
    check_free,
    check_id,
    check_writable,
    file_for,
    text_of,
    update_manifest,
    write_manifest,
)
from hub.manifest import (
    DefaultsSection,
    LossySection,
    ModelManifest,
    PipelineSection,
    SizeSection,
    SourceSection,
)
from hub.registry import manifests_in, open_registry, read_manifest

ROOT = Path(__file__).resolve().parents[2]


def manifest(**changes: Any) -> ModelManifest:
    fields: dict[str, Any] = {
        "id": "org/model",
        "name": "Model",
        "description": "A model.",
        "license": "mit",
        "path": "/srv/weights/model",
        "tasks": ["text-to-image"],
        "size": SizeSection(native="512x512", min=256, max=768),
        "defaults": DefaultsSection(num_inference_steps=20),
    }
    return ModelManifest(**{**fields, **changes})


def full() -> ModelManifest:
    return manifest(
        path="",
        source=SourceSection(kind="local", repo="local/model", revision="0" * 40, file="a.safetensors"),
        tasks=["text-to-image", "inpainting"],
        created=dt.date(2026, 5, 4),
        aliases=["one", "another/one"],
        dtype="bfloat16",
        device="cuda:1",
        keep_alive=0,
        defaults=DefaultsSection(num_inference_steps=4, guidance_scale=0.0, strength=0.5, size="512x512"),
        pipeline=PipelineSection(
            scheduler="EulerDiscreteScheduler",
            scheduler_options={"timestep_spacing": "trailing", "shift": 3.0, "a": True},
            arguments={"max_sequence_length": 256},
            config="/srv/weights/configs",
            variant="fp16",
        ),
        lossy=LossySection(skip=0.05, vae="/srv/taesd"),
        quality={"low": 2, "high": 8},
        style={"vivid": "vivid, \"bright\"\n\\ 'x' # no comment = [table]"},
        sha256={"unet/diffusion_pytorch_model.safetensors": "0" * 64, "../b c/é.safetensors": "1" * 64},
        components={"vae": "/srv/weights/vae"},
    )


@pytest.mark.parametrize("made", [manifest, full])
def test_what_is_written_is_what_is_read(made: Any, tmp_path: Path) -> None:
    wanted = made()
    file = write_manifest(tmp_path, wanted, guessed=["defaults.num_inference_steps", "size"], notes=["a\nb\x00"])
    read = read_manifest(file, tmp_path / "weights")
    if wanted.source is not None:
        wanted.path = str(tmp_path / "weights" / "models--local--model" / "snapshots" / ("0" * 40) / "a.safetensors")
    assert read == wanted


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=20), st.sampled_from(["0" * 64, "a" * 64])))
def test_any_text_survives(text: str, table: dict[str, str]) -> None:
    wanted = manifest(name=text, description=text, license=text, style={"vivid": text}, sha256=table)
    read = msgspec.convert(tomlkit.parse(text_of(wanted, notes=[text], made_by=text)).unwrap(), ModelManifest)
    assert read == wanted
    assert msgspec.toml.decode(text_of(wanted, notes=[text], made_by=text), type=ModelManifest) == wanted


def test_only_what_differs_from_the_defaults_is_written_and_guesses_are_marked() -> None:
    text = text_of(
        manifest(), guessed=["defaults.num_inference_steps"], notes=["Look here."], made_by="hub models add x"
    )
    assert text.startswith("# Written by `hub models add x`. It is yours")
    assert "\n# Look here.\n" in text
    assert "num_inference_steps = 20 # guessed: check it\n" in text
    assert text.count("guessed") == 1
    for name in ("owned_by", "dtype", "strength", "provider", "lossy", "[pipeline]", "max_output", "created"):
        assert name not in text


def test_a_second_model_of_an_id_is_refused_whatever_its_file_is_called(tmp_path: Path) -> None:
    file = write_manifest(tmp_path, manifest())
    assert file == file_for(tmp_path, "org/model") == tmp_path / "org--model.toml"
    before = file.read_text()
    with pytest.raises(ModelExists):
        write_manifest(tmp_path, manifest(name="other"))
    mine = file.rename(tmp_path / "mine.toml")
    with pytest.raises(ModelExists):
        write_manifest(tmp_path, manifest(name="other"))
    assert mine.read_text() == before
    assert write_manifest(tmp_path, manifest(name="other"), replace=True) == mine
    assert read_manifest(mine).name == "other"
    write_manifest(tmp_path, manifest(id="a/b"))
    with pytest.raises(ModelExists, match="of another model"):
        write_manifest(tmp_path, manifest(id="a--b"))
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".tmp")] == []


@pytest.mark.parametrize("model", ["aliases", "hub", "Aliases", "HUB"])
def test_a_model_may_be_called_as_another_file_of_the_folder(tmp_path: Path, model: str) -> None:
    file = write_manifest(tmp_path, manifest(id=model))
    assert file.name == f"{model}-model.toml" and manifests_in(tmp_path) == [file]
    assert [listed.id for listed in open_registry([tmp_path], {})] == [model]


def test_of_two_that_write_one_id_at_once_one_is_told(tmp_path: Path) -> None:
    def write(name: int) -> str | None:
        try:
            return read_manifest(write_manifest(tmp_path / str(name // 8), manifest(name=str(name)))).name
        except ModelExists:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, range(80)))
    for at in range(0, 80, 8):
        (kept,) = filter(None, found[at : at + 8])
        assert read_manifest(file_for(tmp_path / str(at // 8), "org/model")).name == kept
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_would_be_refused_at_the_end_can_be_asked_before(tmp_path: Path) -> None:
    for bad in ("", "bad id", "-a", "a" * 129, "a\n", "../a"):
        with pytest.raises(InvalidRequest, match="cannot be a model's id") as error:
            check_id(bad)
        assert error.value.message.isprintable()
    check_id("org/model")
    write_manifest(tmp_path, manifest(id="a/b"))
    check_free(tmp_path, "a")
    for taken in ("a/b", "a--b"):
        with pytest.raises(ModelExists):
            check_free(tmp_path, taken)


def test_a_folder_that_takes_no_manifests_is_told_and_the_trial_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "a", Path("/proc/none")):
        with pytest.raises(HubError, match="The folder of manifests cannot be written") as error:
            check_writable(folder)
        assert str(folder) not in error.value.message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_manifest(tmp_path, manifest(name="\ud800"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_manifest(tmp_path / "file", manifest())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


OWN = """\
# my own words
id = "org/model"   # an id
name = 'Mine'
description = \"\"\"
Several
lines.\"\"\"
license = "mit"
tasks = [
  "text-to-image", # not the others
]
size = { native = "512x512", min = 256, max = 768 }

[defaults] # mine
num_inference_steps = 33

[source]
# where from
kind = "huggingface"
repo = "org/model"
revision = "0000000000000000000000000000000000000000"

[sha256] # of then
"a.safetensors" = "0000000000000000000000000000000000000000000000000000000000000000"
"gone.safetensors" = "0000000000000000000000000000000000000000000000000000000000000000"
"""


def test_new_weights_change_their_own_lines_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    source = SourceSection(repo="org/model", revision="1" * 40)
    update_manifest(
        file, source=source, sha256={"a.safetensors": "2" * 64, "b/c.safetensors": "3" * 64}, variant="fp16"
    )
    text = file.read_text()
    for kept in ("# my own words", "# an id", '"text-to-image", # not the others', "[defaults] # mine", "# where from",
                 "[sha256] # of then", "Several\nlines.", "size = { native"):  # fmt: skip
        assert kept in text
    read = read_manifest(file)
    assert read.source == source
    assert read.sha256 == {"a.safetensors": "2" * 64, "b/c.safetensors": "3" * 64}
    assert read.pipeline.variant == "fp16"
    assert read.defaults.num_inference_steps == 33


def test_a_manifest_with_a_path_is_given_a_source(tmp_path: Path) -> None:
    file = write_manifest(tmp_path, manifest())
    update_manifest(file, source=SourceSection(repo="org/model", revision="1" * 40), sha256={"a.safetensors": "2" * 64})
    read = read_manifest(file)
    assert read.source is not None and read.source.revision == "1" * 40
    update_manifest(file, sha256={})
    assert read_manifest(file).sha256 == {}
    inline = tmp_path / "inline.toml"
    inline.write_text(file.read_text().replace("org/model", "org/other", 1) + '\n[pipeline]\nscheduler = "A"\n')
    update_manifest(inline, variant="fp16")
    assert (read_manifest(inline).pipeline.scheduler, read_manifest(inline).pipeline.variant) == ("A", "fp16")
    text = inline.read_text().partition("[pipeline]")[0]
    inline.write_text('pipeline = { scheduler = "A" }\n' + text)
    update_manifest(inline, variant="bf16")
    assert (read_manifest(inline).pipeline.scheduler, read_manifest(inline).pipeline.variant) == ("A", "bf16")


def test_a_broken_manifest_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    with pytest.raises(ConfigurationError):
        update_manifest(file, sha256={"a": "no digest"})
    assert file.read_text() == OWN
    file.write_text("id = ")
    with pytest.raises(ConfigurationError):
        update_manifest(file, sha256={})
    assert file.read_text() == "id = "
    assert [each.name for each in tmp_path.iterdir()] == ["mine.toml"]


def test_the_built_in_models_manifest_survives_a_round_trip(tmp_path: Path) -> None:
    own = read_manifest(ROOT / "models" / "builtin.toml")
    assert read_manifest(write_manifest(tmp_path, own)) == own
