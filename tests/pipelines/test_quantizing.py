from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hub.engine.held import Held
from hub.engine.meeting import MeetingPoint
from hub.engine.residency import Residency
from hub.pipelines import Unsupported
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from hub.pipelines.quantizing import check_gguf, quantization_config
from tests.families.builders import build

CPU = torch.device("cpu")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torchao.*")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("flux-schnell", tmp_path_factory.mktemp("flux"))


def write_gguf(tensors: dict[str, torch.Tensor], file: Path, **values: Any) -> Path:
    """Matrices in eight bits, the rest as it is."""
    writer = gguf.GGUFWriter(file, "flux")
    writer.add_array("test.words", ["a", "b"])
    writer.add_array("test.numbers", [1, 2, 3])
    for name, value in values.items():
        writer.add_uint32(name.replace("_", ".", 1), value)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, each in tensors.items():
        data = each.float().numpy()
        if data.ndim == 2:
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def quantized(flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(load_file(flux / TRANSFORMER), tmp_path_factory.mktemp("gguf") / "flux-Q8_0.gguf")


def draw(loaded: LoadedPipeline) -> torch.Tensor:
    pipe = loaded.own_copy("text-to-image")
    generator = torch.Generator().manual_seed(1)
    size = {"num_inference_steps": 3, "width": 64, "height": 64}
    return pipe(prompt="red cat", output_type="pt", generator=generator, **size).images[0]  # type: ignore[no-any-return]


def load(folder: Path, **options: Any) -> LoadedPipeline:
    return load_pipeline(str(folder), "float32", CPU, **options)


def difference(folder: Path, **options: Any) -> float:
    """Of two pictures of 0 to 1, the mean."""
    return float((draw(load(folder)) - draw(load(folder, **options))).abs().mean())


def test_a_gguf_file_in_eight_bits_draws_nearly_what_the_whole_weights_draw(flux: Path, quantized: Path) -> None:
    loaded = load(flux, components={"transformer": str(quantized)})
    check_gguf(quantized)
    weights = loaded.own_copy("text-to-image").transformer.state_dict()
    assert weights["transformer_blocks.0.attn.to_q.weight"].dtype == torch.uint8
    assert 0 < difference(flux, components={"transformer": str(quantized)}) < 0.01


@pytest.mark.parametrize("options", [{"components": True}, {"quantization": "torchao:int8_weight_only"}])
def test_quantized_weights_stay_on_a_device_where_others_come_and_go(
    flux: Path, quantized: Path, options: dict[str, Any]
) -> None:
    """They carry scales along, each kind in its own way: the rest of their module travels."""
    if "components" in options:
        options = {"components": {"transformer": str(quantized)}}
    wanted, loaded = draw(load(flux, **options)), load(flux, **options)
    largest = max(Held(module).bytes for module in loaded.modules.values())
    residency = Residency(CPU, 2 * largest)
    for shared in loaded.shared_methods():
        residency.hold(shared.module)
        MeetingPoint(shared.module, shared.method, residency=residency)
    for _ in range(2):
        assert torch.equal(draw(loaded), wanted)
    assert residency.uploads > len(loaded.modules), "they came and went"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "is cut off: it has"),
        (lambda content: content[: len(content) // 2], "is cut off: it has"),
        (lambda content: content[:200], "is cut off within its header"),
        (lambda content: content[:3], "is no GGUF file"),
        (lambda content: b"GGML" + content[4:], "is no GGUF file"),
        (lambda content: content[:4] + b"\x09" + content[5:], "is no GGUF file of version 2 or 3"),
        (lambda content: content[:8] + b"\xff" * 8 + content[16:], "has a tensor of unknown type|cut off"),
        (lambda content: content[:24] + b"\xff" * 8 + content[32:], "is cut off within its header"),
        (lambda content: content[:16] + b"\xff" * 8 + content[24:], "header|unknown type"),
        (lambda content: b"\x80\x04" + content[2:], "is a pickle under another name"),
    ],
)
def test_a_damaged_gguf_file_is_refused_by_its_name(
    quantized: Path, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(damage(quantized.read_bytes()))
    with pytest.raises(Unsupported, match=rf"^damaged\.gguf .*({words})"):
        check_gguf(file)


def test_no_header_makes_the_check_read_far_or_fail_otherwise(quantized: Path, tmp_path: Path) -> None:
    """One byte after the other is spoilt."""
    content, file = quantized.read_bytes(), tmp_path / "spoilt.gguf"
    dice = np.random.RandomState(0)
    for place in dice.randint(0, 3000, 300):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << dice.randint(8)
        file.write_bytes(spoilt)
        try:
            check_gguf(file)
        except Unsupported as error:
            assert str(error).startswith("spoilt.gguf ")


def test_a_gguf_file_of_another_model_or_without_a_tensor_is_refused(flux: Path, tmp_path: Path) -> None:
    tensors = load_file(flux / TRANSFORMER)
    del tensors["proj_out.weight"]
    lacking = write_gguf(tensors, tmp_path / "lacking.gguf")
    with pytest.raises(Unsupported, match=r"lacking\.gguf does not fit transformer as its folder configures it"):
        load(flux, components={"transformer": str(lacking)})
    with pytest.raises(Unsupported, match="a T5EncoderModel is read from a folder, not from a file"):
        load(flux, components={"text_encoder_2": str(lacking)})


def test_its_own_alignment_is_kept(quantized: Path, tmp_path: Path, flux: Path) -> None:
    file = write_gguf(load_file(flux / TRANSFORMER), tmp_path / "aligned.gguf", general_alignment=32)
    check_gguf(file)
    file.write_bytes(file.read_bytes()[:-33])
    with pytest.raises(Unsupported, match="is cut off"):
        check_gguf(file)


@pytest.mark.parametrize(("method", "most"), [("torchao:int8_weight_only", 0.01), ("torchao:float8_weight_only", 0.05)])
@pytest.mark.parametrize("family", ["flux-schnell", "stable-diffusion"])
def test_torchao_quantizes_the_denoiser_alone(family: str, tmp_path: Path, method: str, most: float) -> None:
    folder = build(family, tmp_path)
    pipe = load(folder, quantization=method).own_copy("text-to-image")
    denoiser = pipe.transformer if family == "flux-schnell" else pipe.unet
    kinds = {type(weight.data).__name__ for weight in denoiser.parameters()}
    assert kinds & {"Int8Tensor", "Float8Tensor"}
    assert {type(weight.data).__name__ for weight in pipe.text_encoder.parameters()} == {"Tensor"}
    assert 0 < difference(folder, quantization=method) < most


def test_a_tensor_that_is_missing_is_refused_of_quantized_weights_too(flux: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(flux, tmp_path / "lacking")
    tensors = load_file(folder / TRANSFORMER)
    del tensors["transformer_blocks.0.attn.to_q.weight"]
    save_file(tensors, folder / TRANSFORMER, metadata={"format": "pt"})
    with pytest.raises(Unsupported, match=r"transformer are incomplete, they lack transformer_blocks\.0\.attn\.to_q"):
        load(folder, quantization="torchao:int8_weight_only")


@pytest.mark.parametrize("method", ["bitsandbytes:int8", "bitsandbytes:nf4"])
def test_what_needs_a_gpu_says_so_on_a_cpu(flux: Path, method: str) -> None:
    with pytest.raises(Unsupported, match=f"lossy.quantization: {method} needs a GPU; on a cpu use one of torchao"):
        load(flux, quantization=method)


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes", "gguf"])
def test_a_library_that_is_not_installed_is_named_with_what_installs_it(
    quantized: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Unsupported, match=rf'library {library}, .*: pip install "image-hub\[quantization\]"'):
        if library == "gguf":
            check_gguf(quantized)
        else:
            quantization_config(f"{library}:int8_weight_only", torch.device("cuda"), torch.float32)


def test_a_model_without_a_denoiser_has_nothing_to_quantize(tmp_path: Path) -> None:
    import json

    from tests.families.parts import autoencoder

    autoencoder().save_pretrained(tmp_path / "vqvae")
    index = {"_class_name": "LDMTextToImagePipeline", "vqvae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Unsupported, match="for denoisers, and none of this model's parts is known as one"):
        load(tmp_path, quantization="torchao:int8_weight_only")
