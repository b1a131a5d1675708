"""Reading a folder of manifests, its ready-made ones, and its aliases; and whether weights are there."""

from __future__ import annotations

import fnmatch
import json
import os
import tomllib
from collections.abc import Collection
from pathlib import Path

import msgspec

from hub.errors import ConfigurationError
from hub.manifest import COMPONENT_FILES, AnyManifest, ModelId, ModelManifest, kind_of
from hub.registry.words import in_words
from hub.vocabulary import read_vocabulary

ALIASES = "aliases.toml"
"""In a folder of manifests: further names, as `hub models alias` writes them."""
REMOTE = "remote"
"""In a folder of manifests: ready-made ones of remote models, of which those count that the owner has chosen."""


def read_manifest(source: Path, weights_dir: Path | None = None) -> AnyManifest:
    """Reads one manifest and makes its paths absolute; raises ConfigurationError that names the file and the field.

    Whether the weights are there, `absence` tells: a disk that is not mounted is no reason not to start.
    """
    kind: type[AnyManifest] | None = None
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
        kind = kind_of(values)
        manifest: AnyManifest = msgspec.convert(values, kind)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{source}: {in_words(error, kind)}") from None
    if isinstance(manifest, ModelManifest):
        _place(source, manifest, weights_dir or Path("weights"))
    return manifest


def _place(source: Path, manifest: ModelManifest, weights_dir: Path) -> None:
    """Makes the paths of weights absolute, in place; raises ConfigurationError for those that do not go together."""
    pipeline, lossy, base = manifest.pipeline, manifest.lossy, source.parent
    if manifest.source is not None:
        base = manifest.source.folder_in(weights_dir.absolute())
        manifest.path = str(base / (manifest.source.file or ""))
    else:
        manifest.path = _absolute(base, manifest.path)
    if manifest.is_single_file and pipeline.config is None:
        raise ConfigurationError(
            f"{source}: pipeline.config: {Path(manifest.path).name} is a single file, without configurations and "
            "tokenizers. Set it to a diffusers folder of the same kind of model, which has these; its weights are not "
            "needed."
        )
    if not manifest.is_single_file and pipeline.config is not None:
        raise ConfigurationError(f"{source}: pipeline.config is for a `path` that is a single .safetensors file.")
    if pipeline.config is not None:
        pipeline.config = _absolute(base, pipeline.config)
    if lossy.vae is not None:
        lossy.vae = _absolute(base, lossy.vae)
    for name, place in manifest.components.items():
        manifest.components[name] = _absolute(base, place)


def _absolute(base: Path, place: str) -> str:
    """Links are not followed: in Hugging Face's cache they have the names, and what they lead to has none."""
    return os.path.normpath(base.absolute() / place)


def absence(manifest: ModelManifest) -> str | None:
    """What of a model's weights is not in its place, for the owner: field, path, and what to do; None where all is.
    Cheap: contents are not looked at. The manifest's paths are absolute."""
    try:
        return _absence(manifest)
    except OSError as error:  # a folder that may not be read, a share that went away
        return f"{'path' if manifest.source is None else 'source'}: {manifest.path} cannot be read: {error.strerror}."


def _absence(manifest: ModelManifest) -> str | None:
    single, folder = manifest.is_single_file, Path(manifest.folder)
    if single and not Path(manifest.path).is_file():
        return f"path: there is no file {manifest.path}. Put it there, or correct `path`."
    if not (folder / "model_index.json").is_file():
        if manifest.source is None:
            return (
                f"{'pipeline.config' if single else 'path'}: {folder} is not a diffusers folder "
                "(it has no model_index.json). Put the model there, correct the path, or remove the manifest."
            )
        if manifest.source.kind == "local":
            return f"source: its weights are not in {folder}. Import or add the model again."
        return f"source: its weights are not in {folder}. Fetch them with `hub models pull {manifest.id}`."
    for name, place in manifest.components.items():
        found = Path(place)
        if not (found / "config.json").is_file() and not (found.suffix in COMPONENT_FILES and found.is_file()):
            return (
                f"components.{name}: {found} is neither a .safetensors or .gguf file nor a folder with a config.json. "
                "Put the component there, correct the path, or remove it."
            )
    if manifest.lossy.vae is not None and _class_in(Path(manifest.lossy.vae)) != "AutoencoderTiny":
        return (
            f"lossy.vae: {manifest.lossy.vae} is not the folder of an AutoencoderTiny (its config.json says so). "
            "Put the decoder there, correct `lossy.vae`, or remove it."
        )
    if manifest.vocabulary_file is not None:
        try:
            read_vocabulary(manifest.vocabulary_file)
        except (OSError, ValueError):
            return (
                f"vocabulary: {manifest.vocabulary_file} is missing or no list of words. "
                "Put it there, correct `vocabulary`, or remove it."
            )
    return None


def _class_in(folder: Path) -> object:
    """The class of a diffusers model, as its folder has it; None where it tells none."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes())).get("_class_name")
    except (OSError, ValueError, TypeError):
        return None


def manifests_in(folder: Path) -> list[Path]:
    """The files with manifests in a folder, by name. The settings may lie there, too."""
    return sorted(file for file in folder.glob("*.toml") if file.name not in ("hub.toml", ALIASES))


def read_aliases(folder: Path) -> dict[str, str]:
    """The folder's own aliases; raises ConfigurationError."""
    source = folder / ALIASES
    try:
        return msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), dict[ModelId, ModelId])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{source}: {error}") from None


def ready_made_in(folder: Path) -> list[Path]:
    """The files with ready-made manifests of remote models in a folder of manifests, by name."""
    return sorted((folder / REMOTE).glob("*.toml"))


def named(model: str, remote_models: Collection[str]) -> bool:
    """Whether one of the ids and patterns means this model."""
    return any(fnmatch.fnmatchcase(model, each) for each in remote_models)
