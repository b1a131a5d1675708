"""What the families share: tokenizers made offline, small text encoders, small autoencoders."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A fresh torch layer shrinks what passes through it by the square root of three.
GAIN = math.sqrt(3)
PRINTABLE = [chr(code) for code in range(33, 127)]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def vary(model: torch.nn.Module, gain: float = 1.0, seed: int = 0) -> Any:
    """Gives a value to each weight that a fresh model leaves at nought, at one or unset; multiplies the others.

    Without it a picture hardly depends on the prompt, and a test that compares two pictures is blind.
    """
    import torch

    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=dice)
            if name.endswith("pad_token"):  # Z-Image leaves these as torch.empty
                weight.copy_(noise)
            elif weight.dim() < 2 and bool((weight == 1).all()):
                weight.add_(0.2 * noise)
            elif not bool(weight.any()):
                weight.copy_(noise * (0.1 if weight.dim() < 2 else 1 / math.sqrt(weight[0].numel())))
            elif weight.dim() > 1:
                weight.mul_(gain)
    return model.eval()


@functools.cache
def clip_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """One token for each printable character; 77 tokens at most, as all of CLIP's."""
    from transformers import CLIPTokenizer

    tokens = [*PRINTABLE, *(f"{letter}</w>" for letter in PRINTABLE), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77, pad_token=pad)


@functools.cache
def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    start = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in PRINTABLE]
    return T5Tokenizer(vocab=[*start, *letters], extra_ids=0, model_max_length=512)


@functools.cache
def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{code:02X}>" for code in range(256))]
    tokens += ["▁", "\n", *PRINTABLE]
    # A character-level Sana would read its 1,000 letters of instruction as 1,000 tokens.
    pairs = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g"), ("e", "r"), ("a", "n"), ("o", "n"), ("r", "e")]
    tokens += [left + right for left, right in pairs]
    return GemmaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs)


@functools.cache
def qwen_tokenizer() -> Any:
    """Byte-level, with the chat's and the pictures' own tokens, as of Qwen2.5-VL and Qwen3."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    extra = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in extra])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT
    tokenizer.model_max_length = 131072
    return tokenizer


def clip(kind: str = "CLIPTextModel", width: int = 32, **changes: Any) -> Any:
    """A CLIP text encoder: `CLIPTextModel` or `CLIPTextModelWithProjection`."""
    import transformers

    end = clip_tokenizer().convert_tokens_to_ids("<|endoftext|>")
    settings = {
        "vocab_size": len(clip_tokenizer()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
        **changes,
    }
    return vary(getattr(transformers, kind)(transformers.CLIPTextConfig(**settings)))


def t5(width: int = 64) -> Any:
    from transformers import T5Config, T5EncoderModel

    return vary(
        T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer()),
                d_model=width,
                d_kv=8,
                d_ff=2 * width,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
    )


def gemma(width: int = 32) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return vary(
        Gemma2Model(
            Gemma2Config(
                vocab_size=len(gemma_tokenizer()),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                initializer_range=width**-0.5,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
            )
        )
    )


def qwen3(width: int, layers: int, kind: str = "Qwen3ForCausalLM") -> Any:
    import transformers

    settings = transformers.Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=width**-0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=qwen_tokenizer().eos_token_id,
        pad_token_id=qwen_tokenizer().pad_token_id,
    )
    return vary(getattr(transformers, kind)(settings))


def qwen_vl(width: int = 32) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = qwen_tokenizer().convert_tokens_to_ids
    settings = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(qwen_tokenizer()),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": width**-0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": qwen_tokenizer().eos_token_id,
            "pad_token_id": qwen_tokenizer().pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "initializer_range": 32**-0.5,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return vary(Qwen2_5_VLForConditionalGeneration(settings))


@functools.cache
def qwen_processor() -> Any:
    """A Qwen2VLProcessor for pictures alone: transformers' own needs torchvision for the films it could also read.

    It is saved as the published ones are, so with torchvision the folder loads into transformers' own class.
    Without, hand `qwen_processor()` or `type(qwen_processor()).from_pretrained(folder)` to the pipeline.
    """
    from transformers import ProcessorMixin, Qwen2VLImageProcessorPil
    from transformers import Qwen2VLProcessor as Whole

    class Qwen2VLProcessor(Whole):  # type: ignore[misc]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
            self.tokenizer.save_pretrained(save_directory)
            self.image_processor.save_pretrained(save_directory)
            film = {"video_processor_type": "Qwen2VLVideoProcessor", "size": dict(self.image_processor.size)}
            Path(save_directory, "video_preprocessor_config.json").write_text(json.dumps(film))

    Qwen2VLProcessor.__module__ = Whole.__module__  # what diffusers writes to model_index.json
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    return Qwen2VLProcessor(pictures, qwen_tokenizer())


def autoencoder(channels: int = 4, **changes: Any) -> Any:
    """An AutoencoderKL that divides both sides by eight."""
    from diffusers import AutoencoderKL

    settings = {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        **changes,
    }
    return loud(vary(AutoencoderKL(**settings), GAIN))


def loud(vae: Any) -> Any:
    """Makes what the autoencoder reads from a picture as strong as the noise it is mixed with."""
    import torch

    with torch.no_grad():
        vae.encoder.conv_out.weight.mul_(3)
    return vae


def flow_autoencoder(channels: int = 16) -> Any:
    """As SD3, FLUX.1 and Z-Image have it: a shift factor, no quant convolutions."""
    return autoencoder(
        channels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )
