"""What a family makes of a request, and what it says of the rest."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hub.engine.arguments import Refused, arguments_for
from hub.engine.protocol import Generate
from hub.engine.residency import Residency
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.families import USUAL, family_of, known
from hub.pipelines.loading import load_pipeline
from hub.pipelines.schedulers import UnknownScheduler
from tests.conftest import ROOT
from tests.families.builders import build
from tests.families.harness import CPU, noise, request

NEGATIVE = {"negative_prompt": "blur"}


def loaded(family: str, folder: Path, **options: Any) -> LoadedPipeline:
    return load_pipeline(str(build(family, folder)), "float32", CPU, **options)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> LoadedPipeline:
    return loaded("flux-schnell", tmp_path_factory.mktemp("schnell"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedPipeline:
    return loaded("stable-diffusion", tmp_path_factory.mktemp("plain"))


def wish(images: int = 0, **changes: Any) -> Generate:
    task = "image-to-image" if images else "text-to-image"
    size = changes.pop("size", (64, 64))
    pictures: list[Image.Image] = [noise(number, *size) for number in range(images)]
    return request(task, size, pictures, None, **{"prompt": "a", "seed": 1, "num_inference_steps": 2, **changes})


def told(frame: Generate, pipeline: LoadedPipeline) -> list[str]:
    return [notice.param for notice in arguments_for(frame, pipeline)[1]]


def test_every_class_that_a_family_names_is_one_of_diffusers() -> None:
    import diffusers

    for name, family in known().items():
        assert hasattr(diffusers, name)
        for member in (*family.pipelines.values(), *family.schedulers):
            assert hasattr(diffusers, member)
    assert family_of("WhateverPipeline") is USUAL


def test_guidance_and_negative_prompts_that_a_model_has_no_use_for_are_told(schnell: LoadedPipeline) -> None:
    assert told(wish(), schnell) == []
    assert told(wish(guidance_scale=3.5), schnell) == ["guidance_scale"]
    assert told(wish(**NEGATIVE), schnell) == ["negative_prompt"]
    assert told(wish(**NEGATIVE, arguments={"true_cfg_scale": 2.0}), schnell) == []
    with pytest.raises(Refused) as caught:
        arguments_for(wish(guidance_scale=3.5, strict=True), schnell)
    assert caught.value.param == "guidance_scale"


@pytest.mark.parametrize(("scale", "used"), [(None, True), (1.01, True), (1.0, False), (0.0, False)])
def test_a_negative_prompt_without_guidance_is_told(plain: LoadedPipeline, scale: float | None, used: bool) -> None:
    assert told(wish(**NEGATIVE, guidance_scale=scale), plain) == ([] if used else ["negative_prompt"])
    assert told(wish(guidance_scale=scale), plain) == []


def test_an_argument_of_the_manifest_that_the_pipeline_does_not_take_is_told(plain: LoadedPipeline) -> None:
    assert told(wish(arguments={"true_cfg_scale": 2.0}), plain) == ["true_cfg_scale"]


def test_a_size_between_the_models_own_is_refused_by_name(schnell: LoadedPipeline, plain: LoadedPipeline) -> None:
    assert (plain.multiple, schnell.multiple) == (plain.mask_cell, 2 * schnell.mask_cell)
    with pytest.raises(Refused) as caught:
        arguments_for(wish(size=(64 + schnell.mask_cell, 64)), schnell)
    assert caught.value.param == "size"
    assert f"multiples of {schnell.multiple}" in caught.value.message


def test_a_scheduler_that_does_not_suit_is_named_with_those_that_do(plain: LoadedPipeline, tmp_path: Path) -> None:
    assert type(plain.own_copy("text-to-image", "LCMScheduler").scheduler).__name__ == "LCMScheduler"
    for name in ("FlowMatchEulerDiscreteScheduler", "os", "StableDiffusionPipeline"):
        with pytest.raises(UnknownScheduler, match="it has DDIMScheduler"):
            plain.own_copy("text-to-image", name)
    with pytest.raises(UnknownScheduler):
        loaded("stable-diffusion", tmp_path, scheduler="FlowMatchEulerDiscreteScheduler")


def test_a_manifests_scheduler_and_its_options_replace_the_folders(tmp_path: Path) -> None:
    pipeline = loaded(
        "stable-diffusion",
        tmp_path,
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_options={"timestep_spacing": "trailing"},
    )
    own = pipeline.own_copy("text-to-image").scheduler
    assert type(own).__name__ == "EulerAncestralDiscreteScheduler"
    assert own.config.timestep_spacing == "trailing"


def test_a_model_that_looks_at_pictures_has_no_strength_and_takes_several(tmp_path: Path) -> None:
    klein = loaded("flux2-klein", tmp_path)
    arguments, notices = arguments_for(wish(images=3, strength=0.5), klein)
    assert [notice.param for notice in notices] == ["strength"]
    assert len(arguments["image"]) == 3
    assert isinstance(arguments_for(wish(images=1), klein)[0]["image"], Image.Image)


def test_a_vae_that_overflows_in_half_precision_stays_in_float32(tmp_path: Path) -> None:
    import torch

    folder = build("stable-diffusion-xl", tmp_path)
    pipeline = load_pipeline(str(folder), "float16", CPU)
    own = pipeline.own_copy("text-to-image")
    assert own.unet.dtype == torch.float16
    assert (own.vae.dtype, own.vae.config.force_upcast) == (torch.float32, False)
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    assert own.vae.decode(latents, return_dict=False)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["stable-diffusion-xl", "stable-diffusion"])
def test_pictures_are_drawn_together_in_half_precision_too(family: str, dtype: str, tmp_path: Path) -> None:
    import numpy as np

    from tests.families.harness import Engine, noise, request

    engine = Engine(build(family, tmp_path), dtype)
    sources = [noise(3, 64, 64)]
    frames = [
        request("text-to-image", (64, 64), [], None, prompt="a", seed=1, num_inference_steps=3),
        request("text-to-image", (64, 64), [], None, prompt="b", seed=2, num_inference_steps=2, id=2),
        request(
            "image-to-image", (64, 64), sources, None, prompt="c", seed=3, num_inference_steps=4, strength=0.8, id=3
        ),
    ]
    for drawn in engine.draw(frames):
        assert isinstance(drawn, np.ndarray), drawn
        assert drawn.std() > 0


@pytest.mark.parametrize("family", ["flux-dev", "flux2-klein", "qwenimage", "stable-diffusion-3", "z-image", "sana"])
def test_previews_of_packed_latents_are_the_picture_so_far(family: str, tmp_path: Path) -> None:
    """The decoder itself is asked: what it says to the last preview's latents is nearly the picture."""
    import numpy as np
    import torch

    from hub.engine.jobs import Job
    from hub.pipelines.previews import LatentViewer

    pipeline = loaded(family, tmp_path)
    assert pipeline.viewer is not None
    small = LatentViewer(pipeline.viewer._vae, linear=False, unfold=pipeline.viewer._unfold)
    vars(pipeline)["_viewer"] = small
    seen: list[np.ndarray] = []
    frame = wish(num_inference_steps=12, partial_images=3)

    def look(_job: Job, _index: int, _partial: int, pixels: Any) -> None:
        seen.append(pixels.astype(int))

    job = Job(frame, pipeline, lambda _: None, look, Residency(CPU))
    with torch.no_grad():
        final = job.body(0)[0]().astype(int)
    assert [each.shape for each in seen] == [(64, 64, 3)] * 3
    distances = [float(np.abs(each - final).mean()) for each in seen]
    assert distances[2] < distances[0], distances
    other = np.roll(final, 32, axis=(0, 1))
    assert distances[2] < np.abs(other - final).mean()


def test_a_pipeline_that_changes_the_shared_model_while_it_draws_is_refused_in_words(tmp_path: Path) -> None:
    import json

    folder = build("stable-diffusion", tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    with pytest.raises(Unsupported, match="PAG"):
        load_pipeline(str(folder), "float32", CPU)


def test_z_image_guides_at_any_scale_above_nought(tmp_path: Path) -> None:
    pipeline = loaded("z-image", tmp_path)
    assert told(wish(**NEGATIVE, guidance_scale=1.0), pipeline) == []
    assert told(wish(**NEGATIVE, guidance_scale=0.0), pipeline) == ["negative_prompt"]


def test_a_distilled_qwen_tells_of_a_negative_prompt_that_its_manifest_turns_off(tmp_path: Path) -> None:
    pipeline = loaded("qwenimage", tmp_path)
    assert told(wish(**NEGATIVE), pipeline) == []
    assert told(wish(**NEGATIVE, arguments={"true_cfg_scale": 1.0}), pipeline) == ["negative_prompt"]
    assert arguments_for(wish(), pipeline)[0]["negative_prompt"] == " "


def test_how_much_of_a_prompt_is_cut_follows_the_manifests_length(schnell: LoadedPipeline) -> None:
    long = "a " * 300
    (notice,) = arguments_for(wish(prompt=long, arguments={"max_sequence_length": 32}), schnell)[1]
    assert notice.param == "prompt"
    assert told(wish(prompt=long), schnell) != [] or schnell.prompt_overflow(long) == 0
    assert schnell.prompt_overflow(long, 32) > schnell.prompt_overflow(long)


def test_control_maps_of_other_families_reach_the_argument_that_they_have() -> None:
    family = family_of("FluxControlNetPipeline")
    wanted: dict[str, Any] = {"images": ["map"]}
    family.place_images("text-to-image", wanted, frozenset({"control_image"}))
    assert wanted == {"control_image": "map"}
    wanted = {"images": ["map"]}
    family.place_images("text-to-image", wanted, frozenset({"image"}))
    assert wanted == {"image": "map"}


def test_a_finished_run_leaves_nothing_alive(plain: LoadedPipeline) -> None:
    """Its pictures and sources are megabytes."""
    import gc
    import weakref

    import torch

    from hub.engine.jobs import Job

    gc.collect()
    gc.disable()
    try:
        job = Job(wish(), plain, lambda _: None, lambda *_: None, Residency(CPU))
        with torch.no_grad():
            job.body(0)[0]()
        gone = weakref.ref(job)
        del job
        assert gone() is None
    finally:
        gc.enable()


def test_a_scheduler_that_does_not_understand_what_the_model_predicts_is_refused_and_not_named() -> None:
    builtin = load_pipeline(str(ROOT / "models" / "builtin"), "float32", CPU)  # predicts a flow
    with pytest.raises(UnknownScheduler, match="it has ") as refusal, warnings.catch_warnings(action="ignore"):
        builtin.own_copy("text-to-image", "EulerDiscreteScheduler")  # some of diffusers' are not up to the newest NumPy
    named = str(refusal.value).partition("it has ")[2].split(", ")
    assert "EulerDiscreteScheduler" not in named
    assert "UniPCMultistepScheduler" in named
    with warnings.catch_warnings(action="ignore"):
        for name in named:
            own = builtin.own_copy("text-to-image", name)
            own(prompt="a red circle", num_inference_steps=2, width=128, height=128, output_type="pt")
