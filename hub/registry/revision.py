"""A model's revision: what may change its pictures, in one digest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hub import __version__
from hub.manifest import AnyManifest, ModelManifest

HUB = Path(__file__).parents[1]
"""The folder of the hub's own code."""


def revision_of(source: Path, manifest: AnyManifest) -> str:
    """A digest of the manifest's bytes, the names, sizes and times of all files of the model's folders, and what draws
    with them. Cheap: the weights themselves are not read."""
    digest = hashlib.sha256(drawn_by().encode())
    with contextlib.suppress(FileNotFoundError):  # removed just now: the next look will tell
        digest.update(source.read_bytes())
    if not isinstance(manifest, ModelManifest):
        return digest.hexdigest()
    further = (manifest.pipeline.config, manifest.lossy.vae, *manifest.components.values())
    for place in filter(None, (manifest.path, *further)):
        for line in _files_of(Path(place)):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


@functools.cache
def drawn_by() -> str:
    """What may change a picture beside the model: the hub, also while it is worked on, and the libraries."""
    libraries = []
    for name in ("torch", "diffusers", "transformers"):
        with contextlib.suppress(PackageNotFoundError):  # some come without their papers
            libraries.append(f"{name} {version(name)}")
    own = [line for line in _files_of(HUB) if line.partition("\t")[0].endswith(".py")]
    return "\n".join([f"hub {__version__}", *libraries, *own])


def _files_of(folder: Path) -> list[str]:
    """Name, size and time of every file below the folder, sorted; of a file its own. Links are followed, as those who
    load the model do; what cannot be read has a name only."""
    if folder.is_file():
        return [_line(folder, folder.name)]
    found, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:  # a link that leads upwards
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            path = Path(at, name)
            found.append(_line(path, str(path.relative_to(folder))))
    return sorted(found)


def _line(path: Path, name: str) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{name}\t"
    return f"{name}\t{status.st_size}\t{status.st_mtime_ns}"
