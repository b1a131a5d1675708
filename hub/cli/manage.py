"""`hub loras` and `hub keys`."""

from __future__ import annotations

from pathlib import Path

import click

from hub.cli.common import config_option, settings_from, told_plainly


@click.group()
def loras() -> None:
    """LoRAs that requests may name."""


@loras.command("list")
@config_option
def list_loras(config: Path | None) -> None:
    """List every LoRA in the folder `loras_dir`."""
    with told_plainly():
        settings = settings_from(config)
        from hub.loras import Loras

        found = list(Loras(settings.loras_folder, must_be=settings.loras_dir is not None))
    for file in found:
        click.echo(f"{file.name}  ({file.bytes / 1e6:.1f} MB)")
    if not found:
        click.echo(f"There are none in {settings.loras_folder}.", err=True)


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("new")
@click.argument("name")
def new_key_command(name: str) -> None:
    """Make a key called NAME and say how to set it."""
    from hub.keys import hash_key, new_key
    from hub.settings import KEY_NAME

    if not KEY_NAME.fullmatch(name):
        raise click.BadParameter("use letters, digits, '.', '_' and '-'", param_hint="NAME")
    key = new_key()
    click.echo(f"Key (shown once, give it to the client): {key}\n")
    click.echo(f'Add to hub.toml, which keeps only its hash:\n\n[api_keys]\n"{name}" = "{hash_key(key)}"\n')
    click.echo(f"or start the server with:\n\nHUB_API_KEYS={name}:{key}")
