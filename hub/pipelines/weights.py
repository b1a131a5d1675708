"""What a model's weights are, as opposed to what they are called: a hash over all safetensors of its folder.

Where it is known what they should be, others are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hub.pipelines import Unsupported
from hub.pipelines.variants import weights_in

log = logging.getLogger("hub.worker")

DAMAGED = "it was damaged or exchanged; fetch it again"


def weights_hash(
    places: Iterable[str],
    cache: Path | None,
    wanted: Mapping[str, str] | None = None,
    *,
    variant: str | None = None,
    replaced: Collection[str] = (),
) -> str:
    """SHA-256 in hexadecimal over names and SHA-256s of all safetensors that are read of the folders; a place may also
    be a file. Of a component those of the `variant` count, where it has any, else the plain ones; of the first folder
    not the components that are `replaced`.

    Reading them takes about as long as loading them. What was found is kept in the file `cache`, and counts as long as
    a file has the same size, inode and times (one of which nobody can set back). `wanted`: SHA-256s by names relative
    to the first place; where there are any, all files must be named. Raises Unsupported for a file that is another
    one, also than what Hugging Face's cache calls it.
    """
    known = _read(cache)
    total = hashlib.sha256()
    named: set[str] = set()
    found_places = [Path(place) for place in places]
    first = next((place if place.is_dir() else place.parent for place in found_places), Path())
    for place in found_places:
        folder = place if place.is_dir() else place.parent
        skipped = [first / name for name in replaced] + found_places[1:] if place is found_places[0] else []
        for file in _read_of(place, variant, skipped) if place.is_dir() else [place]:
            shown = Path(os.path.relpath(file, first)).as_posix()
            try:
                found = _digest(file, known, cache)
            except OSError:
                raise Unsupported(f"{shown} cannot be read, or is a link that leads nowhere") from None
            if wanted and shown not in wanted:
                raise Unsupported(f"{shown} is not in the manifest's table sha256, which must name all weights")
            if wanted and wanted[shown] != found:
                raise Unsupported(f"{shown} is not what the manifest's table sha256 says: {DAMAGED}")
            if _name_in_cache(file) not in (None, found):
                raise Unsupported(f"{shown} is not what Hugging Face's cache calls it: {DAMAGED}")
            named.add(shown)
            total.update(f"{file.relative_to(folder)} {found}\n".encode())
    if missing := {name for name in set(wanted or ()) - named if not (first / name).is_file()}:
        raise Unsupported(f"{min(missing)} is missing, which the manifest's table sha256 names")
    return total.hexdigest()


def _read_of(folder: Path, variant: str | None, skipped: Collection[Path]) -> list[Path]:
    """The safetensors of a folder that are read, by name: not other variants of them, nor checkpoints with all in one
    that lie beside a model_index.json."""
    inner = {file.parent for file in folder.rglob("*.safetensors")}
    read = []
    for part in inner:
        beside = (part / "model_index.json").is_file()
        if not beside and not any(part.is_relative_to(each) for each in skipped):
            read += weights_in(part, variant)
    return sorted(read)


def size_of(path: Path, components: Mapping[str, str] | None = None, variant: str | None = None) -> int:
    """Bytes of what is loaded from a file, or from a diffusers folder: its components' safetensors, of the `variant` or
    plain ones, without single files with all in one, which may lie beside. `components` replace those of the folder."""
    own = components or {}
    places = [path, *map(Path, own.values())]
    files = [place for place in places if place.is_file()]
    folders = [*(part for part in path.glob("*/") if part.name not in own), *places[1:]]
    files += [file for part in folders for file in weights_in(part, variant)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _digest(file: Path, known: dict[str, str], cache: Path | None) -> str:
    status = file.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    key = f"{file.resolve()} {status.st_size} {status.st_ino} {times}"
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        if cache is not None:  # others have found more meanwhile, or had a file forgotten that is known here
            _write(cache, _read(cache) | {key: known[key]})
    return known[key]


def _name_in_cache(file: Path) -> str | None:
    """There, what a repository calls by names are links to blobs called by their hashes."""
    real = file.resolve()
    return real.name if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name) else None


def forget(cache: Path, file: Path) -> None:
    """Has a file read again, whatever its times say: it was seen to be another one."""
    known, real = _read(cache), f"{file.resolve()} "
    kept = {key: digest for key, digest in known.items() if not key.startswith(real)}
    if len(kept) < len(known):
        _write(cache, kept)


def _read(cache: Path | None) -> dict[str, str]:
    try:
        known = json.loads(cache.read_bytes()) if cache else {}
    except (OSError, ValueError, RecursionError):
        return {}
    texts = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if texts else {}


def _write(cache: Path, known: dict[str, str]) -> None:
    part = cache.with_name(f".{cache.name}-{secrets.token_hex(8)}.tmp")  # of one that is killed, Files sweeps it
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known))
        part.replace(cache)
    except OSError as error:
        log.warning("%s cannot be written (%s); weights are read again at each start", cache.name, error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
