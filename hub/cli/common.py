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
from hub.offline import prepare

if TYPE_CHECKING:
    from hub.settings import Settings

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (default: HUB_CONFIG, else ./hub.toml, else hub.toml in your configuration folder, "
    "~/.config/hub on Linux).",
)


AT_ONCE = 0.5
"""Seconds that a hub may take to say what is loaded, which is only one column of a list."""


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
    """Of hub.toml, the environment and the command line. Where they say `offline`, nothing of this process leaves the
    machine from here on: whoever wants settings is guarded, too. Raises ConfigurationError."""
    from hub.settings import load_settings

    settings = load_settings(config, **overrides)
    prepare(offline=settings.offline)
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for client in ("httpx2", "httpcore2"):  # they would write whole URLs, signatures and all
        logging.getLogger(client).setLevel(logging.WARNING)
    return settings


def check_key(settings: Settings, key: str | None) -> None:
    """Raises BadParameter where `--key` names none of the hub's."""
    if key is not None and key not in settings.api_keys:
        raise click.BadParameter(f"there is no key '{key}' among api_keys", param_hint="--key")


def loaded_models(settings: Settings) -> set[str] | None:
    """The ids of what the hub of these settings has in memory; None where none answers at once."""
    from hub.calls import Answer, get, hub_url

    url, key = f"{hub_url(settings)}/v1/engine", os.environ.get("HUB_API_KEY")
    answer = get(url, key, offline=settings.offline, patience=AT_ONCE)
    if not isinstance(answer, Answer):
        return None
    try:
        return {model["id"] for device in answer.json["devices"] for model in device["models"]}
    except (KeyError, TypeError):
        return None
