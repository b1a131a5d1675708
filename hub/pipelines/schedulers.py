"""A model's noise scheduler, exchanged for another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from hub.pipelines import Unsupported


class UnknownScheduler(Unsupported):
    """The model has no such noise scheduler; the words name those it has."""


def rescheduled(own: Any, name: str | None, options: Mapping[str, Any], further: Iterable[str]) -> Any:
    """A new noise scheduler with the configuration of the model's own, and `options` on top. `further`: names beside
    those that the model's own is compatible with."""
    suitable = {cls.__name__: cls for cls in (type(own), *own.compatibles) if not hasattr(cls, "_backends")}
    if DDIMScheduler in suitable.values():  # the consistency ones follow the same noise; diffusers' list lacks them
        suitable |= {cls.__name__: cls for cls in (LCMScheduler, TCDScheduler)}
    suitable |= {each: getattr(diffusers, each) for each in further}
    if (
        name is not None
        and name != type(own).__name__
        and not (name in suitable and _predicts(suitable[name], own, options))
    ):
        able = sorted(each for each, cls in suitable.items() if cls is type(own) or _predicts(cls, own, options))
        raise UnknownScheduler(f"this model has no '{name[:64]}'; it has {', '.join(able)}")
    cls = suitable[name or type(own).__name__]
    return cls.from_config(own.config, **{**(_usual(cls, own) if name else {}), **options})


def _usual(cls: Any, own: Any) -> dict[str, Any]:
    """What pipelines set where a model's own scheduler was another one."""
    return {"skip_prk_steps": True} if cls.__name__ == "PNDMScheduler" and "skip_prk_steps" not in own.config else {}


def _predicts(cls: Any, own: Any, options: Mapping[str, Any]) -> bool:
    """Whether it understands what the model predicts (noise, a flow …): diffusers' list of compatible ones does not
    ask, and its first step would fail. What it needs beside, its pipeline gives."""
    nothing = torch.zeros(1, 4, 2, 2)
    try:
        probe = cls.from_config(own.config, **{**_usual(cls, own), **options})
        probe.set_timesteps(4)
        for timestep in probe.timesteps:  # some ask late
            probe.step(nothing, timestep, probe.scale_model_input(nothing, timestep))
    except ValueError as error:
        return "prediction" not in str(error).lower()
    except Exception:
        return True
    return True
