"""`hub doctor`."""

from __future__ import annotations

import logging
import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hub.cli.common import config_option
from hub.offline import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.doctor import Finding

STATUSES = ("ok", "warning", "problem")


@click.command()
@config_option
@click.option(
    "--offline",
    is_flag=True,
    help="Leave this machine for nothing, and look at what would break the promise that the hub does not, either (as "
    "with offline = true).",
)
@click.option("--json", "as_json", is_flag=True, help="Everything that was found, as a JSON list.")
@click.option("--quiet", is_flag=True, help="Only what is not as it should be.")
@click.option(
    "--key", envvar="HUB_API_KEY", help="API key for the running hub, where it has any (default: HUB_API_KEY)."
)
def doctor(*, config: Path | None, offline: bool, as_json: bool, quiet: bool, key: str | None) -> None:
    """Look at everything that a request will need, and tell what is missing or wrong and what to do about it.

    Exits with 1 where there is a problem; warnings alone are no reason. Best run while the hub runs: then a link is
    followed, too. Changes nothing.
    """
    logging.basicConfig(level="CRITICAL")  # what the hub would log, the findings tell
    from hub.doctor import examine, read_settings

    environ = dict(os.environ)
    settings, found = read_settings(config, os.environ)
    prepare(offline=offline or settings.offline)
    found += examine(settings, environ, offline=offline, key=key)
    shown = [finding for finding in found if not (quiet and finding.status == "ok")]
    click.echo(_as_json(shown) if as_json else _as_text(shown, found))
    if any(finding.status == "problem" for finding in found):
        raise click.exceptions.Exit(1)


def _as_json(found: Sequence[Finding]) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(found)).decode()


def _as_text(shown: Sequence[Finding], found: Sequence[Finding]) -> str:
    """A heading for each area, a line for each finding, and one with the remedy where there is one; the counts."""
    lines = []
    for area, findings in groupby(shown, key=lambda finding: finding.area):
        lines.append(area)
        for finding in findings:
            lines.append(f"  {finding.status:<8} {finding.subject}: {finding.message}")
            if finding.remedy:
                lines.append(f"           -> {finding.remedy}")
    counts = [(sum(finding.status == status for finding in found), status) for status in STATUSES]
    told = [f"{number} {status}{'s' if number != 1 and status != 'ok' else ''}" for number, status in counts]
    return "\n".join([*lines, f"{', '.join(told)}."])
