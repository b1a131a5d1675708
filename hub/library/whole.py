"""Whether what lies in a folder or file is a whole model that may be added: looked at file by file, before anything is
copied or written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from hub.errors import HubError, ModelRefused
from hub.library.contents import INDEX, PICKLES, check_file, shown
from hub.library.layout import Weights, files_below
from hub.library.parts import components_in, has_weights, lacks, lacks_beside, told
from hub.manifest import ModelManifest
from hub.pipelines.headers import Damaged, Tensor, read_safetensors
from hub.pipelines.kinds import family_by_name, family_of_file, is_held, is_lora, misfit
from hub.pipelines.suggested import read_folder
from hub.pipelines.variants import variant_of, variant_weights, weights_in


class Whole(Struct, frozen=True):
    """A model that was found to be whole: its kept files and its weights, by names relative to its folder, the folder
    of configurations where it is a single file, and what its owner should know."""

    files: dict[str, Path]
    weights: dict[str, Path]
    config: Path | None = None
    variant: str | None = None
    notes: tuple[str, ...] = ()


def refuse_place(place: Path, weights: Weights) -> None:
    """What cannot be a model by where it lies or what it is called."""
    called = shown(place.name)
    try:
        str(place).encode()
    except UnicodeEncodeError:
        raise ModelRefused("Its path is not text in UTF-8, which a manifest has to be; rename it.") from None
    if not place.exists():
        raise ModelRefused(f"There is no file or folder {called}.")
    real, root = place.resolve(), weights.root.resolve()
    if real.is_relative_to(root) and "blobs" in real.relative_to(root).parts and place.absolute() == real:
        raise ModelRefused(f"{called} lies among the blobs of weights_dir; add the snapshot's folder that links to it.")
    if place.is_dir():
        return
    if place.suffix == ".gguf":
        words = "is a GGUF file, which holds one component alone: name it under [components] in its model's manifest"
        raise ModelRefused(f"{called} {words}.")
    if place.suffix in PICKLES:
        raise ModelRefused(f"{called} is a pickle, which is never read; convert it to safetensors.")
    if place.suffix != ".safetensors" or not place.is_file():
        raise ModelRefused(f"{called} is neither a diffusers folder nor a .safetensors file.")


def look_at_folder(folder: Path, variant: str | None) -> Whole:
    """Raises ModelRefused for a folder that is no model, that lacks something, or has what no model may have."""
    if not (folder / INDEX).is_file():
        raise ModelRefused(f"{shown(folder.name)} has no {INDEX}{_what_it_is(folder)}.")
    components = components_in(folder)
    files = _all_files(folder, components)
    for path, file in files.items():
        check_file(file, path)
    notes = []
    missing = lacks(folder, variant)
    if variant is not None and not any(variant_weights(folder / name, variant) for name in components):
        raise ModelRefused(f"No component of {shown(folder.name)} has weights of the variant '{shown(variant)}'.")
    if missing and variant is None:
        for other in sorted({found for path in files if (found := variant_of(Path(path).name))}):
            if not lacks(folder, other):
                notes.append(f"Its plain weights are not all there; the variant {other} is.")
                variant, missing = other, []
                break
    if missing:
        raise ModelRefused(told("The model is incomplete", missing))
    if code := sorted(file.name for file in folder.glob("*.py")):
        notes.append(f"{shown(code[0])} is code, which is never run; the model does not ask for it.")
    # As the engine finds them, which wants all in the table.
    weights = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.safetensors"))}
    for path, file in weights.items():
        check_file(file, path)
    return Whole(files, weights, variant=variant, notes=tuple(notes))


def _all_files(folder: Path, components: Iterable[str]) -> dict[str, Path]:
    """The kept files, and those of components whose folders are links."""
    files = files_below(folder)
    for name in components:
        if (folder / name).is_symlink():
            files |= {f"{name}/{path}": file for path, file in files_below(folder / name).items()}
    return files


def _what_it_is(folder: Path) -> str:
    """Words that help who named the wrong folder."""
    names = {entry.name for entry in os.scandir(folder)}
    inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and (Path(entry) / INDEX).is_file())
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if inner:
        return f"; that of a model lies in its folder {shown(inner[0])}"
    if {"blobs", "snapshots"} <= names:
        return "; it is a repository of Hugging Face's cache: add the folder of a snapshot in it"
    if "adapter_config.json" in names or (files and _is_lora(folder / files[0])):
        return "; it looks like a LoRA, which belongs into loras_dir"
    if "config.json" in names:
        return "; it looks like one component of a model: name it under [components] in its model's manifest"
    if files:
        return f"; it holds single files: add one of them, such as {shown(files[0])}"
    if any(Path(name).suffix in PICKLES for name in names):
        return "; it holds pickles, which are never read: convert the model to safetensors"
    return ", which every diffusers folder has"


def _is_lora(file: Path) -> bool:
    try:
        return is_lora(read_safetensors(file))
    except (Damaged, OSError):
        return False


def look_at_file(
    file: Path, config: Path | str | None, variant: str | None, known: Mapping[str, ModelManifest]
) -> Whole:
    """Raises ModelRefused for a file that is no model, and where no configurations go with it."""
    called = shown(file.name)
    check_file(file, file.name)
    tensors = read_safetensors(file)
    if is_lora(tensors):
        words = "is a LoRA, which changes a model and is none: put it into loras_dir (`hub loras list` tells which)"
        raise ModelRefused(f"{called} {words}.")
    family = family_of_file(tensors)
    if family is None:
        words = "is no checkpoint of a kind that is known. A file with one component alone goes under [components] in"
        raise ModelRefused(f"{called} {words} its model's manifest; of other models add the diffusers folder.")
    notes = []
    if config is None:
        model, folder = _known_folder(file, family, tensors, variant, known)
        notes.append(f"Configurations and tokenizers come from {model}, which is of the same family ({family}).")
    else:
        folder = _folder_of(config, known)
        if why := _unfit(folder, family, tensors, variant):
            raise ModelRefused(f"{called} and the configurations do not go together: {why}.")
    files = {f"{folder.name}/{path}": each for path, each in _all_files(folder, ()).items() if path.endswith(".json")}
    for path, each in files.items():
        check_file(each, path)
    weights = {file.name: file}
    for name, (_, cls) in components_in(folder).items():
        if has_weights(cls) and not is_held(name, cls, tensors) and weights_in(folder / name, variant):
            for each in sorted((folder / name).rglob("*.safetensors")):
                weights[Path(os.path.relpath(each, file.parent)).as_posix()] = each
                check_file(each, f"{name}/{each.name}")
    return Whole({file.name: file}, weights, config=folder, variant=variant, notes=tuple(notes))


def _folder_of(config: Path | str, known: Mapping[str, ModelManifest]) -> Path:
    """What `config` names: a model, or else a folder."""
    if str(config) in known:
        return Path(known[str(config)].folder)
    folder = Path(os.path.normpath(Path(config).expanduser().absolute()))
    if not (folder / INDEX).is_file():
        words = "is neither the id of a model nor a diffusers folder (with model_index.json)"
        raise ModelRefused(f"config: {shown(folder.name)} {words}.", param="config")
    return folder


def _known_folder(
    file: Path,
    family: str,
    tensors: Mapping[str, Tensor],
    variant: str | None,
    known: Mapping[str, ModelManifest],
) -> tuple[str, Path]:
    """The first model whose configurations suit, and their folder; raises ModelRefused that says what to do."""
    nearly = None
    for model, manifest in known.items():
        folder = Path(manifest.folder)
        if family_by_name(read_folder(folder).cls) != family:
            continue
        why = _unfit(folder, family, tensors, variant)
        if why is None:
            return model, folder
        nearly = nearly or f" Of {model} they do not suit: {why}."
    raise ModelRefused(
        f"{shown(file.name)} is a checkpoint for {family} pipelines. It has neither configurations nor tokenizers, and "
        f"no model that is here has ones that suit.{nearly or ''} Fetch one of the same kind (`hub models pull REPO`), "
        "or name a diffusers folder with --config; its weights are not needed.",
        param="config",
    )


def _unfit(folder: Path, family: str, tensors: Mapping[str, Tensor], variant: str | None) -> str | None:
    """Why a folder's configurations do not suit a checkpoint; None where they do."""
    found = read_folder(folder)
    if family_by_name(found.cls) != family:
        return f"the file is for {family} pipelines, and the folder one of a {shown(found.cls) or 'broken model'}"
    if words := misfit(tensors, found.denoiser):
        return f"the file has {words}"
    try:
        missing = lacks_beside(folder, tensors, variant)
    except HubError as error:
        return error.message.rstrip(".")
    return told("neither has all", missing).rstrip(".") if missing else None
