"""LoRAs: files in a folder of the owner's, by name. What is in them only the engine reads.

A name is the file's path in the folder, without its ending. Links may stay inside the folder and not lead out of it.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from hub.errors import ConfigurationError, InvalidRequest
from hub.types import Lora

SUFFIX = ".safetensors"
ALL_LORAS = "GET /v1/loras lists all."
"""The end of an unknown LoRA's error, for clients of the API."""


def identity_of(status: os.stat_result) -> str:
    """What is another one when the file's content may be another."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}-{status.st_ctime_ns}"


class LoraFile(Struct, frozen=True, array_like=True):
    """A LoRA that is there: its name, its file without links, of so many bytes, and the file's `identity`."""

    name: str
    path: str
    bytes: int
    identity: str


class Loras:
    """The folder. It is looked at with each question: files come and go while the hub runs."""

    def __init__(self, folder: Path, *, must_be: bool = False) -> None:
        """Raises ConfigurationError where it must be there and is not."""
        if must_be and not folder.is_dir():
            raise ConfigurationError(f"loras_dir: {folder} is not a folder")
        self._folder = folder

    def __iter__(self) -> Iterator[LoraFile]:
        """All, by name."""
        found = []
        for at, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            within = Path(at).relative_to(self._folder)
            found += [(within / name).as_posix().removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
        for name in sorted(found):
            if (file := self._file(name)) is not None:
                yield file

    def get(self, name: str) -> LoraFile:
        """The LoRA of this name. Raises InvalidRequest that lists near names."""
        file = self._file(name)
        if file is not None:
            return file
        known = [each.name for each in self]
        alike = {each.lower(): each for each in known}
        found = difflib.get_close_matches(name.lower().removesuffix(SUFFIX), alike, n=3, cutoff=0.5)
        near = [alike[each] for each in found] or known[:3]
        shown = re.sub(r"[^ -~]", "?", name[:64])
        words = f"Near names: {', '.join(near)}. {ALL_LORAS}" if near else "This hub has none."
        raise InvalidRequest(f"loras: the LoRA '{shown}' does not exist. {words}", param="loras")

    def find(self, loras: Sequence[Lora]) -> list[LoraFile]:
        """Each of them. Raises InvalidRequest, also where one is named twice, be it by two names."""
        files = [self.get(lora.name) for lora in loras]
        paths = [file.path for file in files]
        if twice := [file.name for file in files if paths.count(file.path) > 1]:
            raise InvalidRequest(f"loras: '{twice[0]}' is named twice; add up its weights.", param="loras")
        return files

    def _file(self, name: str) -> LoraFile | None:
        parts = name.split("/")
        if any(not part or part.startswith(".") or "\0" in part for part in parts):
            return None
        try:
            name.encode()  # a name that is no UTF-8 cannot be asked for
            path = os.path.realpath(self._folder / (name + SUFFIX), strict=True)
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):
            return None
        inside = Path(path).is_relative_to(os.path.realpath(self._folder))
        if not inside or not stat.S_ISREG(status.st_mode):
            return None
        return LoraFile(name, path, status.st_size, identity_of(status))
