"""The weave over a real (small, random) Stable Diffusion: what runs together equals what runs alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hub.engine.meeting import MeetingPoint
from hub.engine.weave import Weave
from hub.pipelines.auto import LoadedPipeline, load_pipeline

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
