"""A training loop of so many steps that can be stopped and goes on from its checkpoint."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("train_builtin")
SAVE_EVERY_S = 180.0
REST = 0.25
"""Share of the steps at the end over which the learning rate falls to nothing."""


class Stage:
    """One stage of training: counts its steps, and checkpoints what it was given.

    ``parts`` are modules, optimizers or anything else with ``state_dict``/``load_state_dict``. The number of steps may
    be raised later: up to the last quarter the learning rate doesn't depend on it.
    """

    def __init__(self, name: str, work: Path, steps: int, parts: dict[str, Any]) -> None:
        """Reads ``work/name.pt`` where there is one."""
        self.path, self.name, self.total, self.parts, self.step = work / f"{name}.pt", name, steps, parts, 0
        work.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.step = state["step"]
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
            log.info("%s goes on at step %d of %d", name, self.step, steps)

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap, so that a kill never loses both."""
        state = {"step": self.step, "parts": {key: part.state_dict() for key, part in self.parts.items()}}
        scratch = self.path.with_suffix(".new")
        torch.save(state, scratch)
        os.replace(scratch, self.path)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, factor of the learning rate) until all are done."""
        if self.step >= self.total:
            return
        saved = time.monotonic()
        while self.step < self.total:
            yield self.step, min(1.0, (self.step + 1) / 100, (1 - self.step / self.total) / REST)
            self.step += 1
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()
