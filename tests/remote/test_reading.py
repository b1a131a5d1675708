from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hub.errors import ProviderFailed
from hub.remote.adapter import Base64, Link, Picture
from hub.remote.reading import at, count, event_of, listed, number, picture_of, seed, text


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        *[(0, 0.0), (1.5, 1.5), ("12", 12.0)],
        *((each, None) for each in (None, True, -1, "x", [], "1e999", "nan", 10**400)),
    ],
)
def test_a_number_is_one_that_can_be_reckoned_with(told: Any, expected: float | None) -> None:
    assert number(told) == expected
    assert count(told) == int(expected or 0)


def test_what_is_something_else_counts_as_not_told() -> None:
    assert (text(5), text("x"), listed({}), listed([1])) == ("", "x", [], [1])
    assert (seed(3), seed(-1), seed(2**63), seed(True), seed("3")) == (3, None, None, None, None)
    assert (at({"a": {"b": 1}}, "a", "b"), at({"a": []}, "a", "b"), at(None, "a")) == (1, None, None)


@pytest.mark.parametrize(
    ("b64_json", "url", "expected"),
    [
        (b'"eA=="', None, Base64(b"eA==")),
        (b'"eA=="', "https://x.example", Base64(b"eA==")),
        (b'"data:image/png;base64,eA=="', None, Link("data:image/png;base64,eA==")),
        (b"null", "https://x.example", Link("https://x.example")),
        (b'""', 5, None),
        (b"null", None, None),
    ],
)
def test_a_picture_is_base64_or_a_data_url_or_behind_a_link(
    b64_json: bytes, url: Any, expected: Picture | None
) -> None:
    assert picture_of(msgspec.Raw(b64_json), url) == expected


@pytest.mark.parametrize("data", [b"<html>", b"[DONE]", b"[" * 100_000, b"\xff", b"[]"])
def test_an_event_that_is_something_else_may_have_cost(data: bytes) -> None:
    with pytest.raises(ProviderFailed) as caught:
        event_of("The server", data, dict)
    assert caught.value.may_have_billed
