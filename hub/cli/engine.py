"""`hub engine`: what a running hub has in memory."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import click

from hub.cli.common import config_option, settings_from, told_plainly
from hub.library.progress import as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


LOADING = 1800.0
"""Seconds that a load may take."""


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which hub is meant, and the key for it."""
    command = click.option("--key", envvar="HUB_API_KEY", help="API key, where it has any (default: HUB_API_KEY).")(
        command
    )
    command = click.option("--url", help="Where it listens (default: as the settings say).")(command)
    return config_option(command)


@click.group()
def engine() -> None:
    """What a running hub has in memory."""


@engine.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="The API's answer as it is.")
def status(*, as_json: bool, **server: Any) -> None:
    """Show devices, memory, and the models that are loaded."""
    said = _call(server, "GET", "/v1/engine")
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    for device in said["devices"]:
        click.echo(_device_line(device))
        for model in device["models"]:
            click.echo(_model_line(model))
            for module in model["modules"]:
                click.echo(f"      {module['name']}  {as_bytes(module['bytes'])}  {module['where']}")


@engine.command()
@click.argument("model")
@server_options
def load(*, model: str, **server: Any) -> None:
    """Load MODEL now, so that its first request need not wait."""
    _call(server, "POST", "/v1/engine/load", {"model": model})
    click.echo(f"{model} is loaded.")


@engine.command()
@click.argument("model")
@server_options
def pin(*, model: str, **server: Any) -> None:
    """Load MODEL and keep it in memory, whatever its keep_alive, until it is unpinned or unloaded."""
    _call(server, "POST", "/v1/engine/load", {"model": model, "pinned": True})
    click.echo(f"{model} is loaded and stays.")


@engine.command()
@click.argument("model")
@server_options
def unpin(*, model: str, **server: Any) -> None:
    """Let MODEL go when it has been idle for its keep_alive."""
    _call(server, "POST", "/v1/engine/load", {"model": model, "pinned": False})
    click.echo(f"{model} is not pinned any more.")


@engine.command()
@click.argument("model", required=False)
@click.option("--all", "everything", is_flag=True, help="All models.")
@server_options
def unload(*, model: str | None, everything: bool, **server: Any) -> None:
    """Give back the memory of MODEL, or of all models."""
    if (model is None) != everything:
        raise click.UsageError("Name a model, or give --all, and not both.")
    said = _call(server, "POST", "/v1/engine/unload", {"model": "*" if everything else model})
    for name in said["unloaded"]:
        click.echo(f"{name} is unloaded.")
    for name in said["busy"]:
        click.echo(f"{name} has work to do, and is unloaded when that is done.")
    if not said["unloaded"] and not said["busy"]:
        click.echo("Nothing was loaded." if everything else f"{model} was not loaded.")


def _call(server: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The hub's answer. Raises ClickException with its words, or where there is none."""
    import httpx2

    from hub.calls import hub_url, leads_here

    with told_plainly():
        settings = settings_from(server["config"], log_level="warning")
        url = server["url"] or hub_url(settings)
    if settings.offline and not leads_here(url):
        words = f"{url} was not asked: `offline` is set, and that would leave this machine. Give a --url at 127.0.0.1."
        raise click.ClickException(words)
    headers = {"Authorization": f"Bearer {server['key']}"} if server["key"] else {}
    try:
        with httpx2.Client(trust_env=False, timeout=httpx2.Timeout(LOADING, connect=5)) as client:
            answer = client.request(method, f"{url.rstrip('/')}{path}", json=body, headers=headers)
        said = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):
        words = f"no hub answers at {url}. Start one with `hub serve`, or say where it is with --url."
        raise click.ClickException(words) from None
    if answer.is_error:
        words = str(answer.status_code)
        with contextlib.suppress(KeyError, TypeError):
            words = said["error"]["message"]
        raise click.ClickException(words)
    return said


def _device_line(device: dict[str, Any]) -> str:
    memory = device["memory"]
    words = f"{device['device']}  {device['status']}"
    if device["reason"]:
        words += f" ({device['reason']})"
    if memory:
        limit = f", of which the hub may use {as_bytes(memory['limit'])}" if memory["limit"] else ""
        words += f"  {as_bytes(memory['free'])} free of {as_bytes(memory['total'])}{limit}"
        words += f"; weights {as_bytes(memory['weights'])}, {device['uploads']} uploads"
    return words if device["models"] else f"{words}; no model is loaded"


def _model_line(model: dict[str, Any]) -> str:
    if model["pinned"]:
        stays = "pinned"
    elif model["requests"]:
        stays = f"busy with {model['requests']}"
    elif model["expires_at"] is None:
        stays = "stays"
    else:
        stays = f"leaves in {max(0, round(model['expires_at'] - time.time()))} s"
    return f"  {model['id']}  {as_bytes(model['bytes'])}, {stays}"
