"""The hub that runs, if one does: its version, and how its devices are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hub import __version__
from hub.calls import Answer, get, hub_url
from hub.doctor.findings import Case, Finding, ok, problem, warning


def check(case: Case) -> Iterator[Finding]:
    """What GET /health and GET /v1/engine tell. Where none answers the links' findings say so."""
    if not case.settings.port:
        return
    url = hub_url(case.settings)
    health = get(f"{url}/health", offline=case.offline)
    if health == "elsewhere":
        yield ok("engine", "hub", f"{url} was not asked, since that would leave the machine")
        return
    if not isinstance(health, Answer) or not health.is_health:
        yield ok("engine", "hub", f"none runs at {url}")
        return
    running = str(health.json["version"])
    if running == __version__:
        yield ok("engine", "hub", f"{running} runs at {url}")
    else:
        words = f"{running} runs at {url}, and this is {__version__}"
        yield warning("engine", "hub", words, "Restart it, to run what is installed.")
    devices = health.json.get("devices") or []
    engine = get(f"{url}/v1/engine", case.key, offline=case.offline)
    asked = isinstance(engine, Answer) and engine.status == 200
    if isinstance(engine, Answer) and asked:
        devices = engine.json.get("devices") or devices
    else:
        yield _silent(engine, case.key)
    for device in devices:
        if isinstance(device, dict):
            yield _device(device, asked=asked)


def _silent(engine: Answer | str, key: str | None) -> Finding:
    """Of a hub that does not tell of its engine."""
    remedy = "Give a key of the hub's: HUB_API_KEY, or --key."
    if isinstance(engine, Answer) and engine.code == "invalid_api_key":
        words = "the key is not accepted" if key else "it wants a key"
        return warning("engine", "hub", f"{words}, so the engine was not asked what is in memory", remedy)
    told = f" ({engine.status} {engine.code})" if isinstance(engine, Answer) else f" ({engine})"
    words = f"it does not tell what is in memory{told}"
    return warning("engine", "hub", words, "Its log tells why; run `hub doctor` again.")


def _device(device: dict[str, Any], *, asked: bool) -> Finding:
    """asked: whether what is loaded is known."""
    name, status = str(device.get("device")), str(device.get("status"))
    if status == "failed":
        remedy = "Mend that (see devices); the hub tries again with the next request. Its log tells more."
        return problem("engine", name, f"its engine could not start: {device.get('reason')}", remedy)
    if not asked:
        return ok("engine", name, f"{status}; what is loaded there is not known")
    loaded = [str(model.get("id")) for model in device.get("models") or []]
    return ok("engine", name, f"{status}; {', '.join(loaded) or 'no model'} is loaded")
