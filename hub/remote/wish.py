"""What is asked of a remote provider: the request with the model's defaults, in terms that its adapter can send. Pure.

Nothing is left out in silence: for every parameter that the adapter does not honour there is a Notice, or the request
is refused where it is strict.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import pybase64
from msgspec import Struct
from msgspec.structs import replace

from hub.errors import InvalidRequest
from hub.imaging.decode import FORMATS, decode_image
from hub.imaging.masks import read_mask
from hub.imaging.verify import NotAnImage, verify_image
from hub.manifest import RemoteManifest, ShapesSection, parse_size
from hub.types import MAX_SEED, Background, Effort, ImageRequest, OutputFormat, Size

if TYPE_CHECKING:
    from PIL import Image

MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held."""
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
    """A source picture as it came, PNG, JPEG or WebP; one that a camera says to turn is turned."""

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

    @property
    def base64(self) -> str:
        """For JSON."""
        return pybase64.b64encode(self.data).decode()

    @property
    def data_url(self) -> str:
        """For JSON that wants a URL."""
        return f"data:{self.media_type};base64,{self.base64}"


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
        """A PNG with alpha, as OpenAI has it: transparent may change. What may change is white as well, for servers
        that take the OpenAI-like form and look at the colours alone."""
        from PIL import Image

        stays = self.picture.point([255 - value for value in range(256)])
        return _png(Image.merge("LA", (self.picture, stays)).convert("RGBA"))


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
    remote = manifest.remote
    _check_task(manifest, request)
    notices = _unhonoured(manifest, honoured, request)
    images, mask = _sources(request)
    if len(images) > remote.max_images:
        words = f"image: {manifest.id} takes at most {remote.max_images}, and {len(images)} were sent."
        raise InvalidRequest(words, param="image", code="unsupported_value")
    asked, ratio = wanted_size(manifest, request), None
    size, effort = intended(manifest, honoured, request)
    if asked is not None and size is not None:
        if remote.aspect_ratios:
            ratio = nearest_ratio(asked, remote.aspect_ratios)
            near = math.isclose(_ratio_of(ratio), asked.width / asked.height, rel_tol=0.01)
            if request.size is not None and not near:
                notices.append(
                    Notice("size", f"{manifest.id} draws no {asked}; the nearest shape, {ratio}, was asked for")
                )
        if request.size is not None and size != asked:
            notices.append(Notice("size", f"{manifest.id} draws no {asked}; {size}, the nearest, was asked for"))
    output_format = request.output_format
    if remote.formats and output_format not in remote.formats:
        notices.append(Notice("output_format", f"{manifest.id} makes no {output_format}; it is {remote.formats[0]}"))
        output_format = remote.formats[0]
    wish = Wish(
        manifest=manifest,
        request=request,
        size=size,
        aspect_ratio=ratio,
        effort=effort,
        output_format=output_format,
        images=images,
        mask=mask,
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


def _sources(request: ImageRequest) -> tuple[tuple[Source, ...], Mask | None]:
    """The pictures, each decoded once so that none is sent unchecked, but sent as they came."""
    images = tuple(_source(data) for data in request.images)
    mask = Mask(read_mask(request.mask, images[0].size).picture) if request.mask is not None else None
    return images, mask


def _source(data: bytes) -> Source:
    """As it came, unless it has to be turned (the mask is for the upright picture, and providers differ in whether they
    heed EXIF), or is only nearly whole."""
    upright = decode_image(data).size
    try:
        if not _is_turned(data):
            return Source(data, *verify_image(data))
    except NotAnImage:  # such as a PNG without its end, which decoders forgive
        pass
    return Source(_upright(data), "png", upright)


def _is_turned(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture.getexif().get(ORIENTATION, 1) not in (0, 1)


def _upright(data: bytes) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        turned = ImageOps.exif_transpose(picture)
        return _png(turned if turned.mode in ("L", "LA", "P", "RGB", "RGBA") else turned.convert("RGB"))


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
    width, height = width * scale, height * scale
    near = [Size(wide, high) for wide in _steps(width, shapes) for high in _steps(height, shapes)]
    fitting = [each for each in near if _fits(each, shapes)]
    return min(fitting or near, key=lambda each: (each.width - width) ** 2 + (each.height - height) ** 2)


def _steps(side: float, shapes: ShapesSection) -> list[int]:
    """The lengths around a side's that are possible; rounding both sides alone would break other bounds."""
    step = shapes.multiple
    low, high = -(-shapes.min // step) * step, shapes.max // step * step
    first = int(side // step) * step
    return sorted({min(high, max(low, first + more * step)) for more in (-1, 0, 1, 2)})


def _fits(size: Size, shapes: ShapesSection) -> bool:
    pixels, sides = size.width * size.height, sorted((size.width, size.height))
    return (
        (shapes.min_pixels or 1) <= pixels <= (shapes.max_pixels or pixels)
        and shapes.min <= sides[0]
        and sides[1] <= min(shapes.max, sides[0] * (shapes.max_ratio or math.inf))
    )


def nearest_ratio(asked: Size, ratios: Sequence[str]) -> str:
    """The aspect ratio, as `W:H`, that is nearest to a size's."""
    return min(ratios, key=lambda ratio: abs(math.log(_ratio_of(ratio)) - _shape(asked)))


def tier(size: Size) -> Literal[1, 2, 4]:
    """Which of the usual 1K, 2K and 4K a size is, by its area: that of a square of so many thousand pixels a side."""
    side = math.sqrt(size.width * size.height)
    return 1 if side < 1448 else 2 if side < 2896 else 4


def _ratio_of(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    return int(width) / int(height)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
