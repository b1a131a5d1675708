"""`hub route`: who would serve a request, and why, without asking anybody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.common import check_key, config_option, settings_from, told_plainly

if TYPE_CHECKING:
    from hub.errors import HubError
    from hub.route import Caller, Route
    from hub.settings import Settings
    from hub.types import ImageRequest

TASKS = ["text-to-image", "image-to-image", "inpainting"]
WHAT_IS_NOT_KNOWN = (
    "Nobody was asked. Which providers fail or are busy at the moment, and how many requests wait, only a hub that "
    "runs knows."
)


@click.command()
@click.argument("model")
@click.option("--key", help="The name of the key that would ask (default: a caller without one).")
@click.option("--task", type=click.Choice(TASKS), default=TASKS[0], show_default=True)
@click.option("--size", metavar="WxH", help="Of the pictures (default: as for a request without one).")
@click.option("--quality", type=click.Choice(["low", "medium", "high"]))
@click.option("-n", type=click.IntRange(1, 10), default=1, show_default=True, help="Number of pictures.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@config_option
def route(*, model: str, key: str | None, as_json: bool, config: Path | None, **wish: Any) -> None:
    """Say which models would serve a request for MODEL, in which order, at what cost, and why others would not.

    Exits with 1 where none would.
    """
    with told_plainly():
        settings = settings_from(config, log_level="warning")
        check_key(settings, key)
        request = _request(key or "", **wish)
        caller = _caller(settings, key or "")
        decided = _decide(settings, model, request, caller)
    from hub.refusal import refusal

    error = None if decided.targets else refusal(decided, request, caller)
    (_show_json if as_json else _show)(decided, caller, error)
    if error is not None:
        raise click.exceptions.Exit(1)


def _request(owner: str, *, task: str, size: str | None, quality: Any, n: int) -> ImageRequest:
    """A request of that kind. Its pictures are not looked at."""
    from hub.manifest import SIZE, parse_size
    from hub.types import DEFAULT_SIZE, ImageRequest

    if size is not None and not SIZE.fullmatch(size):
        raise click.BadParameter("write it as WIDTHxHEIGHT, for example 1024x1024", param_hint="--size")
    return ImageRequest(
        prompt="?",
        n=n,
        size=parse_size(size) if size else None,
        default_size=DEFAULT_SIZE if not size and task == "text-to-image" else None,
        quality=quality,
        images=() if task == "text-to-image" else (b"",),
        mask=b"" if task == "inpainting" else None,
        owner=owner,
    )


def _caller(settings: Settings, owner: str) -> Caller:
    """What a key may do, by the settings and the hub's database. Raises ConfigurationError where that cannot be
    read."""
    import sqlite3
    import time

    from hub.errors import ConfigurationError
    from hub.ledger import month_of, name_of
    from hub.prices import Budget
    from hub.report import limit_of, spent
    from hub.route import Caller

    limit, month = limit_of(settings.budget_of(owner)), month_of(time.time())
    path = settings.cache_dir / "hub.db"
    try:
        used = 0 if limit is None else spent(path, owner, name_of(month))
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    budget = None if limit is None else Budget(limit=limit, spent=used, ends_at=month.until)
    return Caller(owner=owner, may_leave=settings.may_leave(owner), budget=budget)


def _decide(settings: Settings, model: str, request: ImageRequest, caller: Caller) -> Route:
    from hub.hub import Hub

    return asyncio.run(Hub(settings).decide(model, request, caller))


def _show(decided: Route, caller: Caller, error: HubError | None) -> None:
    from hub.prices import dollars, micro

    who = f"the key '{caller.owner}'" if caller.owner else "a caller without a key"
    may = "may leave this machine" if caller.may_leave else "may not leave this machine"
    left = "" if caller.budget is None else f", {dollars(micro(caller.budget.left))} of the budget is left"
    click.echo(f"{decided.reason}.\nFor {who}: {may}{left}.")
    for number, target in enumerate(decided.targets, 1):
        click.echo(f"{number}. {target.manifest.id} ({_price(target.cost)}): {target.why}")
    for each in decided.left_out:
        click.echo(f"-  {each.model} is left out ({each.code}): it {each.words}")
    if error is not None:
        click.echo(f"A request is answered {error.status} {error.code}: {error.message}")
    click.echo(WHAT_IS_NOT_KNOWN, err=True)


def _price(cost: float | None) -> str:
    if cost is None:
        return "price not known"
    from hub.prices import dollars, micro

    return f"about {dollars(micro(cost))}" if cost else "free"


def _show_json(decided: Route, caller: Caller, error: HubError | None) -> None:
    import msgspec

    told = {
        "model": decided.asked,
        "key": caller.owner or None,
        "may_leave": caller.may_leave,
        "budget_left_usd": caller.budget.left if caller.budget else None,
        "reason": decided.reason,
        "targets": [
            {"id": each.manifest.id, "leaves": each.leaves, "cost_usd": each.cost, "why": each.why}
            for each in decided.targets
        ],
        "left_out": [{"id": each.model, "code": each.code, "why": f"it {each.words}"} for each in decided.left_out],
        "error": None if error is None else {"status": error.status, **msgspec.to_builtins(error.body)},
    }
    click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
