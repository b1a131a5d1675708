"""Pipelines that no family file knows: diffusers loads them, so they draw, report progress and can be cancelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.families.builders import build
from tests.families.harness import Bare, Engine, request


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("other", tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("unconditional", tmp_path_factory.mktemp("unconditional"))


def test_a_pipeline_of_no_known_class_is_batched_and_equals_itself_alone(other: Path) -> None:
    engine, bare = Engine(other), Bare(other)
    assert engine.pipeline.tasks == {"text-to-image"}
    asked = [("red cat", 1, 6, 3.0), ("big dog", 2, 4, 5.0)]
    named = [
        {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "guidance_scale": scale}
        for prompt, seed, steps, scale in asked
    ]
    frames = [request("text-to-image", (64, 64), [], None, **wish) for wish in named]
    drawn = engine.draw(frames)
    assert max(engine.rows) == 2
    for number, (pixels, (prompt, seed, steps, scale)) in enumerate(zip(drawn, asked, strict=True)):
        alone = bare.draw(
            "LDMTextToImagePipeline", None, seed, prompt=prompt, num_inference_steps=steps, guidance_scale=scale,
            width=64, height=64,
        )  # fmt: skip
        assert np.abs(pixels.astype(int) - alone.astype(int)).max() <= 1
        assert engine.steps[number] == [(step, steps) for step in range(1, steps + 1)]


def test_a_pipeline_without_prompts_draws_and_tells_what_it_has_no_use_for(unconditional: Path) -> None:
    engine = Engine(unconditional)
    frame = request("text-to-image", (64, 64), [], None, prompt="a cat", seed=1, num_inference_steps=3)
    (pixels,) = engine.draw([frame])
    assert pixels.shape[2] == 3
    assert engine.steps[0] == [(1, 3), (2, 3), (3, 3)]
    assert {notice.param for notice in engine.notices[0]} >= {"prompt", "width", "height"}


def test_it_is_cancelled_within_a_forward_like_any_other(other: Path, unconditional: Path) -> None:
    for folder in (other, unconditional):
        engine = Engine(folder)
        frames = [
            request("text-to-image", (64, 64), [], None, prompt="a", seed=seed, num_inference_steps=steps)
            for seed, steps in ((1, 50), (2, 4))
        ]
        cancelled, beside = engine.draw(frames, cancel=0)
        assert cancelled is None
        assert len(engine.steps[0]) <= 2
        assert np.abs(beside.astype(int) - engine.draw(frames[1:])[0].astype(int)).max() <= 1
