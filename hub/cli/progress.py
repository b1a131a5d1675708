"""How long work is shown: bars on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hub.library.progress import Note, Progress, as_bytes

if TYPE_CHECKING:
    from hub.errors import HubError
    from hub.library.orders import Result

TITLES = {"download": "fetching", "verify": "reading", "copy": "copying"}


class Lines:
    """Notes, and a line for each file that is done."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def report(self, event: Progress | Note) -> None:
        """Says it on standard error."""
        if isinstance(event, Note):
            click.echo(event.message, err=True)
        elif event.done >= event.total:
            of = f"{as_bytes(event.all_done)} of {as_bytes(event.all_total)}"
            click.echo(f"{TITLES[event.action]} {event.file}: done ({of})", err=True)

    def completed(self, result: Result) -> None:
        """The caller says that."""

    def failed(self, error: HubError) -> None:
        """The caller says that."""


class JsonLines(Lines):
    """One JSON object a line on standard output, as the admin API's processes tell."""

    def report(self, event: Any) -> None:
        """Writes it."""
        import msgspec

        click.echo(msgspec.json.encode(event).decode())

    def completed(self, result: Result) -> None:
        """The last line."""
        from hub.library.process import Completed

        self.report(Completed(result=result))

    def failed(self, error: HubError) -> None:
        """The last line."""
        from hub.library.process import Failed

        self.report(Failed(error=error.body, status=error.status))


class Bars(Lines):
    """A bar for each file that is worked on, and one for all: bytes, speed, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._rich = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def report(self, event: Progress | Note) -> None:
        """Moves the bars."""
        if isinstance(event, Note):
            self._rich.console.print(event.message, markup=False, highlight=False)
            return
        self._move("in all", event.all_done, event.all_total)
        name = f"{TITLES[event.action]} {event.file}"
        self._move(name, event.done, event.total)
        if event.done >= event.total:
            self._rich.remove_task(self._bars.pop(name))

    def _move(self, name: str, done: int, total: int) -> None:
        from rich.markup import escape

        if name not in self._bars:
            self._bars[name] = self._rich.add_task(escape(name), total=total)
        self._rich.update(self._bars[name], completed=done, total=total)
