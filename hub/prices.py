"""What a request may cost, and what it did cost, by the price table of a manifest. Pure: no I/O, no clock.

An estimate is made to be compared and reserved, so where it has to guess it guesses high. docs/costs.md has the rules.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import get_args

from msgspec import Struct

from hub.accounts import MICRO
from hub.manifest import PricesSection, TokenPrices, parse_size
from hub.types import DEFAULT_SIZE, Effort, ImageRequest, ImageResult, Size
from hub.usage import count_usage, image_tokens

MEGAPIXEL = 1 << 20
QUALITIES: tuple[Effort, ...] = get_args(Effort)
MILLION = 1_000_000
MOST = 1_000_000.0
"""US dollars; who tells more for a request is not believed."""
SOURCE_TOKENS = 1536
"""What a source picture is reckoned with beforehand: providers shrink them, and none counts more."""
FIDELITY_TOKENS = 6144
"""What `input_fidelity = "high"` adds to that."""
PREVIEW_TOKENS = 100
"""Of a picture that is not finished, as output."""


class Budget(Struct, frozen=True, kw_only=True):
    """What a key may spend in a month, and has spent, with what is reserved for requests that run: in micro-dollars.
    `ends_at`: the end of the month, in Unix seconds."""

    limit: int
    spent: int
    ends_at: float

    @property
    def left(self) -> float:
        """US dollars."""
        return max(0, self.limit - self.spent) / MICRO

    def refused(self, owner: str, cost: int | None) -> str:
        """What is told to a key ("" on a hub without keys) whose request would cost more micro-dollars than are left,
        or, with None, as many as nobody knows."""
        whose = "this key" if owner else "this hub"
        price = "nobody knows what this request costs" if cost is None else f"this request may cost {dollars(cost)}"
        end = dt.datetime.fromtimestamp(self.ends_at, dt.UTC)
        return (
            f"The budget of {whose} is {dollars(self.limit)} a month; {dollars(self.spent)} is spent or reserved, and "
            f"{price}. The month ends on {end:%Y-%m-%d} at 00:00 UTC."
        )


def micro(cost: float) -> int:
    """US dollars in micro-dollars, rounded up."""
    return math.ceil(round(cost * MICRO, 3))


def dollars(amount: int) -> str:
    """Micro-dollars as `$0.0525`, with at least two decimals."""
    whole, _, decimals = f"{amount / MICRO:.6f}".partition(".")
    return f"${whole}.{decimals.rstrip('0'):0<2}"


def estimate(
    prices: PricesSection,
    request: ImageRequest,
    size: Size | None,
    *,
    quality: Effort | None = None,
    calls: int | None = None,
    largest: int = MEGAPIXEL,
) -> float | None:
    """US dollars that the request is expected to cost, rather too many; None where nothing in the table says.

    `size` and `quality`: what will be drawn, None where the provider chooses. `calls`: in how many the prompt and the
    source pictures are sent; one for each picture where nobody says. `largest`: pixels of a picture whose size is
    chosen, at most.
    """
    total = 0.0
    if prices.images:
        total += request.n * _price(prices.images, quality, size)
    if prices.megapixel:
        pixels = size.width * size.height if size else largest
        total += request.n * pixels / MEGAPIXEL * prices.megapixel
    if prices.tokens:
        total += _tokens(prices.tokens, request, size, quality, calls or request.n)
    return total if _knows_pictures(prices) and (total or not prices.second) else None


def cost(prices: PricesSection, result: ImageResult) -> float | None:
    """US dollars that a result has cost: what the provider tells, else what the table says of what was made; None
    where neither does, where tokens cost and the provider has not counted them, or where the price goes by a quality
    that nobody has told.

    `result.usage` is to be the provider's own, not what the hub counts in its stead.
    """
    if result.cost is not None and 0 <= result.cost <= MOST:
        return result.cost
    if prices.is_free or (prices.tokens and result.usage is None):
        return None
    if not (_knows_pictures(prices) or prices.second):
        return None
    made, total = len(result.images), result.device_seconds * prices.second
    if prices.images:
        if not result.quality_told and len({_price(prices.images, each, result.size) for each in QUALITIES}) > 1:
            return None
        total += made * _price(prices.images, result.quality, result.size)
    total += made * _megapixels(result.size) * prices.megapixel
    if prices.tokens and result.usage is not None:
        usage, each = result.usage, prices.tokens
        tokens = usage.text_tokens * each.text + usage.image_tokens * each.image + usage.output_tokens * each.output
        total += tokens / MILLION
    return min(max(total, 0.0), MOST)


def _knows_pictures(prices: PricesSection) -> bool:
    """Whether the table says what a picture costs. One of the prompt's tokens alone does not: by it, everything would
    cost next to nothing."""
    return bool(prices.images or prices.megapixel or (prices.tokens and prices.tokens.output))


def _tokens(prices: TokenPrices, request: ImageRequest, size: Size | None, quality: Effort | None, calls: int) -> float:
    """What the tokens of a request would cost. Without a table of output tokens they are the hub's own count."""
    known = prices.output_tokens
    output = _price(known, quality, size) if known else image_tokens(size or DEFAULT_SIZE)
    output += request.partial_images * PREVIEW_TOKENS
    text = count_usage(request.prompt, (), DEFAULT_SIZE, 0).text_tokens
    sources = len(request.images) + (request.mask is not None)
    source = SOURCE_TOKENS + (FIDELITY_TOKENS if request.input_fidelity == "high" else 0)
    told = calls * (text * prices.text + sources * source * prices.image)
    return (told + request.n * output * prices.output) / MILLION


def _megapixels(size: Size) -> float:
    return size.width * size.height / MEGAPIXEL


def _price(table: Mapping[str, float], quality: Effort | None, size: Size | None) -> float:
    """The number of the most exact key; the highest that may be meant, where quality or size are not known.

    A size that the table lacks counts as the next larger one; one beyond all, as the largest by its share of pixels.
    """
    if quality is None:
        return max(_price(table, each, size) for each in QUALITIES)
    for key in (f"{quality}/{size}", f"{quality}/*", f"*/{size}", "*/*") if size else ():
        if key in table:
            return table[key]
    rows = {key: value for key, value in table.items() if key.startswith(f"{quality}/")}
    rows = rows or {key: value for key, value in table.items() if key.startswith("*/")} or dict(table)
    areas = {key: _area(key) for key in rows}
    if size is None or not all(areas.values()):
        return max(rows.values())
    wanted, largest = size.width * size.height, max(areas.values())
    near = min((area for area in areas.values() if area >= wanted), default=largest)
    found = max(rows[key] for key, area in areas.items() if area == near)
    return found * max(1.0, wanted / near)


def _area(key: str) -> int:
    """Pixels of a key's size, 0 for any."""
    text = key.partition("/")[2]
    if text == "*":
        return 0
    size = parse_size(text)
    return size.width * size.height
