"""What text encoders have said is said again, exactly, and within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hub.engine.memo import Memo
from hub.engine.outputs import copied


def put_twice(memo: Memo, key: bytes, output: Any) -> None:
    memo.put(key, output)
    memo.put(key, output)


def output(value: float, count: int = 4) -> BaseModelOutputWithPooling:
    states = torch.full((1, count), float(value))
    return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states, states + 1))


def key(memo: Memo, **arguments: Any) -> bytes | None:
    return memo.key(1, arguments)


def test_an_output_is_kept_when_its_input_comes_again() -> None:
    memo = Memo()
    memo.put(b"a", output(1))
    assert memo.get(b"a") is None
    memo.put(b"a", output(1))
    found = memo.get(b"a")
    assert isinstance(found, BaseModelOutputWithPooling)
    assert torch.equal(found.last_hidden_state, torch.ones(1, 4))
    assert torch.equal(found.hidden_states[1], torch.full((1, 4), 2.0))


def test_whoever_writes_into_what_he_got_harms_nobody() -> None:
    memo, given = Memo(), output(1)
    put_twice(memo, b"a", given)
    given.last_hidden_state.zero_()
    memo.get(b"a").last_hidden_state.zero_()
    assert memo.get(b"a").last_hidden_state.sum() == 4


def test_the_least_recently_used_goes_first() -> None:
    memo = Memo(budget=3 * 3 * 4 * 4)
    for name in (b"a", b"b", b"c"):
        put_twice(memo, name, output(1))
    memo.get(b"a")
    put_twice(memo, b"d", output(1))
    assert [name for name in (b"a", b"b", b"c", b"d") if memo.get(name) is not None] == [b"a", b"c", b"d"]


def test_what_is_larger_than_the_budget_or_of_an_unknown_kind_is_not_kept() -> None:
    memo = Memo(budget=100)
    put_twice(memo, b"large", output(1, count=1000))
    put_twice(memo, b"odd", (torch.zeros(1), object()))
    assert memo.get(b"large") is memo.get(b"odd") is None


@pytest.mark.parametrize(
    "other",
    [
        {"ids": torch.tensor([[1, 3]])},
        {"ids": torch.tensor([[1, 2]], dtype=torch.int32)},
        {"ids": torch.tensor([1, 2])},
        {"ids": torch.tensor([[1, 2]]), "mask": None},
        {"ids": torch.tensor([[1, 2]]), "kwargs": {"output_hidden_states": True}},
        {"ids": [torch.tensor([[1, 2]])]},
    ],
)
def test_another_input_has_another_key(other: dict[str, Any]) -> None:
    memo = Memo()
    assert key(memo, ids=torch.tensor([[1, 2]])) == key(memo, ids=torch.tensor([[1, 2]])) is not None
    assert key(memo, **other) != key(memo, ids=torch.tensor([[1, 2]]))
    assert memo.key(2, {"ids": torch.tensor([[1, 2]])}) != key(memo, ids=torch.tensor([[1, 2]]))


def test_an_input_that_has_no_content_to_go_by_has_no_key() -> None:
    assert key(Memo(), ids=torch.tensor([1]), past_key_values=object()) is None


def test_a_copy_has_tensors_of_its_own() -> None:
    given = output(1)
    copied(given).hidden_states[0].zero_()
    assert given.hidden_states[0].sum() == 4
