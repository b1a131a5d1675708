"""What models are sent that each have inputs of their own, as on Replicate and fal: their manifests name them.

    [remote.fields]               # the hub's name = the model's
    size = "image_size"           # an object of width and height; or `width` and `height`; or `aspect_ratio`
    image = "image_urls[]"        # [] at the end: a list; without it, the first one alone
    num_inference_steps = "steps"

What a manifest does not name, the model is not told, and the request is warned about.
"""

from __future__ import annotations

from collections.abc import Mapping

from hub.errors import ModelUnusable
from hub.manifest import Input
from hub.remote.wish import Wish

SIZES: frozenset[str] = frozenset({"size", "width", "aspect_ratio"})
UNNAMED: frozenset[str] = frozenset({"prompt", "n", "image", "mask", "width", "height", "aspect_ratio"})
"""Inputs that are no optional parameters of a request, or none by this name."""


def honoured_by(fields: Mapping[Input, str]) -> frozenset[str]:
    """The optional parameters of a request that these inputs tell."""
    return frozenset(fields) - UNNAMED | ({"size"} if SIZES & set(fields) else set())


def inputs_of(wish: Wish, n: int, first: int, fields: Mapping[Input, str]) -> dict[str, object]:
    """The inputs for n pictures from number `first` on, without the manifest's options. A lossy format's compression is
    always told: what models there take for granted is less than 100. Raises ModelUnusable where the manifest names no
    field for what its model is said to take."""
    request, size = wish.request, wish.size
    values: dict[Input, object] = {
        "prompt": wish.prompt,
        "n": n if n > 1 else None,
        "image": [each.data_url for each in wish.images] or None,
        "mask": wish.mask.data_url if wish.mask is not None else None,
        "seed": wish.seed(first),
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
        "strength": request.strength if wish.images else None,
        "output_format": wish.output_format,
        "output_compression": request.output_compression if wish.output_format != "png" else None,
        "aspect_ratio": wish.aspect_ratio,
    }
    if size is not None and wish.aspect_ratio is None:
        values |= {"size": {"width": size.width, "height": size.height}, "width": size.width, "height": size.height}
    for needed in ("n", "image", "mask"):
        listed = needed != "image" or len(wish.images) < 2 or fields.get("image", "").endswith("[]")
        if values[needed] is not None and (needed not in fields or not listed):
            words = f"{wish.manifest.id}: its manifest names no field for '{needed}'. This hub's owner has to mend it."
            raise ModelUnusable(words, param="model")
    body: dict[str, object] = {}
    named: dict[Input, str] = {"prompt": "prompt", **fields}
    for name, field in named.items():
        value = values.get(name)
        if value is not None:
            body[field.removesuffix("[]")] = value[0] if isinstance(value, list) and field[-1] != "]" else value
    return body
