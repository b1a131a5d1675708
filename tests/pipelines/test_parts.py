from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file

from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.checks import Component
from hub.pipelines.headers import Tensor
from hub.pipelines.loading import load_pipeline
from hub.pipelines.parts import _from_file, _is_in, family_in, places_of
from tests.families.parts import clip, t5
from tests.families.unets import XL, _large, _unet
from tests.pipelines.checkpoints import clip_tensors, write_ldm

CPU = torch.device("cpu")


def draw(loaded: LoadedPipeline, **arguments: Any) -> torch.Tensor:
    pipe = loaded.own_copy("text-to-image")
    generator = torch.Generator().manual_seed(1)
    given = {"num_inference_steps": 3, "width": 64, "height": 64, **arguments}
    return pipe(prompt="a", output_type="pt", generator=generator, **given).images[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def configs(small_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline without a weight."""
    folder = tmp_path_factory.mktemp("configs") / "configs"
    return shutil.copytree(small_stable_diffusion, folder, ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture(scope="module")
def pipe(small_stable_diffusion: Path) -> Any:
    return DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)


@pytest.fixture(scope="module")
def checkpoint(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ldm(pipe, tmp_path_factory.mktemp("checkpoint") / "original.safetensors")


def load(file: Path, configs: Path | None, **options: Any) -> LoadedPipeline:
    return load_pipeline(str(file), "float32", CPU, config=configs and str(configs), **options)


def test_a_checkpoint_in_its_original_layout_draws_what_the_folder_draws(
    small_stable_diffusion: Path, checkpoint: Path, configs: Path
) -> None:
    loaded = load(checkpoint, configs)
    assert loaded.tasks == {"text-to-image", "image-to-image", "inpainting"}
    assert torch.equal(draw(loaded), draw(load(small_stable_diffusion, None)))


def test_so_does_one_of_sdxl_with_its_two_text_encoders(tmp_path: Path) -> None:
    """Of other widths, as theirs, by which they are told apart; and as many layers as the kind is known by."""
    second = clip("CLIPTextModelWithProjection", width=64, hidden_act="gelu", num_hidden_layers=10, projection_dim=64)
    unet = _unet(**{**XL, "cross_attention_dim": 96, "projection_class_embeddings_input_dim": 6 * 8 + 64})
    pipe = _large(text_encoder_2=second, unet=unet)
    folder, configs = tmp_path / "folder", tmp_path / "configs"
    pipe.save_pretrained(folder)
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_ldm(pipe, tmp_path / "xl.safetensors")
    assert torch.equal(draw(load(file, configs)), draw(load(folder, None)))
    write_ldm(pipe, file, **{"conditioner.embedders.1.model.ln_final.weight": None})
    with pytest.raises(
        Unsupported, match=r"weights of text_encoder_2 are incomplete, they lack .*final_layer_norm\.weight"
    ):
        load(file, configs)


def test_the_text_encoders_of_sd3_come_out_of_its_file(tmp_path: Path) -> None:
    encoders = {"text_encoder": clip("CLIPTextModelWithProjection"), "text_encoder_3": t5(64)}
    first = clip_tensors(encoders["text_encoder"], "text_encoders.clip_l.transformer.")
    first = {name: each for name, each in first.items() if "text_projection" not in name}
    third = encoders["text_encoder_3"].state_dict()
    third = {f"text_encoders.t5xxl.transformer.{name}": each for name, each in third.items() if "embed_tok" not in name}
    save_file({name: each.clone() for name, each in {**first, **third}.items()}, tmp_path / "sd3.safetensors")
    for name, encoder in encoders.items():
        encoder.config.save_pretrained(tmp_path / name)
        part = Component(name, type(encoder))
        assert _is_in(part, {**first, **third}) and not _is_in(part, {})
        read = _from_file(part, tmp_path / "sd3.safetensors", tmp_path, torch.float32).state_dict()
        for key, weight in encoder.state_dict().items():
            assert torch.equal(read[key], weight) or key == "text_projection.weight"


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.conv_out.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_a_tensor_that_a_checkpoint_lacks_is_refused_by_the_name_of_its_component(
    pipe: Any, tmp_path: Path, configs: Path, lost: str
) -> None:
    file = write_ldm(pipe, tmp_path / "lacking.safetensors", **{lost: None})
    name = {"model": "unet", "first_stage_model": "vae", "cond_stage_model": "text_encoder"}[lost.partition(".")[0]]
    with pytest.raises(Unsupported, match=f"the weights of {name} are incomplete, they lack "):
        load(file, configs)


def test_a_checkpoint_that_is_damaged_is_refused_by_its_name(checkpoint: Path, tmp_path: Path, configs: Path) -> None:
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(Unsupported, match=r"^damaged\.safetensors is cut off"):
        load(file, configs)
    torch.save({}, file)
    with pytest.raises(Unsupported, match=r"^damaged\.safetensors is a pickle under another name"):
        load(file, configs)


def test_a_checkpoint_of_another_family_than_its_configurations_is_told_with_both(
    checkpoint: Path, tmp_path: Path, configs: Path
) -> None:
    flux = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(1)}, flux)
    with pytest.raises(
        Unsupported, match=r"flux\.safetensors is a checkpoint for Flux pipelines, .* StableDiffusionPi"
    ):
        load(flux, configs)
    other = shutil.copytree(configs, tmp_path / "other")
    index = other / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(Unsupported, match=r"for StableDiffusion pipelines, .* a StableDiffusionXLPipeline"):
        load(checkpoint, other)
    save_file({"something": torch.ones(1)}, flux)
    with pytest.raises(Unsupported, match="no checkpoint of a kind that is known"):
        load(flux, configs)


def test_configurations_of_another_size_are_told(checkpoint: Path, tmp_path: Path, configs: Path) -> None:
    other = shutil.copytree(configs, tmp_path / "other")
    config = other / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [32, 96]}))
    with pytest.raises(Unsupported, match=r"original\.safetensors does not fit unet as its folder configures it"):
        load(checkpoint, other)


def test_what_a_file_lacks_comes_from_the_folder_or_from_the_manifests_components(
    pipe: Any, small_stable_diffusion: Path, tmp_path: Path, configs: Path
) -> None:
    file = write_ldm(pipe, tmp_path / "denoiser.safetensors")
    save_file({name: each for name, each in load_file(file).items() if name.startswith("model.")}, file)
    with pytest.raises(Unsupported, match=r"denoiser\.safetensors has no text_encoder; put it into pipeline\.config's"):
        load(file, configs)
    whole = draw(load(small_stable_diffusion, None))
    assert torch.equal(draw(load(file, small_stable_diffusion)), whole)
    own = {name: str(small_stable_diffusion / name) for name in ("vae", "text_encoder")}
    assert torch.equal(draw(load(file, configs, components=own)), whole)


def test_of_the_configurations_folder_only_what_the_file_lacks_is_read_for_the_hash(
    pipe: Any, checkpoint: Path, small_stable_diffusion: Path, tmp_path: Path
) -> None:
    folder = str(small_stable_diffusion)
    assert places_of(folder, None, {"vae": "/vae"}, "/tiny") == [folder, "/vae", "/tiny"]
    assert places_of(str(checkpoint), folder, {}, None) == [str(checkpoint)]
    file = write_ldm(pipe, tmp_path / "denoiser.safetensors")
    save_file({name: each for name, each in load_file(file).items() if name.startswith("model.")}, file)
    text, vae = str(small_stable_diffusion / "text_encoder"), str(small_stable_diffusion / "vae")
    assert sorted(places_of(str(file), folder, {}, None)) == sorted([str(file), text, vae])
    assert places_of(str(file), folder, {"text_encoder": "/text"}, "/tiny") == [str(file), "/text", "/tiny"]


def test_a_safety_checker_without_weights_is_left_out_with_a_word_in_the_log(
    checkpoint: Path, configs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in most checkpoints, which came without one."""
    checked = shutil.copytree(configs, tmp_path / "checked")
    index = checked / "model_index.json"
    parts = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps({**json.loads(index.read_text()), **parts}))
    assert load(checkpoint, checked).own_copy("text-to-image").safety_checker is None
    assert "has weights of safety_checker; it is left out" in caplog.text


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "StableDiffusion"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "StableDiffusion"),
        ({"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,)}, "StableDiffusionXL"),
        ({"model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight": (1, 1)}, "StableDiffusion3"),
        ({"single_stream_modulation.lin.weight": (1, 1)}, "Flux2"),
        ({"layers.0.adaLN_modulation.0.weight": (1, 1)}, "ZImage"),
        ({"control_model.time_embed.0.weight": (1, 1)}, None),
        ({"head.modulation": (1,), "patch_embedding.weight": (1536, 16)}, None),
        ({}, None),
    ],
)
def test_a_family_is_told_from_the_names_of_tensors(names: dict[str, tuple[int, ...]], family: str | None) -> None:
    assert family_in({name: Tensor("F16", shape, 0) for name, shape in names.items()}) == family


def test_a_component_of_its_own_replaces_the_folders(
    pipe: Any, small_stable_diffusion: Path, configs: Path, tmp_path: Path
) -> None:
    """Also in another layout, and where the folder has none."""
    whole = draw(load(small_stable_diffusion, None))
    partial = shutil.copytree(small_stable_diffusion, tmp_path / "partial")
    (partial / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    place = small_stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    assert torch.equal(draw(load(partial, None, components={"unet": str(place)})), whole)
    assert torch.equal(draw(load(partial, None, components={"unet": str(place.parent)})), whole)
    original = tmp_path / "original.safetensors"
    write_ldm(pipe, original)
    assert torch.equal(draw(load(partial, None, components={"unet": str(original)})), whole)
    changed = {name: each * 1.1 for name, each in load_file(place).items()}
    save_file(changed, tmp_path / "changed.safetensors")
    other = load(small_stable_diffusion, None, components={"unet": str(tmp_path / "changed.safetensors")})
    assert not torch.equal(draw(other), whole)


def test_a_folders_own_configuration_says_what_a_component_is(small_stable_diffusion: Path, tmp_path: Path) -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    loaded = load(small_stable_diffusion, None, components={"vae": str(tmp_path / "tiny")})
    assert isinstance(loaded.own_copy("text-to-image").vae, AutoencoderTiny)
    config = tmp_path / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "Mine"}))
    with pytest.raises(Unsupported, match=r"its config\.json names no model of diffusers"):
        load(small_stable_diffusion, None, components={"vae": str(tmp_path / "tiny")})
    config.write_text(json.dumps({"auto_map": {"AutoModel": "mine.Mine"}}))
    with pytest.raises(Unsupported, match=r"^tiny/config\.json asks for code of its own"):
        load(small_stable_diffusion, None, components={"vae": str(tmp_path / "tiny")})


def test_components_that_cannot_be_are_told(small_stable_diffusion: Path, tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    save_file({"something": torch.ones(1)}, file)
    for name, words in (
        ("prior", "components.prior: its pipeline has no component of that name"),
        ("text_encoder", "components.text_encoder: a CLIPTextModel is read from a folder, not from a file"),
        ("unet", r"part\.safetensors does not fit unet as its folder configures it"),
    ):
        with pytest.raises(Unsupported, match=words):
            load(small_stable_diffusion, None, components={name: str(file)})
    file.write_bytes(b"")
    with pytest.raises(Unsupported, match=r"^part\.safetensors is cut off"):
        load(small_stable_diffusion, None, components={"unet": str(file)})
