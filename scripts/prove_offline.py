"""Proves that the hub leaves the machine alone: that nothing it runs even tries to reach another one.

  tests     the end-to-end tests, in a network namespace that has loopback and nothing else
  life      `hub serve`, its worker and its library's process under strace: start, pictures as links, as base64, edited
            and streamed, a picture of another machine's URL, an order of the admin API; `hub models list`, `verify`,
            `export` and `import`, `hub doctor`; kill -9 of the worker, recovery, idling, SIGTERM. Twice: with
            HUB_OFFLINE=1, and as it comes, since local models alone must not phone home either. Not one connect,
            sendto or sendmsg to anything but loopback may be tried, and not one packet may be sent on an interface that
            would carry it (so it is choice, not inability).
  canary    a third such life, in which HF_ENDPOINT and all proxies name a listener on loopback: nobody may come
  guard     threads planted in the server's processes dial 192.0.2.1: with HUB_OFFLINE=1 they are refused before any
            system call
  controls  the same detectors on what does try: the planted threads without HUB_OFFLINE, and huggingface_hub. If one of
            them is not seen, the detectors are dead, and the proof fails.

All of it happens in namespaces without a way out; the only addresses dialled are in 192.0.2.0/24, which is nobody's.

Exit codes: 0 proven; 1 not; 77 this machine lets nobody make namespaces, so nothing was proven.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from network_watch import LOOPBACK_UP, can_make_namespaces, can_trace, plain_environment

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77
END_TO_END = ["tests/api", "tests/test_cli.py", "tests/test_air_gap.py"]
"""What drives real servers; with _LONG left out it fits six minutes."""
_LONG = "not replay and not made_again"


def prove_tests(paths: list[str]) -> None:
    """The end-to-end tests where there is loopback only."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += ["-k", _LONG, *paths]
    alone = f"{LOOPBACK_UP}; exec {shlex.join(command)}"
    environment = plain_environment(PYTHONPATH=str(ROOT))
    code = subprocess.run(["unshare", "-rn", "sh", "-c", alone], cwd=ROOT, env=environment, check=False).returncode
    if code:
        print("\nNOT PROVEN: the end-to-end tests fail where there is loopback only", flush=True)
        raise SystemExit(1)


def main() -> None:
    """The tests in one namespace, then this program again in another one."""
    parser = argparse.ArgumentParser(
        prog="scripts/prove-offline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=float, default=30, metavar="SECONDS", help="how long servers idle (default 30)")
    parser.add_argument("--no-tests", action="store_true", help="leave out the end-to-end tests")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        from prove_offline_inside import inside

        inside(options.idle)
        return
    if not can_make_namespaces():
        print("Skipped: this machine lets nobody make network namespaces (unshare -rnm), so nothing is proven here.")
        raise SystemExit(SKIPPED)
    if not can_trace():
        print("Skipped: this machine lets nobody trace processes in a namespace (strace), so nothing is proven here.")
        raise SystemExit(SKIPPED)
    began = time.monotonic()
    if not options.no_tests:
        print(f"==> The end-to-end tests, with loopback only: {' '.join(END_TO_END)}", flush=True)
        prove_tests(END_TO_END)
    print("==> What the hub's processes try", flush=True)
    again = [sys.executable, __file__, "--inside", "--idle", str(options.idle)]
    code = subprocess.run(["unshare", "-rnm", *again], check=False).returncode
    if code:
        raise SystemExit(1)
    if not options.no_tests:
        print("  and the end-to-end tests pass with loopback only")
    print(f"\nProven in {time.monotonic() - began:.0f} s: nothing left this machine, and nothing tried to.")


if __name__ == "__main__":
    main()
