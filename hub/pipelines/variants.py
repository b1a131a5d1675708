"""Which files a component's weights are read from: those of the manifest's `pipeline.variant` (fp16 …) where its
folder has any, else the plain ones. Told by names alone, without torch: the API process asks, too.

    diffusion_pytorch_model.safetensors           diffusion_pytorch_model.fp16.safetensors
    model-00001-of-00002.safetensors              model.fp16-00001-of-00002.safetensors
    model.safetensors.index.json                  model.safetensors.index.fp16.json

and as they were once written, model-00001-of-00002.fp16.safetensors and model.safetensors.fp16.index.json.
"""

from __future__ import annotations

import re
from pathlib import Path

SUFFIX = ".safetensors"
SHARD = r"-\d{5}-of-\d{5}"


def variant_of(name: str) -> str | None:
    """The variant that a safetensors file is of, by its name; None for plain ones, and for names of another kind."""
    stem = name.removesuffix(SUFFIX)
    found = re.fullmatch(rf"[^.]+\.([A-Za-z0-9_-]+?)(?:{SHARD})?", stem)
    return found[1] if found and stem != name else None


def is_plain(name: str) -> bool:
    """Whether a safetensors file is of no variant (`model.fp16.safetensors` is)."""
    return name.endswith(SUFFIX) and "." not in name.removesuffix(SUFFIX)


def plain_weights(part: Path) -> list[Path]:
    """A component's safetensors without variants of them."""
    return [file for file in sorted(part.glob(f"*{SUFFIX}")) if is_plain(file.name)]


def variant_weights(part: Path, variant: str | None) -> list[Path]:
    """A component's safetensors of a variant."""
    return [file for file in sorted(part.glob(f"*{SUFFIX}")) if variant and variant_of(file.name) == variant]


def weights_in(part: Path, variant: str | None = None) -> list[Path]:
    """The safetensors that a component is read from."""
    return variant_weights(part, variant) or plain_weights(part)


def read_variant(part: Path, variant: str | None) -> str | None:
    """The variant in which a component is read: None where it has no such files."""
    return variant if variant_weights(part, variant) else None


def indices_in(part: Path, variant: str | None = None) -> list[Path]:
    """The indices of shards that belong to what is read, the usual form first."""
    if read_variant(part, variant) is None:
        return [index for index in sorted(part.glob(f"*{SUFFIX}.index.json")) if index.name.count(".") == 3]
    return [
        *sorted(part.glob(f"*{SUFFIX}.index.{variant}.json")),
        *sorted(part.glob(f"*{SUFFIX}.{variant}.index.json")),
    ]


def old_index(part: Path, variant: str | None) -> Path | None:
    """An index in the form that diffusers wrote once and transformers never read, where there is no other."""
    indices = indices_in(part, variant)
    old = indices and indices[0].name.endswith(f"{SUFFIX}.{variant}.index.json")
    return indices[0] if old else None
