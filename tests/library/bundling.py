"""Bundles made by hand, and folders as they are, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub.library.bundles import ImportResult, import_bundle
from hub.library.layout import Weights, files_below, local_source
from hub.library.progress import silent
from hub.manifest import ModelManifest, SourceSection
from hub.registry import read_manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safetensors(data: bytes = bytes(64)) -> bytes:
    """A file with one tensor of bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


FILES = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "unet/diffusion_pytorch_model.safetensors": safetensors(),
    "vae/diffusion_pytorch_model.safetensors": safetensors(b"v" * 600),
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "LICENSE.md": b"Take it.",
}


def manifest_text(model: str, source: Mapping[str, Any] | None = None, **changes: str) -> str:
    lines = {
        "id": f"id = {json.dumps(model)}",
        "name": 'name = "Small" # as its owner calls it',
        "description": 'description = "random weights"',
        "license": 'license = "Apache-2.0"',
        "tasks": 'tasks = ["text-to-image"]',
        "dtype": 'dtype = "float32"',
        "size": "size = { native = '64x64', multiple = 8, min = 32, max = 128, max_output = 2048 }",
        "defaults": "defaults = { num_inference_steps = 3, guidance_scale = 5.0, size = '64x64' }",
        **changes,
    }
    if source is not None:
        told = ", ".join(f"{key} = {json.dumps(value)}" for key, value in source.items() if value is not None)
        lines["source"] = f"source = {{ {told} }}"
    return "\n".join(lines.values()) + "\n"


def model_entry(files: Mapping[str, bytes], model: str = "small", /, **changes: Any) -> dict[str, Any]:
    """As bundle.json has a model; of `changes`, `manifest` and `source` replace what would be right."""
    digests = {path: sha256(data) for path, data in files.items()}
    named = local_source(model, digests)
    source = {"kind": "local", "repo": named.repo, "revision": named.revision, **changes.pop("source", {})}
    lines = changes.pop("lines", {})
    return {
        "id": model,
        "manifest": manifest_text(model, source, **lines),
        "source": source,
        "files": [{"path": path, "size": len(data), "sha256": digests[path]} for path, data in files.items()],
        **changes,
    }


def index_of(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = {"format": 1, "hub": "0.1.0", "created": "2026-11-27T00:00:00+00:00", "models": list(models)}
    return {**told, **changes}


def members_of(index: dict[str, Any] | bytes, *files: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    raw = index if isinstance(index, bytes) else json.dumps(index).encode()
    blobs = {f"blobs/{sha256(data)}": data for each in files for data in each.values()}
    return [("bundle.json", raw), *blobs.items()]


def tar_of(members: Sequence[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """By tarfile, which writes what it is told to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.type == tarfile.REGTYPE:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.type == tarfile.REGTYPE else None)
    return buffer.getvalue()


def good(files: Mapping[str, bytes] = FILES, model: str = "small", **changes: Any) -> bytes:
    """A bundle with one model, unless something was changed."""
    return tar_of(members_of(index_of(model_entry(files, model, **changes)), files))


def members_in(bundle: Path) -> list[tuple[str, bytes]]:
    found = []
    with tarfile.open(bundle) as tar:
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            found.append((info.name, stream.read()))
    return found


def tree(*folders: Path) -> dict[str, str | bytes]:
    """All that is in the folders; locks apart, which stay."""
    found: dict[str, str | bytes] = {}
    for folder in folders:
        for place in sorted(folder.rglob("*")):
            if ".locks" in place.parts:
                continue
            if place.is_symlink():
                found[str(place)] = str(place.readlink())
            else:
                found[str(place)] = "folder" if place.is_dir() else place.read_bytes()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name, links followed."""
    return {path: place.read_bytes() for path, place in files_below(folder).items()}


class Machine:
    """One side of the gap: a folder of manifests, and one of weights."""

    def __init__(self, folder: Path) -> None:
        self.models, self.weights = folder / "models", Weights(folder / "weights")
        self.models.mkdir(parents=True)

    def install(self, files: Mapping[str, bytes], model: str = "small", repo: str = "org/small", **lines: str) -> None:
        """As a pull would leave it."""
        source = SourceSection(repo=repo, revision=COMMIT)
        digests = {path: sha256(data) for path, data in files.items()}
        for path, data in files.items():
            blob = self.weights.blob(repo, digests[path])
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
        self.weights.link_all(source, digests)
        self.write(model, manifest_text(model, {"repo": repo, "revision": COMMIT}, **lines))

    def write(self, model: str, text: str) -> None:
        (self.models / f"{model}.toml").write_text(text)

    def read(self, model: str) -> ModelManifest:
        return read_manifest(self.models / f"{model}.toml", self.weights.root)

    def text(self, model: str) -> str:
        return (self.models / f"{model}.toml").read_text()

    def tree(self) -> dict[str, str | bytes]:
        return tree(self.models, self.weights.root)

    def take(self, bundle: Path, **options: Any) -> ImportResult:
        return import_bundle(bundle, self.weights, self.models, options.pop("report", silent), **options)
