"""The kind of a single file, told without torch, is the one that diffusers tells."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES

from hub.pipelines.headers import Tensor, read_safetensors
from hub.pipelines.kinds import FAMILIES, LDM_INPUT, family_by_name, family_of_file, is_held, is_lora, misfit
from hub.pipelines.parts import _is_in, family_in

KEYS = sorted(
    {name for value in CHECKPOINT_KEY_NAMES.values() for name in ([value] if isinstance(value, str) else value)}
)
MORE = [
    "model.diffusion_model.pos_embed",
    "pos_embed",
    "guidance_in.in_layer.bias",
    "img_in.weight",
    "text_encoders.t5xxl.transformer.shared.weight",
    "first_stage_model.decoder.conv_in.weight",
    "encoder.project_in.conv.conv.bias",
    "decoder.project_in.main.conv.weight",
    "patch_embedding.weight",
]
LENGTHS = (4, 8, 9, 24, 36, 64, 128, 320, 384, 576, 640, 1024, 1536, 2048, 5120, 9216, 36864, 147456)


def file(dice: random.Random, names: list[str]) -> dict[str, Tensor]:
    return {
        name: Tensor("F16", (dice.choice(LENGTHS), dice.choice(LENGTHS), dice.choice(LENGTHS)), 0) for name in names
    }


def by_diffusers(tensors: dict[str, Tensor]) -> tuple[bool, str | None]:
    """Its answer, where it has one: of some combinations it knows none and fails."""
    try:
        return True, family_in(tensors)
    except (KeyError, UnboundLocalError, ValueError, IndexError):
        return False, None


def test_every_tensor_that_diffusers_looks_for_tells_the_same_here_alone_and_with_others() -> None:
    dice = random.Random(0)
    told, families = 0, set()
    for count in [*[1] * 3000, *[2] * 3000, *[5] * 3000, *[20] * 300]:
        tensors = file(dice, dice.sample([*KEYS, *MORE], count))
        answered, wanted = by_diffusers(tensors)
        if answered:
            told += 1
            families.add(wanted)
            assert family_of_file(tensors) == wanted, tensors
    assert told > 5000
    assert families >= {*FAMILIES, None} - {"AuraFlow"}


def test_kinds_that_need_several_tensors_are_told() -> None:
    dice = random.Random(1)
    for name in ("auraflow", "cosmos-1.0", "cosmos-2.0"):
        tensors = file(dice, CHECKPOINT_KEY_NAMES[name])
        tensors |= {key: Tensor("F16", (2048, 68), 0) for key in tensors if "x_embedder" in key}
        assert by_diffusers(tensors) == (True, family_of_file(tensors))
    assert family_of_file(file(dice, CHECKPOINT_KEY_NAMES["auraflow"])) == "AuraFlow"


def test_a_file_of_no_known_kind_is_none() -> None:
    assert family_of_file({"weight": Tensor("F16", (1,), 2)}) is None
    assert family_of_file({}) is None
    assert family_of_file({LDM_INPUT: Tensor("F16", (), 2)}) == "StableDiffusion"


@pytest.mark.parametrize(
    "cls", ["T5EncoderModel", "CLIPTextModel", "CLIPTextModelWithProjection", "AutoencoderKL", "X"]
)
@pytest.mark.parametrize("part", ["unet", "transformer", "vae", "text_encoder", "text_encoder_3"])
def test_what_of_a_model_a_file_holds_is_what_the_loader_finds_in_it(cls: str, part: str) -> None:
    dice = random.Random(2)
    component = SimpleNamespace(name=part, cls=type(cls, (), {}))
    for _ in range(200):
        tensors = file(dice, dice.sample([*KEYS, *MORE], 12))
        assert is_held(part, cls, tensors) == _is_in(component, tensors)  # type: ignore[arg-type]


def test_pipelines_belong_to_the_family_with_the_longest_name() -> None:
    assert family_by_name("StableDiffusionPipeline") == "StableDiffusion"
    assert family_by_name("StableDiffusionXLInpaintPipeline") == "StableDiffusionXL"
    assert family_by_name("Flux2KleinPipeline") == "Flux2"
    assert family_by_name("KolorsPipeline") is None


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0.lora_down.weight",
        "transformer.blocks.0.attn.to_q.lora_A.weight",
        "unet.down.lora.up.weight",
        "lora_te_text_model.hada_w1_a",
        "unet.x.lokr_w1",
    ],
)
def test_loras_are_told_by_their_tensors(name: str) -> None:
    assert is_lora({name})
    assert not is_lora({"unet.explorations.weight", "model.diffusion_model.out.0.bias"})


def test_a_file_of_another_model_of_the_family_does_not_fit_its_configuration() -> None:
    unet = {"in_channels": 4, "block_out_channels": [320, 640], "cross_attention_dim": 768}
    cross = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    right = {LDM_INPUT: Tensor("F16", (320, 4, 3, 3), 0), cross: Tensor("F16", (640, 768), 0)}
    assert misfit(right, unet) is None
    assert "9 input channels" in str(misfit({**right, LDM_INPUT: Tensor("F16", (320, 9, 3, 3), 0)}, unet))
    assert "1024 numbers" in str(misfit({**right, cross: Tensor("F16", (640, 1024), 0)}, unet))
    flux = {"in_channels": 64, "guidance_embeds": True, "num_attention_heads": 24, "attention_head_dim": 128}
    dev = {
        "img_in.weight": Tensor("F16", (3072, 64), 0),
        "double_blocks.0.img_attn.norm.key_norm.scale": Tensor("F16", (1,), 0),
    }
    assert "no guidance" in str(misfit(dev, flux))
    assert misfit({**dev, "guidance_in.in_layer.bias": Tensor("F16", (1,), 0)}, flux) is None
    assert misfit({}, {}) is None


def test_telling_a_file_imports_no_torch(tmp_path: Path) -> None:
    modules = "hub.pipelines.kinds, hub.pipelines.variants, hub.pipelines.suggested"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_small_files_in_their_original_layout_are_told(small_stable_diffusion: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    from tests.pipelines.checkpoints import write_ldm

    pipe = DiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    tensors = read_safetensors(write_ldm(pipe, tmp_path / "a.safetensors"))
    assert family_of_file(tensors) == family_in(tensors) == "StableDiffusion"
