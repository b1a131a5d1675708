from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from hub.pipelines import Unsupported
from hub.pipelines.loading import load_pipeline
from hub.pipelines.lossy import small_decoder
from tests.families.builders import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one for latents of half the picture's side, as the small pipeline's."""
    folder = tmp_path_factory.mktemp("decoder")
    channels = (8, 8)
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, latent_channels=4, **blocks
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def test_the_small_decoder_takes_the_vaes_place_in_every_task(small_stable_diffusion: Path, decoder: Path) -> None:
    loaded = load_pipeline(str(small_stable_diffusion), "float32", CPU, decoder=str(decoder))
    for task in loaded.tasks:
        assert isinstance(loaded.own_copy(task).vae, AutoencoderTiny)
    picture = loaded.own_copy("text-to-image")(
        prompt="a", num_inference_steps=2, width=64, height=64, output_type="pt", generator=torch.Generator()
    ).images[0]
    assert picture.shape == (3, 64, 64)
    assert {"encode", "decode"} <= {shared.method for shared in loaded.shared_methods()}


def test_a_decoder_for_other_latents_is_refused_by_name(small_stable_diffusion: Path, tmp_path: Path) -> None:
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path, safe_serialization=True)
    with pytest.raises(Unsupported, match="latents of 16 channels, and the model's have 4"):
        small_decoder(str(small_stable_diffusion), str(tmp_path), torch.float32)


def test_a_damaged_decoder_is_refused_by_its_name(small_stable_diffusion: Path, decoder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(decoder, tmp_path / "tiny")
    file = own / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.layers.0.weight"]
    save_file(tensors, file)
    with pytest.raises(Unsupported, match=r"lossy\.vae are incomplete, they lack decoder\.layers\.0\.weight"):
        load_pipeline(str(small_stable_diffusion), "float32", CPU, decoder=str(own))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Unsupported, match=r"^tiny/diffusion_pytorch_model\.safetensors is cut off"):
        load_pipeline(str(small_stable_diffusion), "float32", CPU, decoder=str(own))


def test_a_model_without_an_ordinary_vae_has_no_place_for_it(tmp_path: Path, decoder: Path) -> None:
    folder = build("sana", tmp_path)
    with pytest.raises(Unsupported, match="models with an AutoencoderKL"):
        load_pipeline(str(folder), "float32", CPU, decoder=str(decoder))


def test_weights_are_kept_in_eight_bits_and_computed_in_the_models_own_type(small_stable_diffusion: Path) -> None:
    plain = load_pipeline(str(small_stable_diffusion), "float32", CPU).own_copy("text-to-image")
    small = load_pipeline(str(small_stable_diffusion), "float32", CPU, storage_dtype="float8_e4m3fn")
    pipeline = small.own_copy("text-to-image")
    kept = [parameter.dtype for parameter in pipeline.unet.parameters()]
    assert kept.count(torch.float8_e4m3fn) > len(kept) / 2
    assert pipeline.vae.dtype == torch.float32

    def draw(pipe: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        made = pipe(prompt="a", num_inference_steps=2, width=64, height=64, output_type="pt", generator=generator)  # type: ignore[operator]
        return made.images[0]  # type: ignore[no-any-return]

    difference = (draw(plain) - draw(pipeline)).abs().mean()
    assert 0 < difference < 0.1


def test_a_denoiser_that_cannot_be_cast_layer_by_layer_is_refused() -> None:
    from hub.pipelines.lossy import keep_small

    with pytest.raises(Unsupported, match="not for a Linear"):
        keep_small(torch.nn.Linear(1, 1), "float8_e5m2")
