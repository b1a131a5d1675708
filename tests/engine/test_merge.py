from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hub.engine import merge as merge_module
from hub.engine.merge import Layout, cut, joined, layout_of, merge, signature, split


def sign(**arguments: object) -> object:
    return signature(arguments, layout_of(arguments))


def join(*calls: dict[str, object]) -> dict[str, object]:
    layouts = [layout_of(call) for call in calls]
    assert len({signature(call, layout) for call, layout in zip(calls, layouts, strict=True)}) == 1
    return merge(calls, layouts)


def test_batched_tensors_are_concatenated_in_order() -> None:
    merged = join({"sample": torch.zeros(2, 4)}, {"sample": torch.ones(3, 4)})
    assert merged["sample"].tolist() == [[0] * 4] * 2 + [[1] * 4] * 3


@pytest.mark.parametrize("form", [lambda t, n: torch.tensor(t), lambda t, n: torch.tensor([t]), lambda t, n: t])
def test_one_timestep_per_call_becomes_one_per_row(form) -> None:
    calls = [{"sample": torch.zeros(n, 4), "timestep": form(t, n)} for t, n in ((7, 2), (9, 3))]
    assert join(*calls)["timestep"].tolist() == [7, 7, 9, 9, 9]


def test_a_timestep_per_row_meets_a_timestep_per_call() -> None:
    one = {"sample": torch.zeros(2, 4), "timestep": torch.tensor(7)}
    many = {"sample": torch.zeros(2, 4), "timestep": torch.tensor([8, 9])}
    assert join(one, many)["timestep"].tolist() == [7, 7, 8, 9]


def test_a_scalar_that_is_no_timestep_keeps_unequal_calls_apart() -> None:
    sample = torch.zeros(1, 4)
    assert sign(sample=sample, scale=torch.tensor(1.0)) != sign(sample=sample, scale=torch.tensor(2.0))
    assert sign(sample=sample, scale=0.5) != sign(sample=sample, scale=0.6)


def test_other_shapes_and_dtypes_keep_calls_apart() -> None:
    assert sign(x=torch.zeros(1, 4)) != sign(x=torch.zeros(1, 5))
    assert sign(x=torch.zeros(1, 4)) != sign(x=torch.zeros(1, 4, dtype=torch.float16))


def test_shared_tensors_must_be_equal_by_value_and_are_passed_once() -> None:
    def with_ids(ids: list[int]) -> dict[str, object]:
        return {"sample": torch.zeros(2, 4), "ids": torch.tensor(ids)}

    assert sign(**with_ids([1, 2, 3])) != sign(**with_ids([1, 2, 4]))
    assert join(with_ids([1, 2, 3]), with_ids([1, 2, 3]))["ids"].tolist() == [1, 2, 3]


def test_a_guidance_value_per_row_is_batched_even_for_a_single_row() -> None:
    calls = [{"sample": torch.zeros(1, 4), "guidance": torch.tensor([g])} for g in (3.5, 4.0)]
    assert join(*calls)["guidance"].tolist() == [3.5, 4.0]


def test_residuals_of_a_controlnet_are_merged_elementwise_even_when_there_are_as_many_as_rows() -> None:
    calls = [{"sample": torch.zeros(2, 4), "residuals": [torch.full((2, 3), v), torch.full((2, 5), v)]} for v in (1, 2)]
    merged = join(*calls)["residuals"]
    assert [tuple(item.shape) for item in merged] == [(4, 3), (4, 5)]


def test_ragged_lists_with_one_tensor_per_row_are_joined() -> None:
    one = {"x": [torch.zeros(4, 8)], "t": torch.tensor([1.0]), "caps": [torch.zeros(3, 2)]}
    two = {"x": [torch.zeros(4, 6), torch.zeros(4, 9)], "t": torch.tensor([2.0, 3.0]), "caps": [torch.zeros(5, 2)] * 2}
    merged = join(one, two)
    assert [tuple(item.shape) for item in merged["x"]] == [(4, 8), (4, 6), (4, 9)]
    assert merged["t"].tolist() == [1, 2, 3]


def test_the_generator_that_no_decoder_reads_does_not_keep_calls_apart() -> None:
    z = torch.zeros(1, 4)
    assert sign(z=z, generator=torch.Generator()) == sign(z=z, generator=torch.Generator())


def test_unknown_objects_meet_only_themselves() -> None:
    z, thing = torch.zeros(1, 4), object()
    assert sign(z=z, extra=thing) == sign(z=z, extra=thing)
    assert sign(z=z, extra=thing) != sign(z=z, extra=object())


ROWS = [Layout(1, False), Layout(2, False)]


def test_outputs_are_split_by_rows() -> None:
    whole = torch.arange(3).reshape(3, 1)
    assert [part.tolist() for part in split(whole, ROWS)] == [[[0]], [[1], [2]]]
    assert [part[0].tolist() for part in split((whole,), ROWS)] == [[[0]], [[1], [2]]]


def test_model_outputs_keep_their_type_and_their_hidden_states() -> None:
    """Three hidden states and three rows: a tuple is columns, never one item per row."""
    states = tuple(torch.full((3, 2), float(i)) for i in range(3))
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(3, 2), hidden_states=states)
    first, second = split(output, ROWS)
    assert isinstance(first, BaseModelOutputWithPooling)
    assert len(second.hidden_states) == 3
    assert tuple(second.hidden_states[1].shape) == (2, 2)
    assert first.pooler_output is None


def test_a_posterior_is_split_as_a_distribution() -> None:
    parts = split(DiagonalGaussianDistribution(torch.arange(12.0).reshape(3, 4, 1, 1)), ROWS)
    assert parts[1].mean.shape == (2, 2, 1, 1)
    assert parts[1].mean[0, 0, 0, 0] == 4


def test_a_list_with_one_tensor_per_row_is_split_only_for_ragged_calls() -> None:
    items = [torch.zeros(2, n) for n in (1, 2, 3)]
    parts = split(items, [Layout(1, True), Layout(2, True)])
    assert [len(part) for part in parts] == [1, 2]


def test_what_cannot_be_split_is_an_error() -> None:
    with pytest.raises(TypeError, match="cannot split"):
        split(object(), ROWS)


def test_patches_of_pictures_that_another_argument_counts_stay_apart() -> None:
    """Qwen2.5-VL: one `pixel_values` for all rows, of as many patches as `image_grid_thw` says."""

    def call() -> dict[str, object]:
        return {"input_ids": torch.zeros(1, 4), "pixel_values": torch.zeros(16, 8), "image_grid_thw": torch.ones(1, 3)}

    assert sign(**call()) != sign(**call())


def test_lists_that_describe_the_rows_are_joined_and_must_be_equal() -> None:
    """Qwen-Image's `img_shapes`."""

    def call(side: int) -> dict[str, object]:
        return {"sample": torch.zeros(2, 4), "img_shapes": [[(1, side, side)], [(1, side, side)]]}

    assert join(call(4), call(4))["img_shapes"] == [[(1, 4, 4)]] * 4
    assert sign(**call(4)) != sign(**call(8))


def halves(*calls: dict[str, object]) -> list[dict[str, object]]:
    """The merged calls, cut in the middle."""
    layouts = [layout_of(call) for call in calls]
    rows = sum(layout.rows for layout in layouts)
    merged = merge(calls, layouts)
    return [cut(merged, calls[0], layouts[0], part) for part in (slice(0, rows // 2), slice(rows // 2, rows))]


def test_a_cut_may_go_through_a_call_and_takes_timesteps_along() -> None:
    calls = [{"sample": torch.full((2, 4), float(k)), "timestep": torch.tensor(k), "flag": True} for k in range(3)]
    one, other = halves(*calls)
    assert one["sample"][:, 0].tolist() == [0, 0, 1] and other["sample"][:, 0].tolist() == [1, 2, 2]
    assert one["timestep"].tolist() == [0, 0, 1] and other["timestep"].tolist() == [1, 2, 2]
    assert one["flag"] is True


def test_what_all_rows_share_is_not_cut_even_where_it_has_as_many_rows_as_the_whole() -> None:
    shared = torch.arange(4)  # as long as both calls together, but not as one of them
    for part in halves(*({"sample": torch.zeros(2, 4), "ids": shared, "t": 5} for _ in range(2))):
        assert part["ids"].tolist() == [0, 1, 2, 3]
        assert part["t"].tolist() == [5, 5]


def test_lists_with_an_item_per_row_are_cut_and_others_item_by_item() -> None:
    def call(k: int) -> dict[str, object]:
        items = [torch.full((k + 1, 3), float(k)), torch.zeros(1, 3)]
        return {"x": items, "residuals": {"down": (torch.full((2, 3), float(k)),)}, "shapes": [[(1, k)], [(2, k)]]}

    one, other = halves(call(0), call(1))
    assert [item.shape[0] for item in one["x"]] == [1, 1] and [item.shape[0] for item in other["x"]] == [2, 1]
    assert one["residuals"]["down"][0].tolist() == [[0] * 3] * 2
    assert other["shapes"] == [[(1, 1)], [(2, 1)]]


@pytest.mark.parametrize(
    "output",
    [
        None,
        torch.arange(12.0).view(4, 3),
        (torch.arange(4.0), [torch.ones(4, 2), None]),
        BaseModelOutputWithPooling(last_hidden_state=torch.arange(8.0).view(4, 2), pooler_output=torch.arange(4.0)),
        DiagonalGaussianDistribution(torch.arange(32.0).view(4, 2, 2, 2)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_what_is_split_can_be_joined(output: object) -> None:
    def told(value: object) -> object:
        if isinstance(value, DiagonalGaussianDistribution):
            return value.parameters.tolist()
        if isinstance(value, (list, tuple)):
            return [told(item) for item in value]
        return value.tolist() if torch.is_tensor(value) else value

    layouts = [Layout(1, False), Layout(3, False)]
    again = joined(split(output, layouts), layouts)
    assert type(again) is type(output)
    pairs = zip(again.values(), output.values(), strict=True) if isinstance(output, dict) else [(again, output)]
    assert all(told(one) == told(other) for one, other in pairs)


def test_lists_with_a_tensor_per_row_are_joined() -> None:
    layouts = [Layout(1, True), Layout(2, True)]
    parts = [([torch.zeros(1)],), ([torch.ones(1), torch.ones(2)],)]
    assert [item.tolist() for item in joined(parts, layouts)[0]] == [[0], [1], [1, 1]]


def test_what_cannot_be_joined_is_said() -> None:
    with pytest.raises(TypeError, match="set"):
        joined([{1}, {2}], [Layout(1, False)] * 2)


def test_what_lies_on_another_device_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    monkeypatch.setattr(merge_module, "_fetched", lambda tensor: fetched.append(tensor) or b"ids")
    ids = torch.empty(5, device="meta")
    call = {"sample": torch.zeros(2, 4), "ids": ids}
    assert sign(**call) == sign(**call) == sign(sample=torch.ones(2, 4), ids=torch.empty(5, device="meta"))
    assert len(fetched) == 2
