"""One tree of a model's files, wherever they lie, and its manifest as it reads there.

A model whose files all lie in its snapshot is carried as it is. Of others the folder's files come to the top, or the
single file, with its configurations below `config/`; `components/<name>/` and `lossy_vae/` have what the manifest names
elsewhere. What is replaced, and what a single file has itself, is not carried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import tomlkit
from msgspec import Struct, field

from hub.errors import ModelRefused
from hub.library.contents import INDEX, MAX_DEPTH, NAME, PAPERS, check_path, is_kept, is_weights, read_config, shown
from hub.library.layout import Weights, local_source
from hub.library.progress import Note, Report
from hub.manifest import COMPONENT_FILES, ModelManifest, SourceSection
from hub.pipelines.headers import Damaged, read_safetensors
from hub.pipelines.kinds import VAE

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "prior_prior", "decoder")
"""Always in a single file; a test holds this and hub.pipelines.auto together."""
ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder", "text_model.")
"""How tensors of a single file begin that has text encoders in it."""


class Tree(Struct):
    """`files`: where they lie, by their names in the tree. `gathered`: they came from several places, and `places` is
    what the manifest says of these here, by its fields. `exact`: whether it is known that all weights here are read,
    which a table sha256 needs."""

    model: ModelManifest
    files: dict[str, Path] = field(default_factory=dict)
    gathered: bool = True
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    exact: bool = True

    def source(self, digests: Mapping[str, str]) -> SourceSection:
        """Of the manifest in the bundle. digests: SHA-256 by name."""
        kept = None if self.gathered else self.model.source
        if kept is not None and kept.kind != "local":
            return kept
        named = local_source(self.model.id, digests)
        file = kept.file if kept is not None else self.places.get(("source", "file"))
        return SourceSection(kind="local", repo=named.repo, revision=named.revision, file=file)

    def manifest(self, text: str, digests: Mapping[str, str]) -> str:
        """The manifest's text as the bundle has it: the owner's, where nothing must change."""
        source = self.source(digests)
        if source == self.model.source and not self.gathered:
            return text
        document = tomlkit.parse(text)
        document.pop("path", None)
        document.pop("source", None)
        table = tomlkit.table()
        told = {"kind": source.kind, "repo": source.repo, "revision": source.revision, "file": source.file}
        table.update({key: value for key, value in told.items() if value is not None})
        document["source"] = table
        if self.gathered:
            for (section, key), place in self.places.items():
                if section != "source":
                    document[section][key] = place
            document.pop("sha256", None)
            if self.exact:
                named = {path: digest for path, digest in sorted(digests.items()) if path.endswith(COMPONENT_FILES)}
                document["sha256"] = tomlkit.item(named)
        return tomlkit.dumps(document)


def tree_of(model: ModelManifest, weights: Weights, report: Report) -> Tree:
    """The manifest's paths are absolute. Raises ModelRefused for what cannot be carried."""
    places = [model.path, model.pipeline.config, model.lossy.vae, *model.components.values()]
    if model.source is not None:
        snapshot = Path(os.path.normpath(weights.snapshot(model.source).absolute()))
        if all(Path(os.path.normpath(place)).is_relative_to(snapshot) for place in places if place is not None):
            tree = Tree(model, _kept(snapshot, report), gathered=False)
            if model.is_single_file:
                named = {("source", "file"): model.path, ("pipeline", "config"): model.folder}
                tree.places = {key: Path(os.path.relpath(place, snapshot)).as_posix() for key, place in named.items()}
            for place in map(Path, model.components.values()):
                if place.is_file():
                    tree.files[place.relative_to(snapshot).as_posix()] = place
            return tree
    tree = Tree(model)
    if model.is_single_file:
        _add_single(tree, report)
    else:
        _add_folder(tree, report)
    if model.lossy.vae is not None:
        _add_below(tree, ("lossy", "vae"), "lossy_vae", Path(model.lossy.vae), report)
    return tree


def _kept(folder: Path, report: Report) -> dict[str, Path]:
    """What is kept of a folder, by names. Links to folders are followed, as those who load it do; names that no bundle
    may carry are left out, and told."""
    found = {}
    for place in _walk(folder, MAX_DEPTH):
        path = place.relative_to(folder).as_posix()
        if not is_kept(path):
            continue
        try:
            check_path(path)
        except ModelRefused:
            report(Note(message=f"'{shown(path)}' is not carried: a bundle has plainer names."))
        else:
            found[path] = place
    return found


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Files, hidden ones apart; no deeper than names may be, so that no link leads in circles."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        raise ModelRefused(f"The folder '{shown(folder.name)}' cannot be read.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth > 1:
                yield from _walk(folder / entry.name, depth - 1)
        else:
            yield folder / entry.name


def _add_folder(tree: Tree, report: Report) -> None:
    model, folder = tree.model, Path(tree.model.path)
    tree.files = _kept(folder, report)
    for name in model.components:
        own = [path for path in tree.files if path.startswith(f"{name}/") and _is_of_weights(path)]
        for path in own:
            del tree.files[path]
        if own:
            report(
                Note(message=f"The folder's own weights of {name} are not carried: components.{name} replaces them.")
            )
    base = "components"
    while any(path.startswith(f"{base}/") for path in tree.files):
        base += "_"
    for name, place in model.components.items():
        _add_below(tree, ("components", name), f"{base}/{name}", Path(place), report)


def _is_of_weights(path: str) -> bool:
    return is_weights(path) or path.endswith(".safetensors.index.json")


def _add_single(tree: Tree, report: Report) -> None:
    model, file, config = tree.model, Path(tree.model.path), Path(tree.model.folder)
    name = _plain(file.name)
    tree.files[name] = file
    own = _kept(config, report)
    needed = _needed(tree, own, config)
    _merge(tree, "config", {path: place for path, place in own.items() if not _is_of_weights(path) or path in needed})
    tree.places |= {("source", "file"): name, ("pipeline", "config"): "config"}
    for component, place in model.components.items():
        _add_below(tree, ("components", component), f"components/{component}", Path(place), report)


def _needed(tree: Tree, own: Mapping[str, Path], config: Path) -> set[str]:
    """Which weights of a single file's folder of configurations are read, too: those of parts that the file lacks.

    Exactly that only diffusers knows. Where it is not certain, they are carried and no table sha256 is made: it would
    have to name what is read, and nothing else.
    """
    model, file = tree.model, Path(tree.model.path)
    try:
        tensors = read_safetensors(file)
    except (Damaged, OSError):
        raise ModelRefused(f"{shown(file.name)} is damaged, or cannot be read.") from None
    index = read_config(config / INDEX, f"config/{INDEX}")
    parts = {name for name in index if isinstance(index, dict) and not name.startswith("_")}
    parts -= {*DENOISERS, *model.components}
    if model.lossy.vae is not None or any(name.startswith(VAE) for name in tensors):
        parts -= {"vae"}
    left = {path for path in own if _is_of_weights(path) and path.partition("/")[0] in parts}
    if model.sha256:  # made of what is read, and held against it at each load
        named = {os.path.normpath(file.parent / name) for name in model.sha256}
        read = {path for path in left if os.path.normpath(own[path]) in named}
        folders = {path.partition("/")[0] for path in read}
        return {path for path in left if path.partition("/")[0] in folders}
    tree.exact = not left or not any(name.startswith(ENCODERS) for name in tensors)
    return left


def _add_below(tree: Tree, key: tuple[str, str], base: str, place: Path, report: Report) -> None:
    """A file or folder that the manifest names; where it lies in the model's folder, it stays there."""
    folder = Path(tree.model.path)
    if not tree.model.is_single_file and place.is_relative_to(folder):
        inside = place.relative_to(folder).as_posix()
        check_path(inside)
        found = {"": place} if place.is_file() else _kept(place, report)
        tree.files |= {f"{inside}/{path}" if path else inside: file for path, file in found.items()}
        tree.places[key] = inside
    elif place.is_file():
        tree.places[key] = f"{base}/{_plain(place.name)}"
        tree.files[tree.places[key]] = place
    else:
        tree.places[key] = base
        _merge(tree, base, _kept(place, report))


def _merge(tree: Tree, base: str, files: Mapping[str, Path]) -> None:
    """Papers come to the top, as all do, under names that tell whose they are."""
    for path, place in files.items():
        target = f"{base}/{path}"
        if not is_kept(target):
            target = f"{path}.{PurePosixPath(base).name}"[:128]
            if PAPERS.fullmatch(target) is None:
                continue
        tree.files[target] = place


def _plain(name: str) -> str:
    """A file's own name, as a bundle may have it."""
    if NAME.fullmatch(name) and ".." not in name:
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(name).stem).strip("_-")
    return (plain[:100] or "model") + PurePosixPath(name).suffix
