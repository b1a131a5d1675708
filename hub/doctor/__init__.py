"""`hub doctor`: what is missing or wrong, told before a request needs it, each with what to do about it.

One file per area. Nothing on the disk is changed, but for small files that are deleted at once; nothing is asked of
another machine, but what the hub's own links lead to. Whatever fails is told, and the rest is looked at all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, get_args

from hub.doctor import clock, devices, engine, folders, libraries, links, models, offline, remote, settings
from hub.doctor.findings import Area, Case, Finding, problem
from hub.doctor.settings import read_settings
from hub.engine.probed import Question, Seen, ask
from hub.manifest import ModelManifest
from hub.providers.local.plan import engine_model
from hub.registry import absence
from hub.settings import Settings

__all__ = ["Finding", "examine", "read_settings"]

T = TypeVar("T")

CHECKS: tuple[tuple[Area, Callable[[Case], Iterable[Finding]]], ...] = (
    ("settings", settings.check),
    ("libraries", libraries.check),
    ("folders", folders.check),
    ("models", models.check),
    ("remote", remote.check),
    ("clock", clock.check),
    ("links", links.check),
    ("offline", offline.check),
    ("engine", engine.check),
    ("models", models.check_schedulers),
    ("devices", devices.check),
    ("memory", devices.check_memory),
)
"""In the order in which they run: what waits for the process with torch comes last."""


def examine(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    offline: bool = False,
    key: str | None = None,
    seen: Seen | None = None,
) -> list[Finding]:
    """Everything that was found, by area, also what is as it should be.

    `offline`: look, too, at what would break the promise that nothing leaves the machine; as the settings may say
    themselves. `key`: for the running hub, where it has any. `seen`: what a process with torch has told already.
    """
    offline = offline or settings.offline
    found: list[Finding] = []
    manifests = _guarded("models", partial(models.read, settings, found, offline=offline), found)
    readable = [each for each in manifests if isinstance(each, ModelManifest)]
    there = [model for model in readable if absence(model) is None]
    schedulers = sorted({model.pipeline.scheduler for model in readable if model.pipeline.scheduler})
    question = Question(settings.devices, settings.device, [engine_model(model) for model in there], schedulers)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: seen or ask(question))
        case = Case(
            settings=settings,
            models=readable,
            elsewhere=[each for each in manifests if not isinstance(each, ModelManifest)],
            offline=offline,
            key=key,
            environ=environ,
            seen=asked.result,
        )
        for area, check in CHECKS:
            found += _guarded(area, partial(check, case), found)
    order = get_args(Area)
    return sorted(found, key=lambda finding: order.index(finding.area))


def _guarded(area: Area, check: Callable[[], Iterable[T]], found: list[Finding]) -> list[T]:
    """What a check yields until it is done or fails, which is a finding, too: no check ends the others."""
    results: list[T] = []
    try:
        results.extend(check())
    except Exception as error:
        words = f"looking at this failed: {type(error).__name__}: {error}"
        found.append(problem(area, "doctor", words, "Mend what it names, and run `hub doctor` again."))
    return results
