"""Adds what lies on this machine: a diffusers folder, or a single file with all of a model. It stays where it is, or is
copied into weights_dir; a manifest is written either way, once everything in it has been looked at.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from hub.errors import ConfigurationError, ModelExists, ModelRefused
from hub.library.copying import copied, hashed
from hub.library.describe import Draft, cleaned, describe, id_of
from hub.library.layout import Weights, local_source
from hub.library.manifests import check_free, check_id, check_writable, write_manifest
from hub.library.progress import Report
from hub.library.whole import Whole, look_at_file, look_at_folder, refuse_place
from hub.library.writing import unwritable
from hub.manifest import ModelManifest
from hub.registry import ListedModel, read_manifest


class Added(Struct, frozen=True):
    """The manifest that was written, its file, sentences about it for its owner, and the fields that were guessed."""

    manifest: ModelManifest
    file: Path
    notes: list[str]
    guessed: list[str]


def add(
    path: Path,
    *,
    id: str | None = None,  # noqa: A002  # as a manifest has it
    name: str | None = None,
    license: str | None = None,  # noqa: A002
    copy: bool = False,
    config: Path | str | None = None,
    variant: str | None = None,
    models: Iterable[ListedModel | ModelManifest],
    weights: Weights,
    manifests_dir: Path,
    report: Report,
) -> Added:
    """Writes the manifest of a folder or file. `models`: those that are known; `config`: for a single file, a folder
    of configurations or the id of one of them. All that can be refused is, before the weights are read.

    Raises ModelRefused for what no model may have or what is incomplete, InvalidRequest, ModelExists, StorageFull.
    """
    place = Path(os.path.normpath(path.expanduser().absolute()))
    known = {each.id: each.manifest if isinstance(each, ListedModel) else each for each in models}
    local = {name: manifest for name, manifest in known.items() if isinstance(manifest, ModelManifest)}
    chosen = id_of(place.name) if id is None else id
    check_id(chosen)
    if chosen in known:
        raise ModelExists(f"There is a model '{chosen}' already. Choose another id with --id.", param="id")
    check_free(manifests_dir, chosen)
    refuse_place(place, weights)
    if config is not None and place.is_dir():
        raise ModelRefused("config: it is for a single file; a diffusers folder has its own.", param="config")
    whole = look_at_folder(place, variant) if place.is_dir() else look_at_file(place, config, variant, local)
    described = functools.partial(
        describe,
        place,
        id=chosen,
        name=name,
        license=license,
        config=str(whole.config) if whole.config else None,
        variant=whole.variant,
    )
    described(source=local_source(chosen, {}) if copy else None)  # a trial, with what does not hang on the weights
    check_writable(manifests_dir)
    made_by = f"hub models add {cleaned(place.name)}{' --copy' if copy else ''}"
    if copy:
        with copied(whole, place, chosen, weights, report) as (source, table):
            draft = described(source=source, sha256=table)
            file = _write(draft, whole, manifests_dir, weights, made_by)
    else:
        draft = described(sha256=hashed(whole.weights, report))
        file = _write(draft, whole, manifests_dir, weights, made_by)
    return Added(draft.manifest, file, [*whole.notes, *draft.notes], draft.guessed)


def _write(draft: Draft, whole: Whole, folder: Path, weights: Weights, made_by: str) -> Path:
    """The manifest's file, which is read once more: a start would fail where it could not."""
    notes = [*whole.notes, *draft.notes]
    try:
        file = write_manifest(folder, draft.manifest, guessed=draft.guessed, notes=notes, made_by=made_by)
    except OSError as error:
        raise unwritable(error, "The manifest") from None
    try:
        read_manifest(file, weights.root)
    except ConfigurationError:
        file.unlink()
        raise ModelRefused("No manifest can be made for this model.") from None
    return file
