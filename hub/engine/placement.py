"""Which worker runs a request. Pure: the supervisor tells what its workers have and do, and does what comes out.

The rules, the first that applies:

1. A manifest's pin decides on which device. Without one, a CPU beside GPUs is left alone: it would take the model
   gladly, having the most memory, and a hundred times as long.
2. A worker that holds the model or loads it, the least busy of several. Where `QUEUE` pictures or more wait or run
   there, and a worker with room for the weights does nothing at all, that one loads them, too.
3. The worker with the most free memory, of those where the weights fit. Where none is empty and some are about to
   start for the first time, these are waited for: what is loaded stays where it is.
4. The least busy one, of those large enough to hold the weights when empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

QUEUE = 4
"""Pictures. Fewer share forwards at hardly more than the price of one, or are done before the weights are read."""

ROOM = 1.2
"""Free memory that a model wants, over its weights: a fifth for what its forwards compute."""


class WorkerState(Struct, frozen=True, kw_only=True):
    """What is known of a worker. `starting`: for the first time, and it may be ready soon. Memory is in bytes and of
    its device, 0 where nobody has told. `free` is what was left when the worker spoke last, and `spare` what is held by
    models that have nothing to do and may leave. `loading`: the models that it was given since, and what each will
    take. `busy`: pictures that wait or run, by model."""

    device: str
    ready: bool = True
    starting: bool = False
    total: int = 0
    free: int = 0
    spare: int = 0
    held: frozenset[str] = frozenset()
    loading: Mapping[str, int] = {}
    busy: Mapping[str, int] = {}

    @property
    def queue(self) -> int:
        """All pictures that wait or run there."""
        return sum(self.busy.values())

    @property
    def empty(self) -> bool:
        """Whether it holds and loads nothing."""
        return not (self.held or self.loading)

    def has(self, model: str) -> bool:
        """Whether a request for the model loads nothing that is not loaded or loading already."""
        return model in self.held or model in self.loading


class Wanted(Struct, frozen=True):
    """A model that is asked for: its id, the bytes of its weights, and the device that its manifest pins it to."""

    model: str
    size: int = 0
    pin: str | None = None


def candidates(devices: Sequence[str], pin: str | None) -> list[int]:
    """Which of the workers may run a model at all, by their devices. `auto` has yet to tell which device it is."""
    if pin is not None:
        return [index for index, device in enumerate(devices) if device in (pin, "auto")]
    accelerated = [index for index, device in enumerate(devices) if device != "cpu"]
    return accelerated or list(range(len(devices)))


def choose(workers: Sequence[WorkerState], wanted: Wanted, *, patient: bool = True) -> int | None:
    """The worker for a request; None where one that starts must be waited for. patient: wait for those that start,
    too, where others are ready."""
    may = candidates([worker.device for worker in workers], wanted.pin)
    ready = [index for index in may if workers[index].ready]
    if not ready:
        return None
    need = wanted.size * ROOM
    room = {index: _room(workers, workers[index].device) for index in ready}
    fitting = [index for index in ready if room[index] >= need]
    holders = [index for index in ready if workers[index].has(wanted.model)]
    if holders:
        best = min(holders, key=lambda index: _delay(workers[index], wanted.model))
        idle = [index for index in fitting if index not in holders and not workers[index].queue]
        crowded = workers[best].queue >= QUEUE
        return _roomiest(workers, room, idle) if crowded and idle else best
    if patient and any(workers[index].starting for index in may) and not any(workers[i].empty for i in fitting):
        return None
    if fitting:
        return _roomiest(workers, room, fitting)
    large = [index for index in ready if not 0 < workers[index].total < wanted.size]
    return min(large or ready, key=lambda index: (workers[index].queue, -room[index]))


def crowded(workers: Sequence[WorkerState], chosen: int, wanted: Wanted) -> bool:
    """Whether the chosen worker would load the model into less memory than it wants, as far as that is known, even if
    its own idle models leave. Not for a CPU beside GPUs: what others hold on those is not in its way."""
    worker = workers[chosen]
    if worker.has(wanted.model) or not worker.total or chosen not in _counting(workers):
        return False
    there = [each for each in workers if each.device == worker.device]
    return _room(workers, worker.device) + sum(each.spare for each in there) < wanted.size * ROOM


def empty(workers: Sequence[WorkerState]) -> bool:
    """Whether nothing is held or loaded, a CPU beside GPUs left out."""
    return all(workers[index].empty for index in _counting(workers))


def _counting(workers: Sequence[WorkerState]) -> list[int]:
    return candidates([worker.device for worker in workers], None)


def _room(workers: Sequence[WorkerState], device: str) -> int:
    """Bytes that will be free when all is loaded that was asked for. Workers on one device (the CPU) share them: the
    lowest report is the newest."""
    there = [worker for worker in workers if worker.device == device and worker.ready]
    return min(worker.free for worker in there) - sum(sum(worker.loading.values()) for worker in there)


def _delay(worker: WorkerState, model: str) -> int:
    """How long a request would wait there, in pictures. A load counts as a crowd."""
    return worker.queue + (QUEUE if model in worker.loading else 0)


def _roomiest(workers: Sequence[WorkerState], room: Mapping[int, int], among: Sequence[int]) -> int:
    """The most free memory; of equal ones the least busy, then the one with the fewest models, then the first."""
    return min(among, key=lambda i: (-room[i], workers[i].queue, len(workers[i].held) + len(workers[i].loading)))
