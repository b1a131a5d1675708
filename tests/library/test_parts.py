"""What a diffusers folder lacks is named, and nothing is said of one that is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hub.errors import ModelRefused
from hub.library.parts import components_in, lacks, lacks_beside, missing_parts, tokenizer_files
from hub.pipelines import Unsupported
from hub.pipelines.checks import components_of
from hub.pipelines.loading import load_pipeline
from tests.families.builders import BUILDERS, build

CPU = torch.device("cpu")


def words(folder: Path, variant: str | None = None) -> list[str]:
    return [each.words for each in lacks(folder, variant)]


FAILURES = (Unsupported, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build(family, tmp_path_factory.mktemp(family)) for family in BUILDERS}


def test_whole_folders_of_every_family_lack_nothing_and_have_the_components_that_are_loaded(
    built: dict[str, Path],
) -> None:
    for folder in built.values():
        assert missing_parts(folder) == []
        assert {name: cls for name, (_, cls) in components_in(folder).items()} == {
            part.name: part.cls.__name__ for part in components_of(folder)
        }


@pytest.mark.parametrize("family", ["stable-diffusion", "flux-dev", "qwenimage-edit", "sana", "pixart-sigma"])
def test_each_part_that_is_taken_away_is_named(family: str, built: dict[str, Path], tmp_path: Path) -> None:
    """And none of the others: they can be read without."""
    whole = built[family]
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        if file.name == "model_index.json":
            continue
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        (folder / file).unlink()
        told = missing_parts(folder)
        if told:
            assert told == [file.as_posix() if file.parts[0] != "scheduler" else "scheduler"]
            # Without the one transformers makes an empty one, without the other the largest of its kind.
            if file.name not in ("tokenizer.json", "config.json"):
                with pytest.raises(FAILURES):
                    load_pipeline(str(folder), "float32", CPU)
        else:
            assert file.suffix in (".json", ".txt", ".jinja"), file
            load_pipeline(str(folder), "float32", CPU)
        shutil.rmtree(folder)


def test_a_component_that_is_not_there_or_empty_is_named(built: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built["stable-diffusion-xl"], tmp_path / "a"))
    shutil.rmtree(folder / "text_encoder_2")
    shutil.rmtree(folder / "scheduler")
    (folder / "scheduler").mkdir()
    assert words(folder) == [
        "the folder scheduler is missing, or empty",
        "the folder text_encoder_2 is missing, or empty",
    ]


def test_weights_shards_and_variants_are_named(built: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(built["stable-diffusion"], tmp_path / "a"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert words(folder) == ["unet has no plain weights, only the variant fp16"]
    assert words(folder, "fp16") == []
    half.rename(file.with_suffix(".bin"))
    assert "diffusion_pytorch_model.bin, a pickle, which is never read" in words(folder)[0]
    file.with_suffix(".bin").unlink()
    assert words(folder) == ["there are no weights in unet"]
    unet = UNet2DConditionModel.from_pretrained(built["stable-diffusion"] / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    assert words(folder) == []
    last = max((folder / "unet").glob("*-of-*.safetensors"))
    last.unlink()
    assert words(folder) == [f"unet/{last.name} is missing, a part of the weights"]
    last.symlink_to(tmp_path / "nowhere")
    assert words(folder) == [f"unet/{last.name} is missing, a part of the weights"]
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for content in ("", "{}", '{"weight_map": {"a": "../../b.safetensors"}}', '{"weight_map": {"a": 1}}', "[" * 10**5):
        index.write_text(content)
        assert words(folder)[0] == f"unet/{index.name} is broken"
    index.unlink()
    assert words(folder) == ["unet has shards of weights, and the index that tells of them is missing"]


@pytest.mark.parametrize(
    ("cls", "enough", "lacking"),
    [
        ("CLIPTokenizer", ["vocab.json", "merges.txt"], "t/merges.txt is missing (or tokenizer.json)"),
        ("CLIPTokenizer", ["tokenizer.json"], "t/tokenizer.json is missing"),
        ("T5TokenizerFast", ["spiece.model"], "t/tokenizer.json is missing (or spiece.model)"),
        ("Qwen2TokenizerFast", ["vocab.json", "merges.txt"], "t/merges.txt is missing (or tokenizer.json)"),
        ("GemmaTokenizer", ["tokenizer.model"], "t/tokenizer.json is missing (or tokenizer.model)"),
        ("ChatGLMTokenizer", ["tokenizer.model"], "t/tokenizer.model is missing"),
        ("SomeNewTokenizer", ["tokenizer.json"], "t/tokenizer.json is missing"),
        ("SomeNewTokenizer", ["vocab.txt"], "is missing"),
        ("CLIPImageProcessor", ["preprocessor_config.json"], "t/preprocessor_config.json is missing"),
        ("PNDMScheduler", ["scheduler_config.json"], "t/scheduler_config.json is missing"),
    ],
)
def test_tokenizers_processors_and_schedulers_need_their_own_files(
    cls: str, enough: list[str], lacking: str, tmp_path: Path
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "A", "t": ["transformers", cls]}))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer_config.json").write_text("{}")
    for name in enough:
        (tmp_path / "t" / name).write_text("")
    assert words(tmp_path) == []
    (tmp_path / "t" / enough[-1]).unlink()
    told = words(tmp_path)[0]
    assert lacking in told
    assert tokenizer_files("CLIPTokenizerFast") == tokenizer_files("CLIPTokenizer")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "A", "unet": ["my_code", "Unet"]}, "'unet' of a class that neither diffusers nor"),
        ({"_class_name": "A", "unet": ["diffusers", "os.system"]}, "'unet' of a class"),
        ({"_class_name": "A", "unet": ["diffusers", None]}, "'unet' of a class"),
        ({"_class_name": "A", "unet": ["diffusers", "A", "B"]}, "'unet' of a class"),
        ({"_class_name": "A", "../x": ["diffusers", "A"]}, "without a proper name"),
        ({"_class_name": ["pipeline", "My"]}, "names no pipeline"),
        ({"_class_name": "A", "trust_remote_code": True}, "asks for code of its own"),
        ([], "not an object of JSON"),
    ],
)
def test_an_index_that_would_run_code_is_refused(index: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelRefused, match=words):
        missing_parts(tmp_path)


def test_a_single_files_folder_lacks_only_what_the_file_does_not_have(built: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(built["flux-dev"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = {
        "vae.a": 0,
        "text_encoders.t5xxl.transformer.shared.weight": 0,
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight": 0,
    }
    assert [each.words for each in lacks_beside(folder, whole)] == []
    assert [each.words for each in lacks_beside(folder, ["vae.a"])] == [
        "there are no weights in text_encoder",
        "there are no weights in text_encoder_2",
    ]
    (folder / "transformer" / "config.json").unlink()
    shutil.rmtree(folder / "tokenizer")
    assert [each.words for each in lacks_beside(folder, whole)] == [
        "the folder tokenizer is missing",
        "transformer/config.json is missing",
    ]
