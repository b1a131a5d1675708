"""Which modules of two models are one and the same, so that it is loaded once.

A text encoder or a VAE often is: fine-tunes of a model differ in the denoiser alone. Equal are modules with the same
weights, configuration and class, loaded in the same type for the same use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.pipelines.variants import read_variant
from hub.pipelines.weights import weights_hash


def identities(
    path: str, dtype: str, uses: Mapping[str, str], hashes: Path | None, variant: str | None = None
) -> dict[str, str]:
    """By the names of components with weights, a digest of what decides how they behave; of another folder's equal
    one it is equal. `uses` tells of some how the model's manifest has them used; for `variant` see `variants`, and for
    `hashes` `weights_hash`."""
    found = {}
    for name, (library, class_name) in _components(path).items():
        folder = Path(path, name)
        if not any(folder.glob("*.safetensors")):
            continue
        told = (library, class_name, dtype, uses.get(name, ""), weights_hash((str(folder),), hashes, variant=variant))
        digest = hashlib.sha256(f"{told} {read_variant(folder, variant) or ''}\n".encode())
        digest.update((folder / "config.json").read_bytes())
        if name == "vae":  # some pipelines have it kept in float32
            digest.update(_class_name(path).encode())
        found[name] = digest.hexdigest()
    return found


def _class_name(path: str) -> str:
    return str(_index(path).get("_class_name"))


def _index(path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(path, "model_index.json").read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # loading it will tell
        return {}


def _components(path: str) -> dict[str, tuple[str, str]]:
    """Library and class by name, of all that model_index.json has."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in _index(path).items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
    }
