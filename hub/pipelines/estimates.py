"""What a denoising loop believes, after a step, that the finished latents will be (x0).

Noisy latents make poor previews; every noise scheduler knows better. Most return the estimate, the others keep it or
what it follows from. Each was read in diffusers 0.42, and tests/pipelines/test_estimates.py asks each one.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

Estimate = Callable[[], torch.Tensor]
OnStep = Callable[[int, Estimate], None]


def watch_steps(scheduler: Any, on_step: OnStep) -> None:
    """Calls `on_step(steps done, estimate)` after each step of this scheduler, which must be a run's own.

    The estimate is computed only when it is asked for, within the call.
    """
    plain = scheduler.step
    signature = inspect.signature(plain)
    done = 0

    @functools.wraps(plain)  # pipelines look at the step's parameters
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        call = signature.bind(*args, **kwargs)
        wants_tuple = call.arguments.get("return_dict") is False
        if "return_dict" in signature.parameters:  # fields have names; what a tuple's second is, varies
            call.arguments["return_dict"] = True
        output = plain(*call.args, **call.kwargs)
        done += 1
        on_step(done, lambda: predicted_original(scheduler, output, call.arguments))
        return output.to_tuple() if wants_tuple and hasattr(output, "to_tuple") else output

    scheduler.step = step


def predicted_original(scheduler: Any, output: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """The estimate that belongs to the step that gave `output` for `arguments`.

    For a scheduler of no known kind it is the step's own result: noisier, but the same picture.
    """
    for field in ("pred_original_sample", "denoised"):
        estimate = getattr(output, field, None)
        if estimate is not None:
            return estimate  # type: ignore[no-any-return]
    sample: torch.Tensor = arguments["sample"].float()
    model_output: torch.Tensor = arguments["model_output"].float()
    if hasattr(scheduler, "convert_model_output"):
        converted = _of_multistep(scheduler, sample)
        if converted is not None:
            return converted
    elif type(scheduler).__name__.startswith("FlowMatch"):
        return sample - float(_last_sigma(scheduler)) * model_output
    elif hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):  # PNDM and its kind
        return _of_alphas(scheduler, sample, model_output, arguments["timestep"])
    return output[0] if isinstance(output, tuple) else output.prev_sample  # type: ignore[no-any-return]


def _of_multistep(scheduler: Any, sample: torch.Tensor) -> torch.Tensor | None:
    """Solvers of the DPM kind keep their latest model output, converted to x0 or to noise."""
    outputs = getattr(scheduler, "model_outputs", None)
    latest = outputs[-1] if outputs else None
    if latest is None:
        return None
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    if getattr(scheduler, "predict_x0", algorithm.endswith("dpmsolver++")):
        return latest  # type: ignore[no-any-return]
    if algorithm not in ("deis", "dpmsolver", "sde-dpmsolver", "noise_prediction") and not hasattr(
        scheduler, "predict_x0"
    ):
        return None
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_last_sigma(scheduler))
    return (sample - sigma * latest) / alpha  # type: ignore[no-any-return]


def _of_alphas(scheduler: Any, sample: torch.Tensor, model_output: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The formula of the schedulers that go by timesteps alone."""
    kept = float(scheduler.alphas_cumprod[int(timestep)])
    alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return model_output
    if kind == "v_prediction":
        return alpha * sample - sigma * model_output
    return (sample - sigma * model_output) / alpha


def _last_sigma(scheduler: Any) -> Any:
    """The noise level of the sample that the last step began with; the step has counted on since."""
    return scheduler.sigmas[scheduler.step_index - 1]
