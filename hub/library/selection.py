"""Which files of a repository make a model: read from its list of files and its model_index.json alone, before
anything else is fetched.

Of a component's safetensors those of one variant are taken, as diffusers and transformers name them:

    diffusion_pytorch_model.safetensors              diffusion_pytorch_model.fp16.safetensors
    model-00001-of-00002.safetensors                 model.fp16-00001-of-00002.safetensors
    model.safetensors.index.json                     model.safetensors.index.fp16.json
                                                     model-00001-of-00002.fp16.safetensors         (as once written)
                                                     model.safetensors.fp16.index.json             (as once written)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from msgspec import Struct

from hub.errors import InvalidRequest, ModelRefused
from hub.library.contents import (
    INDEX,
    MAX_CONFIG,
    PAPERS,
    PICKLES,
    check_path,
    is_kept,
    is_plain_path,
    is_weights,
    shown,
)
from hub.library.parts import has_weights, is_known

MAX_TOTAL = 2 << 40
"""Bytes: more than any model of pictures; a list that says so is a mistake or an attack."""
MAX_FILES = 1000
CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Kinds of letters that are none: they change what is shown, or cannot be written."""
OTHER_WEIGHTS = (*PICKLES, ".msgpack", ".onnx", ".h5")
"""Weights that are not read here."""

_BASE = r"(?:diffusion_pytorch_model|model)"
_VARIANT = r"(?P<variant>[A-Za-z0-9_-]{1,32}?)"
_SHARD = r"(?:-(?P<at>\d{5})-of-(?P<of>\d{5}))"
FORMS = (
    re.compile(rf"{_BASE}(?:\.{_VARIANT})?{_SHARD}?\.safetensors"),
    re.compile(rf"{_BASE}{_SHARD}\.{_VARIANT}\.safetensors"),
    re.compile(rf"{_BASE}\.safetensors\.index(?:\.{_VARIANT})?\.json"),
    re.compile(rf"{_BASE}\.safetensors\.{_VARIANT}\.index\.json"),
)


class Component(Struct, frozen=True):
    """A part of a pipeline as model_index.json names it, and the files of its folder."""

    name: str
    class_name: str
    plain: list[str]
    """What belongs to it whatever the variant: configurations, tokenizers."""
    weights: dict[str | None, list[str]]
    """By variant, with their indices; None is without one."""
    pickles: list[str]


def _form(path: str) -> re.Match[str] | None:
    name = PurePosixPath(path).name
    return next(filter(None, (form.fullmatch(name) for form in FORMS)), None)


def check_names(paths: Iterable[str]) -> None:
    """Raises ModelRefused for a repository with a name that would lead out of a folder, whatever it is for; odd ones
    that do not are no fault of the model's, and are left where they are."""
    for count, path in enumerate(paths):
        if count >= 100 * MAX_FILES:
            raise ModelRefused("The repository has absurdly many files.")
        leads_out = not {"", ".", ".."}.isdisjoint(path.split("/")) or "\\" in path
        if leads_out or any(unicodedata.category(letter) in CONTROL for letter in path):
            raise ModelRefused(f"'{shown(path)}' is not a file name that a model may have.")


def look_of(paths: Collection[str], tags: Collection[str]) -> str:
    """What a repository without a model_index.json seems to be, for the error that says so."""
    top = [path for path in paths if "/" not in path]
    if any(path.endswith(".gguf") for path in paths):
        return "it holds GGUF files: parts for a model that you have, see `components` in its manifest"
    if "modular_model_index.json" in top:
        return "it is a modular pipeline of diffusers, which is not supported"
    if (
        "lora" in tags
        or "adapter_config.json" in top
        or any("lora" in path.lower() for path in top if is_weights(path))
    ):
        return "it looks like a LoRA: put its safetensors file into loras_dir"
    if "config.json" in top:
        if "diffusion_pytorch_model" in " ".join(top):
            return "it is a single component of diffusers (a VAE, a ControlNet …), not a whole pipeline"
        return "it looks like a model of transformers, which draws no pictures alone"
    if any(path.endswith((".safetensors", ".ckpt")) for path in top):
        return (
            "it holds single-file checkpoints: look for the same model in diffusers' layout, or add the file you have"
        )
    return "it is no model for pictures that is known here"


def read_components(index: Any, paths: Collection[str]) -> list[Component]:
    """The components that a model_index.json names, with their files; raises ModelRefused for code of its own."""
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ModelRefused(
            f"{INDEX} does not name a pipeline of diffusers by `_class_name`; code of its own is not run."
        )
    found = []
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, str) for each in value):
            if isinstance(value, list) and value and isinstance(value[-1], str) and len(value) <= 3:
                raise ModelRefused(f"{INDEX}: `{shown(name)}` is not a library and a class.")
            continue  # an option of the pipeline's, or a part that is left out
        library, class_name = value
        if not is_known(library):
            raise ModelRefused(
                f"{INDEX}: `{shown(name)}` needs code of its own (library `{shown(library)}`), and none is run."
            )
        found.append(_component(name, class_name, [path for path in paths if path.startswith(f"{name}/")]))
    if not found:
        raise ModelRefused(f"{INDEX} names no components.")
    return found


def _component(name: str, class_name: str, paths: list[str]) -> Component:
    check_path(name)
    if "/" in name:
        raise ModelRefused(f"{INDEX}: '{shown(name)}' is not the name of a component.")
    plain: list[str] = []
    weights: dict[str | None, list[str]] = {}
    for path in paths:
        form = _form(path) if path.count("/") == 1 else None
        if form is not None:
            weights.setdefault(form.groupdict().get("variant"), []).append(path)
        elif is_kept(path) and is_plain_path(path) and not is_weights(path) and ".index." not in path:
            plain.append(path)
    # An index without files that it could tell of is none.
    weights = {variant: files for variant, files in weights.items() if any(map(is_weights, files))}
    return Component(name, class_name, plain, weights, [path for path in paths if path.endswith(OTHER_WEIGHTS)])


def choose(components: Iterable[Component], paths: Iterable[str], variant: str | None) -> list[str]:
    """The files of a pull: papers, index, and of every component its own. Raises ModelRefused, or InvalidRequest for a
    variant that none has."""
    components = list(components)
    if variant is not None and not any(variant in component.weights for component in components):
        there = sorted({each for component in components for each in component.weights if each is not None})
        raise InvalidRequest(
            f"The model has no variant '{shown(variant)}'; it has {', '.join(there) or 'none'}.", param="variant"
        )
    chosen = [
        path for path in paths if path == INDEX or ("/" not in path and PAPERS.fullmatch(path) and is_paper(path))
    ]
    for component in components:
        chosen += component.plain + _weights_of(component, variant)
    for path in chosen:
        check_path(path)
    if len(chosen) > MAX_FILES:
        raise ModelRefused(f"The model has {len(chosen)} files, which is absurd.")
    return chosen


def is_paper(path: str) -> bool:
    """Of what is called like one: a README.py is code, a README.bin whatever it likes."""
    return not path.endswith((*OTHER_WEIGHTS, ".py", ".safetensors"))


def _weights_of(component: Component, variant: str | None) -> list[str]:
    name, there = component.name, component.weights
    chosen = there.get(variant) or there.get(None) or []
    if chosen:
        _check_shards(name, chosen)
        return chosen
    if there:
        others = sorted(each for each in there if each is not None)
        raise ModelRefused(
            f"The component {name} has weights only as a variant ({', '.join(others)}): pull with "
            f"`--variant {others[0]}`."
        )
    if component.pickles:
        raise ModelRefused(
            f"The component {name} has no safetensors, only pickles ({shown(component.pickles[0])}), which are never "
            "read. Convert it to safetensors (diffusers: save_pretrained), or look for a revision that has them."
        )
    if not component.plain:
        raise ModelRefused(f"{INDEX} names the component {name}, and the repository has no files of it.")
    if f"{name}/config.json" in component.plain and has_weights(component.class_name):
        raise ModelRefused(f"The component {name} has no weights in the repository.")
    return []


def _check_shards(component: str, files: list[str]) -> None:
    """Raises ModelRefused where one of several files is missing."""
    shards: dict[str, set[str]] = {}
    for path in files:
        form = _form(path)
        parts = form.groupdict() if form else {}
        if parts.get("of"):
            shards.setdefault(parts["of"], set()).add(parts["at"])
    for of, there in shards.items():
        if len(there) != int(of):
            raise ModelRefused(f"Of the component {component} {len(there)} of {int(of)} files of weights are there.")


def variants_of(components: Collection[Component], paths: Collection[str]) -> dict[str, list[str]]:
    """Every variant that could be pulled, and the files that this would bring."""
    names = {each for component in components for each in component.weights if each is not None}
    found = {}
    for name in sorted(names):
        try:
            found[name] = choose(components, paths, name)
        except ModelRefused:
            continue  # of one that cannot be pulled nobody needs to know
    return found


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raises ModelRefused for sizes that no model has."""
    for path, size in sizes.items():
        if size < 0 or (not is_weights(path) and size > MAX_CONFIG):
            raise ModelRefused(f"{shown(path)} would have {size} bytes, which is absurd.")
    if sum(sizes.values()) > MAX_TOTAL:
        raise ModelRefused(f"The model would have {sum(sizes.values()) / 1e12:.0f} TB, which is absurd.")
