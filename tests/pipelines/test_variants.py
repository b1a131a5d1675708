"""`pipeline.variant`: of each component the variant's safetensors, where it has any."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from hub.engine.loader import loading_bytes
from hub.engine.protocol import EngineModel
from hub.pipelines import Unsupported
from hub.pipelines.loading import load_pipeline
from hub.pipelines.variants import indices_in, is_plain, variant_of, weights_in
from hub.pipelines.weights import size_of
from hub.settings import Settings
from hub.types import ImageRequest, Size
from tests.conftest import with_hub, write_manifest

if TYPE_CHECKING:
    from hub.hub import Hub

CPU = torch.device("cpu")
UNET, TEXT, VAE = "unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"


@pytest.fixture
def model(small_stable_diffusion: Path, tmp_path: Path) -> Path:
    """Plain weights of all parts; of U-Net and text encoder others beside them, of variant fp16."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = tmp_path / "a.model.with.dots"
    shutil.copytree(small_stable_diffusion, folder)
    for name, cls in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        part = cls.from_pretrained(folder / name)
        with torch.no_grad():
            for weight in part.parameters():
                weight.mul_(1.1)
        part.half().save_pretrained(folder / name, variant="fp16")
    return folder


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("diffusion_pytorch_model.safetensors", None),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model.non_ema.safetensors", "non_ema"),
        ("model-00001-of-00002.safetensors", None),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model-00001-of-00002.fp16.safetensors", "fp16"),
        ("model.fp16.bin", None),
        ("model.a.b.safetensors", None),
    ],
)
def test_the_variant_is_told_by_the_files_name(name: str, variant: str | None) -> None:
    assert variant_of(name) == variant
    assert is_plain(name) == (name.endswith(".safetensors") and name.count(".") == 1)


def test_a_part_has_the_variants_files_or_the_plain_ones_and_never_both(model: Path) -> None:
    assert [file.name for file in weights_in(model / "unet", "fp16")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert [file.name for file in weights_in(model / "unet", "bf16")] == ["diffusion_pytorch_model.safetensors"]
    assert [file.name for file in weights_in(model / "vae", "fp16")] == ["diffusion_pytorch_model.safetensors"]
    half = sum((model / f"{name}.fp16.safetensors").stat().st_size for name in (UNET, TEXT))
    assert size_of(model, variant="fp16") == half + (model / f"{VAE}.safetensors").stat().st_size
    assert size_of(model) > size_of(model, variant="fp16")
    wide = loading_bytes(EngineModel("a", str(model), "float16", variant="fp16"), CPU)
    assert wide == pytest.approx(loading_bytes(EngineModel("a", str(model), "float16"), CPU), rel=0.05)


def test_a_hub_draws_what_diffusers_draws_of_the_variant(model: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pictures = {}
    for variant in ("fp16", None):
        pipe: Any = StableDiffusionPipeline.from_pretrained(model, variant=variant, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(
            "a cat",
            num_inference_steps=3,
            guidance_scale=5.0,
            width=64,
            height=64,
            generator=torch.Generator().manual_seed(5),
            output_type="np",
        )
        pictures[variant] = (drawn.images[0] * 255).round()
    assert np.abs(pictures["fp16"] - pictures[None]).max() > 5, "the variant is another model here"

    models = write_manifest(tmp_path / "models", model, pipeline='pipeline = { variant = "fp16" }')
    settings = Settings(models_dir=models, cache_dir=tmp_path / "cache", device="cpu")

    async def draw(hub: Hub) -> None:
        asked = ImageRequest(prompt="a cat", seed=5, size=Size(64, 64), num_inference_steps=3)
        (image,) = (await hub.generate("small", asked)).images
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)
        assert np.abs(pixels - pictures["fp16"]).max() <= 1

    with_hub(settings, draw)


@pytest.mark.parametrize("old", [False, True])
def test_shards_are_read_in_both_forms_of_their_names(model: Path, old: bool) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    for name, cls, stem in (
        ("unet", UNet2DConditionModel, "diffusion_pytorch_model"),
        ("text_encoder", CLIPTextModel, "model"),
    ):
        part = cls.from_pretrained(model / name, variant="fp16", torch_dtype=torch.float16)
        (model / name / f"{stem}.fp16.safetensors").unlink()
        part.save_pretrained(model / name, variant="fp16", max_shard_size="50KB")
        assert indices_in(model / name, "fp16") == [model / name / f"{stem}.safetensors.index.fp16.json"]
        if old:
            _rename_as_once(model / name, stem)
        assert len(weights_in(model / name, "fp16")) > 1
    plain = load_pipeline(str(model), "float32", CPU).modules["unet"].state_dict()
    read = load_pipeline(str(model), "float32", CPU, variant="fp16").modules
    for key, weight in read["unet"].state_dict().items():
        assert torch.allclose(weight, plain[key] * 1.1, rtol=1e-2, atol=1e-4)
    shard = weights_in(model / "unet", "fp16")[-1]
    shard.unlink()
    with pytest.raises(Unsupported, match=rf"^unet/{shard.name} is missing, a part of the weights"):
        load_pipeline(str(model), "float32", CPU, variant="fp16")
    load_pipeline(str(model), "float32", CPU)


def _rename_as_once(part: Path, stem: str) -> None:
    index = part / f"{stem}.safetensors.index.fp16.json"
    values = json.loads(index.read_text())
    names = {name: name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors") for name in
             set(values["weight_map"].values())}  # fmt: skip
    for new, once in names.items():
        (part / new).rename(part / once)
    values["weight_map"] = {key: names[name] for key, name in values["weight_map"].items()}
    index.with_name(f"{stem}.safetensors.fp16.index.json").write_text(json.dumps(values))
    index.unlink()


def test_what_has_neither_is_refused_and_a_variant_alone_is_told_how_to_read(model: Path) -> None:
    (model / f"{UNET}.safetensors").unlink()
    with pytest.raises(
        Unsupported, match=r'^the only weights of unet are .*which is read by `pipeline\.variant = "fp16"`'
    ):
        load_pipeline(str(model), "float32", CPU)
    load_pipeline(str(model), "float32", CPU, variant="fp16")
    (model / f"{UNET}.fp16.safetensors").unlink()
    with pytest.raises(Unsupported, match=r"^there are no weights in unet$"):
        load_pipeline(str(model), "float32", CPU, variant="fp16")


def test_a_damaged_file_of_the_variant_is_refused_and_a_damaged_plain_one_beside_it_is_not_read(model: Path) -> None:
    (model / f"{UNET}.safetensors").write_bytes(b"nonsense")
    load_pipeline(str(model), "float32", CPU, variant="fp16")
    file = model / f"{UNET}.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Unsupported, match=r"^unet/diffusion_pytorch_model\.fp16\.safetensors is cut off"):
        load_pipeline(str(model), "float32", CPU, variant="fp16")


def test_models_that_differ_in_the_variant_alone_do_not_share_what_differs(model: Path) -> None:
    one = load_pipeline(str(model), "float32", CPU, known={}).identities
    other = load_pipeline(str(model), "float32", CPU, known={}, variant="fp16").identities
    assert {name for name in one if one[name] == other[name]} == {"vae"}
