"""Modules between a device and main memory: here a part of main memory with a limit, into which weights are copied."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hub.engine.devices import out_of_memory
from hub.engine.held import Held
from hub.engine.jobs import Job
from hub.engine.meeting import MeetingPoint
from hub.engine.residency import Residency
from hub.engine.weave import Weave
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline
from tests.families.harness import Engine, noise, request

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Tower(nn.Module):
    """An entrance and some floors, one after another."""

    def __init__(self, floors: int = 4, width: int = 16) -> None:
        super().__init__()
        self.entrance = nn.Linear(width, width)
        self.floors = nn.ModuleList(nn.Linear(width, width) for _ in range(floors))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        sample = self.entrance(sample)
        for floor in self.floors:
            sample = floor(sample)
        return sample


FLOOR = (16 * 16 + 16) * 4
"""Bytes."""
INPUT = torch.linspace(-1, 1, 16).view(1, 16)


def held(residency: Residency, count: int, floors: int = 4) -> list[Tower]:
    towers = [Tower(floors).requires_grad_(False) for _ in range(count)]
    for tower in towers:
        residency.hold(tower)
    return towers


def test_a_module_that_is_away_looks_as_if_it_were_there_and_computes_no_good_picture() -> None:
    tower = Tower().requires_grad_(False)
    wanted, shapes = tower(INPUT), [each.shape for each in tower.parameters()]
    residency = Residency(CPU, 100 * FLOOR)
    residency.hold(tower)
    assert residency.on_device == 0
    assert [each.shape for each in tower.parameters()] == shapes
    assert next(tower.parameters()).dtype == torch.float32
    assert tower.entrance(INPUT).isnan().all()
    assert residency.bring(tower)
    assert torch.equal(tower(INPUT), wanted)
    assert residency.on_device == 5 * FLOOR


def test_the_one_that_was_used_longest_ago_makes_room() -> None:
    residency = Residency(CPU, 10 * FLOOR)
    a, b, c = held(residency, 3)
    for tower in (a, b, a):
        assert residency.bring(tower)
    assert residency.uploads == 2
    assert residency.away(c)
    assert residency.bring(c)
    assert [residency.where(tower)[1] for tower in (a, b, c)] == [5 * FLOOR, 0, 5 * FLOOR]
    assert residency.away(b)
    assert not residency.away(a)


def test_room_is_made_for_what_is_computed_too() -> None:
    residency = Residency(CPU, 10 * FLOOR)
    a, b = held(residency, 2)
    residency.bring(a)
    assert residency.bring(b, workspace=FLOOR)
    assert residency.where(a)[1] == 0
    assert not residency.bring(b, workspace=100 * FLOOR), "which it has not"


def test_a_module_that_does_not_fit_passes_through_block_by_block_and_as_few_as_can_be() -> None:
    tower = Tower(8).requires_grad_(False)
    wanted = tower(INPUT)
    residency, seen = Residency(CPU, 5 * FLOOR), []
    residency.hold(tower)
    for floor in tower.floors:
        floor.register_forward_hook(lambda *_: seen.append(residency.on_device))
    uploaded = []
    for _ in range(3):
        assert residency.bring(tower)
        assert not residency.whole(tower)
        assert torch.equal(tower(INPUT), wanted)
        uploaded.append(residency.uploaded)
    assert max(seen) <= 5 * FLOOR
    later = [after - before for before, after in itertools.pairwise(uploaded)]
    assert later == [4 * FLOOR] * 2, "beside the entrance there is room for four of the eight: as few as can be"


def test_what_fits_in_no_way_is_told() -> None:
    residency = Residency(CPU, FLOOR)
    (tower,) = held(residency, 1)
    assert not residency.bring(tower)


def test_a_module_that_was_cast_while_it_was_there_keeps_its_new_type() -> None:
    """As a VAE that overflows in float16."""
    residency = Residency(CPU, 5 * FLOOR)
    a, b = held(residency, 2)
    residency.bring(a)
    a.to(torch.float64)
    wanted = a(INPUT.double())
    residency.bring(b)
    residency.bring(a)
    assert torch.equal(a(INPUT.double()), wanted)


def test_a_module_that_is_cast_while_it_is_away_comes_in_its_new_type() -> None:
    tower = Tower().requires_grad_(False)
    wanted = tower.double()(INPUT.double())
    tower.float()
    residency = Residency(CPU, 100 * FLOOR)
    residency.hold(tower)
    tower.to(torch.float64)
    residency.bring(tower)
    assert torch.allclose(tower(INPUT.double()), wanted)
    assert residency.on_device == 2 * 5 * FLOOR


def test_what_does_not_travel_is_there_from_the_start_and_counts() -> None:
    checker, tower = Tower().requires_grad_(False), Tower().requires_grad_(False)
    tower.register_buffer("mean", torch.zeros(100))
    residency = Residency(CPU, 12 * FLOOR)
    residency.hold(checker, travels=False)
    residency.hold(tower)
    assert not checker(INPUT).isnan().any()
    assert residency.on_device == 5 * FLOOR + 400
    assert residency.where(tower) == (5 * FLOOR + 400, 400)
    assert residency.capacity == 7 * FLOOR - 400
    assert residency.bring(tower)
    assert residency.make_way(1 << 30, lambda _: False) == 5 * FLOOR, "the checker stays"


def test_a_lean_module_has_one_block_there_though_all_would_fit() -> None:
    tower = Tower(8).requires_grad_(False)
    wanted, most = tower(INPUT), []
    residency = Residency(CPU, 100 * FLOOR)
    residency.hold(tower)
    for floor in tower.floors:
        floor.register_forward_hook(lambda *_: most.append(residency.on_device))
    residency.lighten(tower)
    assert residency.bring(tower, lean=True)
    assert torch.equal(tower(INPUT), wanted)
    assert max(most) == 2 * FLOOR
    assert residency.bring(tower)
    assert residency.whole(tower)


def test_a_parameter_in_two_places_travels_once() -> None:
    tower = Tower().requires_grad_(False)
    tower.floors[1].weight = tower.floors[3].weight
    wanted = tower(INPUT)
    residency = Residency(CPU, 100 * FLOOR)
    residency.hold(tower)
    residency.bring(tower)
    assert torch.equal(tower(INPUT), wanted)
    assert residency.uploaded == sum(each.numel() * 4 for each in tower.parameters())


def test_without_a_limit_nothing_on_a_cpu_travels() -> None:
    residency = Residency(CPU)
    (tower,) = held(residency, 1)
    before = [each.data_ptr() for each in tower.parameters()]
    assert residency.bring(tower)
    assert not residency.away(tower)
    assert (residency.uploads, [each.data_ptr() for each in tower.parameters()]) == (0, before)


def test_idle_modules_make_way_for_other_programs_and_busy_ones_do_not() -> None:
    residency = Residency(CPU, 100 * FLOOR)
    a, b = held(residency, 2)
    residency.bring(a)
    residency.bring(b)
    assert residency.make_way(1, lambda module: module is a) == 5 * FLOOR
    assert [residency.where(tower)[1] for tower in (a, b)] == [5 * FLOOR, 0]


# In the weave


@pytest.fixture
def loaded(small_stable_diffusion: Path) -> LoadedPipeline:
    return load_pipeline(str(small_stable_diffusion), "float32", CPU)


def weave_over(loaded: LoadedPipeline, residency: Residency) -> tuple[Weave, dict[int, Any]]:
    outcomes: dict[int, Any] = {}
    for shared in loaded.shared_methods():
        residency.hold(shared.module)
        MeetingPoint(shared.module, shared.method, denoising=shared.denoising, residency=residency)
    return Weave(4, lambda *_: None, outcomes.__setitem__, residency=residency), outcomes


def draw(weave: Weave, loaded: LoadedPipeline, steps: list[int]) -> None:
    for number, count in enumerate(steps):
        own = loaded.own_copy("text-to-image")
        generator = torch.Generator().manual_seed(number)
        call = {"prompt": f"{number}", "num_inference_steps": count, "width": 64, "height": 64, "generator": generator}
        weave.start(
            number,
            lambda own=own, call=call: own(**call, output_type="pt").images[0],
            lambda count=count: count,
        )
    while weave.busy:
        weave.tick()


@pytest.mark.parametrize("steps", [[20] * 8, pytest.param([4, 7, 9, 12, 15, 20, 25, 30], marks=pytest.mark.slow)])
def test_eight_requests_on_a_device_for_the_largest_module_cost_a_quarter_of_one_after_anothers_uploads(
    loaded: LoadedPipeline, small_stable_diffusion: Path, steps: list[int]
) -> None:
    """Offload one after another, as diffusers' own does it, brings each of the three modules for each picture. Here a
    forward has room for two requests, so that they wait for one another as on a real device."""
    modules = [Held(module) for module in loaded.modules.values()]
    largest = max(each.bytes - each.fixed for each in modules) + sum(each.fixed for each in modules)
    residency = Residency(CPU, largest)
    weave, outcomes = weave_over(loaded, residency)
    draw(weave, loaded, steps)
    assert residency.uploads <= 8 * len(modules) / 4
    assert residency.on_device <= largest
    roomy = load_pipeline(str(small_stable_diffusion), "float32", CPU)
    other, wanted = weave_over(roomy, Residency(CPU))
    draw(other, roomy, steps)
    for number in range(8):
        assert (outcomes[number] - wanted[number]).abs().max() < 1e-4


# Out of memory


FAULTS = [
    ("text_encoder", "embeddings", "text-to-image"),
    ("unet", "conv_in", "text-to-image"),
    ("vae", "decoder", "text-to-image"),
    ("vae", "encoder", "image-to-image"),
]
"""Every meeting point of a Stable Diffusion: its module, a submodule that its forward calls, and a task that has it."""


def failing(loaded: LoadedPipeline, name: str, part: str, times: int) -> Any:
    """The device runs out of memory in the middle of so many of the module's forwards."""
    left = [times]

    def fail(*_: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory at 0x7f00deadbeef")

    found = next(module for label, module in loaded.modules[name].named_modules() if label.endswith(part))
    return found.register_forward_pre_hook(fail)


@pytest.mark.parametrize("limit", [None, 1], ids=["roomy", "tight"])
@pytest.mark.parametrize("times", [2, 100])
@pytest.mark.parametrize(("name", "part", "task"), FAULTS)
def test_out_of_memory_at_any_meeting_point_ends_in_a_picture_or_in_words_and_the_next_request_works(
    small_stable_diffusion: Path, name: str, part: str, task: Any, times: int, limit: int | None
) -> None:
    pictures = [noise(1, 64, 64)] if task == "image-to-image" else []
    frames = [request(task, (64, 64), pictures, None, prompt=f"{n}", seed=n, num_inference_steps=4) for n in range(2)]
    engine = Engine(small_stable_diffusion, fits="module" if limit else None)
    wanted = engine.draw(frames)
    hook = failing(engine.pipeline, name, part, times)
    outcomes = engine.draw(frames)
    hook.remove()
    for frame, outcome, picture in zip(frames, outcomes, wanted, strict=True):
        if isinstance(outcome, BaseException):
            assert times == 100, "freed, taken apart and tried again, it works"
            assert out_of_memory(outcome)
            said: list[Any] = []
            Job(frame, engine.pipeline, said.append, lambda *_: None, Residency(CPU)).fail(outcome)
            assert said[0].kind == "memory"
            assert "0x" not in said[0].message
            assert "would fit" in said[0].message
        else:
            assert outcome.shape == picture.shape
            # The VAE's tiles are blended where they meet, and look at less around them.
            apart = np.abs(outcome.astype(int) - picture.astype(int))
            assert apart.max() <= (1 if name != "vae" else 255)
            assert np.corrcoef(outcome.flatten(), picture.flatten())[0, 1] > 0.9
    if times == 100:
        assert all(isinstance(outcome, BaseException) for outcome in outcomes)
    for again, picture in zip(engine.draw(frames), wanted, strict=True):
        assert np.array_equal(again, picture), "and nothing is left of it"
