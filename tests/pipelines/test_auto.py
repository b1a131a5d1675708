from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image

from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline, to_mask
from hub.pipelines.loading import choose_device, choose_dtype, load_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(small_stable_diffusion: Path) -> LoadedPipeline:
    return load_pipeline(str(small_stable_diffusion), "float32", CPU)


def test_all_tasks_share_the_very_same_modules(loaded: LoadedPipeline) -> None:
    assert loaded.tasks == {"text-to-image", "image-to-image", "inpainting"}
    draw, *others = (loaded.own_copy(task) for task in sorted(loaded.tasks, reverse=True))
    for other in others:
        for name in ("unet", "vae", "text_encoder"):
            assert getattr(draw, name) is getattr(other, name)
        assert type(other) is not type(draw)
    assert draw.unet.dtype == torch.float32


def test_a_copy_has_a_noise_scheduler_of_its_own(loaded: LoadedPipeline) -> None:
    one, other = loaded.own_copy("text-to-image"), loaded.own_copy("text-to-image")
    one.scheduler.set_timesteps(7)
    other.scheduler.set_timesteps(3)
    assert len(one.scheduler.timesteps) == 7


def test_the_denoiser_alone_counts_as_a_step(loaded: LoadedPipeline) -> None:
    methods = [(type(s.module).__name__, s.method, s.denoising) for s in loaded.shared_methods()]
    assert ("UNet2DConditionModel", "forward", True) in methods
    assert [name for name, _, denoising in methods if denoising] == ["UNet2DConditionModel"]
    assert {method for name, method, _ in methods if name == "AutoencoderKL"} == {"encode", "decode"}


def test_the_arguments_differ_by_task(loaded: LoadedPipeline) -> None:
    assert "height" in loaded.accepts("text-to-image")
    assert {"image", "strength"} <= loaded.accepts("image-to-image")
    assert "height" not in loaded.accepts("image-to-image")
    assert {"image", "mask_image", "strength", "height", "width"} <= loaded.accepts("inpainting")


def with_unet_of(channels: int, folder: Path) -> DiffusionPipeline:
    """The small pipeline with a denoiser of so many input channels, as its class's own sibling for masks has."""
    plain = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    unet = UNet2DConditionModel.from_config({**plain.unet.config, "in_channels": channels})
    return StableDiffusionInpaintPipeline(**{**plain.components, "unet": unet}, requires_safety_checker=False)


def test_a_model_made_for_masks_can_do_nothing_else(small_stable_diffusion: Path) -> None:
    """Nine channels: latents, mask and masked latents. Drawing without a mask would fail in the first forward."""
    base = with_unet_of(9, small_stable_diffusion)
    loaded = LoadedPipeline(base)
    assert loaded.tasks == {"inpainting"}
    assert loaded.prompt_overflow("a b c") == 0
    assert any(shared.denoising for shared in loaded.shared_methods())
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    own = loaded.own_copy("inpainting")
    own.set_progress_bar_config(disable=True)
    with torch.no_grad():
        drawn = own(
            prompt="a", image=picture, mask_image=Image.new("L", (64, 64), 255), height=64, width=64, output_type="pt",
            num_inference_steps=2, strength=1.0,
        )  # fmt: skip
    assert drawn.images.shape == (1, 3, 64, 64)


def test_a_folder_that_names_the_pipeline_for_masks_but_has_a_plain_denoiser_can_do_everything(
    small_stable_diffusion: Path,
) -> None:
    assert LoadedPipeline(with_unet_of(4, small_stable_diffusion)).tasks == {
        "text-to-image",
        "image-to-image",
        "inpainting",
    }


# Masks


def grown(mask: np.ndarray, cell: int = 8) -> np.ndarray:
    height, width = mask.shape
    picture = to_mask(mask.tobytes(), width, height, cell)
    assert (picture.mode, picture.size) == ("L", (width, height))
    return np.asarray(picture)


def test_a_mask_grows_to_whole_cells_of_latents_so_that_none_is_missed() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[21, 13:70] = 1  # a hair's breadth, that no pipeline would see
    found = grown(mask)
    assert set(np.unique(found)) == {0, 255}
    expected = np.zeros((64, 96), bool)
    expected[16:24, 8:72] = True
    assert np.array_equal(found == 255, expected)
    assert np.array_equal(grown(found), found), "what lies on cells stays as it is"


def test_a_mask_whose_sides_are_no_multiple_of_a_cell_keeps_its_size() -> None:
    mask = np.zeros((30, 45), np.uint8)
    mask[29, 44] = 255
    found = grown(mask)
    assert (found[24:, 40:] == 255).all()
    assert found.sum() == 255 * 6 * 5
    assert np.array_equal(grown(mask, 1), mask)


def test_a_cell_is_as_large_as_the_models_latents(loaded: LoadedPipeline) -> None:
    assert loaded.mask_cell == 2


def test_the_overflow_of_a_prompt_counts_tokens_beyond_the_encoders_reach(loaded: LoadedPipeline) -> None:
    assert loaded.prompt_overflow("a b c") == 0
    assert loaded.prompt_overflow("a " * 75) == 0  # 75 letters, start and end: 77
    assert loaded.prompt_overflow("a " * 80) == 5


def test_no_weight_wants_a_gradient(loaded: LoadedPipeline) -> None:
    for shared in loaded.shared_methods():
        assert not any(parameter.requires_grad for parameter in shared.module.parameters())
        assert not shared.module.training


def test_pickled_weights_are_refused(small_stable_diffusion: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(small_stable_diffusion, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Unsupported, match=r"diffusion_pytorch_model.bin, a pickle, .* convert it to safetensors"):
        load_pipeline(str(folder), "float32", CPU)


def test_auto_dtype_on_a_cpu_is_what_it_computes_natively() -> None:
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("float16", CPU) == torch.float16


def test_a_device_that_is_not_there_is_an_error_that_says_what_to_set() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(RuntimeError, match="auto or cpu"):
        choose_device("cuda:63")


def test_a_part_that_is_used_by_other_ways_than_its_forward_is_not_shared() -> None:
    """It would be away whenever it is used so: it has no forward at which it could be brought."""
    base = SimpleNamespace(
        components={"image_normalizer": StableUnCLIPImageNormalizer(8), "unet": torch.nn.Linear(1, 1)}
    )
    found = LoadedPipeline.shared_methods(cast(LoadedPipeline, SimpleNamespace(_base=base)))
    assert [shared.module for shared in found] == [base.components["unet"]]


def test_the_first_preview_has_the_vae_brought_to_where_it_computes(small_stable_diffusion: Path) -> None:
    loaded, brought = load_pipeline(str(small_stable_diffusion), "float32", torch.device("cpu")), []
    loaded.bring = brought.append
    assert loaded.viewer is not None
    assert brought == [loaded.modules["vae"]]


def test_previews_for_which_there_was_no_memory_are_there_when_there_is(small_stable_diffusion: Path) -> None:
    loaded = load_pipeline(str(small_stable_diffusion), "float32", torch.device("cpu"))

    def fail(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.bring = fail
    assert loaded.viewer is None
    loaded.bring = lambda _: None
    assert loaded.viewer is not None
