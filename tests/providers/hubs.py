"""Hubs as processes, with remote models that lie on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import tomlkit

from hub.manifest import RemoteManifest


def write(folder: Path, manifests: Mapping[str, RemoteManifest]) -> Path:
    """A folder of manifests, for `models_dir`, with these ids."""
    folder.mkdir(exist_ok=True)
    for number, (name, manifest) in enumerate(manifests.items()):
        told = msgspec.to_builtins(msgspec.structs.replace(manifest, id=name, description="-"))
        (folder / f"{number}.toml").write_text(tomlkit.dumps(_without_none(told)))
    return folder


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value


def credentials(folder: Path, **keys: str) -> Path:
    """A file with a key of each name."""
    file = folder / "credentials.toml"
    file.write_text("".join(f'[{name}]\nkeys = ["{key}"]\n' for name, key in keys.items()))
    file.chmod(0o600)
    return file
