"""Manifests: what a model is, where its weights lie, what it can do. One TOML file each.

docs/manifests.md explains each field, and docs/manifest.schema.json is made of the Structs here.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from hub.imaging.geometry import NativeShapes
from hub.types import Effort, OutputFormat, Size, Style, Task

# A `$` of Python's alone would let a line's end pass.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$(?!\n)"

DEVICE_PATTERN = r"^(cpu|mps|cuda:(0|[1-9][0-9]?))$"

SCHEDULER_PATTERN = r"^[A-Za-z0-9]{1,64}$"

Quantization = Literal[
    "torchao:int8_weight_only", "torchao:float8_weight_only", "bitsandbytes:int8", "bitsandbytes:nf4"
]
ComponentName = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
ModelId = Annotated[str, Meta(pattern=ID_PATTERN)]
Side = Annotated[int, Meta(ge=8, le=16_384)]
SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
SizeText = Annotated[str, Meta(pattern=f"^{SIZE.pattern}$")]


COMPONENT_FILES = (".safetensors", ".gguf")

REPO_PATTERN = r"^[A-Za-z0-9](?!.*(--|\.\.))[A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$(?!\n)"
"""Hugging Face's rules for ids. None of them leads out of a folder."""
FILE_PATTERN = r"^[A-Za-z0-9_](?!.*\.\.)[A-Za-z0-9._/-]{0,199}\.safetensors$(?!\n)"
COMMIT_PATTERN = r"^[0-9a-f]{40}$(?!\n)"
VARIANT_PATTERN = r"^[A-Za-z0-9_-]{1,32}$(?!\n)"
Repo = Annotated[str, Meta(pattern=REPO_PATTERN)]
Commit = Annotated[str, Meta(pattern=COMMIT_PATTERN)]
Variant = Annotated[str, Meta(pattern=VARIANT_PATTERN)]


def parse_size(text: str) -> Size:
    """`"1024x768"` as a Size; the text must match SIZE."""
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


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


class Listing(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every id that answers requests tells of itself."""

    id: ModelId
    name: str
    description: str
    license: str = ""
    owned_by: str = "local"
    created: dt.date = dt.date(2026, 1, 1)
    aliases: list[ModelId] = field(default_factory=list)

    @property
    def created_at(self) -> int:
        """Unix seconds, as OpenAI's model objects want it."""
        return int(dt.datetime.combine(self.created, dt.time(), dt.UTC).timestamp())


Usd = Annotated[float, Meta(ge=0, le=1_000_000)]
PRICE_KEY_PATTERN = r"^(low|medium|high|\*)/([1-9][0-9]{0,4}x[1-9][0-9]{0,4}|\*)$(?!\n)"
PriceKey = Annotated[str, Meta(pattern=PRICE_KEY_PATTERN)]


class TokenPrices(Struct, forbid_unknown_fields=True, kw_only=True):
    """US dollars for a million tokens: of text, of source pictures, and of pictures that were made. `output_tokens`:
    how many a picture takes, by quality and size as in `PricesSection.images`, to reckon with beforehand."""

    text: Usd = 0.0
    image: Usd = 0.0
    output: Usd = 0.0
    output_tokens: dict[PriceKey, Annotated[int, Meta(ge=0, le=10_000_000)]] = field(default_factory=dict)


class PricesSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a model costs, in US dollars; what is given adds up. `images`: a picture, by `quality/size`, where either
    may be `*`; the most exact key counts. `megapixel`: 1,048,576 pixels made. `tokens`: where the provider meters
    them. `second`: of a local device. `as_of`: the day on which the table was right."""

    images: dict[PriceKey, Usd] = field(default_factory=dict)
    megapixel: Usd = 0.0
    tokens: TokenPrices | None = None
    second: Usd = 0.0
    as_of: dt.date | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing in it says that anything costs."""
        return not (self.images or self.megapixel or self.tokens or self.second)


class ModelManifest(Listing, kw_only=True):
    """One model on this machine: what it is, where its weights lie, what it can do and what it does by default.

    `path` is the diffusers folder, or one safetensors file with all of the model, relative to the manifest; or else
    `source` says where the weights came from, and they, and other relative places, are found in that folder. Of its
    parts, `components` names those that come from files or folders of their own. `quality` maps low, medium and high
    to denoising steps; `style` maps vivid and natural to words that are added to the prompt. `sha256` says what the
    files of weights must be, by their names relative to the folder. `keep_alive` is in seconds without work, after
    which it is unloaded; -1 is never, None as the settings say.
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
    def quantized_components(self) -> list[str]:
        """Those that come from GGUF files."""
        return [name for name, place in self.components.items() if place.endswith(".gguf")]

    @property
    def lossy_words(self) -> str:
        """What quality was given away for, for those who get the pictures; empty where it was not."""
        files = [f"{name} comes from a GGUF file" for name in self.quantized_components]
        return "; ".join(filter(None, [self.lossy.words, *files]))


PROVIDER_PATTERN = r"^[a-z][a-z0-9_]{0,31}$(?!\n)"
CREDENTIALS_PATTERN = r"^[a-z][a-z0-9_-]{0,31}$(?!\n)"
FIELD_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}(\[\])?$(?!\n)"
ProviderName = Annotated[str, Meta(pattern=PROVIDER_PATTERN)]
RemoteName = Annotated[str, Meta(min_length=1, max_length=200)]
CredentialsName = Annotated[str, Meta(pattern=CREDENTIALS_PATTERN)]


class ShapesSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which sizes a remote model takes where it is not a short list: sides in pixels, the number that divides them, the
    longer side divided by the shorter, and the pixels in all."""

    multiple: Annotated[int, Meta(ge=1, le=256)] = 1
    min: Annotated[int, Meta(ge=1, le=16_384)] = 64
    max: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    max_ratio: Annotated[float, Meta(ge=1, le=100)] | None = None
    min_pixels: Annotated[int, Meta(ge=1)] | None = None
    max_pixels: Annotated[int, Meta(ge=1)] | None = None


Input = Literal[
    "prompt",
    "n",
    "image",
    "mask",
    "size",
    "width",
    "height",
    "aspect_ratio",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "strength",
    "output_format",
    "output_compression",
]
"""What a model of its own inputs may be told; see RemoteSection.fields."""


class RemoteSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where a remote model is, and what it can do.

    `model`: the provider's name for it; `models`: other names, for tasks that it does under another. `base_url`: where
    it is asked, if not at the provider's own address. `credentials`: the name of the keys to use; those of the
    provider's name, unless there is a `base_url`, which gets no key that is not named here. `timeout`: seconds for one
    whole answer. `max_n`: pictures in one call; more are had by several. `max_images`: source pictures. `sizes` or
    `shapes`: what it draws; without both, the provider's rules. `aspect_ratios`: as `W:H`, where the provider takes
    these instead. `formats`: the files it can make. `leaves`: whether a request to it leaves this machine; else it does
    unless its address is loopback. `honours`: parameters that it takes beside those that every such server does
    (openai_compatible). `fields`: where each model has inputs of its own (replicate, fal), what it takes and how it
    calls it; `[]` at the end makes a list. `options`: further fields of each request's body, as the provider documents
    them.
    """

    model: RemoteName
    models: dict[Task, RemoteName] = field(default_factory=dict)
    base_url: str | None = None
    credentials: CredentialsName | None = None
    timeout: Annotated[int, Meta(ge=1, le=3600)] = 180
    max_n: Annotated[int, Meta(ge=1, le=10)] = 1
    max_images: Annotated[int, Meta(ge=1, le=16)] = 1
    sizes: list[SizeText] = field(default_factory=list)
    shapes: ShapesSection | None = None
    aspect_ratios: list[Annotated[str, Meta(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$(?!\n)")]] = field(default_factory=list)
    formats: list[OutputFormat] = field(default_factory=list)
    leaves: bool | None = None
    honours: list[Annotated[str, Meta(pattern=r"^[a-z_]{1,32}$(?!\n)")]] = field(default_factory=list)
    fields: dict[Input, Annotated[str, Meta(pattern=FIELD_PATTERN)]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


class RemoteDefaults(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a request that says nothing gets. Without a size, the provider chooses; of an edit it always does, since
    most keep to the source's shape."""

    size: SizeText | None = None
    quality: Effort | None = None
    response_format: Literal["url", "b64_json"] | None = None


class RemoteManifest(Listing, kw_only=True):
    """One model of a remote provider. `provider` is a file of hub/providers; docs/providers.md has a table of them."""

    provider: ProviderName
    tasks: Annotated[list[Task], Meta(min_length=1)]
    remote: RemoteSection
    defaults: RemoteDefaults = field(default_factory=RemoteDefaults)
    prices: PricesSection = field(default_factory=PricesSection)

    def __post_init__(self) -> None:
        if self.provider == "local":
            raise ValueError("a manifest of a local model has no `remote`")
        if self.prices.second:
            raise ValueError("prices.second is of a device of this machine; give what a picture, or its tokens, cost")
        if self.remote.base_url is not None:
            self.remote.base_url = _base_url(self.remote.base_url)
        elif self.provider == "openai_compatible":
            raise ValueError("remote.base_url is missing: openai_compatible has no address of its own")
        if self.owned_by == "local":
            self.owned_by = self.provider

    @property
    def keys_name(self) -> str | None:
        """The name of the keys that its calls may carry, None for none: an address of the owner's gets none that is not
        named."""
        return self.remote.credentials or (self.provider if self.remote.base_url is None else None)


class TargetSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """One model that may serve a route's id, and when: only `tasks` of these kinds, only callers with these `keys`,
    only requests of at most `max_pixels` a picture, and only while at most `max_waiting` requests wait on this hub that
    came before."""

    model: ModelId
    tasks: list[Task] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    max_pixels: Annotated[int, Meta(ge=1)] | None = None
    max_waiting: Annotated[int, Meta(ge=0)] | None = None


Order = Literal["local-first", "listed", "cheapest"]


class RouteManifest(Listing, kw_only=True):
    """An id that several models may serve. `targets` are tried in their `order`: `local-first` (those of this machine
    before the others, else as listed), `listed`, or `cheapest` (by what the request would cost). With `remote` false
    nothing of it ever leaves this machine. `retry_billed`: whether another target, or another try, may be paid for
    after one that may have been. `deadline`: seconds for all tries together."""

    targets: Annotated[list[TargetSection], Meta(min_length=1, max_length=32)]
    order: Order = "local-first"
    remote: bool = True
    retry_billed: bool = False
    deadline: Annotated[int, Meta(ge=1, le=24 * 3600)] = 600
    response_format: Literal["url", "b64_json"] | None = None


AnyManifest = ModelManifest | RemoteManifest | RouteManifest


def kind_of(values: dict[str, Any]) -> type[AnyManifest]:
    """Which kind of manifest a TOML document is."""
    if "targets" in values:
        return RouteManifest
    return ModelManifest if values.get("provider", "local") == "local" else RemoteManifest


def _base_url(url: str) -> str:
    """An http(s) URL without a user, a query or a closing slash; raises ValueError."""
    wrong = f"remote.base_url: {'it' if '@' in url else repr(url)} is no http(s) URL of a host, such as https://api.example.com/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(wrong)
    if parts.username is not None or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise ValueError(wrong)
    return url.rstrip("/")


def manifest_schema() -> dict[str, Any]:
    """A JSON Schema of manifests, for editors: docs/manifest.schema.json. What no schema says (which fields do not go
    together) the hub checks when it reads them."""
    schemas, components = msgspec.json.schema_components(
        [ModelManifest, RemoteManifest, RouteManifest], ref_template="#/$defs/{name}"
    )
    schema = _flowing({"anyOf": list(schemas), "$defs": components})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A model of the hub", **schema}


def _flowing(value: Any) -> Any:
    """The same with docstrings as running text, and patterns as JSON Schema has them, whose `$` is the very end."""
    if isinstance(value, dict):
        return {name: _flowing(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_flowing(each) for each in value]
    return " ".join(value.split()).replace(r"$(?!\n)", "$") if isinstance(value, str) else value
