"""The command `hub`. Heavy imports happen inside the commands, so that `hub --help` is instant."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from hub import __version__
from hub.errors import ConfigurationError, HubError

if TYPE_CHECKING:
    from hub.settings import Settings
    from hub.types import Event, ImageRequest, ImageResult, OutputFormat, Size

DRAIN = 5.0
"""Seconds that running requests have to finish when the server is told to end."""

FORMATS: dict[str, OutputFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (default: HUB_CONFIG, else ./hub.toml, else hub.toml in your configuration folder, "
    "~/.config/hub on Linux).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hub")
def main() -> None:
    """A local-first, offline-capable server for image generation, with OpenAI's wire."""


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Errors that the user can mend, without a traceback."""
    try:
        yield
    except (ConfigurationError, HubError) as error:
        from hub.registry import ALL_MODELS

        raise click.ClickException(str(error).replace(ALL_MODELS, "`hub models list` shows all.")) from None


def _settings(config: Path | None, **overrides: Any) -> Settings:
    from hub.settings import load_settings

    settings = load_settings(config, **overrides)
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for client in ("httpx2", "httpcore2"):  # they would write whole URLs, signatures and all
        logging.getLogger(client).setLevel(logging.WARNING)
    return settings


@main.command()
@config_option
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (default 8000; 0 takes a free one).")
def serve(config: Path | None, host: str | None, port: int | None) -> None:
    """Serve the API until interrupted."""
    with _told_plainly():
        settings = _settings(config, host=host, port=port)
        settings.check_bind()
        from hub.app import create_app

        app = create_app(settings)
    import uvicorn

    wiring = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,  # it would write signed links to the log
        proxy_headers=False,  # links are built from public_url, never from forwarded headers
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,
    )
    try:
        bound = wiring.bind_socket()  # before the engine starts: a port in use is told at once
    except SystemExit:  # uvicorn has written why
        words = f"cannot listen on {settings.host}, port {settings.port}. Choose another with --host and --port."
        raise click.ClickException(words) from None
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, for a socket that it did not make
    port = bound.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    click.echo(f"Hub {__version__} listens on http://{shown}:{port}   (Ctrl-C ends it)", err=True)

    class Server(uvicorn.Server):
        """Tells the hub at once that it ends, so that long work is answered and not cut off."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.hub.engine.end_soon(DRAIN)
            super().handle_exit(sig, frame)

    with contextlib.suppress(KeyboardInterrupt):
        Server(wiring).run(sockets=[bound])


@main.command()
@config_option
@click.argument("prompt")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="image.png",
    show_default=True,
    help="Its ending chooses the format: .png, .jpg or .webp. With -n, a number is added.",
)
@click.option("-m", "--model", help="Model id or alias (default: the setting default_model).")
@click.option("-n", type=click.IntRange(1, 10), default=1, show_default=True, help="Number of pictures.")
@click.option("--size", metavar="WxH", help="Default: that of the picture to edit, else 1024x1024.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Picture k uses seed + k (default: a random one).")
@click.option("--steps", type=click.IntRange(min=1, max=1000), help="Denoising steps.")
@click.option("--guidance", type=click.FloatRange(0, 100), help="Guidance scale.")
@click.option("--negative", help="What the pictures should not show.")
@click.option("--quality", type=click.Choice(["low", "medium", "high"]))
@click.option("--style", type=click.Choice(["vivid", "natural"]))
@click.option("--scheduler", metavar="CLASS", help="Noise scheduler, by diffusers' class name.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True), help="How far an edit may leave its source.")
@click.option("--image", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A picture to edit.")
@click.option(
    "--mask",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Which part of it may change: transparent, or white on black.",
)
@click.option(
    "--compression", type=click.IntRange(0, 100), default=100, show_default=True, help="Quality of .jpg and .webp."
)
def generate(
    *,
    config: Path | None,
    prompt: str,
    output: Path,
    model: str | None,
    image: Path | None,
    mask: Path | None,
    **wish: Any,
) -> None:
    """Make pictures from PROMPT and write them to files, without a server."""
    from hub.types import ImageRequest

    if not prompt.strip():
        raise click.BadParameter("say what to draw", param_hint="PROMPT")
    if not output.parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    request = ImageRequest(
        prompt=prompt,
        n=wish["n"],
        size=_size(wish["size"], editing=image is not None),
        seed=wish["seed"],
        num_inference_steps=wish["steps"],
        guidance_scale=wish["guidance"],
        negative_prompt=wish["negative"],
        quality=wish["quality"],
        style=wish["style"],
        strength=wish["strength"],
        scheduler=wish["scheduler"],
        images=(image.read_bytes(),) if image else (),
        mask=mask.read_bytes() if mask else None,
        output_format=_format(output),
        output_compression=wish["compression"],
    )
    with _told_plainly():
        settings = _settings(config, log_level="warning")
        result = asyncio.run(_generate(settings, model or settings.default_model, request))
    for warning in result.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for index, picture in enumerate(result.images):
        path = output if len(result.images) == 1 else output.with_stem(f"{output.stem}-{index + 1}")
        path.write_bytes(picture)
        click.echo(f"{path} (seed {result.seed + index})")


def _size(text: str | None, *, editing: bool) -> Size | None:
    """The size in pixels; None for the source picture's own."""
    from hub.registry import SIZE, parse_size

    if text is None:
        return None if editing else parse_size("1024x1024")
    if not SIZE.fullmatch(text):
        raise click.BadParameter("write it as WIDTHxHEIGHT, for example 1024x1024", param_hint="--size")
    return parse_size(text)


def _format(output: Path) -> OutputFormat:
    """The format that a file's ending names."""
    found = FORMATS.get(output.suffix.lower())
    if found is None:
        raise click.BadParameter(f"let the name end in one of {', '.join(FORMATS)}", param_hint="--output")
    return found


async def _generate(settings: Settings, model: str, request: ImageRequest) -> ImageResult:
    from hub.hub import open_hub
    from hub.types import Progress

    with click.progressbar(length=100, label="Drawing", show_eta=False) as bar:

        def on_event(event: Event) -> None:
            if isinstance(event, Progress):
                bar.update(event.step * 100 // event.steps - bar.pos)

        async with open_hub(settings) as hub:
            return await hub.generate(model, request, on_event)


@main.group()
def models() -> None:
    """Models that this hub serves."""


@models.command("list")
@config_option
def list_models(config: Path | None) -> None:
    """List every model and its aliases."""
    with _told_plainly():
        settings = _settings(config)
        from hub.registry import open_registry

        listed = list(open_registry(settings.models_dirs, settings.aliases))
    for model in listed:
        if not model.is_alias:
            aliases = [alias.id for alias in listed if alias.is_alias and alias.manifest.id == model.id]
            manifest = model.manifest
            click.echo(f"{model.id}  {manifest.name} ({manifest.license}; {', '.join(manifest.tasks)})")
            click.echo(f"    aliases: {', '.join(aliases) or 'none'}")


@main.group()
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
