"""What the commands share."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.errors import ConfigurationError, HubError

if TYPE_CHECKING:
    from hub.settings import Settings

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (default: HUB_CONFIG, else ./hub.toml, else hub.toml in your configuration folder, "
    "~/.config/hub on Linux).",
)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Errors that the user can mend, without a traceback."""
    try:
        yield
    except (ConfigurationError, HubError) as error:
        from hub.loras import ALL_LORAS
        from hub.registry import ALL_MODELS

        words = str(error).replace(ALL_MODELS, "`hub models list` shows all.")
        raise click.ClickException(words.replace(ALL_LORAS, "`hub loras list` shows all.")) from None


def settings_from(config: Path | None, **overrides: Any) -> Settings:
    """Of hub.toml, the environment and the command line. Raises ConfigurationError."""
    from hub.settings import load_settings

    settings = load_settings(config, **overrides)
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for client in ("httpx2", "httpcore2"):  # they would write whole URLs, signatures and all
        logging.getLogger(client).setLevel(logging.WARNING)
    return settings


def hub_url(settings: Settings) -> str:
    """Where the hub of these settings listens, from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def loaded_models(settings: Settings) -> set[str] | None:
    """The ids of what the hub of these settings has in memory; None where none answers at once."""
    import httpx2

    key = os.environ.get("HUB_API_KEY")
    try:
        with httpx2.Client(trust_env=False, timeout=0.5) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = client.get(f"{hub_url(settings)}/v1/engine", headers=headers)
            devices = answer.json()["devices"]
        return {model["id"] for device in devices for model in device["models"]}
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
