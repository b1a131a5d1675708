"""Models in a weights folder, as a pull leaves them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from hub.library.layout import Weights, files_below
from hub.library.places import Places
from hub.manifest import SourceSection
from hub.settings import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD = 1_600_000_000


def shelve(model: Path, root: Path, repo: str = "org/small", revision: str = COMMIT) -> SourceSection:
    """Copies a diffusers folder into a weights folder, and says where it is."""
    source, weights = SourceSection(repo=repo, revision=revision), Weights(root)
    digests = {}
    for path, file in files_below(model).items():
        digests[path] = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = weights.blob(repo, digests[path])
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            shutil.copyfile(file, blob)
    weights.link_all(source, digests)
    return source


def write_shelved(folder: Path, source: SourceSection, model_id: str = "small", **more: str) -> Path:
    """The manifest of a model in the weights folder, for a 64x64 model."""
    lines = {
        "id": f'id = "{model_id}"',
        "name": 'name = "Small"',
        "description": 'description = "random weights"',
        "license": 'license = "Apache-2.0"',
        "source": f'source = {{ kind = "{source.kind}", repo = "{source.repo}", revision = "{source.revision}" }}',
        "tasks": 'tasks = ["text-to-image"]',
        "dtype": 'dtype = "float32"',
        "size": "size = { native = '64x64', multiple = 8, min = 32, max = 128 }",
        "defaults": "defaults = { num_inference_steps = 2, guidance_scale = 5.0, size = '64x64' }",
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{model_id.replace('/', '--')}.toml"
    file.write_text("\n".join(lines.values()) + "\n")
    return file


def places_in(folder: Path) -> Places:
    """Those of a hub with its models and its cache below a folder."""
    (folder / "models").mkdir(exist_ok=True)
    return Places.of(Settings(models_dir=folder / "models", cache_dir=folder / "cache"))


def in_folder(file: Path, path: Path, *more: str) -> Path:
    """Has a manifest's model lie in a folder of its owner's, with more lines of tables."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("source")]
    file.write_text("\n".join([*lines, f'path = "{path}"', *more]) + "\n")
    return file


def age(folder: Path) -> None:
    """As if all of it had been there for years."""
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def everything(folder: Path) -> list[str]:
    """All names below, but those of locks and of what hubs tell each other."""
    paths = (path for path in folder.rglob("*") if not {".locks", ".hubs"} & set(path.parts))
    return sorted(str(path.relative_to(folder)) for path in paths)


def most_fetched(blobs: Path) -> int:
    """Bytes of the largest file that is being fetched; such files get other names at any moment."""
    sizes = [0]
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return max(sizes)
