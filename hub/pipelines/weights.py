"""What a model's weights are, as opposed to what they are called: a hash over all safetensors of its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("hub.worker")


def weights_hash(folders: Iterable[str], cache: Path | None) -> str:
    """SHA-256 in hexadecimal over names and SHA-256s of all safetensors in the folders.

    Reading them takes about as long as loading them. What was found is kept in the file `cache`, and counts as long as
    a file has the same size and time.
    """
    known = _read(cache)
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted(Path(folder).rglob("*.safetensors")):
            status = file.stat()
            key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
            if key not in known:
                with file.open("rb") as stream:
                    known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
                _write(cache, known)
            total.update(f"{file.relative_to(folder)} {known[key]}\n".encode())
    return total.hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of what is loaded from a diffusers folder: its components' safetensors, without variants of them
    (`model.fp16.safetensors`) and single files with all in one, which may lie beside."""
    files = [path for pattern in ("*.safetensors", "*/*.safetensors") for path in folder.glob(pattern)]
    inner = [path for path in files if path.parent != folder or not (folder / "model_index.json").is_file()]
    return sum(path.stat().st_size for path in inner if "." not in path.stem and path.is_file())


def _read(cache: Path | None) -> dict[str, str]:
    try:
        known = json.loads(cache.read_bytes()) if cache else {}
    except (OSError, ValueError):
        return {}
    texts = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if texts else {}


def _write(cache: Path | None, known: dict[str, str]) -> None:
    if cache is None:
        return
    part = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known))
        part.replace(cache)
    except OSError as error:
        log.warning("%s cannot be written (%s); weights are read again at each start", cache.name, error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
