"""Which parts of a diffusers folder are missing. A placeholder."""

from __future__ import annotations

import json
from pathlib import Path

INDEX = "model_index.json"


def missing_parts(folder: Path, variant: str | None) -> list[str]:
    """Names relative to the folder."""
    index = json.loads((folder / INDEX).read_bytes())
    missing: list[str] = []
    for name, value in index.items():
        if not isinstance(value, list) or None in value or len(value) != 2:
            continue
        at = folder / name
        if not at.is_dir():
            missing.append(name)
        elif "Tokenizer" in value[1]:
            lacking = not any((at / each).is_file() for each in ("tokenizer.json", "vocab.json", "spiece.model"))
            missing += [f"{name}/tokenizer.json"] if lacking else []
        elif "Scheduler" not in value[1] and (at / "config.json").is_file():
            missing += [f"{name}/{each}" for each in _weights(at, variant)]
        elif not list(at.glob("*config.json")):
            missing.append(f"{name}/config.json")
    return missing


def _weights(at: Path, variant: str | None) -> list[str]:
    shards: set[str] = set()
    for index in at.glob("*.safetensors.index.json"):
        shards |= set(json.loads(index.read_bytes())["weight_map"].values())
    if shards:
        return sorted(shard for shard in shards if not (at / shard).is_file())
    middle = f".{variant}" if variant else ""
    name = "diffusion_pytorch_model" if not list(at.glob("model.*")) else "model"
    return [] if list(at.glob(f"*{middle}.safetensors")) else [f"{name}{middle}.safetensors"]
