"""Builds a diffusers folder with random weights, from the published config:  build.py MODEL FOLDER DTYPE DEVICE SEED

Speed does not depend on the weights' values. `small` is a Stable Diffusion of about 24 million parameters for 256x256;
`sdxl`, `klein` and `zimage` have the published sizes. With the suffix `-short` the text encoder has the same shape
outside and few parameters inside; with `-tiny` everything is tiny, for trials on a CPU.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

VAE_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Builder:
    """Makes modules to be saved, on the device and in the wanted dtype, without the libraries' slow initialisation.

    What is not saved (rotary tables) stays undefined: `from_pretrained` computes it.
    """

    def __init__(self, kind: str, dtype: torch.dtype, device: str, seed: int) -> None:
        self.tiny, self.short = kind == "tiny", kind in ("tiny", "short")
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, make: Callable[[], Any]) -> Any:
        """The module that `make` describes, with random weights that keep the numbers finite."""
        with torch.device("meta"):
            module = make()
        module = module.to(self._dtype).to_empty(device=self._device).eval().requires_grad_(False)
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.ndim > 1:
                scale = 1 / math.sqrt(tensor[0].numel())  # a fan-in of one keeps a signal's size
                tensor.normal_(0, scale, generator=self._generator)
            elif name.endswith("bias") or "mean" in name:
                tensor.zero_()
            else:
                tensor.fill_(1)
        return module

    def pick(self, full: Any, tiny: Any) -> Any:
        """A published size, or the one for a trial."""
        return tiny if self.tiny else full


def clip_tokenizer() -> Any:
    """CLIP's tokenizer over single letters; the encoders' embedding tables may well be larger."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def clip_config(tokenizer: Any, width: int, layers: int, heads: int, **more: Any) -> Any:
    """A CLIP text encoder's config, whose end token is the tokenizer's."""
    end = tokenizer.eos_token_id
    return transformers.CLIPTextConfig(
        vocab_size=more.pop("vocab_size", end + 1),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
        **more,
    )


def qwen_tokenizer() -> Any:
    """Qwen's tokenizer over single bytes, with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = transformers.Qwen2Tokenizer(vocabulary, [], additional_special_tokens=tokens[-2:])
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen_encoder(build: Builder, cls: Any) -> Any:
    """Qwen3-4B; the short one keeps its depth and width, since the pipelines read hidden states of its layers."""
    config = transformers.Qwen3Config(
        vocab_size=512 if build.short else 151_936,
        hidden_size=build.pick(2560, 64),
        intermediate_size=256 if build.short else 9728,
        num_hidden_layers=36,
        num_attention_heads=2 if build.short else 32,
        num_key_value_heads=1 if build.short else 8,
        head_dim=build.pick(128, 32),
        tie_word_embeddings=True,
    )
    return build(lambda: cls(config))


def small(build: Builder) -> Any:
    """A Stable Diffusion for 256x256."""
    tokenizer = clip_tokenizer()
    text = clip_config(tokenizer, build.pick(256, 32), 4, 4)
    return diffusers.StableDiffusionPipeline(
        build(
            lambda: diffusers.AutoencoderKL(
                **VAE_BLOCKS, block_out_channels=build.pick((32, 64, 64, 64), (8,) * 4), norm_num_groups=8
            )
        ),
        build(lambda: transformers.CLIPTextModel(text)),
        tokenizer,
        build(
            lambda: diffusers.UNet2DConditionModel(
                sample_size=32,
                block_out_channels=build.pick((64, 128, 256), (8, 16, 16)),
                cross_attention_dim=text.hidden_size,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            )
        ),
        diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
        ),
        None,
        None,
        requires_safety_checker=False,
    )


def sdxl(build: Builder) -> Any:
    """stabilityai/stable-diffusion-xl-base-1.0."""
    tokenizer = clip_tokenizer()
    words = {} if build.short else {"vocab_size": 49_408}
    layers = (2, 2) if build.short else (12, 32)
    widths = build.pick((768, 1280), (32, 32))
    heads = build.pick((12, 20), (4, 4))
    one = clip_config(tokenizer, widths[0], layers[0], heads[0], **words)
    two = clip_config(tokenizer, widths[1], layers[1], heads[1], hidden_act="gelu", projection_dim=widths[1], **words)
    unet: dict[str, Any] = {
        "block_out_channels": build.pick((320, 640, 1280), (32, 32, 64)),
        "attention_head_dim": build.pick((5, 10, 20), (2, 2, 4)),
        "transformer_layers_per_block": build.pick((1, 2, 10), 1),
        "projection_class_embeddings_input_dim": 6 * 256 + widths[1],
    }
    return diffusers.StableDiffusionXLPipeline(
        build(
            lambda: diffusers.AutoencoderKL(
                **VAE_BLOCKS,
                block_out_channels=build.pick((128, 256, 512, 512), (32,) * 4),
                layers_per_block=2,
                sample_size=1024,
                scaling_factor=0.13025,
                force_upcast=False,  # bfloat16 has float32's range
            )
        ),
        build(lambda: transformers.CLIPTextModel(one)),
        build(lambda: transformers.CLIPTextModelWithProjection(two)),
        tokenizer,
        clip_tokenizer(),
        build(
            lambda: diffusers.UNet2DConditionModel(
                **unet,
                sample_size=128,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=sum(widths),
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                use_linear_projection=True,
            )
        ),
        diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )


def klein(build: Builder) -> Any:
    """black-forest-labs/FLUX.2-klein-4B."""
    return diffusers.Flux2KleinPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        build(
            lambda: diffusers.AutoencoderKLFlux2(
                block_out_channels=build.pick((128, 256, 512, 512), (32,) * 4), latent_channels=32
            )
        ),
        qwen_encoder(build, transformers.Qwen3ForCausalLM),
        qwen_tokenizer(),
        build(
            lambda: diffusers.Flux2Transformer2DModel(
                num_layers=build.pick(5, 1),
                num_single_layers=build.pick(20, 2),
                num_attention_heads=build.pick(24, 2),
                joint_attention_dim=3 * build.pick(2560, 64),
                guidance_embeds=False,
            )
        ),
        is_distilled=True,
    )


def zimage(build: Builder) -> Any:
    """Tongyi-MAI/Z-Image-Turbo."""
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        build(
            lambda: diffusers.AutoencoderKL(
                **VAE_BLOCKS,
                block_out_channels=build.pick((128, 256, 512, 512), (32,) * 4),
                layers_per_block=2,
                latent_channels=16,
                sample_size=1024,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
                force_upcast=False,
            )
        ),
        qwen_encoder(build, transformers.Qwen3Model),
        qwen_tokenizer(),
        build(
            lambda: diffusers.ZImageTransformer2DModel(
                dim=build.pick(3840, 256),
                n_layers=build.pick(30, 2),
                n_heads=build.pick(30, 2),
                n_kv_heads=build.pick(30, 2),
                cap_feat_dim=build.pick(2560, 64),
            )
        ),
    )


PIPELINES = {"small": small, "sdxl": sdxl, "klein": klein, "zimage": zimage}


def main() -> None:
    """Builds what the command line says; prints the denoiser's number of parameters."""
    name, folder, dtype, device, seed = sys.argv[1:]
    family, _, kind = name.partition("-")
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    build = Builder(kind, getattr(torch, dtype), device, int(seed))
    pipe = PIPELINES[family](build)
    pipe.save_pretrained(folder, safe_serialization=True)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    print(sum(weight.numel() for weight in denoiser.parameters()))


if __name__ == "__main__":
    main()
