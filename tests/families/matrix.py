"""What the equality tests saw: family x task x noise scheduler x largest difference."""

from __future__ import annotations

ROWS: dict[tuple[str, str, str], tuple[int, int]] = {}


def note(family: str, task: str, scheduler: str | None, difference: int, batch: int) -> None:
    """Keeps the largest difference (of 255) and the largest batch of a combination."""
    key = (family, task, scheduler or "the folder's own")
    before = ROWS.get(key, (0, 0))
    ROWS[key] = max(before[0], difference), max(before[1], batch)
