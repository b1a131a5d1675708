"""Every noise scheduler is asked with a model that knows the answer: the estimate must be that answer at each step."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

from hub.pipelines import estimates
from hub.pipelines.estimates import watch_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # of diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),  # old folders have them all the same
]

X0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
STEPS = 9

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OFFSET = {**SD, "steps_offset": 1}
PLAIN = {"clip_sample": False}

CASES: list[tuple[str, dict[str, Any]]] = [
    *(
        ("DDIMScheduler", {**OFFSET, **PLAIN, "prediction_type": kind})
        for kind in ("epsilon", "v_prediction", "sample")
    ),
    *(("DDPMScheduler", {**SD, **PLAIN, "prediction_type": kind}) for kind in ("epsilon", "v_prediction", "sample")),
    *(("EulerDiscreteScheduler", {**OFFSET, "prediction_type": kind}) for kind in ("epsilon", "v_prediction")),
    *(("EulerAncestralDiscreteScheduler", {**OFFSET, "prediction_type": kind}) for kind in ("epsilon", "v_prediction")),
    *(
        ("PNDMScheduler", {**OFFSET, "skip_prk_steps": True, "prediction_type": kind})
        for kind in ("epsilon", "v_prediction")
    ),
    ("HeunDiscreteScheduler", SD),
    ("KDPM2DiscreteScheduler", SD),
    ("KDPM2AncestralDiscreteScheduler", SD),
    *(
        ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": algorithm, "prediction_type": kind})
        for algorithm in ("dpmsolver++", "sde-dpmsolver++")
        for kind in ("epsilon", "v_prediction", "sample")
    ),
    *(
        ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", **more})
        for more in ({"prediction_type": "epsilon"}, {"prediction_type": "v_prediction"})
    ),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 3, "use_karras_sigmas": True}),
    (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    ("DPMSolverSinglestepScheduler", SD),
    ("UniPCMultistepScheduler", SD),
    ("UniPCMultistepScheduler", {**SD, "solver_order": 3, "prediction_type": "v_prediction"}),
    ("UniPCMultistepScheduler", {**SD, "predict_x0": False}),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("DEISMultistepScheduler", SD),
    ("DEISMultistepScheduler", {**SD, "prediction_type": "v_prediction"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}),
]


def levels(scheduler: Any, timestep: Any, index: int, *, flow: bool) -> tuple[float, float]:
    """How much of the picture and how much noise there is in a sample before the step at `index`."""
    if flow:
        sigma = float(scheduler.sigmas[index])
        return 1 - sigma, sigma
    if hasattr(scheduler, "sigmas") and not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "sigmas_interpol"):
            halfway = index - ("Ancestral" in type(scheduler).__name__)  # KDPM2 asks between two levels
            return 1.0, float(scheduler.sigmas_interpol[halfway])
        return 1.0, float(scheduler.sigmas[index])
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
        return float(alpha), float(sigma)
    kept = float(scheduler.alphas_cumprod[int(timestep)])
    return kept**0.5, (1 - kept) ** 0.5


def perfect_answer(sample: torch.Tensor, alpha: float, sigma: float, kind: str, *, scaled: bool) -> torch.Tensor:
    """What a model that knows X0 predicts for this sample, in the scheduler's own terms."""
    noise = (sample - alpha * X0) / sigma
    if kind == "epsilon":
        return noise
    if kind == "flow_prediction":
        return noise - X0
    if kind == "sample":
        return X0
    if scaled:  # v is defined for samples of variance 1, the samples of these schedulers are that times a factor
        root = (1 + sigma**2) ** 0.5
        return noise / root - sigma * X0 / root
    return alpha * noise - sigma * X0


def estimates_of(name: str, options: dict[str, Any]) -> list[torch.Tensor]:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    flow = name.startswith("FlowMatch") or bool(options.get("use_flow_sigmas"))
    kind = "flow_prediction" if flow else options.get("prediction_type", "epsilon")
    scaled = hasattr(scheduler, "sigmas") and not hasattr(scheduler, "_sigma_to_alpha_sigma_t") and not flow
    seen: list[torch.Tensor] = []
    counted: list[int] = []

    def on_step(done: int, estimate: Any) -> None:
        counted.append(done)
        seen.append(estimate())

    watch_steps(scheduler, on_step)
    alpha, sigma = levels(scheduler, scheduler.timesteps[0], 0, flow=flow)
    sample = alpha * X0 + sigma * NOISE
    takes = inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(2)} if "generator" in takes else {}
    for index, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else None
        alpha, sigma = levels(scheduler, timestep, index, flow=flow)
        answer = perfect_answer(sample, alpha, sigma, kind, scaled=scaled)
        step = scheduler.step(answer, timestep, sample, **options, return_dict=False)
        assert isinstance(step, tuple)
        sample = step[0]
    assert counted == list(range(1, len(scheduler.timesteps) + 1))
    return seen


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value)[:90])
def test_with_a_model_that_knows_the_picture_the_estimate_is_the_picture(name: str, options: dict[str, Any]) -> None:
    seen = estimates_of(name, options)
    assert len(seen) >= STEPS
    for number, estimate in enumerate(seen[:-1], start=1):
        assert (estimate - X0).abs().max() < 0.01, f"step {number}"


def test_an_lcm_estimate_is_what_the_scheduler_itself_calls_denoised() -> None:
    scheduler = diffusers.LCMScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(4)
    seen: list[torch.Tensor] = []
    watch_steps(scheduler, lambda done, estimate: seen.append(estimate()))
    sample = NOISE
    for timestep in scheduler.timesteps:
        sample, denoised = scheduler.step(NOISE, timestep, sample, generator=None, return_dict=False)
        assert torch.equal(seen[-1], denoised)


def test_a_second_output_that_is_no_estimate_is_not_taken_for_one() -> None:
    """TCD's tuple has as its second the sample with less noise, where others have the estimate."""
    scheduler = diffusers.TCDScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(4)
    seen: list[torch.Tensor] = []
    watch_steps(scheduler, lambda done, estimate: seen.append(estimate()))
    first = scheduler.timesteps[0]
    kept = scheduler.alphas_cumprod[int(first)]
    sample = kept**0.5 * X0 + (1 - kept) ** 0.5 * NOISE
    scheduler.step(NOISE, first, sample, return_dict=False)
    assert (seen[0] - X0).abs().max() < 0.01


def test_an_unknown_scheduler_shows_its_own_result() -> None:
    class Plain:
        def step(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor) -> tuple[torch.Tensor]:
            return (sample - model_output,)

    scheduler = Plain()
    seen: list[torch.Tensor] = []
    watch_steps(scheduler, lambda done, estimate: seen.append(estimate()))
    (result,) = scheduler.step(NOISE, 1, X0)
    assert torch.equal(result, X0 - NOISE)
    assert torch.equal(seen[0], result)


def fields(step: Any) -> tuple[torch.Tensor, ...]:
    return tuple(step.values()) if isinstance(step, dict) else step


def test_a_watched_step_answers_as_it_did_before_and_says_the_same_of_itself() -> None:
    plain, watched = (diffusers.DDIMScheduler(**OFFSET, **PLAIN) for _ in range(2))
    watch_steps(watched, lambda done, estimate: None)
    assert inspect.signature(plain.step) == inspect.signature(watched.step), "pipelines look for eta and generator"
    for scheduler in (plain, watched):
        scheduler.set_timesteps(4)
    first = plain.timesteps[0]
    for options in ({}, {"return_dict": True}, {"return_dict": False}, {"eta": 0.0}):
        one, other = (scheduler.step(NOISE, first, X0, **options) for scheduler in (plain, watched))
        assert type(one) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(fields(one), fields(other), strict=True))
    keywords = {"model_output": NOISE, "timestep": first, "sample": X0, "return_dict": False}
    assert torch.equal(plain.step(**keywords)[0], watched.step(**keywords)[0])


def test_an_estimate_is_computed_only_where_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "predicted_original", lambda *_: pytest.fail("nobody asked"))
    scheduler = diffusers.DEISMultistepScheduler(**SD)
    scheduler.set_timesteps(4)
    watch_steps(scheduler, lambda done, estimate: None)
    scheduler.step(NOISE, scheduler.timesteps[0], X0)
