"""A picture made again from its receipt, and compared with itself."""

from __future__ import annotations

import io

import numpy as np
from msgspec import Struct
from PIL import Image

from hub.errors import InvalidRequest
from hub.hub import Hub
from hub.receipt import NoReceipt, Receipt, receipt_in
from hub.types import ImageRequest, Lora, OnEvent


class Replay(Struct, frozen=True, kw_only=True):
    """`largest`: difference of any pixel's value, 0 to 255; `mean`: of all; `share`: of pixels that differ, 0 to 1.
    `changed`: what the new picture was drawn from in another way, in words."""

    picture: bytes
    largest: int
    mean: float
    share: float
    changed: list[str]


def request_from(receipt: Receipt, images: tuple[bytes, ...], mask: bytes | None) -> ImageRequest:
    """What to ask for. Raises InvalidRequest where pictures are missing that the receipt only has digests of."""
    if receipt.sources and not images:
        raise InvalidRequest(
            f"image: it was made from {len(receipt.sources)} source picture(s); give them.", param="image"
        )
    if receipt.mask is not None and mask is None:
        raise InvalidRequest("mask: it was made with a mask; give it.", param="mask")
    return ImageRequest(
        prompt=receipt.prompt,
        negative_prompt=receipt.negative_prompt,
        size=receipt.size,
        seed=receipt.seed,
        num_inference_steps=receipt.num_inference_steps,
        guidance_scale=receipt.guidance_scale,
        strength=receipt.strength,
        scheduler=receipt.scheduler,
        loras=tuple(Lora(name=lora.name, weight=lora.weight) for lora in receipt.loras),
        images=images,
        mask=mask,
        variation=bool(images) and not receipt.prompt,
    )


async def replay(
    hub: Hub, file: bytes, images: tuple[bytes, ...] = (), mask: bytes | None = None, on_event: OnEvent | None = None
) -> Replay:
    """Makes the picture of a PNG again, by a model of this machine alone: anybody may write a file that names one which
    costs money. Raises NoReceipt and HubError."""
    before = receipt_in(file)
    model = hub.registry.get(before.model).local.id
    result = await hub.generate(model, request_from(before, images, mask), on_event)
    (made,) = result.images
    try:
        now = receipt_in(made)
    except NoReceipt:
        raise InvalidRequest("receipts: they are turned off here; set `receipts = true` to compare.") from None
    changed = before.differences(now)
    old, new = _pixels(file), _pixels(made)
    if old.shape != new.shape:
        raise InvalidRequest("The file's pixels are not those of its receipt: it was scaled or cropped since.")
    apart = np.abs(old - new)
    return Replay(
        picture=made,
        largest=int(apart.max()),
        mean=float(apart.mean()),
        share=float(apart.any(axis=2).mean()),
        changed=changed,
    )


def _pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)
