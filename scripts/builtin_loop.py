"""A training loop that is bounded by running time and can be stopped and resumed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("train_builtin")
SAVE_EVERY_S = 120.0
PROBE_EVERY = 12


class ThreadTuner:
    """Picks between all of torch's threads and half of them by timing steps as they come.

    On a machine that does other work too, a step whose second thread has to wait for a busy core
    takes several times as long as one that doesn't use it; on a quiet machine more threads win.
    """

    def __init__(self) -> None:
        most = torch.get_num_threads()
        self.choices = [most, max(1, most // 2)]
        self.seconds = [float("nan"), float("nan")]
        self.best = self.current = 0

    def step_took(self, step: int, seconds: float) -> None:
        """Note how long a step took and set the thread count for the next one."""
        if self.choices[0] == self.choices[1]:
            return
        self.seconds[self.current] = seconds
        if self.current != self.best or step % PROBE_EVERY == 0:
            self.best = int(self.seconds[1] < self.seconds[0])
        self.current = 1 - self.best if step % PROBE_EVERY == PROBE_EVERY - 1 else self.best
        torch.set_num_threads(self.choices[self.current])


class Stage:
    """One stage of training: counts steps and minutes, and checkpoints what it was given.

    ``parts`` are modules, optimizers or anything else with ``state_dict``/``load_state_dict``.
    The learning-rate schedules follow the share of the minutes used, so a stage ends well
    whatever the machine's speed; ``minutes`` can be raised later to go on from the checkpoint.
    """

    def __init__(self, name: str, work: Path, minutes: float, parts: dict[str, Any]) -> None:
        self.path = work / f"{name}.pt"
        self.name, self.seconds, self.parts = name, minutes * 60, parts
        self.step, self.used = 0, 0.0
        work.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.step, self.used = state["step"], state["used"]
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
            log.info("%s resumes at step %d after %.1f minutes", name, self.step, self.used / 60)

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap, so that a kill never loses both."""
        state = {"step": self.step, "used": self.used}
        state["parts"] = {key: part.state_dict() for key, part in self.parts.items()}
        scratch = self.path.with_suffix(".new")
        torch.save(state, scratch)
        os.replace(scratch, self.path)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, share of the time used, 0..1) until the time is used up."""
        started, before = time.monotonic(), self.used
        saved, tuner, last = started, ThreadTuner(), started
        while self.used < self.seconds:
            yield self.step, self.used / self.seconds
            self.step += 1
            now = time.monotonic()
            self.used = before + now - started
            tuner.step_took(self.step, now - last)
            last = now
            if now - saved > SAVE_EVERY_S:
                self.save()
                saved = now
        self.save()
