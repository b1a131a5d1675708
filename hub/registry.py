"""The registry: one TOML manifest per model, all read and checked at start.

A manifest is the only thing that a new model needs. docs/models.md explains each field.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import difflib
import functools
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from hub import __version__
from hub.errors import ConfigurationError, ModelNotFound
from hub.imaging.geometry import NativeShapes
from hub.types import Effort, Size, Style, Task

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"

DEVICE_PATTERN = r"^(cpu|mps|cuda:(0|[1-9][0-9]?))$"

SCHEDULER_PATTERN = r"^[A-Za-z0-9]{1,64}$"

Quantization = Literal[
    "torchao:int8_weight_only", "torchao:float8_weight_only", "bitsandbytes:int8", "bitsandbytes:nf4"
]
ComponentName = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
ModelId = Annotated[str, Meta(pattern=ID_PATTERN)]
ALL_MODELS = "GET /v1/models lists all."
"""The end of an unknown model's error, for clients of the API."""

Side = Annotated[int, Meta(ge=8, le=16_384)]
SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
SizeText = Annotated[str, Meta(pattern=f"^{SIZE.pattern}$")]


COMPONENT_FILES = (".safetensors", ".gguf")


def parse_size(text: str) -> Size:
    """`"1024x768"` as a Size; the text must match SIZE."""
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


class SizeSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the model draws itself (pixels), and the largest side that is made from it by resampling."""

    native: SizeText
    multiple: Annotated[int, Meta(ge=1, le=256)] = 8
    min: Side
    max: Side
    max_output: Side = 4096

    def __post_init__(self) -> None:
        if not self.shapes.holds(parse_size(self.native)):
            raise ValueError("native must be a multiple of `multiple` and lie between `min` and `max`")

    @property
    def shapes(self) -> NativeShapes:
        """The same as the geometry module wants it."""
        return NativeShapes(native=parse_size(self.native), multiple=self.multiple, min=self.min, max=self.max)


class DefaultsSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a request that says nothing gets. `guidance_scale` is left out for models that were distilled to one."""

    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)]
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] = 0.8
    size: SizeText = "1024x1024"
    response_format: Literal["url", "b64_json"] | None = None


Scalar = str | int | float | bool | None


class PipelineSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """How the pipeline is set up: `scheduler`, the noise scheduler's class instead of the folder's own;
    `scheduler_options`, changes to its configuration; `arguments`, given to every call; `compile`, whether the
    denoiser's forwards are compiled in the background; `config`, where `path` is a single file, a diffusers folder with
    the configurations and tokenizers."""

    scheduler: Annotated[str, Meta(pattern=SCHEDULER_PATTERN)] | None = None
    scheduler_options: dict[str, Scalar] = field(default_factory=dict)
    arguments: dict[str, Scalar] = field(default_factory=dict)
    compile: bool = False
    config: str | None = None


class LossySection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What makes a model faster or smaller, and its pictures others than diffusers would draw: `skip`, denoising steps
    that are expected to change the last output by less than this share of it are not computed; `vae`, a folder with an
    AutoencoderTiny to decode with; `storage_dtype`, in which the denoiser's weights are kept; `quantization`, the
    library and method by which they are."""

    skip: Annotated[float, Meta(gt=0, le=1)] | None = None
    vae: str | None = None
    storage_dtype: Literal["float8_e4m3fn", "float8_e5m2"] | None = None
    quantization: Quantization | None = None

    @property
    def words(self) -> str:
        """What was done, for those who get the pictures; empty where nothing was."""
        said = [
            f"steps expected to change less than {self.skip:g} are skipped" if self.skip else "",
            "a small decoder is used" if self.vae else "",
            f"the weights are kept in {self.storage_dtype}" if self.storage_dtype else "",
            f"the weights are quantized by {self.quantization}" if self.quantization else "",
        ]
        return "; ".join(filter(None, said))


class ModelManifest(Struct, forbid_unknown_fields=True, kw_only=True):
    """One model: what it is, where its weights lie, what it can do and what it does by default.

    `path` is the diffusers folder, or one safetensors file with all of the model, relative to the manifest. Of its
    parts, `components` names those that come from files or folders of their own. `quality` maps low, medium and high
    to denoising steps; `style` maps vivid and natural to words that are added to the prompt. `sha256` says what the
    files of weights must be, by their names relative to the folder. `keep_alive` is in seconds
    without work, after which it is unloaded; -1 is never, None as the settings say.
    """

    id: ModelId
    name: str
    description: str
    license: str
    provider: Literal["local"] = "local"
    path: str
    tasks: Annotated[list[Task], Meta(min_length=1)]
    size: SizeSection
    defaults: DefaultsSection
    owned_by: str = "local"
    created: dt.date = dt.date(2026, 1, 1)
    aliases: list[ModelId] = field(default_factory=list)
    max_inference_steps: Annotated[int, Meta(ge=1, le=1000)] = 150
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Annotated[str, Meta(pattern=DEVICE_PATTERN)] | None = None
    keep_alive: Annotated[int, Meta(ge=-1)] | None = None
    pipeline: PipelineSection = field(default_factory=PipelineSection)
    lossy: LossySection = field(default_factory=LossySection)
    quality: dict[Effort, Annotated[int, Meta(ge=1, le=1000)]] = field(default_factory=dict)
    style: dict[Style, str] = field(default_factory=dict)
    sha256: dict[str, Sha256] = field(default_factory=dict)
    components: dict[ComponentName, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        largest = parse_size(self.defaults.size)
        if max(largest.width, largest.height) > self.size.max_output:
            raise ValueError("defaults.size is larger than size.max_output")
        if max(self.defaults.num_inference_steps, *self.quality.values(), 1) > self.max_inference_steps:
            raise ValueError("max_inference_steps is less than the default or a quality's steps")
        if self.pipeline.compile and self.lossy.storage_dtype:
            raise ValueError("pipeline.compile and lossy.storage_dtype do not go together")
        quantized = ["lossy.quantization"] if self.lossy.quantization else []
        quantized += ["a GGUF file"] if self.quantized_components else []
        others = {"lossy.storage_dtype": self.lossy.storage_dtype, "pipeline.compile": self.pipeline.compile}
        clashing = quantized + [name for name, wanted in others.items() if wanted]
        if quantized and len(clashing) > 1:
            raise ValueError(f"{clashing[0]} and {clashing[1]} do not go together")

    @property
    def folder(self) -> str:
        """The diffusers folder, which says what the model is."""
        return self.pipeline.config or self.path

    @property
    def quantized_components(self) -> list[str]:
        """Those that come from GGUF files."""
        return [name for name, place in self.components.items() if place.endswith(".gguf")]

    @property
    def lossy_words(self) -> str:
        """What quality was given away for, for those who get the pictures; empty where it was not."""
        files = [f"{name} comes from a GGUF file" for name in self.quantized_components]
        return "; ".join(filter(None, [self.lossy.words, *files]))

    @property
    def created_at(self) -> int:
        """Unix seconds, as OpenAI's model objects want it."""
        return int(dt.datetime.combine(self.created, dt.time(), dt.UTC).timestamp())


class ListedModel(Struct, frozen=True):
    """An id that answers requests: a model's own, or an alias of it."""

    id: str
    manifest: ModelManifest
    revision: str
    """Another one after a start with another manifest, other weights or another hub: it may draw other pictures."""

    @property
    def is_alias(self) -> bool:
        """Whether the id is another name of the manifest's model."""
        return self.id != self.manifest.id


def read_manifest(source: Path) -> ModelManifest:
    """Reads and checks one manifest; raises ConfigurationError that names the file and the field."""
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
        manifest = msgspec.convert(values, ModelManifest)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{source}: {error}") from None
    _place(source, manifest)
    if manifest.lossy.vae is not None:
        decoder = (source.parent / manifest.lossy.vae).resolve()
        if _class_in(decoder) != "AutoencoderTiny":
            raise ConfigurationError(
                f"{source}: lossy.vae: {decoder} is not the folder of an AutoencoderTiny (its config.json says so). "
                "Put the decoder there, correct `lossy.vae`, or remove it."
            )
        manifest.lossy.vae = str(decoder)
    return manifest


def _place(source: Path, manifest: ModelManifest) -> None:
    """Makes the paths of weights absolute, in place; raises ConfigurationError for those that lead nowhere."""
    path = (source.parent / manifest.path).resolve()
    single = path.suffix == ".safetensors" and not path.is_dir()
    manifest.path = str(path)
    if single and not path.is_file():
        raise ConfigurationError(f"{source}: path: there is no file {path}. Put it there, or correct `path`.")
    if single and manifest.pipeline.config is None:
        raise ConfigurationError(
            f"{source}: pipeline.config: {path.name} is a single file, without configurations and tokenizers. "
            "Set it to a diffusers folder of the same kind of model, which has these; its weights are not needed."
        )
    if not single and manifest.pipeline.config is not None:
        raise ConfigurationError(f"{source}: pipeline.config is for a `path` that is a single .safetensors file.")
    if manifest.pipeline.config is not None:
        manifest.pipeline.config = str((source.parent / manifest.pipeline.config).resolve())
    if not Path(manifest.folder, "model_index.json").is_file():
        raise ConfigurationError(
            f"{source}: {'pipeline.config' if single else 'path'}: {manifest.folder} is not a diffusers folder "
            "(it has no model_index.json). Put the model there, correct the path, or remove the manifest."
        )
    for name, place in manifest.components.items():
        found = (source.parent / place).resolve()
        if not (found / "config.json").is_file() and not (found.suffix in COMPONENT_FILES and found.is_file()):
            raise ConfigurationError(
                f"{source}: components.{name}: {found} is neither a .safetensors or .gguf file nor a folder with a "
                "config.json. Put the component there, correct the path, or remove it."
            )
        manifest.components[name] = str(found)


def _class_in(folder: Path) -> object:
    """The class of a diffusers model, as its folder has it; None where it tells none."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes())).get("_class_name")
    except (OSError, ValueError, TypeError):
        return None


def revision_of(source: Path, manifest: ModelManifest) -> str:
    """A digest of the manifest's bytes, the names, sizes and times of all files of the model's folders, and what draws
    with them. Cheap: the weights themselves are not read."""
    digest = hashlib.sha256(drawn_by().encode() + source.read_bytes())
    further = (manifest.pipeline.config, manifest.lossy.vae, *manifest.components.values())
    for place in filter(None, (manifest.path, *further)):
        for line in _files_of(Path(place)):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


@functools.cache
def drawn_by() -> str:
    """What may change a picture beside the model: the hub, also while it is worked on, and the libraries."""
    libraries = []
    for name in ("torch", "diffusers", "transformers"):
        with contextlib.suppress(PackageNotFoundError):  # some come without their papers
            libraries.append(f"{name} {version(name)}")
    own = [line for line in _files_of(Path(__file__).parent) if line.partition("\t")[0].endswith(".py")]
    return "\n".join([f"hub {__version__}", *libraries, *own])


def _files_of(folder: Path) -> list[str]:
    """Name, size and time of every file below the folder, sorted; of a file its own. Links are followed, as those who
    load the model do; what cannot be read has a name only."""
    if folder.is_file():
        return [_line(folder, folder.name)]
    found, seen = [], set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:  # a link that leads upwards
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            path = Path(at, name)
            found.append(_line(path, str(path.relative_to(folder))))
    return sorted(found)


def _line(path: Path, name: str) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{name}\t"
    return f"{name}\t{status.st_size}\t{status.st_mtime_ns}"


class Registry:
    """All models by id and alias. Immutable after `open_registry`."""

    def __init__(
        self, manifests: Mapping[str, ModelManifest], aliases: Mapping[str, str], revisions: Mapping[str, str]
    ) -> None:
        """`revisions`: by the manifests' ids."""
        self._manifests = dict(manifests)
        self._aliases = dict(aliases)
        self._revisions = dict(revisions)

    def __iter__(self) -> Iterator[ListedModel]:
        for name in (*self._manifests, *self._aliases):
            yield self._listed(name, self._aliases.get(name, name))

    def _listed(self, name: str, target: str) -> ListedModel:
        return ListedModel(name, self._manifests[target], self._revisions[target])

    def get(self, model: str) -> ListedModel:
        """The model behind an id or alias; raises ModelNotFound that lists near names."""
        target = self._aliases.get(model, model)
        if target in self._manifests:
            return self._listed(model, target)
        known = [*self._manifests, *self._aliases]
        near = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.5) or list(self._manifests)[:3]
        shown = re.sub(r"[^ -~]", "?", model[:64])
        raise ModelNotFound(
            f"The model '{shown}' does not exist. Near names: {', '.join(near)}. {ALL_MODELS}",
            param="model",
        )


def open_registry(folders: Sequence[Path], owner_aliases: Mapping[str, str]) -> Registry:
    """Reads every manifest of the folders; of two with one id, the later folder's counts.

    `owner_aliases` (hub.toml) win over the manifests' own. Two manifests that claim one alias are an error unless
    they lie in different folders (the later counts) or hub.toml decides.
    """
    manifests: dict[str, ModelManifest] = {}
    sources: dict[str, Path] = {}
    aliases: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"models_dir: {folder} is not a folder")
        claimed: dict[str, Path] = {}
        for source in sorted(folder.glob("*.toml")):
            if source.name == "hub.toml":  # the settings, where both lie in one folder
                continue
            manifest = read_manifest(source)
            for name in (manifest.id, *manifest.aliases):
                if name in claimed and name not in owner_aliases:
                    raise ConfigurationError(
                        f"{source}: '{name}' is claimed by {claimed[name].name} too. "
                        f'Remove it from one, or decide with `"{name}" = "MODEL"` under [aliases] in hub.toml.'
                    )
                claimed[name] = source
            manifests[manifest.id], sources[manifest.id] = manifest, source
            aliases |= dict.fromkeys(manifest.aliases, manifest.id)
    if not manifests:
        raise ConfigurationError(f"no model manifest (*.toml) in {', '.join(map(str, folders))}")
    aliases |= owner_aliases
    for alias, target in owner_aliases.items():
        if not re.fullmatch(ID_PATTERN, alias) or alias in manifests:
            why = "is a model's own id" if alias in manifests else "is not a possible model id"
            raise ConfigurationError(f"aliases.{alias}: {why}")
        if target not in manifests:
            raise ConfigurationError(f"aliases.{alias}: there is no model '{target}' (models: {', '.join(manifests)})")
    aliases = {alias: target for alias, target in aliases.items() if alias not in manifests}
    revisions = {name: revision_of(source, manifests[name]) for name, source in sources.items()}
    return Registry(manifests, aliases, revisions)
