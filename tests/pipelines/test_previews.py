from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from hub.pipelines.loading import load_pipeline
from hub.pipelines.previews import LatentViewer, fit_linear_map, preview_steps, viewer_for
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """The built-in model's."""
    return AutoencoderKL.from_pretrained(ROOT / "models" / "builtin" / "vae").eval()


# When


@pytest.mark.parametrize(
    ("partial_images", "steps", "after"),
    [
        (1, 18, [9]),
        (2, 18, [6, 12]),
        (3, 18, [5, 9, 14]),
        (3, 4, [1, 2, 3]),
        (3, 3, [1, 2]),
        (3, 2, [1]),
        (3, 1, []),
        (1, 1, []),
        (1, 2, [1]),
        (0, 18, []),
        (3, 150, [38, 75, 113]),
    ],
)
def test_previews_come_after_these_steps(partial_images: int, steps: int, after: list[int]) -> None:
    assert preview_steps(partial_images, steps) == after


@given(st.integers(0, 3), st.integers(1, 1000))
def test_previews_are_even_and_never_follow_the_last_step(partial_images: int, steps: int) -> None:
    after = preview_steps(partial_images, steps)
    assert after == sorted(set(after))
    assert all(0 < step < steps for step in after)
    assert len(after) <= partial_images
    if steps > 2 * partial_images:
        assert len(after) == partial_images
        gaps = [b - a for a, b in pairwise([0, *after, steps])]
        assert max(gaps) - min(gaps) <= 1


# How


def drawn() -> torch.Tensor:
    """A red circle and a yellow bar on blue, 1 x 3 x 128 x 128, -1 to 1."""
    picture = Image.new("RGB", (128, 128), (30, 60, 220))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 30, 70, 80), fill=(220, 20, 20))
    draw.rectangle((80, 20, 110, 115), fill=(240, 220, 30))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Correlation of two pictures at the smaller one's size."""
    size = (min(one.shape[1], other.shape[1]), min(one.shape[2], other.shape[2]))
    small = [torch.nn.functional.adaptive_avg_pool2d(each, size).flatten() for each in (one, other)]
    return float(torch.corrcoef(torch.stack(small))[0, 1])


def test_a_small_decoder_shows_the_picture_itself(vae: AutoencoderKL) -> None:
    latents = vae.encode(drawn()).latent_dist.mode()
    shown = LatentViewer(vae).show(latents)
    assert shown.shape == (3, 128, 128)
    assert torch.allclose(shown, (vae.decode(latents).sample[0] / 2 + 0.5).clamp(0, 1))


def test_the_linear_map_gives_a_picture_that_is_easily_recognised(vae: AutoencoderKL) -> None:
    latents = vae.encode(drawn()).latent_dist.mode()
    shown = LatentViewer(vae, linear=True).show(latents)
    assert shown.shape == (3, 16, 16)
    assert likeness(shown, LatentViewer(vae, linear=False).show(latents)) > 0.9
    assert likeness(shown, drawn()[0]) > 0.9
    red, blue = shown[:, 6, 5], shown[:, 1, 1]
    assert red.argmax() == 0
    assert blue.argmax() == 2


def test_the_linear_map_is_the_same_each_time_and_leaves_the_encoder_as_it_was(vae: AutoencoderKL) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = fit_linear_map(vae)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody's noise is touched"
    assert torch.equal(fit_linear_map(vae), first)
    assert first.shape == (5, 3)
    assert vae.dtype == torch.float32


def test_the_linear_map_of_a_half_precision_encoder_is_about_the_same(vae: AutoencoderKL) -> None:
    plain = fit_linear_map(vae)
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoencoderKL.from_pretrained(ROOT / "models" / "builtin" / "vae", torch_dtype=dtype).eval()
        assert (fit_linear_map(half) - plain).abs().max() < 0.05
        assert half.dtype == dtype


class Shifted:
    """The built-in VAE as if its latents had the scale, the shift or the statistics of other families."""

    def __init__(self, vae: AutoencoderKL, **config: Any) -> None:
        class Config(dict[str, Any]):
            __getattr__ = dict.get

        self.config = Config({**vae.config, **config})
        self._vae = vae
        self.encode, self.parameters = vae.encode, vae.parameters

    def decode(self, latents: torch.Tensor, **options: Any) -> Any:
        return self._vae.decode(latents, **options)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    ("config", "outer"),
    [
        ({"scaling_factor": 0.18215}, lambda z: z * 0.18215),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, lambda z: (z - 0.1159) * 0.3611),
        (
            {"scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [2, 3, 4, 5]},
            lambda z: (
                (z - torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1))
                * 0.5
                / torch.tensor([2.0, 3, 4, 5]).view(1, 4, 1, 1)
            ),
        ),
    ],
)
def test_scale_shift_and_statistics_of_latents_are_undone(
    vae: AutoencoderKL, config: dict[str, Any], outer: Any, linear: bool
) -> None:
    latents = vae.encode(drawn()).latent_dist.mode()
    plain = LatentViewer(vae, linear=linear).show(latents)
    assert torch.allclose(LatentViewer(Shifted(vae, **config), linear=linear).show(outer(latents)), plain, atol=1e-4)


def test_a_tiny_autoencoder_is_shown_too() -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    latents = torch.rand(1, 4, 16, 16)
    for linear in (None, True):
        viewer = LatentViewer(tiny, linear=linear)
        assert viewer.unfolded(latents, 64, 64) is not None
        assert viewer.show(latents).shape[0] == 3


def test_a_large_decoder_is_not_asked(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.pipelines.previews.SMALL_DECODER", 1000)
    monkeypatch.setattr(vae, "decode", lambda *_, **__: pytest.fail("decoded"))
    assert LatentViewer(vae).show(torch.zeros(1, 4, 16, 16)).shape == (3, 16, 16)


def test_only_latents_that_the_vae_decodes_are_shown(vae: AutoencoderKL) -> None:
    viewer = LatentViewer(vae)
    assert viewer.unfolded(torch.zeros(2, 4, 16, 16), 64, 64).shape == (1, 4, 16, 16)
    assert viewer.unfolded(torch.zeros(1, 4, 1, 16, 16), 64, 64).shape == (1, 4, 16, 16)
    for other in (torch.zeros(1, 64, 16), torch.zeros(1, 16, 16, 16), torch.zeros(1, 4, 2, 16, 16)):
        assert viewer.unfolded(other, 64, 64) is None


def test_pipelines_whose_latents_have_another_form_have_no_viewer(vae: AutoencoderKL) -> None:
    class Packs:
        def __init__(self, vae: Any) -> None:
            self.vae = vae

        def _pack_latents(self) -> None: ...

    class Plain:
        def __init__(self, vae: Any) -> None:
            self.vae = vae

    assert viewer_for(Packs(vae)) is None
    assert viewer_for(Plain(None)) is None
    assert viewer_for(object()) is None
    assert viewer_for(Plain(vae)) is not None


def test_a_loaded_model_makes_its_viewer_once(small_stable_diffusion: Path) -> None:
    loaded = load_pipeline(str(small_stable_diffusion), "float32", CPU)
    assert "_viewer" not in vars(loaded), "nothing is fitted before somebody wants it"
    assert loaded.viewer is loaded.viewer
