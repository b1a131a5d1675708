"""Manifests of local models: where the weights lie, how the pipeline is set up, what it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from hub.imaging.geometry import NativeShapes
from hub.manifest.listing import Listing, PricesSection, SizeText, parse_size
from hub.types import Effort, Size, Style, Task

DEVICE_PATTERN = r"^(cpu|mps|cuda:(0|[1-9][0-9]?))$"

SCHEDULER_PATTERN = r"^[A-Za-z0-9]{1,64}$"

Quantization = Literal[
    "torchao:int8_weight_only", "torchao:float8_weight_only", "bitsandbytes:int8", "bitsandbytes:nf4"
]
ComponentName = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]
Side = Annotated[int, Meta(ge=8, le=16_384)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
COMPONENT_FILES = (".safetensors", ".gguf")

REPO_PATTERN = r"^[A-Za-z0-9](?!.*(--|\.\.))[A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$(?!\n)"
"""Hugging Face's rules for ids. None of them leads out of a folder."""
FILE_PATTERN = r"^[A-Za-z0-9_](?!.*\.\.)[A-Za-z0-9._/-]{0,199}\.safetensors$(?!\n)"
COMMIT_PATTERN = r"^[0-9a-f]{40}$(?!\n)"
VARIANT_PATTERN = r"^[A-Za-z0-9_-]{1,32}$(?!\n)"
JSON_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\.json$(?!\n)"
Repo = Annotated[str, Meta(pattern=REPO_PATTERN)]
Commit = Annotated[str, Meta(pattern=COMMIT_PATTERN)]
Variant = Annotated[str, Meta(pattern=VARIANT_PATTERN)]


MIN_OUTPUT = 16
"""Pixels a side of what a local model answers, at least."""


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

    def refused(self, size: Size) -> str | None:
        """Why a picture of this size cannot be had, in words; None where it can."""
        if all(MIN_OUTPUT <= side <= self.max_output for side in (size.width, size.height)):
            return None
        return f"size: {size} is out of range; each side must be {MIN_OUTPUT} to {self.max_output} pixels."

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
    the configurations and tokenizers; `variant`, the safetensors to be read where a component has several (fp16)."""

    scheduler: Annotated[str, Meta(pattern=SCHEDULER_PATTERN)] | None = None
    scheduler_options: dict[str, Scalar] = field(default_factory=dict)
    arguments: dict[str, Scalar] = field(default_factory=dict)
    compile: bool = False
    config: str | None = None
    variant: Variant | None = None


class SourceSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Weights in `weights_dir`, and where they came from: `kind` huggingface, a `repo` there at the commit `revision`,
    from which they can be fetched again; or local, carried or copied here, in the same layout under a name of ours.
    `file`: the one safetensors file there with all of the model, where it is no diffusers folder."""

    kind: Literal["huggingface", "local"] = "huggingface"
    repo: Repo
    revision: Commit
    file: Annotated[str, Meta(pattern=FILE_PATTERN)] | None = None

    def folder_in(self, weights_dir: Path) -> Path:
        """The snapshot's folder; whether it is there is another question. Hugging Face's layout."""
        return weights_dir / repo_folder(self.repo) / "snapshots" / self.revision


def repo_folder(repo: str) -> str:
    """A repository's folder in a Hugging Face cache."""
    return f"models--{repo.replace('/', '--')}"


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


class ModelManifest(Listing, kw_only=True):
    """One model on this machine: what it is, where its weights lie, what it can do and what it does by default.

    `path` is the diffusers folder, or one safetensors file with all of the model, relative to the manifest; or else
    `source` says where the weights came from, and they, and other relative places, are found in that folder. Of its
    parts, `components` names those that come from files or folders of their own. `quality` maps low, medium and high
    to denoising steps; `style` maps vivid and natural to words that are added to the prompt. `sha256` says what the
    files of weights must be, by their names relative to the folder. `keep_alive` is in seconds without work, after
    which it is unloaded; -1 is never, None as the settings say. `vocabulary` is a file in the folder with the words
    that the model knows (hub/vocabulary.py), where these are few: others are told.
    """

    license: str
    provider: Literal["local"] = "local"
    path: str = ""
    source: SourceSection | None = None
    tasks: Annotated[list[Task], Meta(min_length=1)]
    size: SizeSection
    defaults: DefaultsSection
    max_inference_steps: Annotated[int, Meta(ge=1, le=1000)] = 150
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Annotated[str, Meta(pattern=DEVICE_PATTERN)] | None = None
    keep_alive: Annotated[int, Meta(ge=-1)] | None = None
    pipeline: PipelineSection = field(default_factory=PipelineSection)
    lossy: LossySection = field(default_factory=LossySection)
    quality: dict[Effort, Annotated[int, Meta(ge=1, le=1000)]] = field(default_factory=dict)
    style: dict[Style, str] = field(default_factory=dict)
    vocabulary: Annotated[str, Meta(pattern=JSON_PATTERN)] | None = None
    sha256: dict[str, Sha256] = field(default_factory=dict)
    components: dict[ComponentName, str] = field(default_factory=dict)
    prices: PricesSection = field(default_factory=PricesSection)

    def __post_init__(self) -> None:
        if bool(self.path) == (self.source is not None):
            raise ValueError("a manifest needs either `path` or `source`, where the weights are")
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
    def is_single_file(self) -> bool:
        """Whether `path`, which is absolute, is one file with all of the model."""
        return self.path.endswith(".safetensors") and not Path(self.path).is_dir()

    @property
    def folder(self) -> str:
        """The diffusers folder, which says what the model is."""
        return self.pipeline.config or self.path

    @property
    def vocabulary_file(self) -> Path | None:
        """Where the words are that the model knows; None where it makes something of any."""
        return Path(self.folder) / self.vocabulary if self.vocabulary else None

    @property
    def quantized_components(self) -> list[str]:
        """Those that come from GGUF files."""
        return [name for name, place in self.components.items() if place.endswith(".gguf")]

    @property
    def lossy_words(self) -> str:
        """What quality was given away for, for those who get the pictures; empty where it was not."""
        files = [f"{name} comes from a GGUF file" for name in self.quantized_components]
        return "; ".join(filter(None, [self.lossy.words, *files]))
