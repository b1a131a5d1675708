"""What the equality tests saw, as the table in docs/manifests.md."""

from __future__ import annotations

from pathlib import Path

from hub.types import Task

DOCS = Path(__file__).resolve().parents[2] / "docs" / "manifests.md"
START, END = "<!-- families: written by tests/families, HUB_UPDATE_DOCS=1 -->", "<!-- end of families -->"
TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpainting")
OWN = "the folder's own"

_seen: dict[str, dict[Task, dict[str, int]]] = {}


def note(family: str, task: Task, scheduler: str | None, difference: int) -> None:
    """Keeps the largest difference (of 255) of a combination."""
    results = _seen.setdefault(family, {}).setdefault(task, {})
    results[scheduler or OWN] = max(results.get(scheduler or OWN, 0), difference)


def families() -> set[str]:
    """Those that were tried."""
    return set(_seen)


def table() -> str:
    """Markdown: a row for each family and noise scheduler."""
    lines = ["| family | noise scheduler | " + " | ".join(TASKS) + " |", "| --- | --- | --- | --- | --- |"]
    for family, tasks in sorted(_seen.items()):
        for scheduler in next(iter(tasks.values())):
            cells = ["equal" if tasks.get(task, {}).get(scheduler, 2) <= 1 else "–" for task in TASKS]
            name = scheduler if scheduler == OWN else f"`{scheduler}`"
            lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written() -> str:
    """The table as it stands in the docs."""
    return DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0].strip()


def write() -> None:
    """Puts the table into the docs."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    DOCS.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
