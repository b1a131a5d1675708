"""What is refused of a model's files, before anything of them is loaded: all that is damaged, incomplete, or would run
code. Nothing is executed by looking.

The words name files relative to the model's folder: clients may read them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.deprecation_utils import _TRANSFORMERS_CLASS_REMAPPING
from msgspec import Struct

from hub.pipelines import Unsupported
from hub.pipelines.foreign import refuse_code
from hub.pipelines.headers import Damaged, Tensor, read_safetensors
from hub.pipelines.variants import indices_in, variant_of, weights_in

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


class Component(Struct, frozen=True):
    """A part of a pipeline as its model_index.json names it."""

    name: str
    cls: type[Any]

    @property
    def has_weights(self) -> bool:
        """Whether it is a module, not a tokenizer or a scheduler."""
        return issubclass(self.cls, torch.nn.Module)


def check_folder(
    folder: Path, *, given: Collection[str] = (), root: Path | None = None, variant: str | None = None
) -> None:
    """Raises Unsupported for a diffusers folder that cannot be trusted to draw what its model was made to draw.

    `given`: components that come from elsewhere; `root`: the model's folder where this one is a part of it, of which
    diffusers reads no `variant`.
    """
    root = root or folder
    for component in components_of(folder, root):
        part = folder / component.name
        check_configs(part, root)
        if component.name in given:
            continue
        if not (part.is_dir() and any(part.iterdir())):
            raise Unsupported(f"the folder {part.relative_to(root)} is missing, or empty")
        if issubclass(component.cls, DiffusionPipeline):
            check_folder(part, root=root)
        elif component.has_weights:
            check_part(part, root, variant)


def check_configs(part: Path, root: Path) -> None:
    """A component's own configuration asks for no code; raises Unsupported."""
    for name in ("config.json", "model_index.json"):
        if (part / name).is_file():
            refuse_code(read_json(part / name, root), (part / name).relative_to(root))


def components_of(folder: Path, root: Path | None = None) -> list[Component]:
    """What a folder's pipeline is made of; raises Unsupported for classes that are not diffusers' or transformers'."""
    source = folder / "model_index.json"
    shown = source.relative_to(root or folder)
    index = read_json(source, root or folder)
    refuse_code(index, shown)
    name = index.get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise Unsupported(f"{shown} names no pipeline of diffusers (`_class_name`), and no other code is run")
    parts = {key: value for key, value in index.items() if not key.startswith("_") and _is_part(value)}
    found = {key: _class_of(*value) for key, value in parts.items() if value[0] is not None}
    for key, known in found.items():
        if known is None:
            raise Unsupported(
                f"{shown} has '{key[:64]}' of a class that neither diffusers nor transformers has, "
                "and no other code is run"
            )
        if not (key.isidentifier() and key.isascii()):
            raise Unsupported(f"{shown} has a component without a proper name")
    return [Component(key, known) for key, known in found.items() if known is not None]


def _is_part(value: Any) -> bool:
    """Other lists are plain options."""
    return isinstance(value, list) and len(value) > 0 and all(each is None or isinstance(each, str) for each in value)


def _class_of(library: str, *names: str | None) -> type[Any] | None:
    """By the library's name or, as safety checkers have it, that of one of diffusers' own folders of pipelines."""
    if len(names) != 1 or names[0] is None:
        return None
    name = str(names[0])
    if library == "transformers":
        name = str(_TRANSFORMERS_CLASS_REMAPPING.get(name, {}).get("new_class", name))
    # In diffusers' order, which looks for a folder of that name first.
    holder = getattr(diffusers.pipelines, library, None)
    if not isinstance(holder, ModuleType):
        holder = {"diffusers": diffusers, "transformers": transformers}.get(library)
    found = getattr(holder, name, None)
    own = isinstance(found, type) and found.__module__.startswith(("diffusers.", "transformers."))
    return found if own else None


def check_part(part: Path, root: Path, variant: str | None = None) -> None:
    """A component's folder: its weights are all there, none is damaged, and none is a pickle alone. `variant`: which
    are read, where there are any of it."""
    shown = part.relative_to(root)
    if not part.is_dir():
        raise Unsupported(f"the folder {shown} is missing")
    for index in indices_in(part, variant):
        _check_shards(index, root)
    files = weights_in(part, variant)
    if not files:
        pickles = sorted(file.name for file in part.iterdir() if file.suffix in PICKLES)
        if pickles:
            words = "a pickle, which is never read; convert it to safetensors"
            raise Unsupported(f"the only weights of {shown} are {pickles[0]}, {words}")
        for name in sorted(file.name for file in part.glob("*.safetensors")):
            found = variant_of(name)
            words = f'which is read by `pipeline.variant = "{found}"` in its manifest' if found else "a name of no use"
            raise Unsupported(f"the only weights of {shown} are {name}, {words}; or fetch the plain ones")
        raise Unsupported(f"there are no weights in {shown}")
    for file in files:
        check_file(file, root)


def check_file(file: Path, root: Path) -> dict[str, Tensor]:
    """One safetensors file; what it holds."""
    shown = file.relative_to(root)
    try:
        return read_safetensors(file)
    except Damaged as error:
        raise Unsupported(f"{shown} {error}") from None
    except OSError:
        raise Unsupported(f"{shown} cannot be read, or is a link that leads nowhere") from None


def _check_shards(index: Path, root: Path) -> None:
    names = read_json(index, root).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise Unsupported(f"{index.relative_to(root)} is broken")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
            raise Unsupported(f"{index.relative_to(root)} names weights that are no safetensors beside it")
        if not (index.parent / name).is_file():
            raise Unsupported(f"{(index.parent / name).relative_to(root)} is missing, a part of the weights")


def read_json(file: Path, root: Path) -> dict[str, Any]:
    """A JSON object; raises Unsupported."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unsupported(f"{file.relative_to(root)} is missing or broken")
    return found


def refuse_missing(component: str, keys: Collection[str]) -> None:
    """Raises Unsupported where there are any but counters, which no forward looks at."""
    lost = sorted(key for key in keys if not key.endswith("num_batches_tracked"))
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise Unsupported(f"the weights of {component} are incomplete, they lack {shown}; fetch them again")


def refuse_unset(pipeline: DiffusionPipeline) -> None:
    """The same for the pipelines within a pipeline, which diffusers loads by itself: what it finds no weights for it
    leaves without memory."""
    for name, module in pipeline.components.items():
        if isinstance(module, DiffusionPipeline):
            refuse_unset(module)
        elif isinstance(module, torch.nn.Module):
            refuse_missing(name, [key for key, weight in module.state_dict().items() if weight.is_meta])
