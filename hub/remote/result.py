"""What the calls of one request have made, put together: pictures, usage, cost, and what came otherwise than asked.
Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hub.errors import ProviderFailed
from hub.remote.adapter import Adapter, Made
from hub.remote.pictures import Had
from hub.remote.wish import Notice, Wish
from hub.types import ImageResult, Size, Usage


def shares(n: int, most: int) -> list[tuple[int, int]]:
    """How many pictures each call makes, and the number of its first."""
    return [(min(most, n - first), first) for first in range(0, n, most)]


def joined(made: Sequence[Made]) -> Made:
    """Several pictures that came one by one, in a stream."""
    if not made:
        raise ProviderFailed("The provider's stream ended without a picture.", may_have_billed=True)
    usages = [each.usage for each in made if each.usage is not None]
    costs = [each.cost for each in made if each.cost is not None]
    return Made(
        pictures=[picture for each in made for picture in each.pictures],
        usage=_sum(usages) if usages else None,
        cost=sum(costs) if costs else None,
        seed=made[0].seed,
        revised_prompts=[prompt for each in made for prompt in _prompts(each, len(each.pictures))],
        background=made[0].background,
        quality=made[0].quality,
        notices=[notice for each in made for notice in each.notices],
    )


def put_together(adapter: Adapter, wish: Wish, parts: Sequence[tuple[Made, list[Had]]]) -> ImageResult:
    """The request's result. What only some of its calls tell (usage, cost) is left out."""
    all_made, had = [made for made, _ in parts], [each for _, some in parts for each in some]
    notices = [*wish.notices, *(notice for made in all_made for notice in made.notices)]
    notices += _differences(adapter, wish, had)
    background = next((made.background for made in all_made if made.background), wish.background)
    if any(each.opaque for each in had) and "transparent" in (background, wish.background):
        background = "opaque"
        if not any(each.param == "background" for each in notices):
            notices.append(Notice("background", f"{adapter.title} made a picture that is opaque"))
    usages = [made.usage for made in all_made if made.usage is not None]
    costs = [made.cost for made in all_made if made.cost is not None]
    prompts = [prompt for made, some in parts for prompt in _prompts(made, len(some))]
    encoded = [each.encoded for each in had if each.encoded is not None]
    seed = wish.request.seed if "seed" in adapter.honoured(wish.manifest) else None
    if len(parts) == 1 and all_made[0].seed is not None:  # of several calls, each has a seed of its own
        seed = all_made[0].seed
    quality = next((made.quality for made in all_made if made.quality), wish.effort)
    return ImageResult(
        images=tuple(each.data for each in had),
        seed=seed,
        size=had[0].size,
        quality=quality or "medium",
        quality_told=quality is not None,
        output_format=had[0].format,
        background=background,
        sources=(*(each.size for each in wish.images), *_mask_size(wish)),
        warnings=tuple(dict.fromkeys(map(str, notices))),
        usage=_sum(usages) if len(usages) == len(parts) else None,
        encoded=tuple(encoded) if len(encoded) == len(had) else (),
        revised_prompts=tuple(prompts) if any(prompts) else (),
        cost=sum(costs) if len(costs) == len(parts) else None,
    )


def _differences(adapter: Adapter, wish: Wish, had: Sequence[Had]) -> list[Notice]:
    """What came otherwise than it was asked for. It is kept as it is: its provenance is part of the file."""
    found = []
    if len(had) < wish.request.n:
        found.append(Notice("n", f"{adapter.title} made {len(had)} of {wish.request.n} pictures"))
    told = {notice.param for notice in wish.notices}
    asked = wish.size if wish.request.size is not None else None
    if asked is not None and any(each.size != asked for each in had) and "size" not in told:
        found.append(Notice("size", f"{adapter.title} made {had[0].size} instead of {asked}"))
    if any(each.format != wish.output_format for each in had) and "output_format" not in told:
        found.append(Notice("output_format", f"{adapter.title} made {had[0].format}, which is kept as it is"))
    return found


def _prompts(made: Made, pictures: int) -> list[str]:
    """One for each picture, empty where the provider tells none."""
    return [*made.revised_prompts, *[""] * pictures][:pictures]


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        text_tokens=sum(each.text_tokens for each in usages),
        image_tokens=sum(each.image_tokens for each in usages),
        output_tokens=sum(each.output_tokens for each in usages),
    )


def _mask_size(wish: Wish) -> list[Size]:
    return [Size(*wish.mask.picture.size)] if wish.mask is not None else []
