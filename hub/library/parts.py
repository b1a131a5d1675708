"""What a diffusers folder lacks to be read: folders, weights, shards, configurations, tokenizers. Without torch.

Told by names: whether the files hold what they should, contents.check_file tells.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from hub.errors import ModelRefused
from hub.library.contents import INDEX, PICKLES, read_config, shown
from hub.pipelines.kinds import is_held
from hub.pipelines.variants import indices_in, variant_of, weights_in

LIBRARIES = ("diffusers", "transformers")
WHOLE = ("tokenizer.json",)
TOKENIZERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "CLIPTokenizer": (("vocab.json", "merges.txt"), WHOLE),
    "GPT2Tokenizer": (("vocab.json", "merges.txt"), WHOLE),
    "RobertaTokenizer": (("vocab.json", "merges.txt"), WHOLE),
    "Qwen2Tokenizer": (("vocab.json", "merges.txt"), WHOLE),
    "T5Tokenizer": (("spiece.model",), WHOLE),
    "GemmaTokenizer": (("tokenizer.model",), WHOLE),
    "LlamaTokenizer": (("tokenizer.model",), WHOLE),
    "ChatGLMTokenizer": (("tokenizer.model",),),
    "ByT5Tokenizer": (("tokenizer_config.json",), WHOLE),
    "BertTokenizer": (("vocab.txt",), WHOLE),
    "XLMRobertaTokenizer": (("sentencepiece.bpe.model",), WHOLE),
}
"""Which files a tokenizer is read from, by its class without `Fast`: one of the groups has to be there."""
ANY_TOKENIZER = (
    WHOLE,
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.txt",),
    ("tekken.json",),
    ("sentencepiece.bpe.model",),
)
WEIGHTLESS = ("Scheduler", "Processor", "ProcessorFast", "ProcessorPil", "FeatureExtractor", "Guidance", "Pipeline")
OPTIONAL = ("safety_checker", "image_encoder")
"""Modules without which a pipeline draws all the same."""
PICTURES = ("preprocessor_config.json", "processor_config.json")
DEPTH = 3
MOST_TOLD = 5
"""Of what is missing."""


def components_in(folder: Path, shown_as: str = "") -> dict[str, tuple[str, str]]:
    """Library and class of each component that a folder's model_index.json names; raises ModelRefused where that is
    missing, broken, or names what would run code of its own."""
    path = f"{shown_as}{INDEX}"
    index = read_config(folder / INDEX, path)
    name = index.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise ModelRefused(f"{path} names no pipeline of diffusers (`_class_name`), and no other code is run.")
    found = {}
    for part, value in index.items():
        if part.startswith("_") or not _is_part(value):
            continue
        library, cls = value[0], value[-1]
        if library is None:
            continue
        if not (part.isidentifier() and part.isascii()):
            raise ModelRefused(f"{path} has a component without a proper name.")
        if len(value) != 2 or not isinstance(cls, str) or not cls.isidentifier() or not is_known(library):
            words = "of a class that neither diffusers nor transformers has, and no other code is run"
            raise ModelRefused(f"{path} has '{shown(part)}' {words}.")
        found[part] = (library, cls)
    return found


class Lack(Struct, frozen=True):
    """Something that is not there, by its name relative to the model's folder; and a clause that says so."""

    path: str
    words: str


def told(words: str, missing: list[Lack]) -> str:
    """A sentence about what is missing, of which the first are named."""
    more = f"; and {len(missing) - MOST_TOLD} more" if len(missing) > MOST_TOLD else ""
    return f"{words}: {'; '.join(each.words for each in missing[:MOST_TOLD])}{more}."


def missing_parts(folder: Path, variant: str | None = None) -> list[str]:
    """The names of what is not there, relative to the folder: component folders, weights, shards, configurations and
    files of tokenizers; empty where the folder is whole. With `variant` its weights do in place of the plain ones, as
    when they are read.

    Raises ModelRefused where model_index.json does not tell what should be there.
    """
    return [each.path for each in lacks(folder, variant)]


def lacks(folder: Path, variant: str | None = None, prefix: str = "") -> list[Lack]:
    """The same in words."""
    found: list[Lack] = []
    for name, (_, cls) in components_in(folder, prefix).items():
        part, path = folder / name, f"{prefix}{name}"
        if not part.is_dir() or not any(part.iterdir()):
            found.append(Lack(path, f"the folder {path} is missing, or empty"))
        elif cls.endswith("Pipeline"):
            found += lacks(part, None, f"{path}/") if prefix.count("/") < DEPTH else []
        else:
            found += _missing_in(part, path, cls, variant)
    return found


def lacks_beside(folder: Path, tensors: Collection[str], variant: str | None = None) -> list[Lack]:
    """The same of a single file and the folder of its configurations: what neither has. tensors: the file's names."""
    found: list[Lack] = []
    for name, (_, cls) in components_in(folder).items():
        part = folder / name
        if not part.is_dir():
            found += [] if name in OPTIONAL else [Lack(name, f"the folder {name} is missing")]
        elif not has_weights(cls):
            found += _missing_in(part, name, cls, variant)
        elif is_held(name, cls, tensors):
            found += _one_of(part, name, (("config.json",),))
        elif name not in OPTIONAL or weights_in(part, variant):
            found += _missing_in(part, name, cls, variant)
    return found


def has_weights(cls: str) -> bool:
    """Whether a component of this class is a module."""
    return not ("Tokenizer" in cls or cls.endswith(WEIGHTLESS))


def _missing_in(part: Path, path: str, cls: str, variant: str | None) -> Iterator[Lack]:
    if "Tokenizer" in cls:
        yield from _one_of(part, path, tokenizer_files(cls))
    elif cls.endswith("Scheduler"):
        yield from _one_of(part, path, (("scheduler_config.json",),))
    elif cls.endswith(("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")):
        yield from _one_of(part, path, tuple((name,) for name in PICTURES))
    elif cls.endswith("Processor"):
        yield from _one_of(part, path, tuple((name,) for name in PICTURES))
        yield from _one_of(part, path, ANY_TOKENIZER)
    elif cls.endswith("Guidance"):
        yield from _one_of(part, path, (("guider_config.json",),))
    else:
        yield from _one_of(part, path, (("config.json",),))
        yield from missing_weights(part, path, variant)


def _distance(group: tuple[list[str], tuple[str, ...]]) -> tuple[float, int, bool]:
    """How far a group is from being there; the file that holds all of a tokenizer comes first among equals."""
    lacking, wanted = group
    return len(lacking) / len(wanted), len(lacking), wanted != WHOLE


def tokenizer_files(cls: str) -> tuple[tuple[str, ...], ...]:
    """The groups of files of which a tokenizer of this class needs one."""
    return TOKENIZERS.get(cls.removesuffix("Fast"), ANY_TOKENIZER)


def _one_of(part: Path, path: str, groups: tuple[tuple[str, ...], ...]) -> Iterator[Lack]:
    """The group that is nearest to being there is the one that is told of."""
    lacking = [[name for name in group if not (part / name).is_file()] for group in groups]
    if all(lacking):
        nearest = min(zip(lacking, groups, strict=True), key=_distance)[0]
        others = [group for group, gone in zip(groups, lacking, strict=True) if gone is not nearest]
        instead = f" (or {' and '.join(others[0])})" if len(others) == 1 else ""
        yield from (Lack(f"{path}/{name}", f"{path}/{name} is missing{instead}") for name in nearest)


def missing_weights(part: Path, path: str, variant: str | None) -> Iterator[Lack]:
    """What of a component's weights is not there; links that lead nowhere are not there, either."""
    files = [file for file in weights_in(part, variant) if file.is_file()]
    named: set[str] = set()
    for index in indices_in(part, variant):
        shards = shards_in(index)
        if shards is None:
            yield Lack(f"{path}/{index.name}", f"{path}/{index.name} is broken")
            continue
        named |= shards
        gone = [f"{path}/{name}" for name in sorted(shards - _names(part))]
        yield from (Lack(name, f"{shown(name)} is missing, a part of the weights") for name in gone)
    if not files and not named:
        yield Lack(f"{path}/{usual_weights(part)}", _no_weights(part, path))
    elif not named and all("-of-" in file.name for file in files):
        words = f"{path} has shards of weights, and the index that tells of them is missing"
        yield Lack(f"{path}/{usual_weights(part)}.index.json", words)


def usual_weights(part: Path) -> str:
    """What the weights of a component are called: diffusers' own say what they are by another name."""
    try:
        own = "_class_name" in json.loads((part / "config.json").read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        own = False
    return "diffusion_pytorch_model.safetensors" if own else "model.safetensors"


def shards_in(index: Path) -> set[str] | None:
    """The files that an index of shards names; None where it is broken, or names what does not lie beside it."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    proper = all(isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names)
    return names if names and proper else None


def _names(part: Path) -> set[str]:
    return {file.name for file in part.iterdir() if file.is_file()}


def _no_weights(part: Path, path: str) -> str:
    pickles = sorted(file.name for file in part.iterdir() if file.suffix in PICKLES)
    if pickles:
        words = "a pickle, which is never read; convert it to safetensors"
        return f"the only weights of {path} are {shown(pickles[0])}, {words}"
    others = sorted(filter(None, (variant_of(name) for name in _names(part))))
    if others:
        return f"{path} has no plain weights, only the variant {others[0]}"
    return f"there are no weights in {path}"


def _is_part(value: Any) -> bool:
    """As hub.pipelines.checks tells components from plain options."""
    return isinstance(value, list) and len(value) > 0 and all(each is None or isinstance(each, str) for each in value)


def is_known(library: str) -> bool:
    """Whether an index of components may name it: no code but that of diffusers and transformers is run. Safety
    checkers and their kind lie in the folder of a pipeline, whose name is the library's."""
    return library in LIBRARIES or library in _pipeline_folders()


@functools.cache
def _pipeline_folders() -> frozenset[str]:
    """The folders of diffusers' pipelines, which is not imported for it."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return frozenset()
    return frozenset(place.name for place in (Path(spec.origin).parent / "pipelines").iterdir() if place.is_dir())
