"""The command `hub`. Heavy imports happen inside the commands, so that `hub --help` is instant."""

from __future__ import annotations

import click

from hub import __version__
from hub.cli.doctor import doctor
from hub.cli.draw import generate, replay_command
from hub.cli.engine import engine
from hub.cli.manage import keys, loras
from hub.cli.models import models
from hub.cli.route import route
from hub.cli.serve import serve
from hub.cli.usage import usage


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hub")
def main() -> None:
    """A local-first, offline-capable server for image generation, with OpenAI's wire."""


for command in (serve, generate, replay_command, engine, models, route, loras, keys, usage, doctor):
    main.add_command(command)
