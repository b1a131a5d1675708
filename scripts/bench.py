"""Measures the hub on this machine, always as ratios: all sides in one run, in turn, on the same pictures.

  scripts/bench list                 the sections
  scripts/bench throughput cancel    some of them
  scripts/bench all --write          all, and their tables into docs/benchmarks.md

Quote the medians and measure on a quiet machine. Exits 1 when a target of docs/benchmarks.md is missed.
"""

from __future__ import annotations

import argparse
import signal
import sys

from benches import (
    cancelling,
    cold_start,
    full_size,
    http_answer,
    loop_lag,
    lossy,
    machine,
    memory,
    overhead,
    relay,
    repeats,
    switching,
    throughput,
)
from benches.material import ROOT
from benches.report import Options, Report, Section, write

SECTIONS: dict[str, Section] = {
    "cold-start": cold_start.measure,
    "memory": memory.measure,
    "http": http_answer.measure,
    "overhead": overhead.measure,
    "repeat": repeats.measure,
    "switch": switching.measure,
    "cancel": cancelling.measure,
    "relay": relay.measure,
    "loop-lag": loop_lag.measure,
    "throughput": throughput.measure,
    "lossy": lossy.measure,
    "sdxl": full_size.sdxl,
    "klein": full_size.klein,
    "zimage": full_size.zimage,
}
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def describe() -> str:
    """A line for each section."""
    return "\n".join(f"  {name:<12} {(section.__doc__ or '').splitlines()[0]}" for name, section in SECTIONS.items())


def parse() -> argparse.Namespace:
    """The command line."""
    words = f"{__doc__}\nsections:\n{describe()}"
    parser = argparse.ArgumentParser(
        "scripts/bench", description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "all", "list"], metavar="SECTION")
    parser.add_argument("--rounds", type=int, help="how often to measure (default: 3 to 40, as the section needs)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16], help="for throughput")
    sides = ["hub", *throughput.LABELS]
    parser.add_argument(
        "--sides", nargs="+", choices=sides, default=[*sides[:2], "hf-serve", "example"], help="whom to compare"
    )
    parser.add_argument(
        "--short-text-encoder", action="store_true", help="klein, zimage, sdxl: saves 8 GB of disk and memory each"
    )
    parser.add_argument("--trial", action="store_true", help="tiny models, few rounds: does it run? Measures nothing")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    if options.trial and options.write:
        parser.error("a trial's numbers mean nothing; they are not written")
    return options


def main() -> None:
    """Runs what the command line names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    given = parse()
    if "list" in given.sections:
        print(describe())
        return
    names = list(SECTIONS) if "all" in given.sections else given.sections
    options = Options(given.rounds, given.clients, given.sides, given.short_text_encoder, given.trial)
    stamp = machine.stamp(sys.executable)
    print(stamp)
    missed: list[str] = []
    for name in names:
        busy = machine.busy()
        print(f"\n{name}: {(SECTIONS[name].__doc__ or '').splitlines()[0]}\n  ({busy} just before)", flush=True)
        report = Report(name, options)
        SECTIONS[name](report)
        missed += report.missed
        if given.write and report.rows:
            suffix = "" if machine.device() == "cpu" or name in ("sdxl", "klein", "zimage") else "-cuda"
            write(DOCUMENT, name + suffix, report.markdown(f"{stamp}; {busy} just before"))
    if missed and not given.trial:
        sys.exit("\nTargets missed:\n  " + "\n  ".join(missed))


if __name__ == "__main__":
    main()
