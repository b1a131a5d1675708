"""Small random LoRA files, in the formats that trainers write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.engine.protocol import WornLora
from hub.loras import Loras

if TYPE_CHECKING:
    import torch

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj", "out_proj", "fc1")
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}


def halves(module: Any, endings: tuple[str, ...], seed: int, rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Both halves for each layer of these names, strong enough to be seen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, layer in module.named_modules():
        if path.endswith(endings) and getattr(layer, "weight", None) is not None and layer.weight.dim() in (2, 4):
            out, into, *kernel = layer.weight.shape
            down = torch.randn(rank, into, *kernel, generator=generator) / (into * max(1, len(kernel))) ** 0.5
            found[path] = down, torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.3
    assert found, endings
    return found


def tensors(pipeline: Any, parts: Mapping[str, tuple[str, ...]], seed: int = 0, rank: int = 4) -> dict[str, Any]:
    """As diffusers and PEFT write them."""
    state = {}
    for part, endings in parts.items():
        for path, (down, up) in halves(getattr(pipeline, part), endings, seed, rank).items():
            state[f"{part}.{path}.lora_A.weight"], state[f"{part}.{path}.lora_B.weight"] = down, up
    return state


def kohyas(
    pipeline: Any, parts: Mapping[str, tuple[str, ...]], alphas: tuple[float, ...], seed: int = 0, rank: int = 4
) -> dict[str, Any]:
    """As kohya's sd-scripts write them; the layers of each part have these alphas in turn."""
    import torch

    state = {}
    for part, endings in parts.items():
        for number, (path, (down, up)) in enumerate(halves(getattr(pipeline, part), endings, seed, rank).items()):
            within = path if part == "unet" or path.startswith("text_model") else f"text_model.{path}"
            name = f"{KOHYA[part]}_{within.replace('.', '_')}"
            state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
            state[f"{name}.alpha"] = torch.tensor(alphas[number % len(alphas)])
    return state


def save(folder: Path, name: str, state: dict[str, Any], metadata: dict[str, str] | None = None) -> WornLora:
    """Writes the file; as the engine is asked for it."""
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata)
    return worn(folder, name)


def worn(folder: Path, name: str, weight: float = 1.0) -> WornLora:
    """A file that is there, as the engine is asked for it."""
    return WornLora(Loras(folder).get(name), weight)
