"""Manifests of remote models: where one is, what it can do, and how it calls what a request says."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from hub.manifest.listing import Listing, PricesSection, SizeText
from hub.types import Effort, OutputFormat, Task

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


RESERVED = frozenset(
    {
        *("prompt", "text_prompt", "contents", "model"),
        *("n", "num_images", "num_outputs", "number_of_images", "batch_size", "max_images"),
        *("sequential_image_generation", "sequential_image_generation_options"),
        *("image", "images", "image_url", "image_urls", "image_prompt", "image_prompts", "init_image"),
        *("input_image", "input_images", "input_references", "reference_images", "reference_image_urls"),
        *("mask", "mask_url", "mask_image", "mask_image_url"),
    }
)
"""What providers call the prompt, the model, how many pictures, and the source pictures: these are the request's, and
what is checked, priced and limited by them would be something else than what is sent."""


class RemoteSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where a remote model is, and what it can do.

    `model`: the provider's name for it; `models`: other names, for tasks that it does under another. `base_url`: where
    it is asked, if not at the provider's own address. `credentials`: the name of the keys to use; those of the
    provider's name, unless there is a `base_url`, which gets no key that is not named here. `timeout`: seconds for one
    whole answer. `max_n`: pictures in one call; more are had by several. `max_images`: source pictures. `sizes` or
    `shapes`: what it draws; without both, the provider's rules. `aspect_ratios`: as `W:H`, where the provider takes
    these instead; `source_ratio`: what is sent in their place for an edit without a size, so that it keeps the shape of
    its source, where the model has such a word. `formats`: the files it can make. `leaves`: whether a request to it
    leaves this machine; else it does unless its address is loopback. `honours`: parameters that it takes beside those
    that every model there does (openai_compatible, openrouter, together, xai). `fields`: where each model has inputs of
    its own (replicate, fal), what it takes and how it calls it; `[]` at the end makes a list. `options`: further fields
    of each request's body, as the provider documents them; none of those that RESERVED names.
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
    source_ratio: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
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
        if self.remote.sizes and self.remote.shapes is not None:
            raise ValueError("remote.sizes and remote.shapes do not go together: a list of sizes, or the rules for all")
        _check_options(self.remote)
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


def _check_options(remote: RemoteSection) -> None:
    """Raises ValueError where the options name what is the request's own."""
    own = {remote.fields[each].removesuffix("[]") for each in ("prompt", "n", "image", "mask") if each in remote.fields}
    config = remote.options.get("generationConfig")  # Google's n lies in it
    wrong = [each for each in remote.options if each in own or _plain(each) in RESERVED]
    wrong += ["generationConfig.candidateCount"] if isinstance(config, dict) and "candidateCount" in config else []
    if wrong:
        names = ", ".join(sorted(wrong))
        raise ValueError(
            f"remote.options cannot say {names}: the model, the prompt, n and the pictures have their own places"
        )


def _plain(name: str) -> str:
    """`input_image` for `input_image_2`, and `image` for `image[]`."""
    return re.sub(r"(_[0-9]+|\[\])$", "", name).lower()


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
