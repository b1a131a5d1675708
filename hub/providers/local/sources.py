"""The source pictures of a request: which of them the model uses, as what, and how they reach the engine.

A family (hub.pipelines.families) says what its pictures are: the one that is repainted, any that the model looks at,
or a map to draw along. What it cannot use is told.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from hub.engine.protocol import Notice, Picture
from hub.errors import InvalidRequest
from hub.imaging.decode import Decoded, decode_image, fit, place
from hub.imaging.geometry import cropped_to
from hub.imaging.masks import mask_of_alpha, read_mask, without_white
from hub.manifest import ModelManifest
from hub.pipelines.families import Family
from hub.types import ImageRequest, Size, Task

if TYPE_CHECKING:
    from PIL import Image

REFERENCE_PIXELS = 2048 * 2048
"""A picture that the model only looks at is shrunk to so many: more than any family reads."""


class Sources(NamedTuple):
    """What is drawn from.

    `canvas` is the picture that is repainted, `mask` what of it may change if not all ("L", of its size, 255 = may
    change), and `alpha` its own, where the mask is made of that. `shown` are the pictures that the model looks at,
    `control` the map that it draws along. `sizes` are those of all pictures that were sent, used or not.
    """

    canvas: Image.Image | None
    mask: Image.Image | None = None
    alpha: Image.Image | None = None
    shown: tuple[Image.Image, ...] = ()
    control: Image.Image | None = None
    sizes: tuple[Size, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def task(self) -> Task:
        """What the pipeline is asked for."""
        if self.mask is not None:
            return "inpainting"
        return "image-to-image" if self.canvas or self.shown else "text-to-image"

    @property
    def first(self) -> Image.Image | None:
        """The picture whose size the answer has by default."""
        return self.canvas or next(iter(self.shown), self.control)

    def pictures(self, native: Size, output: Size) -> list[Picture]:
        """As the engine wants them."""
        drawn = [place(each, native, output) for each in (self.canvas, self.control) if each]
        drawn += self.shown
        return [Picture(*each.size, each.tobytes()) for each in drawn]

    def kept(self, output: Size) -> Image.Image | None:
        """The picture at the answer's size, of which the mask's other part stays; None without a mask."""
        if self.canvas is None or self.mask is None:
            return None
        picture = fit(self.canvas, output)
        return without_white(picture, fit(self.alpha, output, is_mask=True)) if self.alpha else picture

    def crop_notices(self, output: Size) -> list[Notice]:
        """Says when the answer's shape costs a part of a picture."""
        found = []
        for picture in filter(None, (self.canvas, self.control)):
            source = Size(*picture.size)
            left = cropped_to(source, output)
            found += [Notice("image", f"it was cropped from {source} to {left}, the shape of {output}")] if left else []
        return found


def read_sources(manifest: ModelManifest, family: Family, request: ImageRequest) -> Sources:
    """Decodes every picture, so that none is taken unchecked.

    Raises InvalidRequest for pictures and masks that cannot be read, and for a task that the manifest does not offer,
    even where the pipeline could do it.
    """
    check_task(manifest, family, request)
    if not request.images:
        return Sources(None)
    first = decode_image(request.images[0])
    most = family.most_images(masked=request.mask is not None)
    further: list[Image.Image] = []
    sizes = [first.size]
    for data in request.images[1:]:
        decoded = decode_image(data)
        sizes.append(decoded.size)
        if len(further) + 1 < most:
            further.append(decoded.picture if family.images == "control" else shrunk(decoded.picture))
    notices = []
    if len(request.images) > most:
        used, verb = ("the first", "was") if most == 1 else (f"the first {most}", "were")
        notices.append(Notice("image", f"only {used} of {len(request.images)} images {verb} used"))
    sources = plan_sources(manifest, family, request, first, further)
    if request.mask is not None:
        sizes.append(size_of(request.mask))
    return sources._replace(sizes=tuple(sizes), notices=(*notices, *sources.notices))


def plan_sources(
    manifest: ModelManifest, family: Family, request: ImageRequest, first: Decoded, further: list[Image.Image]
) -> Sources:
    """Which part of the first picture may change: what the mask says, or its own alpha, or all of it; or none, where
    the model only looks at it or draws along it.

    Raises InvalidRequest for a bad mask, and where the model can only change a part and none is selected.
    """
    control = further[0] if family.images == "control" and further else None
    shown = tuple(further) if control is None else ()
    draws_along = family.images == "control" and control is None
    if request.mask is None and not request.variation and not draws_along and "inpainting" in manifest.tasks:
        own = mask_of_alpha(first.alpha)
        if own is not None:
            return Sources(first.picture, own.picture, first.alpha, shown, control)
    notices = [Notice("image", "its transparent parts were filled with white")] if first.transparent else []
    if request.mask is not None:
        mask = read_mask(request.mask, first.size)
        notices += [Notice("mask", mask.remark)] if mask.remark else []
        return Sources(first.picture, mask.picture, None, shown, control, notices=tuple(notices))
    if draws_along:
        return Sources(None, control=first.picture, notices=tuple(notices))
    if "image-to-image" not in manifest.tasks:
        words = f"mask: {manifest.id} only changes the part of a picture that a mask selects; give it one."
        raise InvalidRequest(words, param="mask", code="unsupported_value")
    if family.images == "reference":
        return Sources(None, shown=(shrunk(first.picture), *shown), notices=tuple(notices))
    return Sources(first.picture, control=control, notices=tuple(notices))


def check_task(manifest: ModelManifest, family: Family, request: ImageRequest) -> None:
    """Raises InvalidRequest, by parameter, for what the manifest does not offer."""
    count, tasks, name = len(request.images), set(manifest.tasks), manifest.id
    wrong: tuple[str, str] | None = None
    if request.mask is not None and not count:
        raise InvalidRequest("mask: it needs an image, whose part it selects.", param="mask")
    if request.mask is not None and "inpainting" not in tasks:
        wrong = "mask", f"{name} cannot change only a part of a picture."
    elif family.images == "control" and not count:
        wrong = (
            "image",
            f"{name} draws along a picture (edges, depth, a pose …: what its ControlNet reads); give one.",
        )
    elif family.images == "control" and request.mask is not None and count < 2:
        wrong = "image", f"{name} needs two pictures beside a mask: the one to change, and the one to draw along."
    elif family.images == "control" and count > 1 and not {"image-to-image", "inpainting"} & tasks:
        wrong = "image", f"{name} takes one picture, the one to draw along; it cannot edit another."
    elif family.images != "control" and count and not {"image-to-image", "inpainting"} & tasks:
        wrong = "image", f"{name} cannot edit pictures."
    elif family.images != "control" and not count and "text-to-image" not in tasks:
        wrong = "image", f"{name} only edits pictures; give it one."
    if wrong:
        raise InvalidRequest(f"{wrong[0]}: {wrong[1]}", param=wrong[0], code="unsupported_value")


def shrunk(picture: Image.Image) -> Image.Image:
    """The picture, with at most REFERENCE_PIXELS."""
    scale = (REFERENCE_PIXELS / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return fit(picture, Size(max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def size_of(mask: bytes) -> Size:
    """The size of a mask file that was read without complaint: its own, not the picture's to which it was resampled."""
    from PIL import Image

    with Image.open(io.BytesIO(mask)) as picture:
        return Size(*picture.size)
