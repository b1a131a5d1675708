"""Whether files that lie anywhere, or that are to come, would make a whole model: as `add` looks at a folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from hub.errors import ModelRefused
from hub.library.contents import INDEX, is_weights, shown
from hub.library.parts import lacks, lacks_beside, told
from hub.library.writing import unwritable
from hub.pipelines.headers import Damaged, read_safetensors
from hub.pipelines.kinds import is_lora

Files = Mapping[str, Path | bytes | None]
"""By their names in the model's folder: where they lie, what they hold, or None where only the name is known yet."""


@contextlib.contextmanager
def folder_of(files: Files) -> Iterator[Path]:
    """A folder of links that looks as the model's own would, for as long as the context."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for path, file in files.items():
            place = folder / path
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file, Path):
                    place.symlink_to(file.absolute())
                else:
                    place.write_bytes(_unseen(path, files) if file is None else file)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise ModelRefused(f"'{shown(path)}' would be a file and a folder.") from None
            except OSError as error:
                raise unwritable(error, "The folder for temporary files") from None
        yield folder


def _unseen(path: str, files: Files) -> bytes:
    """What stands for a file of which only the name is known: nothing is missing because of it."""
    name = PurePosixPath(path).name
    if name == INDEX:
        return b'{"_class_name": "Pipeline"}'
    if ".safetensors" in name and name.endswith(".json"):
        parent = PurePosixPath(path).parent
        beside = [PurePosixPath(each) for each in files if is_weights(each)]
        return json.dumps({"weight_map": {each.name: each.name for each in beside if each.parent == parent}}).encode()
    return b""


def check_complete(
    files: Files,
    variant: str | None = None,
    *,
    single: str | None = None,
    config: str | None = None,
    replaced: Collection[str] = (),
) -> None:
    """Raises ModelRefused where something is missing, and where model_index.json names what would run code of its own.

    `single` and `config`: for a single file, its name and that of the folder with its configurations; `replaced`:
    components that come from elsewhere, of which nothing is asked here.
    """
    with folder_of(files) as folder:
        if single is None:
            missing = lacks(folder, variant)
        else:
            try:
                tensors = read_safetensors(folder / single)
            except (Damaged, OSError):
                raise ModelRefused(f"{shown(single)} is damaged, or cannot be read.") from None
            if is_lora(tensors):
                raise ModelRefused(f"{shown(single)} is a LoRA, which changes a model and is none.")
            missing = lacks_beside(folder / (config or "."), tensors, variant)
            # What neither has is told as it is called in its folder of configurations.
    missing = [each for each in missing if each.path.partition("/")[0] not in replaced]
    if missing:
        raise ModelRefused(told("The model is incomplete", missing))
