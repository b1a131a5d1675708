"""Which files of a model are kept, and what is refused of them before anything is fetched, copied or read in.

What is pulled, added, carried and read in is the same: safetensors, configurations, tokenizers and papers (licence,
model card). Nothing here needs torch, and nothing is executed by looking.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from hub.errors import ModelRefused
from hub.pipelines import Unsupported
from hub.pipelines.foreign import refuse_code
from hub.pipelines.headers import Damaged, read_safetensors

WEIGHTS = (".safetensors",)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Never read, whatever is in them."""
CONFIGS = (".json", ".txt", ".model", ".jinja")
PAPERS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|README|USE_POLICY)[A-Za-z0-9._-]{0,40}", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MAX_DEPTH = 4
MAX_CONFIG = 64 << 20
"""Bytes: tokenizers of 250,000 words take 20 MB."""
INDEX = "model_index.json"


def shown(text: str) -> str:
    """A foreign name as an error may repeat it."""
    return re.sub(r"[^ -~]", "?", text[:100])


def is_plain_path(path: str) -> bool:
    """Whether a name is a plain relative one, as those of all files that are kept."""
    parts = path.split("/")
    return len(parts) <= MAX_DEPTH and all(NAME.fullmatch(part) and ".." not in part for part in parts)


def check_path(path: str) -> None:
    """Raises ModelRefused for a name that is not a plain relative one: `..`, absolute, hidden, odd letters."""
    if not is_plain_path(path):
        raise ModelRefused(f"'{shown(path)}' is not a file name that a model may have.")


def is_weights(path: str) -> bool:
    """By its name."""
    return path.endswith(WEIGHTS)


def is_kept(path: str) -> bool:
    """Whether a file of this name belongs to what is kept of a model; papers lie at its top."""
    name = PurePosixPath(path).name
    if path.endswith(".py"):
        return False
    return path.endswith((*WEIGHTS, *CONFIGS)) or (name == path and PAPERS.fullmatch(name) is not None)


def read_config(file: Path, path: str) -> Any:
    """A JSON file that may be read by the libraries; raises ModelRefused where it is broken or asks for code. `path`:
    as errors call it."""
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ModelRefused(f"{shown(path)} is too large for a configuration.")
        config = json.loads(file.read_bytes())
        name = PurePosixPath(path).name
        if not isinstance(config, dict) and (name in ("config.json", INDEX) or name.endswith("_config.json")):
            raise ModelRefused(f"{shown(path)} is no configuration: it is not an object of JSON.")
        if name in ("config.json", INDEX):
            refuse_code(config, shown(path))
    except Unsupported as error:
        raise ModelRefused(f"{error}.") from None
    except (OSError, ValueError, RecursionError):
        raise ModelRefused(f"{shown(path)} is missing or broken.") from None
    return config


def check_file(file: Path, path: str) -> None:
    """Raises ModelRefused for a file that no model may have: a broken or poisoned configuration, safetensors that are
    damaged or something else. `path`: relative to the model's folder."""
    if path.endswith(".json"):
        read_config(file, path)
    if is_weights(path):
        try:
            read_safetensors(file)
        except Damaged as error:
            raise ModelRefused(f"{shown(path)} {error}.") from None
        except OSError:
            raise ModelRefused(f"{shown(path)} cannot be read.") from None
