"""The steps of scripts/prove-offline that happen in namespaces of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from network_watch import NOWHERE, Attempt, Canary, WayOut, attempts_in, make_way_out, plain_environment, strace
from prove_offline_life import ROOT, Life, NotProven, expect, seen


class Table:
    """What has been shown so far."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self._began = time.monotonic()

    def say(self, words: str) -> None:
        """Now, with the time."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {words}", flush=True)

    def add(self, what: str, result: str) -> None:
        """Now, and in the table."""
        self.rows.append((what, result))
        self.say(f"{what}: {result}")

    def show(self) -> None:
        """All rows."""
        width = max((len(what) for what, _ in self.rows), default=0)
        print()
        for what, result in self.rows:
            print(f"  {what:<{width}}  {result}")


def prove_lives(table: Table, way: WayOut, folder: Path, idle: float) -> None:
    """Three servers at once, then the planted threads: the refused ones, and last those that are seen."""
    with contextlib.ExitStack() as stack:
        canary = stack.enter_context(Canary())
        offline = Life("offline", folder, HUB_OFFLINE="1", HUB_IMAGE_HOSTS=NOWHERE)
        usual = Life("as it comes", folder)
        poisoned = Life("canary", folder, **canary.environment)
        lives = (offline, usual, poisoned)
        for life in lives:
            stack.callback(life.kill)
        table.say(f"three servers live under strace, and idle for {idle:.0f} s")
        with ThreadPoolExecutor(len(lives)) as pool:
            for done in [pool.submit(life.live, idle) for life in lives]:
                done.result()
        _prove_guard(offline)
        for life in (offline, poisoned):
            life.end()
        for life in lives:
            life.is_silent()
        expect(way.packets == 0, f"{way.packets} packets were sent")
        expect(canary.hits == 0, f"the canary was called {canary.hits} times")
        packets = f"{way.packets} packets sent" if way.kind else "no interface to count packets"
        table.add("life with HUB_OFFLINE=1", f"0 attempts, {packets}, a remote picture is 503 offline")
        table.add("life as it comes", f"0 attempts, {packets}")
        table.add("  in both", "pictures, an admin order, `hub models`, `hub doctor`, a killed worker")
        table.add("canary as HF_ENDPOINT and proxies", "0 hits, 0 attempts")
        table.add("guard in server and worker", "both refused, 0 system calls")
        _control_planted(table, way, usual)
        usual.end()
        rest = [each for each in usual.attempts() if each.address != NOWHERE]
        expect(not rest, f"{usual.name}: at its end it tried {seen(rest)}")


def _prove_guard(offline: Life) -> None:
    outcomes = offline.dial()
    expect(outcomes == ["OfflineRefused"] * 2, f"the guard of server and worker: {outcomes}")


def _control_planted(table: Table, way: WayOut, usual: Life) -> None:
    before = way.packets
    outcomes = usual.dial()
    callers = {each.pid for each in usual.attempts() if each.address == NOWHERE}
    expect(len(callers) == 2, f"the planted threads dialled ({outcomes}), and strace saw {len(callers)} of 2 processes")
    expect(not way.kind or way.packets > before, "the planted threads dialled, and no packet was counted")
    table.add("control: threads planted there dial", f"seen in both processes, {way.packets - before} packets")


def _watched(folder: Path, name: str, code: str, **environment: str) -> tuple[list[Attempt], str]:
    """What strace saw a Python program try, and what that said."""
    trace = folder / f"trace-{name}"
    environment = plain_environment(HF_HOME=str(folder / "hf"), PYTHONPATH=str(ROOT), **environment)
    command = [*strace(trace), sys.executable, "-c", code]
    said = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return attempts_in(trace), said.stdout + said.stderr


def prove_controls(table: Table, way: WayOut, folder: Path) -> None:
    """The detectors, on programs that do try."""
    question = "from huggingface_hub import HfApi; HfApi().model_info('nobody/made-up-by-prove-offline', timeout=5)"
    before = way.packets
    found, said = _watched(folder, "hub", question)
    expect(bool(found), f"huggingface_hub asked, and strace saw nothing\n{said[-1000:]}")
    expect(not way.kind or way.packets > before, "huggingface_hub asked, and no packet was counted")
    table.add("control: huggingface_hub asks", f"{len(found)} attempts, {way.packets - before} packets")
    with Canary() as canary:
        _watched(folder, "endpoint", question, HF_ENDPOINT=canary.environment["HF_ENDPOINT"])
        expect(canary.hits > 0, "huggingface_hub was told of the canary, and did not call it")
        hits = canary.hits
        fetch = "import urllib.request; urllib.request.urlopen('http://example.invalid/', timeout=5)"
        _watched(folder, "proxy", fetch, HTTP_PROXY=canary.environment["HTTP_PROXY"])
        expect(canary.hits > hits, "a client was told of the canary as a proxy, and did not call it")
        table.add("control: canary as HF_ENDPOINT, as proxy", f"{hits} and {canary.hits - hits} hits")
    dial = f"import socket; socket.create_connection(('{NOWHERE}', 9), 1)"
    found, said = _watched(folder, "open", dial)
    expect([each.address for each in found] == [NOWHERE], f"a connection was tried, and strace saw {seen(found)}")
    found, said = _watched(folder, "guarded", f"from hub.offline import forbid; forbid(); {dial}")
    expect(not found and "OfflineRefused" in said, f"behind the guard: {seen(found)}\n{said[-1000:]}")
    table.add("control: the same dial, guarded and not", "0 and 1 attempts")


@contextlib.contextmanager
def told(table: Table) -> Iterator[None]:
    """Ends with 1 and the reason where something is not proven."""
    try:
        yield
    except (NotProven, subprocess.SubprocessError, AssertionError) as error:
        table.show()
        print(f"\nNOT PROVEN: {error}", flush=True)
        raise SystemExit(1) from None


def inside(idle: float) -> None:
    """In namespaces of its own."""
    table = Table()
    with told(table), tempfile.TemporaryDirectory() as name:
        way = make_way_out()
        if way.kind:
            table.say(f"packets could leave by a {way.kind} interface with a default route, and are counted there")
        else:
            table.say("this kernel makes neither dummy nor veth interfaces: loopback only, attempts alone are counted")
        if not way.resolver:
            table.say("/etc/resolv.conf could not be replaced: names are asked as this machine does")
        prove_lives(table, way, Path(name), idle)
        prove_controls(table, way, Path(name))
    table.show()
