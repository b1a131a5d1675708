from __future__ import annotations

import math
from typing import Any

import pytest

from hub import prices as hub_prices
from hub.manifest import PricesSection, TokenPrices
from hub.prices import cost
from hub.types import ImageRequest, ImageResult, Size, Usage

SQUARE, WIDE = Size(1024, 1024), Size(1536, 1024)
TABLE = {"low/1024x1024": 0.01, "medium/1024x1024": 0.04, "high/1024x1024": 0.16, "high/1536x1024": 0.25}


def estimate(prices: PricesSection, request: ImageRequest, size: Size | None, **more: Any) -> float | None:
    """Of the quality that the request names."""
    return hub_prices.estimate(prices, request, size, **{"quality": request.effort, **more})


def asks(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a cat in a hat", "quality": "medium", **changes})


def made(n: int = 1, **changes: Any) -> ImageResult:
    plain: dict[str, Any] = {"images": (b"png",) * n, "seed": 1, "size": SQUARE, "quality": "medium"}
    return ImageResult(**plain | changes)


@pytest.mark.parametrize(
    ("table", "quality", "size", "price"),
    [
        (TABLE, "medium", SQUARE, 0.04),
        (TABLE, "high", WIDE, 0.25),
        (TABLE, "hd", SQUARE, 0.16),
        (TABLE, None, SQUARE, 0.16),  # who may draw in any quality may draw in the best
        (TABLE, "auto", SQUARE, 0.16),
        (TABLE, "high", None, 0.25),
        (TABLE, None, None, 0.25),
        (TABLE, "high", Size(1100, 900), 0.16),  # the next larger one
        (TABLE, "high", Size(1200, 1024), 0.25),
        (TABLE, "low", Size(2048, 2048), 0.04),  # beyond the table: by pixels
        ({"*/*": 0.05}, "low", Size(8, 8), 0.05),
        ({"*/*": 0.05, "high/*": 0.08}, "high", WIDE, 0.08),
        ({"*/*": 0.05, "*/1536x1024": 0.07}, "high", WIDE, 0.07),
        ({"high/*": 0.08, "*/1536x1024": 0.07}, "high", WIDE, 0.08),  # the quality first
        ({"high/1024x1024": 0.2}, "low", SQUARE, 0.2),  # a quality that the table lacks
        ({"*/512x512": 0.1, "low/1024x1024": 0.2}, "high", SQUARE, 0.4),
        ({"high/*": 0.08, "low/1024x1024": 0.01}, "medium", SQUARE, 0.08),
    ],
)
def test_the_most_exact_key_counts_and_where_none_fits_one_that_is_not_less(
    table: dict[str, float], quality: Any, size: Size | None, price: float
) -> None:
    assert estimate(PricesSection(images=table), asks(quality=quality), size) == pytest.approx(price)


@pytest.mark.parametrize("tokens", [TokenPrices(), TokenPrices(text=5.0), TokenPrices(text=5.0, image=10.0)])
def test_a_table_of_the_prompts_tokens_alone_tells_no_price(tokens: TokenPrices) -> None:
    usage = Usage(text_tokens=10, image_tokens=0, output_tokens=1056)
    assert estimate(PricesSection(tokens=tokens), asks(), SQUARE) is None
    assert cost(PricesSection(tokens=tokens), made(usage=usage)) is None
    assert estimate(PricesSection(tokens=tokens, images={"*/*": 0.04}), asks(), SQUARE) == pytest.approx(
        0.04, abs=0.001
    )


def test_each_picture_costs_and_what_is_given_adds_up() -> None:
    prices = PricesSection(images={"*/*": 0.01}, megapixel=0.02)
    assert estimate(prices, asks(n=3), Size(2048, 1024)) == pytest.approx(3 * (0.01 + 2 * 0.02))
    assert cost(prices, made(3)) == pytest.approx(3 * (0.01 + 0.02))
    assert estimate(PricesSection(megapixel=0.02), asks(), None) == pytest.approx(0.02), "1024x1024"


def test_an_empty_table_says_nothing_and_one_of_zeros_that_it_is_free() -> None:
    assert estimate(PricesSection(), asks(), SQUARE) is None
    assert cost(PricesSection(), made()) is None
    free = PricesSection(images={"*/*": 0.0})
    assert estimate(free, asks(), SQUARE) == 0.0
    assert cost(free, made()) == 0.0


def test_what_a_device_will_work_is_not_known_beforehand_but_paid_for_afterwards() -> None:
    prices = PricesSection(second=0.001)
    assert estimate(prices, asks(), SQUARE) is None
    assert cost(prices, made(device_seconds=12.5)) == pytest.approx(0.0125)
    assert cost(prices, made()) == 0.0
    assert estimate(PricesSection(second=0.001, megapixel=0.01), asks(), SQUARE) == pytest.approx(0.01)
    assert estimate(PricesSection(second=0.001, images={"*/*": 0}), asks(), SQUARE) is None


TOKENS = TokenPrices(text=5.0, image=10.0, output=40.0, output_tokens={"low/1024x1024": 272, "medium/1024x1024": 1056})


def test_tokens_are_reckoned_beforehand_by_the_table() -> None:
    prices = PricesSection(tokens=TOKENS)
    text = 4 * 5.0 / 1e6  # 14 bytes
    assert estimate(prices, asks(), SQUARE) == pytest.approx(text + 1056 * 40 / 1e6)
    assert estimate(prices, asks(n=4), SQUARE) == pytest.approx(4 * (text + 1056 * 40 / 1e6))
    assert estimate(prices, asks(n=4), SQUARE, calls=1) == pytest.approx(text + 4 * 1056 * 40 / 1e6)
    assert estimate(prices, asks(partial_images=2), SQUARE) == pytest.approx(text + 1256 * 40 / 1e6)
    assert estimate(prices, asks(quality=None), SQUARE, quality="low") == pytest.approx(text + 272 * 40 / 1e6)
    plain = PricesSection(tokens=TokenPrices(output=40.0))
    assert estimate(plain, asks(), SQUARE) == pytest.approx(1024 * 40 / 1e6), "the hub's own count"


def test_source_pictures_cost_more_where_they_are_looked_at_closely() -> None:
    prices = PricesSection(tokens=TOKENS)
    without = estimate(prices, asks(), SQUARE)
    edit = estimate(prices, asks(images=(b"1", b"2"), mask=b"3"), SQUARE)
    close = estimate(prices, asks(images=(b"1",), input_fidelity="high"), SQUARE)
    assert without is not None
    assert edit == pytest.approx(without + 3 * 1536 * 10 / 1e6)
    assert close == pytest.approx(without + (1536 + 6144) * 10 / 1e6)


def test_tokens_cost_what_the_provider_has_counted_and_nobody_knows_what_where_it_has_not() -> None:
    prices = PricesSection(tokens=TOKENS)
    usage = Usage(text_tokens=10, image_tokens=200, output_tokens=3000)
    assert cost(prices, made(usage=usage)) == pytest.approx((50 + 2000 + 120_000) / 1e6)
    assert cost(prices, made()) is None


def test_what_the_provider_tells_counts_before_the_table() -> None:
    prices = PricesSection(images={"*/*": 0.04})
    assert cost(prices, made(cost=0.09)) == 0.09
    assert cost(PricesSection(), made(cost=0.0)) == 0.0


@pytest.mark.parametrize("nonsense", [-1.0, math.nan, math.inf, 1e300])
def test_nonsense_of_a_provider_is_not_believed(nonsense: float) -> None:
    assert cost(PricesSection(images={"*/*": 0.04}), made(cost=nonsense)) == pytest.approx(0.04)
    usage = Usage(text_tokens=-(10**9), image_tokens=0, output_tokens=1)
    assert cost(PricesSection(tokens=TOKENS), made(usage=usage)) == 0.0


def test_fewer_pictures_than_were_asked_for_cost_less() -> None:
    prices = PricesSection(images={"*/*": 0.04})
    assert estimate(prices, asks(n=3), SQUARE) == pytest.approx(0.12)
    assert cost(prices, made(2)) == pytest.approx(0.08)
