"""What is predicted of a forward's memory, against what its tensors take, counted one by one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hub.pipelines.workspace import TEXT, decode_bytes, denoise_bytes, read_bytes


class Counting(TorchDispatchMode):
    """The most bytes that live at once of all that is made within the context; `known` was there before."""

    def __init__(self, known: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.peak = self._live = 0
        tensors = [*known.parameters(), *known.buffers()] if known else []
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        output = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(output)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes and key not in given:
                self._sizes[key] = storage.nbytes()
                self._live += storage.nbytes()
                weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self._live)
        return output

    def _gone(self, key: int) -> None:
        self._live -= self._sizes.pop(key, 0)


def unfilled(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def sdxl() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
    )


def t5() -> Any:
    config = transformers.T5Config(
        d_model=4096, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=1000
    )
    return transformers.T5EncoderModel(config)


def vae() -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )


def step(latents: int, **more: Any) -> Callable[[Any], Any]:
    return lambda unet: unet(unfilled(1, 4, latents, latents), unfilled(1), **more)


def flux_step(flux: Any) -> Any:
    return flux(
        hidden_states=unfilled(1, 4096, 64),
        encoder_hidden_states=unfilled(1, TEXT, 4096),
        pooled_projections=unfilled(1, 768),
        timestep=unfilled(1),
        guidance=unfilled(1),
        img_ids=unfilled(4096, 3),
        txt_ids=unfilled(TEXT, 3),
    )


FULL_SIZE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], int]]] = {
    "Stable Diffusion's U-Net at 512x512": (
        lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768),
        step(64, encoder_hidden_states=unfilled(1, 77, 768)),
        lambda unet: denoise_bytes(unet, 64 * 64),
    ),
    "SDXL's U-Net at 1024x1024": (
        sdxl,
        step(128, encoder_hidden_states=unfilled(1, 77, 2048)),
        lambda unet: denoise_bytes(unet, 128 * 128),
    ),
    "FLUX.1's transformer at 1024x1024": (
        lambda: diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True),
        flux_step,
        lambda flux: denoise_bytes(flux, 64 * 64),
    ),
    "their VAE's decode at 1024x1024": (
        vae,
        lambda vae: vae.decode(unfilled(1, 4, 128, 128)),
        lambda vae: decode_bytes(vae, 1024, 1024),
    ),
    "and its encode": (
        vae,
        lambda vae: vae.encode(unfilled(1, 3, 1024, 1024)),
        lambda vae: decode_bytes(vae, 1024, 1024, "encode"),
    ),
    "T5-XXL": (t5, lambda t5: t5(unfilled(1, TEXT, dtype=torch.long)), read_bytes),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_module_takes_no_more_than_is_predicted_and_at_least_a_third(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, call, predict = FULL_SIZE[name]
    # Without content torch takes the slow way, which no device does: a matrix for each head.
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query)
    )
    with torch.device("meta"):
        module = build().half().eval()
    counting = Counting(module)
    with torch.no_grad(), torch.device("meta"), counting:
        call(module)
    assert predict(module) / 3 <= counting.peak <= predict(module)
