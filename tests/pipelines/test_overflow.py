from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from hub.pipelines.loading import load_pipeline

CPU = torch.device("cpu")


@pytest.fixture
def overflowing(small_stable_diffusion: Path, tmp_path: Path) -> Path:
    """The small pipeline with a decoder whose inner values are beyond float16, and its pictures not."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(small_stable_diffusion, folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)  # which float16 can hold, unlike its sums
        vae.decoder.conv_in.bias.fill_(6e4)
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    return folder


def test_a_decoder_that_overflows_decodes_again_in_float32_and_stays_there(
    overflowing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = load_pipeline(str(overflowing), "float16", CPU).own_copy("text-to-image")
    full = load_pipeline(str(overflowing), "float32", CPU).own_copy("text-to-image")
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).half()
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        wanted = full.vae.decode(latents.float(), return_dict=False)[0]
        for _ in range(2):
            got = half.vae.decode(latents, return_dict=False)[0]
            assert torch.allclose(got, wanted, atol=0.02)
    assert half.vae.dtype == torch.float32
    assert caplog.text.count("overflows in float16") == 1
    assert half.vae.encode(torch.zeros(1, 3, 64, 64).half()).latent_dist.mean.dtype == torch.float32


def test_a_picture_of_it_is_drawn_and_is_not_black(overflowing: Path) -> None:
    half = load_pipeline(str(overflowing), "float16", CPU).own_copy("text-to-image")
    picture = half(
        prompt="a", num_inference_steps=2, width=64, height=64, output_type="pt", generator=torch.Generator()
    ).images[0]
    assert torch.isfinite(picture).all()
    assert picture.float().std() > 0


def test_a_decoder_that_does_not_overflow_stays_as_it_is(small_stable_diffusion: Path) -> None:
    own = load_pipeline(str(small_stable_diffusion), "float16", CPU).own_copy("text-to-image")
    with torch.inference_mode():
        own.vae.decode(torch.zeros(1, 4, 32, 32).half())
        assert own.vae.dtype == torch.float16
        own.vae.decode(torch.full((1, 4, 32, 32), torch.nan).half())  # not its fault
    assert own.vae.dtype == torch.float16
