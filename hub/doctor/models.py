"""The models: whether each manifest can be read, and whether all that it names is there and may be loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.errors import ConfigurationError, HubError, ModelRefused
from hub.library.contents import INDEX, check_file, is_weights, shown
from hub.library.layout import files_below
from hub.library.parts import Lack, components_in, has_weights, lacks, missing_weights
from hub.library.progress import as_bytes
from hub.manifest import AnyManifest, ModelManifest
from hub.pipelines.headers import Damaged, read_gguf, read_safetensors
from hub.pipelines.kinds import is_held
from hub.pipelines.variants import weights_in
from hub.pipelines.weights import size_of
from hub.registry import absence, manifests_in, named, open_registry, read_manifest, ready_made_in
from hub.settings import Settings

UNKNOWN = {"", "?", "-", "none", "unknown", "other", "unlicensed", "tbd"}
"""What stands for a licence that nobody has looked up."""
NO_START = "The hub does not start with it, nor take in other changes."
IMPORT = (
    "This hub is offline: on a machine with a network, `hub models pull` and `hub models export`; here, "
    "`hub models import` (docs/air-gap.md)."
)
TABLE = "Write its SHA-256 into the table (`sha256sum` tells it), or remove the table."


def read(settings: Settings, found: list[Finding], *, offline: bool) -> list[AnyManifest]:
    """All manifests that can be read, of two with one id the later folder's; of the ready-made ones those that the
    settings name. What is wrong goes to `found`."""
    manifests: dict[str, AnyManifest] = {}
    before = len(found)
    for folder in settings.models_dirs:
        if not folder.is_dir():
            words = f"{folder} is not a folder"
            found.append(problem("folders", "models_dir", words, f"Make it (`mkdir -p {folder}`), or correct it."))
            continue
        for source in [*manifests_in(folder), *ready_made_in(folder)]:
            try:
                manifest = read_manifest(source, settings.weights_folder)
                if source.parent == folder or named(manifest.id, settings.remote_models):
                    manifests[manifest.id] = manifest
            except ConfigurationError as error:
                remedy = f"Correct or remove it (docs/manifests.md explains each field). {NO_START}"
                found.append(problem("models", source.name, str(error), remedy))
    if not manifests and len(found) == before:
        words = f"there is no manifest in {', '.join(map(str, settings.models_dirs))}"
        remedy = IMPORT if offline else "Add a model: `hub models pull`, or docs/models.md."
        found.append(problem("models", "manifests", words, remedy))
    elif len(found) == before:
        patterns = [each for each in settings.remote_models if any(named(name, [each]) for name in manifests)]
        try:  # what concerns several of them; the owner's aliases are looked at with the settings
            open_registry(settings.models_dirs, _leading(settings, manifests), settings.weights_folder, patterns)
        except ConfigurationError as error:
            found.append(problem("models", "manifests", str(error), f"Correct what it names. {NO_START}"))
    return list(manifests.values())


def _leading(settings: Settings, manifests: Collection[str]) -> dict[str, str | list[str]]:
    """Those that lead somewhere."""
    return {
        alias: target
        for alias, target in settings.aliases.items()
        if any(each in manifests for each in ([target] if isinstance(target, str) else target))
    }


def check(case: Case) -> Iterator[Finding]:
    """Each model's files: all there, and none that is damaged or asks for code. Weights are not hashed: that is
    `hub models verify`."""
    for model in case.models:
        if missing := absence(model):
            yield _absent(case, model, missing)
        else:
            wrong = [problem("models", model.id, words, _remedy(case, model)) for words in _looked_at(model, _wrong)]
            wrong += [problem("models", model.id, words, TABLE) for words in _looked_at(model, _unnamed)]
            yield from wrong
            if not wrong:
                size = as_bytes(size_of(Path(model.path), model.components, model.pipeline.variant))
                yield ok("models", model.id, f"all files are there; {size} of weights")
        if model.license.strip().lower() in UNKNOWN:
            words = f"its licence is not known (license = '{shown(model.license)}')"
            remedy = "Look it up in the model's card, and write it into the manifest."
            yield warning("models", model.id, words, remedy)


def check_schedulers(case: Case) -> Iterator[Finding]:
    """Whether diffusers, as a process with torch sees it, has the noise schedulers that manifests name."""
    for model in case.models:
        name = model.pipeline.scheduler
        if name and (why := case.seen().schedulers.get(name)):
            words = f"its manifest names {name} (`pipeline.scheduler`), and {why}: it cannot be loaded"
            yield problem("models", model.id, words, "Correct the field in the manifest, or remove it.")


def _looked_at(model: ModelManifest, look: Callable[[ModelManifest], Iterator[str]]) -> Iterator[str]:
    """What is wrong with the files of a model whose folders are there; each once."""
    try:
        yield from dict.fromkeys(look(model))
    except HubError as error:
        yield error.message.rstrip(".")
    except Exception as error:  # one model's files are no reason to leave out the others
        yield f"its files could not be looked at: {type(error).__name__}: {error}"


def _absent(case: Case, model: ModelManifest, missing: str) -> Finding:
    """Of weights that are not there: the words of `absence` end with what to do. Where the first request would fetch
    them that is no more than a warning."""
    message, _, remedy = missing.partition(". ")
    if model.source is not None and model.source.kind == "huggingface":
        if case.offline:
            remedy = IMPORT
        elif case.settings.auto_pull != "off":
            return warning("models", model.id, f"{message}; its first request fetches them", remedy)
    return problem("models", model.id, message, remedy)


def _remedy(case: Case, model: ModelManifest) -> str:
    if model.source is None:
        return "Copy the file anew from where the model came from."
    if model.source.kind == "local":
        return "Import or add the model again."
    if case.offline:
        return f"{IMPORT} `hub models verify {model.id}` looks closer."
    return (
        f"`hub models pull {model.id}` fetches what is missing or damaged; `hub models verify {model.id}` looks closer."
    )


def _wrong(model: ModelManifest) -> Iterator[str]:
    lacking = [] if _refused(Path(model.folder) / INDEX, INDEX, INDEX) else _missing(model)
    yield from (lack.words for lack in lacking)
    missing = {lack.path for lack in lacking}
    for name, place in _places(model).items():
        files = {place.name: place} if place.is_file() else files_below(place)
        for path, file in files.items():
            told = f"{name}: {path}" if name else path
            if path not in missing and (words := _refused(file, path, told)):
                yield words
    base = Path(model.path).parent if model.is_single_file else Path(model.path)
    for path in sorted(model.sha256):
        if path not in missing and not (base / path).is_file():
            yield f"{shown(path)} is missing, which the manifest's table sha256 names"


def _unnamed(model: ModelManifest) -> Iterator[str]:
    """Weights that are read, and that the manifest's table of hashes, where it has one, leaves out: the engine refuses
    such a model. By names alone."""
    first = Path(model.path).parent if model.is_single_file else Path(model.path)
    try:
        files = list(_weights_of(model)) if model.sha256 else []
    except (HubError, Damaged, OSError):  # told with the files
        return
    for file in files:
        name = Path(os.path.relpath(file, first)).as_posix()
        if name not in model.sha256:
            yield f"{shown(name)} is not in the manifest's table sha256, which must name all weights"


def _weights_of(model: ModelManifest) -> Iterator[Path]:
    """The files of weights that are read, as the loader takes them: of a diffusers folder those of its components,
    beside a single file those that it lacks, and what the manifest names of its own."""
    place, variant = Path(model.path), model.pipeline.variant
    own = [Path(each) for each in filter(None, [*model.components.values(), model.lossy.vae])]
    if model.is_single_file:
        yield place
        folder, tensors = Path(model.folder), read_safetensors(place)
        for name, (_, cls) in components_in(folder).items():
            replaced = name in model.components or (name == "vae" and model.lossy.vae)
            if has_weights(cls) and not replaced and not is_held(name, cls, tensors):
                yield from weights_in(folder / name, variant)
    else:
        yield from _weights_below(place, variant, [*(place / name for name in model.components), *own])
    for each in own:
        yield from _weights_below(each, variant) if each.is_dir() else [each]


def _weights_below(folder: Path, variant: str | None, but: Collection[Path] = ()) -> Iterator[Path]:
    """Without checkpoints with all in one, which may lie beside a model_index.json."""
    for part in sorted({file.parent for file in folder.rglob("*.safetensors")}):
        if not (part / INDEX).is_file() and not any(part.is_relative_to(each) for each in but):
            yield from weights_in(part, variant)


def _missing(model: ModelManifest) -> list[Lack]:
    """Of the diffusers folder, but for what comes from elsewhere; and of components in folders of their own."""
    variant = model.pipeline.variant
    whole = {f"{name}/" for name, place in model.components.items() if Path(place).is_dir()}
    files = {f"{name}/" for name, place in model.components.items() if not Path(place).is_dir()}
    missing = []
    for lack in lacks(Path(model.folder), variant):
        component = f"{lack.path.partition('/')[0]}/"
        weights = is_weights(lack.path) or ".safetensors." in lack.path
        if component not in whole and not (weights and (model.is_single_file or component in files)):
            missing.append(lack)
    for name, place in model.components.items():
        if Path(place).is_dir():
            missing += missing_weights(Path(place), f"components.{name}", variant)
    return missing


def _places(model: ModelManifest) -> dict[str, Path]:
    """Files and folders that are read for the model, by what the manifest calls them; of its own folder nothing."""
    places = {"": Path(model.folder)}
    if model.is_single_file:
        places["path"] = Path(model.path)
    if model.lossy.vae:
        places["lossy.vae"] = Path(model.lossy.vae)
    return places | {f"components.{name}": Path(place) for name, place in model.components.items()}


def _refused(file: Path, path: str, told: str) -> str | None:
    """Why a file cannot be used."""
    try:
        if file.suffix == ".gguf":
            return _gguf_refused(file, told)
        check_file(file, path)
    except ModelRefused as error:
        words = error.message.rstrip(".")
        return words if told == path else f"{told.partition(':')[0]}: {words}"
    return None


def _gguf_refused(file: Path, told: str) -> str | None:
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:  # told among the libraries
        return None
    try:
        read_gguf(file, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()})
    except Damaged as error:
        return f"{told} {error}"
    except OSError as error:
        return f"{told} cannot be read: {os.strerror(error.errno or 0)}"
    return None
