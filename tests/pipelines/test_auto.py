from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hub.pipelines.auto import LoadedPipeline, choose_device, choose_dtype, load_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(small_stable_diffusion: Path) -> LoadedPipeline:
    return load_pipeline(str(small_stable_diffusion), "float32", CPU)


def test_both_tasks_share_the_very_same_modules(loaded: LoadedPipeline) -> None:
    assert loaded.tasks == {"text-to-image", "image-to-image"}
    draw, edit = loaded.own_copy("text-to-image"), loaded.own_copy("image-to-image")
    for name in ("unet", "vae", "text_encoder"):
        assert getattr(draw, name) is getattr(edit, name)


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
    with pytest.raises(OSError):
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
