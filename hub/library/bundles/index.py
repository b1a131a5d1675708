"""What a bundle says of itself, bundle.json: written by exports, and believed by imports only after every check here.

All that a bundle carries hangs on it by SHA-256s, so that one signature over it is one over everything.
"""

from __future__ import annotations

import posixpath
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hub.errors import ModelRefused
from hub.library.contents import INDEX, check_file, check_path, is_kept, is_weights, shown
from hub.library.layout import local_source
from hub.manifest import COMPONENT_FILES, ModelId, ModelManifest, Sha256, SourceSection
from hub.pipelines.headers import PICKLES, Damaged, read_gguf

FORMAT = 1
GGUF = ".gguf"
ANY_GGUF_TYPE = dict.fromkeys(range(256), (1, 0))
"""Blocks of no bytes: what a tensor of each type takes only the library knows, which looks when it is loaded."""


class BundledFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a model: its name within the model's folder, its bytes, and by which blob it is carried."""

    path: str
    size: Annotated[int, Meta(ge=0, le=1 << 60)]
    sha256: Sha256


class BundledModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model: its manifest as the text of a TOML file, and the files of its snapshot."""

    id: ModelId
    manifest: str
    source: SourceSection
    files: Annotated[tuple[BundledFile, ...], Meta(min_length=1)]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256s by names."""
        return {file.path: file.sha256 for file in self.files}

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum({file.sha256: file.size for file in self.files}.values())


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """bundle.json. `created`: UTC, ISO 8601; `hub`: the version that wrote it."""

    format: int
    hub: str
    created: str
    models: Annotated[tuple[BundledModel, ...], Meta(min_length=1)]

    @property
    def blobs(self) -> dict[str, int]:
        """What is carried: sizes by SHA-256s, each once. Small ones come first, so that a configuration which is
        refused is met before gigabytes of weights."""
        sizes = {file.sha256: file.size for model in self.models for file in model.files}
        return dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))


class _Version(Struct):
    format: int


def read_index(raw: bytes) -> tuple[Index, dict[str, ModelManifest]]:
    """Checks everything that can be checked without the files, and gives the manifests by ids, too; raises
    ModelRefused."""
    try:
        version = msgspec.json.decode(raw, type=_Version).format
        if version != FORMAT:
            raise ModelRefused(
                f"The bundle has format {version}, and this hub reads {FORMAT}: use the hub that wrote it."
            )
        index = msgspec.json.decode(raw, type=Index, strict=True)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"bundle.json is broken, or not one: {shown(str(error))}.") from None
    _check_texts(index)
    sizes: dict[str, int] = {}
    manifests: dict[str, ModelManifest] = {}
    for model in index.models:
        if model.id in manifests:
            raise ModelRefused(f"The bundle has the model '{model.id}' twice.")
        for file in model.files:
            if sizes.setdefault(file.sha256, file.size) != file.size:
                raise ModelRefused(f"'{shown(file.path)}' of '{model.id}' has two sizes in bundle.json.")
        manifests[model.id] = _check_model(model)
    _check_shared(index)
    return index, manifests


def _check_shared(index: Index) -> None:
    """Models of one source have one folder: what each has in it is the same for all."""
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for model in index.models:
        files = seen.setdefault((model.source.repo, model.source.revision), {})
        for path, digest in model.digests.items():
            if files.setdefault(path, digest) != digest:
                raise ModelRefused(f"Two models of the bundle have one source, and two different {shown(path)} in it.")
        check_names(files, [path for path in files if path.endswith(GGUF)])


def _check_texts(index: Index) -> None:
    """Patterns that end with `$` let a line's end pass; no name that is made of these may have one."""
    for model in index.models:
        source = model.source
        names = [model.id, source.repo, source.revision, source.file or "", *(file.sha256 for file in model.files)]
        if not all(name.isprintable() for name in [*names, index.hub, index.created]):
            raise ModelRefused(f"bundle.json has control characters in the names of '{shown(model.id)}'.")


def _check_model(model: BundledModel) -> ModelManifest:
    """Its manifest, which fits its files."""
    try:
        manifest = msgspec.convert(tomllib.loads(model.manifest), ModelManifest)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"The manifest of '{model.id}' is not one: {shown(str(error))}.") from None
    if manifest.id != model.id or manifest.source is None or manifest.source != model.source:
        raise ModelRefused(f"The manifest of '{model.id}' says otherwise than bundle.json, which model it is.")
    if not all(alias.isprintable() for alias in manifest.aliases):
        raise ModelRefused(f"The manifest of '{model.id}' has control characters in its aliases.")
    digests = model.digests
    gguf = {place for place in manifest.components.values() if place.endswith(GGUF)}
    check_names([file.path for file in model.files], gguf)
    if model.source.kind == "local":
        named = local_source(model.id, digests)
        if (named.repo, named.revision) != (model.source.repo, model.source.revision):
            raise ModelRefused(f"The source of '{model.id}' is not what its files say.")
    _check_places(manifest, digests)
    for name, digest in manifest.sha256.items():
        path = posixpath.normpath(posixpath.join(posixpath.dirname(model.source.file or ""), name))
        if digests.get(path) != digest:
            raise ModelRefused(f"The table sha256 of '{model.id}' says of '{shown(name)}' what its files do not.")
    return manifest


def check_names(paths: Collection[str], gguf: Collection[str] = ()) -> None:
    """Raises ModelRefused for file names that one model may not have. On some file systems case does not count."""
    seen: set[str] = set()
    for path in paths:
        check_path(path)
        if not is_kept(path) and path not in gguf:
            raise ModelRefused(f"'{shown(path)}' is no kind of file that a model may have.")
        if path.casefold() in seen:
            raise ModelRefused(f"'{shown(path)}' is there twice.")
        seen.add(path.casefold())
    for path in seen:
        if inside := next((folder for folder in _folders_of(path) if folder in seen), None):
            raise ModelRefused(f"'{shown(inside)}' would be a file and a folder.")


def _folders_of(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _check_places(manifest: ModelManifest, files: Collection[str]) -> None:
    """All that a manifest names lies within its snapshot, and is there; raises ModelRefused."""
    source, config = manifest.source, manifest.pipeline.config
    single = source.file if source else None
    if (single is None) != (config is None):
        raise ModelRefused(f"The manifest of '{manifest.id}' needs both source.file and pipeline.config, or none.")
    wanted = {"source.file": [single] if single else [], "pipeline.config": [_under(config or ".", INDEX)]}
    if manifest.lossy.vae is not None:
        wanted["lossy.vae"] = [_under(manifest.lossy.vae, "config.json")]
    if manifest.vocabulary is not None:
        wanted["vocabulary"] = [_under(config or ".", manifest.vocabulary)]
    for name, place in manifest.components.items():
        file = [place] if place.endswith(COMPONENT_FILES) else []
        wanted[f"components.{name}"] = [*file, _under(place, "config.json")]
    for field, places in wanted.items():
        for place in places[:1]:
            check_path(place)
        if places and not any(place in files for place in places):
            raise ModelRefused(f"The bundle lacks '{shown(places[0])}', which {field} of '{manifest.id}' needs.")


def _under(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def replaced_in(manifest: ModelManifest) -> set[str]:
    """The components of which its folder need not have all: others take their places."""
    vae = manifest.lossy.vae is not None and manifest.pipeline.config is not None  # as trees leave it out
    return {*manifest.components, *(["vae"] if vae else [])}


def check_content(file: Path, path: str) -> None:
    """Raises ModelRefused for a file that no model may have, by what it holds."""
    check_file(file, path)
    try:
        if path.endswith(GGUF):
            read_gguf(file, ANY_GGUF_TYPE)
        elif not is_weights(path):
            with file.open("rb") as stream:
                if stream.read(4).startswith(PICKLES):
                    raise Damaged("is a pickle under another name, which is never read")
    except Damaged as error:
        raise ModelRefused(f"{shown(path)} {error}.") from None
    except OSError:
        raise ModelRefused(f"{shown(path)} cannot be read.") from None
