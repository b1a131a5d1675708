"""A pipeline's modules, from wherever a manifest has them: its folder, one file with all, or files of their own."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import ModelMixin
from diffusers.loaders.single_file_model import (
    SINGLE_FILE_LOADABLE_CLASSES,
    FromOriginalModelMixin,
    _get_single_file_loadable_mapping_class,
    _should_convert_state_dict_to_diffusers,
)
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
    infer_diffusers_model_type,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
    load_single_file_checkpoint,
)
from msgspec import Struct
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hub.pipelines import Unsupported
from hub.pipelines.auto import DENOISERS
from hub.pipelines.checks import (
    Component,
    check_configs,
    check_file,
    check_folder,
    check_part,
    components_of,
    read_json,
    refuse_missing,
)
from hub.pipelines.headers import Tensor
from hub.pipelines.kinds import FAMILIES, LDM_INPUT, VAE, family_by_name
from hub.pipelines.quantizing import check_gguf, gguf_config, quantization_config
from hub.pipelines.variants import old_index, read_variant, weights_in

log = logging.getLogger("hub.worker")


class Source(Struct, frozen=True):
    """Where a pipeline's modules are: `folder` has the configurations and tokenizers, and the weights of all that is
    neither in the single `file` nor among the `components` by name: of each, its `variant` where it has one."""

    folder: Path
    file: Path | None = None
    components: Mapping[str, Path] = {}
    quantization: str | None = None
    variant: str | None = None


def places_of(
    path: str, config: str | None, components: Mapping[str, str], decoder: str | None, variant: str | None = None
) -> list[str]:
    """The files and folders whose weights make a model: of the folder `config` only what the single file lacks.

    Raises Unsupported for a single file that does not suit it.
    """
    places = [path]
    if config is not None:
        folder = Path(config)
        parts = components_of(folder)
        others = [part for part in parts if part.name not in components and not (decoder and part.name == "vae")]
        taken = _held(Path(path), folder, others, variant)
        places += [str(folder / part.name) for part in others if part.has_weights and part.name not in taken]
    return [*places, *components.values(), *filter(None, [decoder])]


def read_parts(source: Source, dtype: torch.dtype, device: torch.device, given: Collection[str] = ()) -> dict[str, Any]:
    """All modules but those that are `given` otherwise, by name; the pipelines within a pipeline are left to diffusers.
    Nothing is loaded before all files have been looked at.

    Raises Unsupported for what is damaged, incomplete, or does not fit together.
    """
    quantization = quantization_config(source.quantization, device, dtype)
    parts = {part.name: part for part in components_of(source.folder) if part.name not in given}
    if unknown := set(source.components) - set(parts) - set(given):
        raise Unsupported(f"components.{min(unknown)}: its pipeline has no component of that name")
    others = [part for name, part in parts.items() if name not in source.components]
    held = _held(source.file, source.folder, others, source.variant) if source.file else {}
    check_folder(source.folder, given={*given, *source.components, *held}, variant=source.variant)
    for name, place in source.components.items():
        _check_own(name, place, source)
    if quantization is not None and not any(name in DENOISERS for name in parts):
        raise Unsupported("lossy.quantization is for denoisers, and none of this model's parts is known as one")
    modules: dict[str, Any] = {}
    for name, part in parts.items():
        chosen = quantization if name in DENOISERS else None
        if name in source.components:
            modules[name] = _read_own(part, source, dtype, chosen)
        elif name in held:
            found = held[name]
            modules[name] = found and _from_file(part, found, source.folder, dtype, chosen)
        elif issubclass(part.cls, (ModelMixin, PreTrainedModel)):
            modules[name] = _from_folder(
                part.name, part.cls, source.folder / name, dtype, variant=source.variant, quantization=chosen
            )
    return modules


def _from_folder(
    name: str, cls: Any, folder: Path, dtype: torch.dtype, *, variant: str | None, quantization: Any = None
) -> Any:
    """Left alone, diffusers and transformers give other values than any file has to weights that are missing; here
    they are refused, by the reports that the two make of a load."""
    options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    index = old_index(folder, variant)
    with _renamed(folder, index) if index else contextlib.nullcontext(folder) as place:
        if index is None and (chosen := read_variant(folder, variant)):
            options["variant"] = chosen
        module, told = cls.from_pretrained(
            place, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    refuse_missing(name, told["missing_keys"])
    return module


@contextlib.contextmanager
def _renamed(folder: Path, index: Path) -> Iterator[Path]:
    """A folder with links to a component's shards, whose index has the plain name there: in its old form transformers
    does not look for it, and diffusers only where the path has no dots."""
    with tempfile.TemporaryDirectory(prefix="hub-variant-") as made:
        place = Path(made)
        shutil.copyfile(index, place / f"{index.name.partition('.')[0]}.safetensors.index.json")
        names = set(read_json(index, folder)["weight_map"].values())
        configs = {file.name for file in folder.glob("*.json") if ".index" not in file.name}
        for name in names | configs:
            (place / name).symlink_to((folder / name).absolute())
        yield place


def _held(file: Path, folder: Path, parts: Collection[Component], variant: str | None = None) -> dict[str, Path | None]:
    """The components that come out of the single file; by None those that are nowhere and may be.

    Raises Unsupported where the file is of another family than the folder.
    """
    tensors = check_file(file, file.parent)
    found = family_in(tensors)
    cls = str(read_json(folder / "model_index.json", folder)["_class_name"])
    if found is None:
        raise Unsupported(f"{file.name} is no checkpoint of a kind that is known; use a diffusers folder")
    if found != family_by_name(cls):
        raise Unsupported(f"{file.name} is a checkpoint for {found} pipelines, and pipeline.config one of a {cls}")
    held: dict[str, Path | None] = {}
    optional = getattr(diffusers, cls)._optional_components
    for part in filter(lambda part: part.has_weights, parts):
        if _is_in(part, tensors):
            held[part.name] = file
        elif part.name in optional and not weights_in(folder / part.name, variant):
            log.warning("neither %s nor pipeline.config has weights of %s; it is left out", file.name, part.name)
            held[part.name] = None
        elif not weights_in(folder / part.name, variant):
            raise Unsupported(
                f"{file.name} has no {part.name}; put it into pipeline.config's folder, or name it under components"
            )
    return held


def family_in(tensors: Mapping[str, Tensor]) -> str | None:
    """How the names of the pipelines begin for which a checkpoint's tensors are; None where no whole model is known
    by them."""
    kind = infer_diffusers_model_type(tensors)
    if kind == "v1" and LDM_INPUT not in tensors:  # also what diffusers calls all that it does not know
        return None
    return next((family for family, kinds in FAMILIES.items() if kind in kinds), None)


def _is_in(part: Component, tensors: Collection[str]) -> bool:
    if part.name in DENOISERS:
        return True
    if part.name == "vae":
        return any(name.startswith(VAE) for name in tensors)
    t5 = part.cls.__name__ == "T5EncoderModel" and is_t5_in_single_file(tensors)
    return bool(t5 or is_clip_model_in_single_file(part.cls, tensors))


def _from_file(part: Component, file: Path, folder: Path, dtype: torch.dtype, quantization: Any = None) -> Any:
    """One component out of a file in diffusers' own or the original layout, by diffusers' conversion."""
    try:
        if issubclass(part.cls, FromOriginalModelMixin):
            options = {} if quantization is None else {"quantization_config": quantization}
            module = part.cls.from_single_file(
                str(file), config=str(folder), subfolder=part.name, dtype=dtype, local_files_only=True, **options
            )
        else:
            convert = create_diffusers_clip_model_from_ldm
            if part.cls.__name__ == "T5EncoderModel":
                convert = create_diffusers_t5_model_from_checkpoint
            tensors = load_file(file)
            module = convert(
                part.cls, tensors, subfolder=part.name, config=str(folder), torch_dtype=dtype, local_files_only=True
            )
            module.tie_weights()
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError:  # what it found no weights for has no memory, and cannot be moved
        refuse_missing(part.name, _lacking(part, file, folder))
        raise
    except (SingleFileComponentError, ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:
        log.exception("%s does not give a %s", file.name, part.name)
        raise Unsupported(
            f"{file.name} does not fit {part.name} as its folder configures it ({type(error).__name__}); "
            "it is of another model, or incomplete"
        ) from None
    weights = module.state_dict(keep_vars=True)
    refuse_missing(part.name, [key for key, weight in weights.items() if weight.is_meta])
    if any(not isinstance(weight, torch.nn.Parameter) for weight in weights.values()):  # these have memory, anyhow
        refuse_missing(part.name, _lacking(part, file, folder))
    return module


def _lacking(part: Component, file: Path, folder: Path) -> set[str]:
    """The weights of a component that a file does not have, by diffusers' own conversion of names."""
    if not issubclass(part.cls, FromOriginalModelMixin):
        return set()
    config = part.cls.load_config(folder, subfolder=part.name, local_files_only=True)
    with init_empty_weights():
        expected = part.cls.from_config(config).state_dict()
    found = load_single_file_checkpoint(str(file), local_files_only=True)
    if _should_convert_state_dict_to_diffusers(expected, found):
        kind = _get_single_file_loadable_mapping_class(part.cls)
        found = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](config=config, checkpoint=found)
    return set(expected) - set(found)


def _check_own(name: str, place: Path, source: Source) -> None:
    if place.suffix == ".gguf":
        check_gguf(place)
    elif place.is_dir():
        check_configs(place, place.parent)
        check_part(place, place.parent, source.variant)
    else:
        check_file(place, place.parent)
    if place.is_file() and not (source.folder / name / "config.json").is_file():
        raise Unsupported(f"components.{name} is a file, for which the model's folder needs {name}/config.json")


def _read_own(part: Component, source: Source, dtype: torch.dtype, quantization: Any) -> Any:
    """A component that the manifest names: a folder says itself what it is, a file is what it replaces."""
    place = source.components[part.name]
    if place.is_file():
        if not issubclass(part.cls, FromOriginalModelMixin):
            raise Unsupported(f"components.{part.name}: a {part.cls.__name__} is read from a folder, not from a file")
        chosen = gguf_config(dtype) if place.suffix == ".gguf" else quantization
        return _from_file(part, place, source.folder, dtype, chosen)
    name = read_json(place / "config.json", place).get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) else part.cls
    if not (isinstance(cls, type) and issubclass(cls, (ModelMixin, PreTrainedModel))):
        raise Unsupported(
            f"components.{part.name}: its config.json names no model of diffusers, and no other code is run"
        )
    if cls is not part.cls and not (hasattr(cls, "decode") and hasattr(part.cls, "decode")):
        raise Unsupported(f"components.{part.name} is a {cls.__name__}, where a {part.cls.__name__} is needed")
    return _from_folder(part.name, cls, place, dtype, variant=source.variant, quantization=quantization)
