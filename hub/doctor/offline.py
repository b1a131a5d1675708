"""The promise that nothing leaves the machine, where it was made: whether the guard holds, and what would break it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

from hub.calls import leads_here
from hub.doctor.findings import Case, Finding, ok, problem, warning

TRY_OUT = """
import os, socket, sys
from hub.offline import forbid
forbid()
with socket.socket() as out:
    out.settimeout(2)
    try:
        out.connect(("192.0.2.1", 9))
    except TimeoutError:
        sys.exit(3)
    except OSError as error:  # the system's own words: the attempt was made
        sys.exit(3 if error.errno and error.strerror == os.strerror(error.errno) else 0)
    except Exception:
        sys.exit(0)
sys.exit(3)
"""
"""192.0.2.1 belongs to nobody (RFC 5737)."""
PATIENCE = 30.0
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def check(case: Case) -> Iterator[Finding]:
    """Nothing, where the hub may use the network."""
    if not case.offline:
        return
    yield _guard()
    settings = case.settings
    if settings.auto_pull != "off":
        words = f"auto_pull is {settings.auto_pull}, and offline nothing can be pulled"
        yield problem("offline", "auto_pull", words, "Set auto_pull to off, or offline to false.")
    if settings.image_hosts:
        words = f"source images may be downloaded from {', '.join(settings.image_hosts)}; offline these requests fail"
        yield warning("offline", "image_hosts", words, "Set image_hosts to [].")
    for neighbour in settings.neighbours:
        if not leads_here(neighbour.partition(":")[2]):
            words = f"{neighbour} is another machine, or may be: offline the hub does not start with it"
            yield problem("offline", "neighbours", words, "Take it out of the list, or name it by 127.0.0.1.")
    for name in sorted(case.environ):
        if case.environ[name] and (name.lower() in PROXIES or name == "HF_ENDPOINT"):
            words = "it is set: programs beside the hub, and libraries, may send what they are asked to there"
            yield warning("offline", name, words, f"`unset {name}` where the hub is started.")


def _guard() -> Finding:
    """Whether a process that has forbidden it really cannot connect to another machine."""
    if importlib.util.find_spec("hub.offline") is None:
        words = "this hub has no guard that refuses connections"
        return problem("offline", "guard", words, "Install the hub anew, whole.")
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            [sys.executable, "-c", TRY_OUT], capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        words = "it could not be tried out"
        return problem("offline", "guard", words, "Run `hub doctor --offline` again; else install the hub anew.")
    if done.returncode == 0:
        return ok("offline", "guard", "a connection to another machine was refused")
    if done.returncode == 3:
        words = "it does not hold: a connection to another machine was tried"
    else:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        words = f"it cannot be set up: {(last or ['no words'])[0][:200]}"
    return problem("offline", "guard", words, "Install the hub anew, whole; until then cut the network off otherwise.")
