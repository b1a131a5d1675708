"""`hub usage`: what was used, and what it cost."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hub.cli.common import config_option, settings_from, told_plainly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.accounts import Column, Span
    from hub.report import UsageBucket
    from hub.settings import Settings

DAY = click.DateTime(["%Y-%m-%d"])
NAMES = {
    "requests": "requests",
    "images": "images",
    "text_tokens": "text tokens",
    "image_tokens": "image tokens",
    "output_tokens": "output tokens",
    "device_seconds": "device s",
    "cost_usd": "US$",
    "estimated_usd": "of it estimated",
    "unpriced_requests": "without a price",
}
NO_KEY = "(no key)"


@click.command()
@click.option("--month", type=click.DateTime(["%Y-%m"]), help="A calendar month (default: this one).")
@click.option("--since", type=DAY, help="The first day, instead of a month.")
@click.option("--until", type=DAY, help="The last day, included (default: today).")
@click.option("--by", default="key,model", show_default=True, help="Some of key, model, target and day, with commas.")
@click.option("--key", help="The use of this key alone.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
@click.option("--json", "as_json", is_flag=True, help="As the API tells it.")
@config_option
def usage(
    *,
    month: dt.datetime | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    by: str,
    key: str | None,
    as_csv: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Show what was used and what it cost, by key, model and day. Days and months are those of UTC.

    A request that failed over after a try that may have been billed counts at both targets. What is left of budgets is
    told for the keys that are shown. Reads the hub's database, whether the hub runs or not. What was used in the last
    second may be missing.
    """
    from hub import report

    try:
        columns = report.columns_of(by)
    except ValueError:
        raise click.BadParameter("use some of key, model, target and day, with commas", param_hint="--by") from None
    if as_csv and as_json:
        raise click.UsageError("--csv and --json do not go together.")
    span = _span(month, since, until)
    with told_plainly():
        settings = settings_from(config)
        buckets = _read(settings, columns, span, key)
        budgets = [] if as_csv or as_json else _budgets(settings, _keys(settings, buckets, columns, key))
    if as_csv:
        click.echo(report.as_csv(buckets, columns), nl=False)
    elif as_json:
        import msgspec

        listed = {"object": "list", "data": buckets}
        click.echo(msgspec.json.format(msgspec.json.encode(listed), indent=2))
    elif buckets:
        _show(buckets, columns)
    else:
        first, last = report.days_of(span)
        click.echo(f"Nothing was used from {first} to {last}.", err=True)
    if budgets:
        click.echo()
    for line in budgets:
        click.echo(line)


def _span(month: dt.datetime | None, since: dt.datetime | None, until: dt.datetime | None) -> Span:
    from hub.report import month_of, span_of

    today = dt.datetime.now(dt.UTC).date()
    if month is not None and (since or until):
        raise click.UsageError("Give --month, or --since and --until.")
    if since or until:
        last = until.date() if until else today
        first = since.date() if since else last.replace(day=1)
        if first > last:
            raise click.UsageError("--since is after --until.")
        return span_of(first, last)
    first = (month.date() if month else today).replace(day=1)
    return month_of(first)


def _read(settings: Settings, by: Sequence[Column], span: Span, key: str | None) -> list[UsageBucket]:
    """Raises ConfigurationError where the database cannot be read."""
    import sqlite3

    from hub.errors import ConfigurationError
    from hub.report import bucket_of, look

    path = settings.cache_dir / "hub.db"
    try:
        return [bucket_of(each) for each in look(path, by, span, key)]
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None


def _keys(settings: Settings, buckets: Sequence[UsageBucket], by: Sequence[Column], key: str | None) -> Sequence[str]:
    """The keys that are shown; all of the hub's where they are summed up together."""
    if key is not None:
        return [key]
    shown = [str(bucket.key) for bucket in buckets] if "key" in by else []
    return list(dict.fromkeys(shown or settings.api_keys or [""]))


def _budgets(settings: Settings, keys: Sequence[str]) -> list[str]:
    """What is left in this month, a line for each key with a budget. Raises ConfigurationError as `_read`."""
    import sqlite3
    import time

    from hub.errors import ConfigurationError
    from hub.ledger import month_of, name_of
    from hub.prices import Budget, dollars
    from hub.report import limit_of, spent

    month, lines, path = month_of(time.time()), [], settings.cache_dir / "hub.db"
    for key in keys:
        if (limit := limit_of(settings.budget_of(key))) is None:
            continue
        try:
            budget = Budget(limit=limit, spent=spent(path, key, name_of(month)), ends_at=month.until)
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None
        used = f"{dollars(budget.spent)} of {dollars(limit)} is spent or reserved in {name_of(month)}"
        lines.append(f"{key or NO_KEY}: {used}, {dollars(max(0, limit - budget.spent))} is left")
    return lines


def _show(buckets: Sequence[UsageBucket], by: Sequence[Column]) -> None:
    """A table; columns without a number are left out, and the last line has the sums."""
    shown = [name for name in NAMES if name in ("requests", "images") or any(getattr(b, name) for b in buckets)]
    rows = [[str(getattr(bucket, name)) or NO_KEY for name in by] for bucket in buckets]
    for row, bucket in zip(rows, buckets, strict=True):
        row += [_number(name, getattr(bucket, name)) for name in shown]
    totals = [_number(name, sum(getattr(bucket, name) for bucket in buckets)) for name in shown]
    table = [[*by, *(NAMES[name] for name in shown)], *rows, ["all", *[""] * (len(by) - 1), *totals]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[: len(by)], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[len(by) :], widths[len(by) :], strict=True)]
        click.echo("  ".join(cells).rstrip())


def _number(name: str, value: float) -> str:
    if name in ("cost_usd", "estimated_usd"):
        return f"{value:,.4f}"
    return f"{value:,.1f}" if name == "device_seconds" else f"{value:,}"
