"""Manifests out of a model's files: the published configurations' numbers, and every family drawn with its manifest."""

from __future__ import annotations

import datetime as dt
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from PIL import Image

from hub.errors import ModelRefused
from hub.library.describe import cleaned, describe, id_of, license_in
from hub.library.manifests import write_manifest
from hub.manifest import SourceSection, parse_size
from hub.pipelines.families import known
from hub.registry import read_manifest
from hub.settings import Settings
from hub.types import ImageRequest, Size, Task
from tests.conftest import with_hub
from tests.families.builders import BUILDERS, build

if TYPE_CHECKING:
    from hub.hub import Hub

KL = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}
KL4, KL16 = {**KL, "latent_channels": 4}, {**KL, "latent_channels": 16}
DC = {"_class_name": "AutoencoderDC", "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]}
FLUX2 = {"_class_name": "AutoencoderKLFlux2", "block_out_channels": [128, 256, 512, 512], "latent_channels": 32}
QWEN_VAE = {"_class_name": "AutoencoderKLQwenImage", "z_dim": 16, "temperal_downsample": [False, True, True]}
QWEN = {"in_channels": 64, "patch_size": 2, "guidance_embeds": False}
SD3 = {"sample_size": 128, "patch_size": 2, "in_channels": 16}
FLUX = {"in_channels": 64, "patch_size": 1, "guidance_embeds": True}
Z_IMAGE = {"all_patch_size": [2], "in_channels": 16}
ALL: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpainting")
DRAWS: tuple[Task, ...] = ("text-to-image",)
EULER = ("EulerDiscreteScheduler", {"timestep_spacing": "leading"})
TRAILING = ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"})
FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})


def folder(place: Path, cls: str, scheduler: tuple[str, dict[str, Any]], **parts: dict[str, Any]) -> Path:
    """What describes a published model, without weights; options of its model_index.json begin with an underscore."""
    index: dict[str, Any] = {"_class_name": cls, "scheduler": ["diffusers", scheduler[0]]}
    place.mkdir(parents=True)
    for name, config in {**parts, "scheduler": scheduler[1]}.items():
        if name == "options":
            index |= config
            continue
        index.setdefault(name, ["diffusers", config.get("_class_name", "Model")])
        (place / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (place / name / file).write_text(json.dumps(config))
    (place / "model_index.json").write_text(json.dumps(index))
    return place


PNDM = ("PNDMScheduler", {})
SDXL_UNET = {"sample_size": 128, "in_channels": 4}

# Repository; class, scheduler, configurations; and of the manifest native, multiple, steps, guidance, tasks, guessed.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        *("StableDiffusionPipeline", PNDM, {"unet": {"sample_size": 64, "in_channels": 4}, "vae": KL4}),
        *(512, 8, 50, 7.5, ALL, False),
    ),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": (
        *("StableDiffusionInpaintPipeline", PNDM, {"unet": {"sample_size": 64, "in_channels": 9}, "vae": KL4}),
        *(512, 8, 50, 7.5, ("inpainting",), False),
    ),
    "stabilityai/stable-diffusion-2-1": (
        *(
            "StableDiffusionPipeline",
            ("DDIMScheduler", {}),
            {"unet": {"sample_size": 96, "in_channels": 4}, "vae": KL4},
        ),
        *(768, 8, 50, 7.5, ALL, False),
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        *("StableDiffusionXLPipeline", EULER, {"unet": SDXL_UNET, "vae": KL4}),
        *(1024, 8, 50, 5.0, ALL, False),
    ),
    "stabilityai/stable-diffusion-xl-refiner-1.0": (
        "StableDiffusionXLImg2ImgPipeline",
        EULER,
        {"unet": SDXL_UNET, "vae": KL4, "options": {"requires_aesthetics_score": True}},
        *(1024, 8, 50, 5.0, ("image-to-image",), False),
    ),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": (
        *("StableDiffusionXLInpaintPipeline", EULER, {"unet": {"sample_size": 128, "in_channels": 9}, "vae": KL4}),
        *(1024, 8, 20, 8.0, ("inpainting",), False),
    ),
    "stabilityai/sdxl-turbo": (
        *("StableDiffusionXLPipeline", TRAILING, {"unet": {"sample_size": 64, "in_channels": 4}, "vae": KL4}),
        *(512, 8, 1, 0.0, ALL, True),
    ),
    "someone/sdxl-lightning-8step": (
        *("StableDiffusionXLPipeline", EULER, {"unet": SDXL_UNET, "vae": KL4}),
        *(1024, 8, 8, 0.0, ALL, True),
    ),
    "latent-consistency/lcm-sdxl": (
        "StableDiffusionXLPipeline",
        ("LCMScheduler", {}),
        {"unet": {**SDXL_UNET, "time_cond_proj_dim": 256}, "vae": KL4},
        *(1024, 8, 4, 8.0, ALL, True),
    ),
    "someone/hyper-realistic-vision": (
        *("StableDiffusionPipeline", PNDM, {"unet": {"sample_size": 64, "in_channels": 4}, "vae": KL4}),
        *(512, 8, 50, 7.5, ALL, False),
    ),
    "stabilityai/stable-diffusion-3-medium-diffusers": (
        *("StableDiffusion3Pipeline", FLOW, {"transformer": {**SD3, "num_layers": 24}, "vae": KL16}),
        *(1024, 16, 28, 7.0, ALL, False),
    ),
    "stabilityai/stable-diffusion-3.5-medium": (
        "StableDiffusion3Pipeline",
        FLOW,
        {"transformer": {**SD3, "num_layers": 24, "dual_attention_layers": [*range(13)]}, "vae": KL16},
        *(1024, 16, 40, 4.5, ALL, False),
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        *("StableDiffusion3Pipeline", FLOW, {"transformer": {**SD3, "num_layers": 38}, "vae": KL16}),
        *(1024, 16, 28, 3.5, ALL, False),
    ),
    "stabilityai/stable-diffusion-3.5-large-turbo": (
        *("StableDiffusion3Pipeline", FLOW, {"transformer": {**SD3, "num_layers": 38}, "vae": KL16}),
        *(1024, 16, 4, 0.0, ALL, True),
    ),
    "black-forest-labs/FLUX.1-dev": (
        *("FluxPipeline", FLOW, {"transformer": FLUX, "vae": KL16}),
        *(1024, 16, 50, 3.5, ALL, False),
    ),
    "black-forest-labs/FLUX.1-schnell": (
        *("FluxPipeline", FLOW, {"transformer": {**FLUX, "guidance_embeds": False}, "vae": KL16}),
        *(1024, 16, 4, None, ALL, False),
    ),
    "black-forest-labs/FLUX.1-Fill-dev": (
        *("FluxFillPipeline", FLOW, {"transformer": {**FLUX, "in_channels": 384}, "vae": KL16}),
        *(1024, 16, 50, 30.0, ("inpainting",), False),
    ),
    "black-forest-labs/FLUX.1-Kontext-dev": (
        *("FluxKontextPipeline", FLOW, {"transformer": FLUX, "vae": KL16}),
        *(1024, 16, 28, 2.5, ALL, False),
    ),
    "black-forest-labs/FLUX.1-Depth-dev": (
        *("FluxControlPipeline", FLOW, {"transformer": {**FLUX, "in_channels": 128}, "vae": KL16}),
        *(1024, 16, 30, 10.0, ALL, False),
    ),
    "black-forest-labs/FLUX.2-klein-4B": (
        "Flux2KleinPipeline",
        FLOW,
        {"transformer": {"in_channels": 128, "patch_size": 1}, "vae": FLUX2, "options": {"is_distilled": True}},
        *(1024, 16, 4, None, ALL, False),
    ),
    "black-forest-labs/FLUX.2-klein-base-4B": (
        "Flux2KleinPipeline",
        FLOW,
        {"transformer": {"in_channels": 128, "patch_size": 1}, "vae": FLUX2, "options": {"is_distilled": False}},
        *(1024, 16, 50, 4.0, ALL, False),
    ),
    "black-forest-labs/FLUX.2-dev": (
        *("Flux2Pipeline", FLOW, {"transformer": {"in_channels": 128, "patch_size": 1}, "vae": FLUX2}),
        *(1024, 16, 50, 4.0, ("text-to-image", "image-to-image"), False),
    ),
    "Qwen/Qwen-Image": (
        *("QwenImagePipeline", FLOW, {"transformer": QWEN, "vae": QWEN_VAE}),
        *(1328, 16, 50, 4.0, ALL, False),
    ),
    "Qwen/Qwen-Image-Edit": (
        *("QwenImageEditPipeline", FLOW, {"transformer": QWEN, "vae": QWEN_VAE}),
        *(1024, 16, 50, 4.0, ("image-to-image", "inpainting"), False),
    ),
    "Qwen/Qwen-Image-Edit-2509": (
        *("QwenImageEditPlusPipeline", FLOW, {"transformer": QWEN, "vae": QWEN_VAE}),
        *(1024, 16, 40, 4.0, ("image-to-image",), False),
    ),
    "Tongyi-MAI/Z-Image-Turbo": (
        *("ZImagePipeline", FLOW, {"transformer": Z_IMAGE, "vae": KL16}),
        *(1024, 16, 9, 0.0, ALL, True),
    ),
    "Tongyi-MAI/Z-Image": (
        *("ZImagePipeline", ("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}), {"transformer": Z_IMAGE, "vae": KL16}),
        *(1024, 16, 50, 4.0, ALL, False),
    ),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (
        "PixArtSigmaPipeline",
        ("DPMSolverMultistepScheduler", {}),
        {"transformer": {"sample_size": 128, "patch_size": 2, "in_channels": 4}, "vae": KL4},
        *(1024, 16, 20, 4.5, DRAWS, False),
    ),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": (
        "SanaPipeline",
        ("DPMSolverMultistepScheduler", {}),
        {"transformer": {"sample_size": 32, "patch_size": 1, "in_channels": 32}, "vae": DC},
        *(1024, 32, 20, 4.5, DRAWS, False),
    ),
    "Kwai-Kolors/Kolors-diffusers": (
        *("KolorsPipeline", EULER, {"unet": SDXL_UNET, "vae": KL4}),
        *(1024, 8, 50, 5.0, ("text-to-image", "image-to-image"), False),
    ),
    "someone/controlnet": (
        *("StableDiffusionControlNetPipeline", PNDM, {"unet": {"sample_size": 64, "in_channels": 4}, "vae": KL4}),
        *(512, 8, 50, 7.5, ALL, False),
    ),
}


@pytest.mark.parametrize("repo", PUBLISHED)
def test_a_published_model_gets_what_its_card_says(repo: str, tmp_path: Path) -> None:
    cls, scheduler, parts, native, multiple, steps, guidance, tasks, guessed = PUBLISHED[repo]
    assert hasattr(diffusers, cls)
    source = SourceSection(repo=repo, revision="0" * 40)
    place = folder(tmp_path / "snapshots" / ("0" * 40), cls, scheduler, **parts)
    draft = describe(place, id=repo, license="apache-2.0", source=source, sha256={"unet/a.safetensors": "0" * 64})
    manifest = draft.manifest
    assert (manifest.size.native, manifest.size.multiple) == (f"{native}x{native}", multiple)
    assert (manifest.defaults.num_inference_steps, manifest.defaults.guidance_scale) == (steps, guidance)
    assert manifest.defaults.size == manifest.size.native
    assert tuple(manifest.tasks) == tasks
    assert (manifest.dtype, manifest.id, manifest.name, manifest.license) == ("auto", repo, repo, "apache-2.0")
    assert (
        bool(draft.guessed)
        == guessed
        == bool([note for note in draft.notes if "distilled" in note or "few" in note or "consistency" in note])
    )
    assert repo in manifest.description and cls in manifest.description
    assert manifest.sha256 == {"unet/a.safetensors": "0" * 64}
    assert manifest.created == dt.datetime.now(dt.UTC).date()
    assert manifest.size.min < native < manifest.size.max
    file = write_manifest(tmp_path / "models", manifest, guessed=draft.guessed, notes=draft.notes)
    assert file.name == f"{repo.replace('/', '--')}.toml"
    text = file.read_text()
    assert text.count("# guessed: check it") == len(draft.guessed)
    read = read_manifest(file, tmp_path)
    assert (read.tasks, read.size, read.defaults) == (manifest.tasks, manifest.size, manifest.defaults)


def test_a_scheduler_that_will_not_do_is_exchanged(tmp_path: Path) -> None:
    cls, _, parts, *_ = PUBLISHED["someone/sdxl-lightning-8step"]
    place = folder(tmp_path / "sdxl-lightning-4step", cls, EULER, **parts)
    manifest = describe(place, id="a").manifest
    assert manifest.pipeline.scheduler == "EulerDiscreteScheduler"
    assert manifest.pipeline.scheduler_options == {"timestep_spacing": "trailing"}
    cls, _, parts, *_ = PUBLISHED["black-forest-labs/FLUX.1-schnell"]
    schnell = describe(folder(tmp_path / "schnell", cls, FLOW, **parts), id="a").manifest
    assert schnell.pipeline.arguments == {"max_sequence_length": 256}


def test_a_pipeline_that_nobody_knows_gets_cautious_values_that_are_marked(tmp_path: Path) -> None:
    draft = describe(folder(tmp_path / "new", "WhateverImg2ImgPipeline", FLOW), id="new")
    assert draft.manifest.tasks == ["image-to-image"]
    assert set(draft.guessed) >= {"tasks", "size", "defaults.num_inference_steps", "defaults.guidance_scale"}
    assert any("not known here" in note for note in draft.notes)
    assert any("1024x1024 is a guess" in note for note in draft.notes)
    for name, wanted in (("Inpaint", "inpainting"), ("", "text-to-image"), ("Edit", "image-to-image")):
        place = folder(tmp_path / f"x{name}", f"Whatever{name}Pipeline", FLOW)
        assert describe(place, id="new").manifest.tasks == [wanted]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"_class_name": 3}', '{"_class_name": "a\\nb"}', "{" * 10**5])
def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ModelRefused, match="names no pipeline"):
        describe(tmp_path, id="a")


@pytest.mark.parametrize("bad", [-1, 0, "a", 1e9, None, [[]], {"a": 1}, 10**30, True, [64, 64], [10**9]])
def test_nonsense_in_a_configuration_still_gives_a_valid_manifest(tmp_path: Path, bad: Any) -> None:
    names = ("sample_size", "in_channels", "patch_size", "all_patch_size", "guidance_embeds", "num_layers")
    for cls in (
        "StableDiffusionPipeline",
        "FluxPipeline",
        "SanaPipeline",
        "WhateverPipeline",
        "StableDiffusion3Pipeline",
    ):
        part = "unet" if cls == "StableDiffusionPipeline" else "transformer"
        vae = dict.fromkeys(("block_out_channels", "encoder_block_out_channels", "latent_channels"), bad)
        place = folder(
            tmp_path / cls,
            cls,
            ("X", {"shift": bad, "timestep_spacing": bad}),
            **{part: dict.fromkeys(names, bad), "vae": vae},
        )
        draft = describe(place, id="a")
        read_manifest(write_manifest(tmp_path / "models", draft.manifest, guessed=draft.guessed, replace=True))


@pytest.mark.parametrize("cls", sorted(known()))
def test_a_familys_classes_are_diffusers_own_and_its_tasks_those_of_its_mapping(cls: str) -> None:
    family, found = known()[cls], getattr(diffusers, cls)
    assert issubclass(found, diffusers.DiffusionPipeline)
    assert family.suggest is not None
    mappings = {
        "text-to-image": AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "image-to-image": AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpainting": AUTO_INPAINT_PIPELINES_MAPPING,
    }
    key = next((key for mapping in mappings.values() for key, member in mapping.items() if member is found), None)
    if family.pipelines:
        assert not family.tasks
    elif key is None:
        assert family.tasks == ("text-to-image",)
    else:
        assert set(family.tasks) == {task for task, mapping in mappings.items() if key in mapping}


def test_the_licence_comes_from_whoever_knows_it_the_card_or_the_licence_itself(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", "StableDiffusionPipeline", PNDM)
    draft = describe(place, id="a")
    assert draft.manifest.license == "unknown"
    assert any("licence" in note for note in draft.notes)
    (place / "LICENSE.md").write_text("\n\n  Apache\tLicense\x1b[31m, Version 2.0\n more")
    assert describe(place, id="a").manifest.license == "Apache License [31m, Version 2.0"
    (place / "README.md").write_text("---\ntags:\n- a\nlicense: other\nlicense_name: sai-nc\n---\nlicense: no")
    assert license_in(place) == "sai-nc"
    assert describe(place, id="a", license="mit\n\x00" + "x" * 5000).manifest.license == ("mit " + "x" * 5000)[:200]
    (place / "README.md").write_text("no front matter\nlicense: no")
    assert str(license_in(place)).startswith("Apache")


def test_foreign_text_is_cleaned() -> None:
    assert cleaned("a\r\n\x00b\u202e\ud800  c") == "a b c"
    assert len(cleaned("é" * 10**6)) == 200


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("DreamShaper 8 (pruned).safetensors", "DreamShaper-8-pruned"),
        ("sdxl-turbo", "sdxl-turbo"),
        ("../..", "model"),
        ("日本", "model"),
        ("a" * 300, "a" * 128),
        (".hidden", "hidden"),
    ],
)
def test_an_id_is_made_of_a_file_or_folders_name(name: str, wanted: str) -> None:
    assert id_of(name) == wanted


def test_describing_imports_no_torch() -> None:
    script = "import sys, hub.library.add, hub.library.describe, hub.library.manifests; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def png(side: int, mode: str = "RGB") -> bytes:
    picture = Image.effect_noise((side, side), 60).convert(mode)
    if mode == "L":
        picture = Image.new("L", (side, side))
    if mode == "RGBA":  # a mask: what is transparent may change
        picture.putalpha(Image.new("L", (side, side), 0))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


GROUPS = [sorted(BUILDERS)[start : start + 4] for start in range(0, len(BUILDERS), 4)]


@pytest.mark.parametrize("group", GROUPS, ids="+".join)
@pytest.mark.filterwarnings(r"ignore:(?s).*skip_prk_steps:FutureWarning")
@pytest.mark.slow
def test_every_family_draws_with_the_manifest_that_is_made_of_its_folder(group: list[str], tmp_path: Path) -> None:
    manifests = {}
    for family in group:
        draft = describe(build(family, tmp_path / family), id=family, license="none")
        write_manifest(tmp_path / "models", draft.manifest, guessed=draft.guessed, notes=draft.notes)
        manifests[family] = read_manifest(tmp_path / "models" / f"{family}.toml")
        assert manifests[family].tasks == draft.manifest.tasks
    settings = Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", device="cpu")

    async def draw(hub: Hub) -> None:
        for family, manifest in manifests.items():
            side = manifest.size.min
            control = "controlnet" in family
            for task in manifest.tasks:
                images = {"text-to-image": 0, "image-to-image": 1, "inpainting": 1}[task] + control
                asked = ImageRequest(
                    prompt="a cat",
                    seed=1,
                    size=Size(side, side),
                    num_inference_steps=2,
                    images=(png(side),) * images,
                    mask=png(side, "RGBA") if task == "inpainting" else None,
                )
                (image,) = (await hub.generate(family, asked)).images
                with Image.open(io.BytesIO(image)) as picture:
                    assert picture.size == (side, side), (family, task)

    with_hub(settings, draw)


def test_sides_lie_within_what_a_manifest_may_say(tmp_path: Path) -> None:
    for side in (1, 3, 64, 1000, 4096):
        place = folder(tmp_path / str(side), "StableDiffusionPipeline", PNDM, unet={"sample_size": side}, vae=KL4)
        size = describe(place, id="a").manifest.size
        assert size.shapes.holds(parse_size(size.native))
