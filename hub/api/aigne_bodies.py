"""The bodies of AIGNE's paths, in AIGNE's spelling: those of the npm package @aigne/aigne-hub and of AIGNE Hub."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from hub.api.params import MAX_IMAGES

PROVIDER = "hub"
"""Who serves the models, in the catalogue."""


class MountPoint(Struct, kw_only=True):
    """A component of AIGNE's platform and where it is served."""

    did: str
    mountPoint: str  # AIGNE's name


class Blocklet(Struct, kw_only=True):
    """AIGNE's discovery document."""

    componentMountPoints: list[MountPoint]


class InputFile(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="file"):
    """A picture inside the request, as base64."""

    data: str
    mimeType: str | None = None
    filename: str | None = None


class InputUrl(Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="url"):
    """A picture by URL."""

    url: str
    mimeType: str | None = None
    filename: str | None = None


class InputLocal(Struct, kw_only=True, tag_field="type", tag="local"):
    """A path on some machine's disk. Known so that it can be refused by name: the hub never reads a client's path."""


InputImage = InputFile | InputUrl | InputLocal


class InvokeInput(Struct, kw_only=True):
    """What an image is asked for with. Further parameters, in AIGNE's spelling or OpenAI's, may stand here or in
    `modelOptions`; those are checked like OpenAI's."""

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    image: Annotated[list[InputImage], Meta(max_length=MAX_IMAGES)] | None = None
    outputFileType: Literal["url", "file", "local"] | None = None
    modelOptions: dict[str, Any] | None = None


class InvokeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of AIGNE's client. `agent` and `options` steer agents and mean nothing to a picture."""

    input: InvokeInput
    agent: str | None = None
    options: dict[str, Any] | None = None


class OpenInvokeRequest(InvokeRequest, forbid_unknown_fields=True, kw_only=True):
    """The same as it is read: `input` with the names that stand open in it."""

    input: dict[str, Any]  # type: ignore[assignment]


class OutputImage(Struct, kw_only=True, omit_defaults=True):
    """A picture as AIGNE's client takes it: `type` url with `url`, or `type` file with `data`."""

    type: Literal["url", "file"]
    url: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    mimeType: str
    filename: str


class InvokeUsage(Struct, kw_only=True):
    """Tokens, in AIGNE's spelling."""

    inputTokens: int
    outputTokens: int


class InvokeResponse(Struct, kw_only=True):
    """The answer to AIGNE's client. `seed` and `warnings` are extensions."""

    images: list[OutputImage]
    usage: InvokeUsage
    model: str
    seed: int | UnsetType = UNSET
    warnings: list[str]


class GenerationImage(Struct, kw_only=True, omit_defaults=True):
    """A picture as AIGNE Hub's generations answer it: a link, or base64 in each of three spellings."""

    url: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    b64_json: str | UnsetType = UNSET
    b64Json: str | UnsetType = UNSET


class GenerationsResponse(Struct, kw_only=True):
    """The answer of AIGNE Hub's generations; `data` is `images` again."""

    images: list[GenerationImage]
    data: list[GenerationImage]
    model: str
    usage: InvokeUsage
    seed: int | UnsetType = UNSET
    warnings: list[str]


class ModelStatus(Struct, kw_only=True):
    """Whether a model answers."""

    available: bool


class CatalogueModel(Struct, kw_only=True):
    """A model in AIGNE's catalogue. Prices are strings; local pictures cost nothing."""

    key: str
    model: str
    type: Literal["image"] = "image"
    provider: str = PROVIDER
    providerDisplayName: str = "Hub"
    input_credits_per_token: str = "0"  # noqa: S105
    output_credits_per_token: str = "0"  # noqa: S105
    modelMetadata: dict[str, Any]
    status: ModelStatus


class HubStatus(Struct, kw_only=True, omit_defaults=True):
    """Whether requests for a model can be answered, and if not, why."""

    available: bool
    error: str | None = None
