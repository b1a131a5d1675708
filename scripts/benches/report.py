"""Tables of what was measured, beside the targets; on the terminal and in docs/benchmarks.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Options:
    """The command line. `trial`: tiny models and few rounds, which prove that a section runs and measure nothing."""

    rounds: int | None = None
    clients: Sequence[int] = (1, 4, 8, 16)
    sides: Sequence[str] = ("hub", "bare", "hf-serve", "example")
    short_text_encoder: bool = False
    trial: bool = False


@dataclass
class Row:
    """One line: what was measured, what was wanted, what came out. `met` is None where nothing was wanted."""

    what: str
    target: str
    measured: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {None: "", True: "  ok", False: "  MISSED"}[self.met]
        return f"  {self.what:<66} {self.measured}{f'   (target {self.target})' if self.target else ''}{verdict}"


@dataclass
class Report:
    """What one section found."""

    section: str
    options: Options
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rounds(self, usual: int) -> int:
        """How often to measure."""
        return self.options.rounds or (2 if self.options.trial else usual)

    def row(self, what: str, measured: str, target: str = "", met: bool | None = None) -> None:
        """Adds a line and prints it."""
        self.rows.append(Row(what, target, measured, met))
        print(self.rows[-1], flush=True)

    def at_most(self, what: str, seen: float, limit: float, unit: str, detail: str = "") -> None:
        """A line with an upper limit; both are shown in `unit`."""
        self.row(what, f"{seen:.3g} {unit}{detail}", f"≤ {limit:g} {unit}", seen <= limit)

    def note(self, text: str) -> None:
        """A sentence below the table."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"  {text}", flush=True)

    @property
    def missed(self) -> list[str]:
        """Targets that were not met."""
        return [f"{self.section}: {row.what}: {row.measured}" for row in self.rows if row.met is False]

    def markdown(self, stamp: str) -> str:
        """The table with its stamp and notes."""
        lines = [f"*{stamp}*", "", "| what | target | measured |", "| --- | --- | --- |"]
        for row in self.rows:
            measured = {None: row.measured, True: f"**{row.measured}**", False: f"**{row.measured}**, missed"}[row.met]
            lines.append(f"| {row.what} | {row.target} | {measured} |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


Section = Callable[[Report], None]
"""A section measures into a report. The first line of its docstring says what."""


def write(document: Path, name: str, table: str) -> None:
    """Puts a table between the section's markers in the document; at its end where it has none."""
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    block = f"{start}\n\n{table}\n\n{end}"
    text = document.read_text(encoding="utf-8")
    if start in text:
        text = re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n## {name}\n\n{block}\n"
    document.write_text(text, encoding="utf-8")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: Sequence[float], unit: str, scale: float = 1, digits: int = 1) -> str:
    """`median unit (lower to upper quartile)` of the values, each times `scale`."""
    low, middle, high = (f"{value * scale:.{digits}f}" for value in quartiles(values))
    return f"{middle} {unit} ({low} to {high})".replace("  ", " ")


def ratios(ones: Sequence[float], others: Sequence[float], digits: int = 2) -> tuple[float, str]:
    """The median ratio, pair by pair, and in words with its quartiles."""
    pairs = [one / other for one, other in zip(ones, others, strict=True)]
    return quartiles(pairs)[1], spread(pairs, "x", digits=digits)


def milliseconds(values: Sequence[float]) -> str:
    """`spread` of seconds, in milliseconds."""
    return spread(values, "ms", 1e3, 1 if quartiles(values)[1] < 0.1 else 0)
