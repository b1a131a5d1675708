"""Configurations that ask for code from elsewhere: refused by whoever reads them, without torch."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from hub.pipelines import Unsupported

FOREIGN_CODE = ("auto_map", "custom_pipeline", "trust_remote_code")
"""What a configuration asks with for code that lies beside it."""


def refuse_code(config: Any, shown: PurePath | str) -> None:
    """Raises Unsupported. Also for parts of a configuration, as transformers nests them."""
    inner = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    if isinstance(config, dict):
        for name in FOREIGN_CODE:
            if config.get(name):
                raise Unsupported(f"{shown} asks for code of its own (`{name}`), and none is run")
        for name, value in config.items():
            if name.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
                raise Unsupported(f"{shown} asks for a kernel from elsewhere (`{name}`), and none is run")
    for each in inner:
        refuse_code(each, shown)
