"""What is asked of a remote provider: the request with the model's defaults, in terms that its adapter can send. Pure.

Nothing is left out in silence: for every parameter that the adapter does not honour there is a Notice, or the request
is refused where it is strict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from hub.errors import InvalidRequest
from hub.imaging.masks import read_mask
from hub.manifest import RemoteManifest, parse_size
from hub.remote.sizes import nearest_ratio, nearest_size, ratio_of
from hub.remote.sources import Mask, Source, read_source
from hub.types import MAX_SEED, Background, Effort, ImageRequest, OutputFormat, Size

OPTIONAL = (
    "size",
    "quality",
    "style",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "strength",
    "scheduler",
    "loras",
    "output_format",
    "output_compression",
    "background",
    "moderation",
    "input_fidelity",
    "partial_images",
)
"""Parameters that an adapter may honour, and is warned about if it does not."""
SERVERS_OWN = ("user", "safety_identifier", "strict")
"""Those that a manifest may name too, since a server of the owner's takes them, and that no warning is about: they are
for whom it may concern."""

SAME: dict[str, tuple[object, ...]] = {
    "quality": ("auto",),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "input_fidelity": ("low",),
    "output_compression": (100,),
    "partial_images": (0,),
}
"""Values that mean the same as none at all."""


class Notice(Struct, frozen=True):
    """Something that was asked for and could not be honoured: the parameter and the words."""

    param: str
    message: str

    def __str__(self) -> str:
        return f"{self.param}: {self.message}"


class Wish(Struct, frozen=True, kw_only=True):
    """A request as an adapter sends it. `size` and `aspect_ratio` (`W:H`) are those that the model draws and that are
    nearest to what was asked for; None where the provider shall choose. `effort` is its quality, None where the
    provider shall choose. `notices`: what was asked for and is not honoured."""

    manifest: RemoteManifest
    request: ImageRequest
    size: Size | None
    aspect_ratio: str | None
    effort: Effort | None
    output_format: OutputFormat
    images: tuple[Source, ...] = ()
    mask: Mask | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def model(self) -> str:
        """The provider's name of the model, for what is asked of it."""
        return self.manifest.remote.models.get(self.request.task, self.manifest.remote.model)

    @property
    def prompt(self) -> str:
        """The prompt."""
        return self.request.prompt

    @property
    def background(self) -> Background:
        """What the pictures' background is if nobody says otherwise."""
        return "transparent" if self.request.background == "transparent" else "opaque"

    def seed(self, first: int, most: int = MAX_SEED) -> int | None:
        """The seed for a call whose pictures begin with number `first`; None where none was given. Raises
        InvalidRequest for one that is larger than the provider takes."""
        seed = self.request.seed
        if seed is None:
            return None
        if seed > most:
            words = f"seed: {self.manifest.id} takes at most {most}."
            raise InvalidRequest(words, param="seed", code="unsupported_value")
        return (seed + first) % (most + 1)

    def left_out(self, *names: str) -> list[Notice]:
        """Notices for those of these parameters that were given: the model takes them, but not for this task."""
        given = [name for name in names if getattr(self.request, name) not in (None, (), *SAME.get(name, ()))]
        return [Notice(name, f"{self.manifest.id} takes none for such a task; it was not used") for name in given]

    def with_options(self, body: dict[str, object]) -> dict[str, object]:
        """The body without what is None, and with the manifest's options."""
        return {name: value for name, value in body.items() if value is not None} | self.manifest.remote.options


def plan(manifest: RemoteManifest, honoured: Collection[str], request: ImageRequest) -> Wish:
    """The wish. Takes time where there are pictures. Raises InvalidRequest by parameter."""
    _check_task(manifest, request)
    notices = _unhonoured(manifest, honoured, request)
    if len(request.images) > manifest.remote.max_images:
        words = f"image: {manifest.id} takes at most {manifest.remote.max_images}, and {len(request.images)} were sent."
        raise InvalidRequest(words, param="image", code="unsupported_value")
    images = tuple(read_source(data) for data in request.images)
    mask = read_mask(request.mask, images[0].size) if request.mask is not None else None
    if mask is not None and mask.remark:
        notices.append(Notice("mask", mask.remark))
    size, effort = intended(manifest, honoured, request)
    wish = Wish(
        manifest=manifest,
        request=request,
        size=size,
        aspect_ratio=_ratio(manifest, request, size, notices) if size is not None else None,
        effort=effort,
        output_format=_format(manifest, request, notices),
        images=images,
        mask=Mask(mask.picture) if mask is not None else None,
    )
    return noting(wish, notices)


def wanted_size(manifest: RemoteManifest, request: ImageRequest) -> Size | None:
    """The size that was asked for, or the manifest's own; None for an edit without one, which the provider chooses."""
    default = manifest.defaults.size if not request.images else None
    return request.size or (parse_size(default) if default else None)


def intended(
    manifest: RemoteManifest, honoured: Collection[str], request: ImageRequest
) -> tuple[Size | None, Effort | None]:
    """The size and the quality that the provider is told to draw; None where it shall choose."""
    asked, remote = wanted_size(manifest, request), manifest.remote
    size = None
    if asked is not None and "size" in honoured:
        size = nearest_size(asked, [parse_size(each) for each in remote.sizes], remote.shapes)
    return size, (request.effort if "quality" in honoured else None) or manifest.defaults.quality


def _ratio(manifest: RemoteManifest, request: ImageRequest, size: Size, notices: list[Notice]) -> str | None:
    """The nearest aspect ratio that the model draws, where it is told one. Notes what is not as it was asked for."""
    asked, ratio = wanted_size(manifest, request) or size, None
    if manifest.remote.aspect_ratios:
        ratio = nearest_ratio(asked, manifest.remote.aspect_ratios)
        near = math.isclose(ratio_of(ratio), asked.width / asked.height, rel_tol=0.01)
        if request.size is not None and not near:
            notices.append(Notice("size", f"{manifest.id} draws no {asked}; the nearest shape, {ratio}, was asked for"))
    if request.size is not None and size != asked:
        notices.append(Notice("size", f"{manifest.id} draws no {asked}; {size}, the nearest, was asked for"))
    return ratio


def _format(manifest: RemoteManifest, request: ImageRequest, notices: list[Notice]) -> OutputFormat:
    """As asked for, or what the model makes instead."""
    formats, wanted = manifest.remote.formats, request.output_format
    if not formats or wanted in formats:
        return wanted
    notices.append(Notice("output_format", f"{manifest.id} makes no {wanted}; it is {formats[0]}"))
    return formats[0]


def noting(wish: Wish, notices: Sequence[Notice]) -> Wish:
    """The wish with further notices, which say more than earlier ones of the same parameters. Where the request is
    strict, the first one is an InvalidRequest."""
    if wish.request.strict and notices:
        raise InvalidRequest(f"strict: {notices[0]}.", param=notices[0].param, code="unsupported_value")
    params = {each.param for each in notices}
    return replace(wish, notices=(*(each for each in wish.notices if each.param not in params), *notices))


def _check_task(manifest: RemoteManifest, request: ImageRequest) -> None:
    if request.variation:
        words = f"image: {manifest.id} makes no variations; edit the picture with a prompt instead."
        raise InvalidRequest(words, param="image", code="unsupported_value")
    if request.mask is not None and not request.images:
        raise InvalidRequest("mask: it needs an image, whose part it selects.", param="mask")
    if request.task in manifest.tasks:
        return
    words, param = {
        "inpainting": ("cannot change only a part of a picture.", "mask"),
        "image-to-image": ("cannot edit pictures.", "image"),
        "text-to-image": ("only edits pictures; give it one.", "image"),
    }[request.task]
    if request.task == "image-to-image" and "inpainting" in manifest.tasks:
        words, param = "only changes a part of a picture; say by a mask which.", "mask"
    raise InvalidRequest(f"{param}: {manifest.id} {words}", param=param, code="unsupported_value")


def _unhonoured(manifest: RemoteManifest, honoured: Collection[str], request: ImageRequest) -> list[Notice]:
    """A notice for each parameter that was given and that the provider is not told of."""
    found = []
    for name in OPTIONAL:
        value = getattr(request, name)
        if name == "strength" and value is not None and not request.images:
            found.append(Notice(name, "there is no image; it was not used"))
            continue
        if name in honoured or value in (None, (), *SAME.get(name, ())) or name == "output_format":
            continue
        if name == "background":
            words = f"background: {manifest.id} draws no transparent pictures."
            raise InvalidRequest(words, param="background", code="unsupported_value")
        if name == "size" and manifest.defaults.size == str(value):
            continue
        found.append(Notice(name, f"{manifest.id} has no such parameter; it was not used"))
    if request.strict and "output_format" not in honoured and not manifest.remote.formats:
        found.append(Notice("output_format", f"{manifest.id} chooses the format itself"))
    return found
