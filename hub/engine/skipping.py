"""A step cache: denoising steps that would hardly change a module's output are not computed. Lossy; by manifest only.

A denoiser's outputs drift smoothly from step to step. How fast, the last two that were computed tell; as long as the
drift since then is expected to stay below a threshold, the next output is drawn out from these two in a straight line.
Each picture has its own memory: what is skipped does not depend on its company in a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from hub.engine.outputs import Unknown, copied, distance, mapped, tensors_of

LAST = 1
"""Steps at the end that are always computed: detail is decided there. At the beginning two have to be known."""


class Steps(Protocol):
    """A run, as far as it is asked here. `done` is None where a pipeline cannot tell its steps."""

    steps: Callable[[], int]
    done: Callable[[], int] | None


class Lane:
    """What one call of each step said lately: pipelines without merged guidance call their denoiser twice a step."""

    def __init__(self) -> None:
        self._known: list[tuple[int, Any]] = []
        self._form: Hashable = None
        self._pace: torch.Tensor | float = 0.0
        self._drift = 0.0

    def expect(self, step: int, form: Hashable, threshold: float) -> Any:
        """What it would say at this step; None where it has to be asked. `form`: what must be equal for two calls to
        be of one kind; pipelines may stop guiding on the way, and then ask for fewer rows."""
        if form != self._form:
            self._form, self._known = form, []
        self._drift += float(self._pace)
        if len(self._known) < 2 or self._drift >= threshold:
            return None
        (earlier, old), (later, new) = self._known
        share = (step - later) / (later - earlier)
        before = iter(tensors_of(old))
        return mapped(new, lambda tensor: tensor + (tensor - next(before)) * share)

    def note(self, step: int, output: Any) -> None:
        """What it did say."""
        self._known = [*self._known[-1:], (step, copied(output))]
        self._drift = 0.0
        if len(self._known) == 2:
            (earlier, old), (later, new) = self._known
            self._pace = distance(old, new) / (later - earlier)


class Track:
    """One run's lanes, and where it stands."""

    def __init__(self) -> None:
        self.step = -1
        self.call = 0
        self.lanes: defaultdict[int, Lane] = defaultdict(Lane)


class Skipper:
    """Decides for one denoiser which of its calls are computed."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: mean change of an output, as a share of its mean size, that may be missed."""
        self._threshold = threshold
        self._tracks: WeakKeyDictionary[Steps, Track] = WeakKeyDictionary()

    def expect(self, run: Steps, form: Hashable = None) -> Any:
        """The output of the call that this run makes now, if it need not be computed; else None. `form`: see Lane."""
        if run.done is None:
            return None
        track = self._tracks.setdefault(run, Track())
        step = run.done()
        track.call = track.call + 1 if step == track.step else 0
        track.step = step
        if step >= run.steps() - LAST:
            return None
        return track.lanes[track.call].expect(step, form, self._threshold)

    def note(self, run: Steps, output: Any) -> None:
        """The output that was computed for the call that this run asked about last."""
        track = self._tracks.get(run)
        if track is None:
            return
        try:
            track.lanes[track.call].note(track.step, output)
        except (Unknown, ValueError):  # of a kind that cannot be drawn out
            self._tracks[run] = Track()
