"""The weave over a real (small, random) Stable Diffusion: what runs together equals what runs alone."""

from __future__ import annotations

import gc
import re
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hub.engine.meeting import Budget, Call, MeetingPoint
from hub.engine.memo import Memo
from hub.engine.meter import Forward, Meter, Timer, WallTimer
from hub.engine.saturation import Memory, Saturation
from hub.engine.weave import Weave
from hub.pipelines.auto import LoadedPipeline
from hub.pipelines.loading import load_pipeline

SOURCE = Image.fromarray((np.random.RandomState(0).rand(64, 64, 3) * 255).astype("uint8"))


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def loaded(small_stable_diffusion: Path) -> LoadedPipeline:
    return load_pipeline(str(small_stable_diffusion), "float32", torch.device("cpu"))


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("text-to-image", {"prompt": "a", "num_inference_steps": 7}),
    "long": ("text-to-image", {"prompt": "b c", "num_inference_steps": 15, "guidance_scale": 3.0}),
    "short": ("text-to-image", {"prompt": "d", "num_inference_steps": 3, "guidance_scale": 9.0}),
    "negative": ("text-to-image", {"prompt": "e", "num_inference_steps": 6, "negative_prompt": "f"}),
    "unguided": ("text-to-image", {"prompt": "g", "num_inference_steps": 5, "guidance_scale": 1.0}),
    "edit": ("image-to-image", {"prompt": "h", "image": SOURCE, "strength": 0.6, "num_inference_steps": 10}),
    "strong edit": ("image-to-image", {"prompt": "i", "image": SOURCE, "strength": 1.0, "num_inference_steps": 4}),
}


def body(loaded: LoadedPipeline, name: str, seed: int) -> tuple[Callable[[], Any], Callable[[], int]]:
    task, arguments = REQUESTS[name]
    own = loaded.own_copy(task)  # type: ignore[arg-type]
    if task == "text-to-image":
        arguments = {**arguments, "width": 64, "height": 64}
    generator = torch.Generator().manual_seed(seed)
    return (
        lambda: own(**arguments, generator=generator, output_type="np").images[0],
        lambda: int(getattr(own, "_num_timesteps", 0) or arguments["num_inference_steps"]),
    )


class Recorder:
    """A weave whose steps and outcomes are kept."""

    def __init__(self, loaded: LoadedPipeline, max_rows: int = 16) -> None:
        self.steps: dict[int, list[tuple[int, int]]] = {}
        self.outcomes: dict[int, Any] = {}
        self.points = [MeetingPoint(s.module, s.method, denoising=s.denoising) for s in loaded.shared_methods()]
        self.batches: list[tuple[bool, int]] = []
        for point in self.points:
            point.forward = self._recording(point, point.forward)  # type: ignore[method-assign]
        self.weave = Weave(max_rows, lambda n, *step: self.steps.setdefault(n, []).append(step), self._done)

    def _done(self, number: int, outcome: Any) -> None:
        self.outcomes[number] = outcome

    def _recording(self, point: MeetingPoint, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def record(calls: Any) -> Any:
            self.batches.append((point.denoising, len(calls)))
            return forward(calls)

        return record

    def finish(self) -> None:
        for _ in range(1000):
            if not self.weave.busy:
                return
            self.weave.tick()
        pytest.fail("the weave did not come to an end")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() * 255)


def test_strangers_in_one_batch_equal_themselves_alone(loaded: LoadedPipeline) -> None:
    alone = {name: body(loaded, name, seed)[0]() for seed, name in enumerate(REQUESTS)}
    recorder = Recorder(loaded)
    for seed, name in enumerate(REQUESTS):
        recorder.weave.start(seed, *body(loaded, name, seed))
    recorder.finish()
    for seed, name in enumerate(REQUESTS):
        assert difference(alone[name], recorder.outcomes[seed]) < 1, name
    assert max(calls for denoising, calls in recorder.batches if denoising) >= 5


def test_the_batch_is_really_shared_and_capped(loaded: LoadedPipeline) -> None:
    recorder = Recorder(loaded, max_rows=4)  # guidance doubles the rows: two pictures in a forward
    for number in range(5):
        recorder.weave.start(number, *body(loaded, "plain", number))
    recorder.finish()
    denoising = [calls for is_step, calls in recorder.batches if is_step]
    assert max(denoising) == 2
    assert sum(denoising) == 5 * 7


def test_a_run_that_joins_late_equals_itself_alone(loaded: LoadedPipeline) -> None:
    alone = body(loaded, "short", 5)[0]()
    recorder = Recorder(loaded)
    recorder.weave.start(0, *body(loaded, "long", 0))
    for _ in range(6):
        recorder.weave.tick()
    recorder.weave.start(1, *body(loaded, "short", 5))
    recorder.finish()
    assert difference(alone, recorder.outcomes[1]) < 1
    assert any(calls == 2 for is_step, calls in recorder.batches if is_step)


def test_a_cancelled_run_ends_at_once_and_harms_nobody(loaded: LoadedPipeline) -> None:
    alone = body(loaded, "plain", 1)[0]()
    recorder = Recorder(loaded)
    recorder.weave.start(0, *body(loaded, "long", 0))
    recorder.weave.start(1, *body(loaded, "plain", 1))
    for _ in range(5):
        recorder.weave.tick()
    recorder.weave.cancel(0)
    recorder.finish()
    assert 0 not in recorder.outcomes
    assert difference(alone, recorder.outcomes[1]) < 1


def test_a_failing_run_fails_alone(loaded: LoadedPipeline) -> None:
    alone = body(loaded, "plain", 1)[0]()
    recorder = Recorder(loaded)
    recorder.weave.start(1, *body(loaded, "plain", 1))

    def broken() -> None:
        loaded.own_copy("text-to-image")(prompt=["a"], height=63, width=64)

    recorder.weave.start(2, broken, lambda: 1)
    recorder.finish()
    assert isinstance(recorder.outcomes[2], ValueError)
    assert difference(alone, recorder.outcomes[1]) < 1


def test_a_shared_forward_that_fails_is_tried_for_each_alone(loaded: LoadedPipeline) -> None:
    """A poisoned request (an index out of the vocabulary) meets a good one in the text encoder."""
    alone = body(loaded, "plain", 1)[0]()
    recorder = Recorder(loaded)
    encoder = loaded.own_copy("text-to-image").text_encoder

    def poisoned() -> None:
        encoder(torch.full((1, 77), 10**6), attention_mask=None)

    recorder.weave.start(1, *body(loaded, "plain", 1))
    recorder.weave.start(2, poisoned, lambda: 1)
    recorder.finish()
    assert isinstance(recorder.outcomes[2], IndexError)
    assert difference(alone, recorder.outcomes[1]) < 1


@pytest.mark.parametrize("at", ["step", "end"])
def test_a_callback_may_cancel_others_of_the_same_forward(loaded: LoadedPipeline, at: str) -> None:
    """One picture of a request fails and takes the request's others along, in the middle of their shared forward."""
    alone = body(loaded, "plain", 9)[0]()
    recorder = Recorder(loaded)

    def fails() -> None:
        own = loaded.own_copy("text-to-image")
        own(prompt="a", height=64, width=64, num_inference_steps=7, output_type="np")
        raise ArithmeticError

    def done(number: int, outcome: Any) -> None:
        recorder.outcomes[number] = outcome
        if number == 0 and at == "end":
            recorder.weave.cancel(1)
            recorder.weave.cancel(2)

    def step(number: int, done_steps: int, total: int) -> None:
        if number == 0 and done_steps == 3 and at == "step":
            recorder.weave.cancel(1)
            recorder.weave.cancel(2)

    recorder.weave = Weave(16, step, done)
    recorder.weave.start(0, fails, lambda: 7)
    for number in (1, 2):
        recorder.weave.start(number, *body(loaded, "plain", number))
    recorder.weave.start(3, *body(loaded, "plain", 9))
    recorder.finish()
    assert isinstance(recorder.outcomes[0], ArithmeticError)
    assert set(recorder.outcomes) == {0, 3}
    assert difference(alone, recorder.outcomes[3]) < 1


def test_every_step_is_reported_once_and_counts_to_the_end(loaded: LoadedPipeline) -> None:
    recorder = Recorder(loaded)
    recorder.weave.start(0, *body(loaded, "plain", 0))
    recorder.weave.start(1, *body(loaded, "edit", 0))
    recorder.finish()
    assert recorder.steps[0] == [(step, 7) for step in range(1, 8)]
    assert recorder.steps[1] == [(step, 6) for step in range(1, 7)], "strength 0.6 of 10 steps"


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(loaded: LoadedPipeline) -> None:
    recorder = Recorder(loaded)
    for number, seed in enumerate((4, 4, 5)):
        recorder.weave.start(number, *body(loaded, "plain", seed))
    recorder.finish()
    assert difference(recorder.outcomes[0], recorder.outcomes[1]) < 1
    assert difference(recorder.outcomes[0], recorder.outcomes[2]) > 1


# Whose turn it is, and how many at once: over modules that only take a made-up time.


class Device:
    """A clock that forwards move on. cost: seconds of a forward of so many rows."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.now = 0.0
        self.cost = cost
        self.forwards: list[tuple[str, int]] = []

    def module(self, name: str, *, denoising: bool = True, memo: Memo | None = None) -> torch.nn.Module:
        device = self

        class Module(torch.nn.Module):
            def forward(self, sample: torch.Tensor) -> torch.Tensor:
                device.forwards.append((name, len(sample)))
                device.now += device.cost(len(sample))
                return sample + 1

        module = Module()
        MeetingPoint(module, "forward", denoising=denoising, memo=memo)
        return module

    def meter(self, saturation: Saturation, timer: Timer | None = None, memory: Memory | None = None) -> Meter:
        return Meter(saturation, timer or WallTimer(lambda: self.now), "a device:", memory)


def steps_at(module: torch.nn.Module, count: int, rows: int = 1, size: int = 4) -> Callable[[], Any]:
    def body() -> Any:
        sample = torch.zeros(rows, size)
        for _ in range(count):
            sample = module(sample)
        return sample

    return body


def weave_of(device: Device, saturation: Saturation | None = None, **options: Any) -> tuple[Weave, dict[int, Any]]:
    outcomes: dict[int, Any] = {}
    meter = device.meter(saturation) if saturation else None
    return Weave(16, lambda *_: None, outcomes.__setitem__, **{"meter": meter, **options}), outcomes


def run_out(weave: Weave) -> None:
    for _ in range(3000):
        if not weave.busy:
            return
        weave.tick()
    pytest.fail("the weave did not come to an end")


def test_batches_grow_where_that_pays_and_stay_small_where_it_does_not() -> None:
    for cost, largest in ((lambda rows: 1.0, 16), (lambda rows: 1.0 * rows, 1)):
        device, saturation = Device(cost), Saturation(16)
        unet = device.module("unet")
        weave, outcomes = weave_of(device, saturation)
        for number in range(32):
            weave.start(number, steps_at(unet, 12), lambda: 12)
        run_out(weave)
        assert all(torch.equal(outcomes[number], torch.full((1, 4), 12.0)) for number in range(32))
        assert statistics.mode(rows for _, rows in device.forwards) == largest


def test_without_a_meter_the_cap_is_the_setting() -> None:
    device = Device(lambda rows: 1.0 * rows)
    unet = device.module("unet")
    weave, _ = weave_of(device)
    for number in range(20):
        weave.start(number, steps_at(unet, 3), lambda: 3)
    weave.tick()
    assert device.forwards == [("unet", 16)]


def test_another_size_of_a_module_is_learned_for_itself() -> None:
    device, saturation = Device(lambda rows: 1.0), Saturation(16)
    unet = device.module("unet")
    weave, _ = weave_of(device, saturation)
    for number in range(16):
        weave.start(number, steps_at(unet, 30), lambda: 30)
    run_out(weave)
    (kind,) = saturation._curves
    assert kind.startswith("a device: Module-")
    assert kind.endswith(".forward float32 4")
    assert saturation.cap(kind) == 16
    device.forwards.clear()
    for number in range(16):
        weave.start(number, steps_at(unet, 30, size=8), lambda: 30)
    weave.tick()
    assert device.forwards == [("unet", 1)]


def test_what_was_learned_is_kept_when_the_device_gets_idle(tmp_path: Path) -> None:
    device, saturation, path = Device(lambda rows: 1.0), Saturation(16), tmp_path / "saturation.json"
    unet = device.module("unet")
    weave, _ = weave_of(device, meter=device.meter(saturation, memory=Memory(path, lambda: 0.0)))
    weave.start(0, steps_at(unet, 6), lambda: 6)
    weave.tick()
    assert not path.exists()
    run_out(weave)
    (kind,) = saturation._curves
    assert Memory(path).load(16).seconds(kind, 1) == 1.0


def test_a_shared_forward_that_runs_out_of_memory_is_not_tried_again() -> None:
    device, saturation = Device(lambda rows: 1.0), Saturation(16)
    unet = device.module("unet")

    def cost(rows: int) -> float:
        if rows > 8:
            raise torch.OutOfMemoryError
        return 1.0

    device.cost = cost
    weave, outcomes = weave_of(device, saturation)
    for number in range(16):
        weave.start(number, steps_at(unet, 40), lambda: 40)
    run_out(weave)
    assert not any(isinstance(outcome, BaseException) for outcome in outcomes.values())
    assert [rows for _, rows in device.forwards].count(16) == 1
    assert max(rows for _, rows in device.forwards[-50:]) == 8


def test_a_forward_that_fails_teaches_nothing() -> None:
    device, saturation = Device(lambda rows: 1 / 0), Saturation(16)
    weave, outcomes = weave_of(device, saturation)
    weave.start(0, steps_at(device.module("unet"), 9), lambda: 9)
    run_out(weave)
    assert isinstance(outcomes[0], ZeroDivisionError)
    assert not saturation._curves


def test_a_timer_that_answers_late_loses_nothing() -> None:
    """As on a GPU: what a forward took is known some forwards later."""

    class Late(WallTimer):
        def __init__(self, clock: Callable[[], float]) -> None:
            super().__init__(clock)
            self.held: list[tuple[Forward, float]] = []

        def read(self) -> Any:
            self.held.extend(super().read())
            ready, self.held = self.held[:-5], self.held[-5:]
            return iter(ready)

    device, saturation = Device(lambda rows: 1.0), Saturation(16)
    unet = device.module("unet")
    weave, _ = weave_of(device, meter=device.meter(saturation, Late(lambda: device.now)))
    for number in range(16):
        weave.start(number, steps_at(unet, 40), lambda: 40)
    run_out(weave)
    assert max(rows for _, rows in device.forwards) == 16


def test_a_prompt_that_many_share_is_read_once_whatever_the_cap() -> None:
    device = Device(lambda rows: 1.0 * rows)
    reader = device.module("text", denoising=False, memo=Memo(1 << 20))
    weave, outcomes = weave_of(device, Saturation(16))
    for number in range(10):
        weave.start(number, steps_at(reader, 1), lambda: 0)
    run_out(weave)
    assert len(outcomes) == 10
    assert device.forwards == [("text", 1)]


def test_the_picture_of_one_key_need_not_wait_for_the_hundred_of_another() -> None:
    device = Device(lambda rows: 1.0 * rows)
    unet = device.module("unet")
    weave, outcomes = weave_of(device, Saturation(16))
    for number in range(100):
        weave.start(number, steps_at(unet, 4), lambda: 4, owner="alice")
    for _ in range(20):
        weave.tick()
    before = device.now
    weave.start(100, steps_at(unet, 40), lambda: 40, owner="bob")
    while 100 not in outcomes:
        weave.tick()
    assert device.now - before <= 2 * 40 + 2


def test_owners_pay_for_what_their_forwards_cost() -> None:
    """Bob's steps are five times as expensive: Alice gets five of hers for each."""
    device, steps = Device(lambda rows: 1.0), Saturation(16)
    small, large = device.module("small"), device.module("large")
    weave, _ = weave_of(device, steps)
    device.cost = lambda rows: 5.0 if device.forwards[-1][0] == "large" else 1.0
    weave.start(0, steps_at(small, 900), lambda: 900, owner="alice")
    weave.start(1, steps_at(large, 900, size=8), lambda: 900, owner="bob")
    for _ in range(20):  # until the costs are known
        weave.tick()
    device.forwards.clear()
    for _ in range(600):
        weave.tick()
    share = sum(name == "small" for name, _ in device.forwards) / 600
    assert share == pytest.approx(5 / 6, abs=0.02)


def test_a_picture_is_charged_what_its_rows_took_of_the_device_alone_or_shared() -> None:
    """Costs are known from before: 1 s and 1.5 s for one and two rows of the UNet, which two pictures share."""
    device = Device(lambda rows: 0.5 + 0.5 * rows)
    unet = device.module("unet")
    saturation, budgets = Saturation(16), [Budget() for _ in range(3)]
    weave, _ = weave_of(device, saturation)
    for number in range(2):  # learns
        weave.start(number, steps_at(unet, 30), lambda: 30)
    run_out(weave)
    for number, budget in enumerate(budgets[:2]):
        weave.start(number, steps_at(unet, 4), lambda: 4, budget=budget)
    device.forwards.clear()
    run_out(weave)
    assert [rows for _, rows in device.forwards] == [2] * 4
    assert [budget.seconds for budget in budgets[:2]] == pytest.approx([4 * 0.75] * 2)
    weave.start(2, steps_at(unet, 4), lambda: 4, budget=budgets[2])
    run_out(weave)
    assert budgets[2].seconds == pytest.approx(4 * 1.0)


def test_where_nothing_is_known_of_a_forward_a_picture_is_charged_the_time_that_passes() -> None:
    for saturation in (None, Saturation(16)):
        device = Device(lambda rows: time.sleep(0.01) or 1.0)
        unet = device.module("unet")
        weave, _ = weave_of(device, saturation)
        budget = Budget()
        weave.start(0, steps_at(unet, 2), lambda: 2, budget=budget)
        run_out(weave)
        assert 0.02 <= budget.seconds < 1.0


def test_the_ledger_does_not_keep_a_model_that_is_gone() -> None:
    device = Device(lambda rows: 1.0)
    unet = device.module("unet")
    weave, _ = weave_of(device, Saturation(16))
    weave.start(0, steps_at(unet, 3), lambda: 3)
    run_out(weave)
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None


def test_the_calls_of_a_real_pipeline_have_names_that_another_process_gives_them_too(loaded: LoadedPipeline) -> None:
    recorder, kinds = Recorder(loaded), set[str]()

    class Noting(Meter):
        def kind(self, call: Call) -> str:
            kinds.add(super().kind(call))
            return super().kind(call)

    meter = Noting(Saturation(16), WallTimer(), "here:")
    recorder.weave = Weave(16, lambda *_: None, recorder._done, meter=meter)
    for number in range(3):
        recorder.weave.start(number, *body(loaded, "edit", number))
    recorder.finish()
    assert len(recorder.outcomes) == 3
    assert {re.sub("-[0-9a-f]{12}", "", kind) for kind in kinds} == {
        "here: CLIPTextModel.forward int64 77",
        "here: AutoencoderKL.encode float32 3x64x64",
        "here: UNet2DConditionModel.forward float32 4x32x32",
        "here: AutoencoderKL.decode float32 4x32x32",
    }
