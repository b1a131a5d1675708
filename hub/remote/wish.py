"""What is asked of a remote provider: the request with the model's defaults, in terms that its adapter can send. Pure.

Nothing is left out in silence: for every parameter that the adapter does not honour there is a Notice, or the request
is refused where it is strict.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from hub.errors import InvalidRequest
from hub.imaging.decode import decode_image
from hub.imaging.masks import read_mask
from hub.imaging.verify import verify_image
from hub.manifest import RemoteManifest, ShapesSection, parse_size
from hub.types import EFFORTS, Background, Effort, ImageRequest, OutputFormat, Size

if TYPE_CHECKING:
    from PIL import Image

MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}

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
"""Parameters that an adapter may honour. `user` and `safety_identifier` are for whom it may concern."""


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


class Source(Struct, frozen=True):
    """A source picture as it came: PNG, JPEG or WebP."""

    data: bytes
    format: OutputFormat
    size: Size

    @property
    def media_type(self) -> str:
        """Such as image/png."""
        return MEDIA_TYPES[self.format]

    @property
    def file_name(self) -> str:
        """For forms."""
        return f"image.{EXTENSIONS[self.format]}"


class Mask(Struct, frozen=True):
    """Which part of the first picture may change, whatever kind of mask was sent (docs/masks.md): mode L, of the
    picture's size, 255 where it may."""

    picture: Image.Image

    @property
    def white_changes(self) -> bytes:
        """A grey PNG: white may change, black stays."""
        return _png(self.picture)

    @property
    def black_changes(self) -> bytes:
        """A grey PNG: black may change, white stays."""
        return _png(self.picture.point([255 - value for value in range(256)]))

    @property
    def transparent_changes(self) -> bytes:
        """A PNG with alpha, as OpenAI has it: transparent may change."""
        from PIL import Image

        black = Image.new("L", self.picture.size)
        return _png(
            Image.merge("LA", (black, self.picture.point([255 - value for value in range(256)]))).convert("RGBA")
        )


class Wish(Struct, frozen=True, kw_only=True):
    """A request as an adapter sends it. `size` and `aspect_ratio` (`W:H`) are those that the model draws and that are
    nearest to what was asked for; None where the provider shall choose. `n`: of the whole request. `options`: fields
    that the manifest adds to the body."""

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
        """The provider's name of the model."""
        return self.manifest.remote.model

    @property
    def prompt(self) -> str:
        """The prompt."""
        return self.request.prompt

    @property
    def background(self) -> Background:
        """What the pictures' background is if nobody says otherwise."""
        return "transparent" if self.request.background == "transparent" else "opaque"

    def seed(self, first: int) -> int | None:
        """The seed for a call whose pictures begin with number `first`; None where none was given."""
        return None if self.request.seed is None else self.request.seed + first

    def with_options(self, body: dict[str, object]) -> dict[str, object]:
        """The body without what is None, and with the manifest's options."""
        return {name: value for name, value in body.items() if value is not None} | self.manifest.remote.options


def plan(manifest: RemoteManifest, honoured: Collection[str], request: ImageRequest) -> Wish:
    """The wish. Takes time where there are pictures. Raises InvalidRequest by parameter."""
    remote = manifest.remote
    _check_task(manifest, request)
    notices = _unhonoured(manifest, honoured, request)
    images, mask = _sources(request)
    if len(images) > remote.max_images:
        words = f"image: {manifest.id} takes at most {remote.max_images}, and {len(images)} were sent."
        raise InvalidRequest(words, param="image", code="unsupported_value")
    asked = request.size or (parse_size(manifest.defaults.size) if manifest.defaults.size else None)
    size = ratio = None
    if asked is not None and "size" in honoured:
        if remote.aspect_ratios:
            ratio = nearest_ratio(asked, remote.aspect_ratios)
            near = math.isclose(_ratio_of(ratio), asked.width / asked.height, rel_tol=0.01)
            if request.size is not None and not near:
                notices.append(
                    Notice("size", f"{manifest.id} draws no {asked}; the nearest shape, {ratio}, was asked for")
                )
        size = nearest_size(asked, [parse_size(each) for each in remote.sizes], remote.shapes)
        if request.size is not None and size != asked:
            notices.append(Notice("size", f"{manifest.id} draws no {asked}; {size}, the nearest, was asked for"))
    output_format = request.output_format
    if remote.formats and output_format not in remote.formats:
        notices.append(Notice("output_format", f"{manifest.id} makes no {output_format}; it is {remote.formats[0]}"))
        output_format = remote.formats[0]
    if request.strict and notices:
        raise InvalidRequest(f"strict: {notices[0]}.", param=notices[0].param, code="unsupported_value")
    quality = request.quality if "quality" in honoured else None
    return Wish(
        manifest=manifest,
        request=request,
        size=size,
        aspect_ratio=ratio,
        effort=EFFORTS[quality] if quality not in (None, "auto") else manifest.defaults.quality,
        output_format=output_format,
        images=images,
        mask=mask,
        notices=tuple(notices),
    )


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
    raise InvalidRequest(f"{param}: {manifest.id} {words}", param=param, code="unsupported_value")


def _unhonoured(manifest: RemoteManifest, honoured: Collection[str], request: ImageRequest) -> list[Notice]:
    """A notice for each parameter that was given and that the provider is not told of."""
    found = []
    for name in OPTIONAL:
        value = getattr(request, name)
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


def _sources(request: ImageRequest) -> tuple[tuple[Source, ...], Mask | None]:
    """The pictures, each decoded once so that none is sent unchecked, but sent as they came."""
    images, sizes = [], []
    for data in request.images:
        sizes.append(decode_image(data).size)
        format_, size = verify_image(data)
        images.append(Source(data, format_, size))
    mask = Mask(read_mask(request.mask, sizes[0]).picture) if request.mask is not None else None
    return tuple(images), mask


def nearest_size(asked: Size, sizes: Sequence[Size], shapes: ShapesSection | None) -> Size:
    """The size that the model draws and that is nearest: of the sizes, first the shape, then the area; else within the
    bounds; as asked where there are neither."""
    if sizes:
        return min(sizes, key=lambda each: (abs(_shape(each) - _shape(asked)) > 0.02, _distance(each, asked)))
    return asked if shapes is None else _within(asked, shapes)


def _shape(size: Size) -> float:
    return math.log(size.width / size.height)


def _distance(one: Size, other: Size) -> float:
    area = math.log((one.width * one.height) / (other.width * other.height))
    return 4 * abs(_shape(one) - _shape(other)) + abs(area)


def _within(asked: Size, shapes: ShapesSection) -> Size:
    width, height = float(asked.width), float(asked.height)
    if shapes.max_ratio is not None:
        width, height = max(width, height / shapes.max_ratio), max(height, width / shapes.max_ratio)
        width, height = min(width, height * shapes.max_ratio), min(height, width * shapes.max_ratio)
    grow = max(1.0, shapes.min / min(width, height))
    grow = max(grow, math.sqrt((shapes.min_pixels or 1) / (width * height)))
    shrink = min(1.0, shapes.max / (max(width, height) * grow))
    if shapes.max_pixels is not None:
        shrink = min(shrink, math.sqrt(shapes.max_pixels / (width * height * grow * grow)))
    scale = grow * shrink
    wide, high = (_rounded(side * scale, shapes) for side in (width, height))
    while shapes.max_pixels is not None and wide * high > shapes.max_pixels:  # rounded up
        wide, high = (wide - shapes.multiple, high) if wide >= high else (wide, high - shapes.multiple)
    return Size(wide, high)


def _rounded(side: float, shapes: ShapesSection) -> int:
    step = shapes.multiple
    low, high = -(-shapes.min // step) * step, shapes.max // step * step
    return min(high, max(low, round(side / step) * step))


def nearest_ratio(asked: Size, ratios: Sequence[str]) -> str:
    """The aspect ratio, as `W:H`, that is nearest to a size's."""
    return min(ratios, key=lambda ratio: abs(math.log(_ratio_of(ratio)) - _shape(asked)))


def _ratio_of(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    return int(width) / int(height)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
