"""Manifests as files: written for what was fetched or added, and changed in place without touching what their owner
wrote into them.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from msgspec import NODEFAULT, Struct
from tomlkit.items import Table

from hub.errors import ConfigurationError, InvalidRequest, ModelExists
from hub.library.contents import shown
from hub.library.writing import unwritable, write_text
from hub.manifest import ID_PATTERN, ModelManifest, SourceSection
from hub.registry import ALIASES, manifests_in, read_manifest

GUESSED = "guessed: check it"
ORDER = ("id", "name", "description", "license", "created", "path", "source", "tasks")
"""First in a file, where they are there; plain fields come before tables anyhow."""


OTHER_FILES = ("hub.toml", ALIASES)
"""What else lies in a folder of manifests, and is none."""


def file_for(folder: Path, model: str) -> Path:
    """The file of a model's manifest. No id can hold what leads out of the folder: `/` becomes `--`. Where a file of
    that name is something else, a model `hub` gets hub-model.toml; case does not count on every disk."""
    stem = model.replace("/", "--")
    return folder / (f"{stem}-model.toml" if f"{stem}.toml".casefold() in OTHER_FILES else f"{stem}.toml")


def check_id(model: str) -> None:
    """Raises InvalidRequest for what cannot be a model's id."""
    if not re.fullmatch(ID_PATTERN, model):
        raise InvalidRequest(
            f"'{shown(model)}' cannot be a model's id, which has up to 128 letters, digits, '.', '_', '-' and '/' and "
            "begins with a letter or digit.",
            param="id",
        )


def check_free(folder: Path, model: str) -> None:
    """Raises ModelExists where the folder has the id, or the file that its manifest would have."""
    if manifest_of(folder, model) is not None:
        raise ModelExists(
            f"There is a model '{model}' already. Choose another id, or remove that one first.", param="id"
        )
    if (file := file_for(folder, model)).exists():
        raise ModelExists(f"The manifest {file.name} exists, of another model. Choose another id.", param="id")


def check_writable(folder: Path) -> None:
    """Raises HubError, or StorageFull, where no manifest could be written into the folder: better before gigabytes are
    fetched than after. It need not be there, and nothing of the trial stays."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    trial = folder / ".trial.tmp"  # always the same: what a run leaves that is killed goes away with the next one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with trial.open("w"):
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error, "The folder of manifests") from None
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # another process has put something there
                each.rmdir()


def manifest_of(folder: Path, model: str) -> Path | None:
    """The file in a folder whose manifest has this id, whatever it is called; files that cannot be read are passed."""
    own = file_for(folder, model)
    for file in sorted(manifests_in(folder), key=lambda each: each != own) if folder.is_dir() else []:
        with contextlib.suppress(ConfigurationError):
            if read_manifest(file).id == model:
                return file
    return None


def write_manifest(
    folder: Path,
    manifest: ModelManifest,
    *,
    guessed: Iterable[str] = (),
    notes: Iterable[str] = (),
    made_by: str = "hub models",
    replace: bool = False,
) -> Path:
    """Writes a manifest's file, of which all or nothing is there. `made_by`: the command, for the comment on top.

    Raises ModelExists where the folder has the id, unless it is to be replaced, and OSError. Of two that write the same
    id at once, one gets ModelExists.
    """
    target = (replace and manifest_of(folder, manifest.id)) or file_for(folder, manifest.id)
    if not replace:
        check_free(folder, manifest.id)
    try:
        write_text(target, text_of(manifest, guessed, notes, made_by), exclusive=not replace)
    except FileExistsError:
        if replace or not target.exists():  # it is the folder that is something else
            raise
        raise ModelExists(f"The manifest {target.name} has just been written. Choose another id.", param="id") from None
    return target


def text_of(
    manifest: ModelManifest, guessed: Iterable[str] = (), notes: Iterable[str] = (), made_by: str = "hub models"
) -> str:
    """The manifest as TOML, without fields that have their default value."""
    document = tomlkit.document()
    for line in (
        f"Written by `{made_by}`. It is yours: change what you like, docs/manifests.md explains each field.",
        *notes,
    ):
        for part in _lines(line):
            document.add(tomlkit.comment(part))
    values = _given(manifest)
    names = [*(name for name in ORDER if name in values), *(name for name in values if name not in ORDER)]
    marked = set(guessed)
    for name in sorted(names, key=lambda each: isinstance(values[each], dict)):
        value = values[name]
        if isinstance(value, dict):
            document.add(tomlkit.nl())
            document.add(name, _table(name, value, marked))
        else:
            document.add(name, _commented(value, name in marked))
    return tomlkit.dumps(document)


def update_manifest(
    file: Path,
    *,
    sha256: Mapping[str, str] | None = None,
    source: SourceSection | None = None,
    variant: str | None = None,
) -> None:
    """Changes the weights that a manifest tells of, and keeps all else as its owner wrote it, comments too.

    Raises ConfigurationError where the file is no manifest, before or after; it stays as it was, then.
    """
    read_manifest(file)
    document = tomlkit.parse(file.read_text(encoding="utf-8"))
    if source is not None:
        document.pop("path", None)
        _set(document, "source", _given(source))
    if sha256 is not None:
        _set(document, "sha256", dict(sorted(sha256.items())))
    if variant is not None:
        if not isinstance(document.get("pipeline"), Table):
            _set(document, "pipeline", {**document.get("pipeline", {}), "variant": variant})
        document["pipeline"]["variant"] = variant
    text = tomlkit.dumps(document)
    trial = file.with_name(f".{file.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        trial.write_text(text, encoding="utf-8")
        read_manifest(trial)
    finally:
        trial.unlink(missing_ok=True)
    write_text(file, text)


def _given(struct: Struct) -> dict[str, Any]:
    """A Struct's fields that differ from their defaults, as TOML has them."""
    found: dict[str, Any] = {}
    for info in msgspec.structs.fields(struct):
        value = getattr(struct, info.name)
        if info.default is not NODEFAULT:
            usual = info.default
        elif info.default_factory is not NODEFAULT:
            usual = info.default_factory()
        else:
            usual = NODEFAULT
        # What a kind is comes with the table that it stands in, or the table might be empty.
        if value is None or (value == usual and info.name != "kind"):
            continue
        found[info.encode_name] = _given(value) if isinstance(value, Struct) else value
    return found


def _table(name: str, values: Mapping[str, Any], marked: set[str]) -> Table:
    """A table; those within it are written inline."""
    table = tomlkit.table()
    if name in marked:
        table.comment(GUESSED)
    for key, value in values.items():
        inner = value
        if isinstance(value, dict):
            inner = tomlkit.inline_table()
            inner.update({each: found for each, found in value.items() if found is not None})
        table.add(key, _commented(inner, f"{name}.{key}" in marked))
    return table


def _commented(value: Any, guessed: bool) -> Any:
    item = tomlkit.item(value)
    if guessed:
        item.comment(GUESSED)
    return item


def _set(document: tomlkit.TOMLDocument, name: str, values: Mapping[str, Any]) -> None:
    """Exchanges a table's lines, where it is; one that is not there comes last."""
    old = document.get(name)
    if not isinstance(old, Table):
        document.pop(name, None)
        document.add(name, _table(name, values, set()))
        return
    for key in [key for key in old if key not in values]:
        old.remove(key)
    for key, value in values.items():
        old[key] = value


def _lines(text: str) -> list[str]:
    """A sentence as lines of a comment, which can hold no control characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, 110) or [""]
