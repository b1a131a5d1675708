from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub.pipelines import Unsupported
from hub.pipelines.checks import check_folder
from hub.pipelines.loading import load_pipeline
from tests.families.builders import BUILDERS, build

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(small_stable_diffusion: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_stable_diffusion, tmp_path / "model")


def refused(model: Path) -> str:
    """What the load says; the folder's own place is in no words for clients."""
    with pytest.raises(Unsupported) as caught:
        load_pipeline(str(model), "float32", CPU)
    assert str(model.parent) not in str(caught.value)
    return str(caught.value)


class Marker:
    """Its pickle makes a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Changes the header and leaves the tensors."""

    def changed(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        values = json.loads(content[8 : 8 + length])
        change(values)
        written = json.dumps(values).encode()
        return len(written).to_bytes(8, "little") + written + content[8 + length :]

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "is cut off: it has"),
        (lambda content: content[:1000], "is cut off"),
        (lambda content: content[:5], "is cut off: it has no header"),
        (lambda content: b"", "is cut off: it has no header"),
        (lambda content: content + b"\0", "is longer than it was"),
        (lambda content: b"\xff" * 8 + content[8:], "its header would be longer than itself"),
        (lambda content: content[:8] + b"[" + content[9:], "has a broken header"),
        (lambda content: (4).to_bytes(8, "little") + b"[{}]", "has a broken header"),
        (lambda content: b"<!DOCTYPE html><html>not found</html>", "its header would be longer than itself"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS; fetch the file"),
        (header(lambda values: values.pop("conv_in.bias")), "does not fit its tensors"),
        (header(lambda values: values["conv_in.bias"].update(shape=[31])), "does not fit its tensors"),
        (header(lambda values: values["conv_in.bias"].update(shape=[-32])), "has a broken header"),
        (header(lambda values: values["conv_in.bias"].update(data_offsets=[True, 9])), "has a broken header"),
        (header(lambda values: values["conv_in.bias"].pop("dtype")), "has a broken header"),
    ],
)
def test_a_damaged_safetensors_file_is_refused_by_its_name(
    model: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    file = model / UNET
    file.write_bytes(change(file.read_bytes()))
    assert (said := refused(model)).startswith(f"{UNET} ")
    assert words in said


def test_a_pickle_is_read_under_no_name(model: Path, tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", model / UNET
    for protocol in (2, 4, 5):
        file.write_bytes(pickle.dumps(Marker(marker), protocol))
        assert "a pickle under another name" in refused(model)
    torch.save({"conv_in.bias": Marker(marker)}, file)
    assert "a pickle under another name" in refused(model)
    file.unlink()
    for suffix in ("bin", "ckpt", "pt", "pth"):
        other = file.with_suffix(f".{suffix}")
        torch.save({"conv_in.bias": Marker(marker)}, other)
        assert f"{other.name}, a pickle, which is never read; convert it to safetensors" in refused(model)
        other.unlink()
    assert not marker.exists()
    with file.with_suffix(".bin").open("wb") as stream:  # the marker works
        pickle.dump(Marker(marker), stream)
    pickle.loads(file.with_suffix(".bin").read_bytes())
    assert marker.exists()


def test_a_pickle_beside_the_safetensors_does_no_harm(model: Path, tmp_path: Path) -> None:
    torch.save({"conv_in.bias": Marker(tmp_path / "executed")}, model / "unet" / "diffusion_pytorch_model.bin")
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant, which is not read")
    load_pipeline(str(model), "float32", CPU)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_there_are_told(model: Path) -> None:
    file = model / UNET
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert 'fp16.safetensors, which is read by `pipeline.variant = "fp16"`' in refused(model)
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert refused(model) == "there are no weights in unet"
    file.symlink_to(model / "gone")
    assert "a link that leads nowhere" in refused(model)
    shutil.rmtree(model / "unet")
    assert refused(model) == "the folder unet is missing, or empty"


def test_a_missing_shard_is_refused_by_its_name(model: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    (model / UNET).unlink()
    unet.save_pretrained(model / "unet", max_shard_size="500KB")
    load_pipeline(str(model), "float32", CPU)
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shards = sorted((model / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert refused(model) == f"unet/{shards[-1].name} is missing, a part of the weights"
    for name in ("../../elsewhere.safetensors", "a\0.safetensors", "\ud800.safetensors", "a.bin", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert "names weights that are no safetensors beside it" in refused(model)
    index.write_text("{")
    assert refused(model).endswith("index.json is missing or broken")


def rewritten(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "names no pipeline of diffusers"),
        ({"_class_name": "Mine"}, "names no pipeline of diffusers"),
        ({"_class_name": "UNet2DConditionModel"}, "names no pipeline of diffusers"),
        ({"_class_name": None}, "names no pipeline of diffusers"),
        ({"unet": ["unet", "Mine"]}, "'unet' of a class that neither diffusers nor transformers has"),
        ({"unet": ["os", "system"]}, "of a class that neither"),
        ({"unet": ["diffusers", "loaders"]}, "of a class that neither"),
        ({"unet": ["pipeline_utils", "Path"]}, "of a class that neither"),
        ({"unet": ["diffusers", None]}, "of a class that neither"),
        ({"unet": ["diffusers", "UNet2DConditionModel", "more"]}, "of a class that neither"),
        ({"u\ud800\n": ["os", "system"]}, "'u??' of a class that neither"),
        ({"../unet": ["diffusers", "UNet2DConditionModel"]}, "a component without a proper name"),
        ({"custom_pipeline": "mine"}, "asks for code of its own (`custom_pipeline`)"),
        ({"auto_map": {"AutoModel": "mine.Mine"}}, "asks for code of its own (`auto_map`)"),
        ({"trust_remote_code": True}, "asks for code of its own (`trust_remote_code`)"),
    ],
)
def test_a_pipeline_with_code_of_its_own_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    for place in ("pipeline.py", "mine.py", "unet/unet.py", "unet/diffusers.py"):
        (model / place).write_text(code)
    rewritten(model / "model_index.json", **changes)
    said = refused(model)
    assert said.startswith("model_index.json ")
    assert words in said
    assert not (tmp_path / "executed").exists()


def test_so_is_a_component(model: Path) -> None:
    config = model / "text_encoder" / "config.json"
    rewritten(config, text_config={"auto_map": {"AutoModel": "mine.Mine"}})
    assert refused(model) == "text_encoder/config.json asks for code of its own (`auto_map`), and none is run"
    rewritten(config, text_config={}, _attn_implementation="somebody/kernel")
    assert "asks for a kernel from elsewhere" in refused(model)
    config.write_text("[]")
    assert refused(model) == "text_encoder/config.json is missing or broken"


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_broken_index_is_told(model: Path, content: str) -> None:
    (model / "model_index.json").write_text(content)
    assert refused(model) == "model_index.json is missing or broken"


def test_a_pipeline_of_pipelines_is_checked_through_and_through(model: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(model, whole / "prior_pipe")
    index = {"_class_name": "StableCascadeCombinedPipeline", "prior_pipe": ["diffusers", "StableDiffusionPipeline"]}
    (whole / "model_index.json").write_text(json.dumps(index))
    check_folder(whole)
    (whole / "prior_pipe" / UNET).write_bytes(b"")
    with pytest.raises(Unsupported, match=rf"^prior_pipe/{UNET} is cut off"):
        check_folder(whole)


@pytest.mark.parametrize(
    ("library", "cls"),
    [
        ("stable_diffusion", "StableDiffusionSafetyChecker"),
        ("kolors", "ChatGLMModel"),
        ("latent_diffusion", "LDMBertModel"),
    ],
)
def test_modules_of_diffusers_own_pipelines_are_known(model: Path, library: str, cls: str) -> None:
    rewritten(model / "model_index.json", safety_checker=[library, cls])
    with pytest.raises(Unsupported, match="the folder safety_checker is missing"):
        check_folder(model)


def test_weights_under_the_names_of_older_folders_are_not_missing(model: Path) -> None:
    """As those of Stable Diffusion 1.5 are published."""
    vae, text = model / "vae" / "diffusion_pytorch_model.safetensors", model / "text_encoder" / "model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for name in [name for name in tensors if "attentions" in name]:
        renamed = name
        for new, before in old.items():
            renamed = renamed.replace(new, before)
        tensors[renamed] = tensors.pop(name)
    save_file(tensors, vae, metadata={"format": "pt"})
    tensors = {f"text_model.{name.removeprefix('text_model.')}": each for name, each in load_file(text).items()}
    save_file(
        {**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, text, metadata={"format": "pt"}
    )
    load_pipeline(str(model), "float32", CPU)


FAMILIES = sorted(BUILDERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_that_is_left_out_is_refused_by_its_name(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path)
    for file in sorted(folder.glob("*/*.safetensors")):
        whole, tensors = file.read_bytes(), load_file(file)
        names = sorted(name for name in tensors if not name.endswith("num_batches_tracked"))
        for name in names[:: max(1, len(names) - 1)]:  # the first and the last
            save_file({key: each for key, each in tensors.items() if key != name}, file, metadata={"format": "pt"})
            said = refused(folder)
            assert said.startswith(f"the weights of {file.parent.name} are incomplete, they lack ")
            assert name.rpartition(".")[0].rpartition(".")[2] in said
        file.write_bytes(whole)
    load_pipeline(str(folder), "float32", CPU)


@pytest.mark.parametrize("name", ["tokenizer", "scheduler", "unet"])
def test_a_missing_folder_of_a_component_is_named(model: Path, name: str) -> None:
    """Without a tokenizer's, transformers makes up one that knows no words."""
    shutil.rmtree(model / name)
    assert refused(model).startswith(f"the folder {name} is missing")
    (model / name).mkdir()
    assert name in refused(model)
