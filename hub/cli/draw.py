"""`hub generate` and `hub replay`: pictures without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.common import check_key, config_option, settings_from, told_plainly

if TYPE_CHECKING:
    from hub.replay import Replay
    from hub.settings import Settings
    from hub.types import Event, ImageRequest, ImageResult, Lora, OnEvent, OutputFormat, Size

FORMATS: dict[str, OutputFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@click.command()
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
@click.option("--key", help="The name of the key that asks: it counts as its, with what it may do and spend.")
@click.option("-n", type=click.IntRange(1, 10), default=1, show_default=True, help="Number of pictures.")
@click.option(
    "--size", metavar="WxH", help="Default: that of the picture to edit, else 1024x1024, or a remote model's own."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Picture k uses seed + k (default: a random one).")
@click.option("--steps", type=click.IntRange(min=1, max=1000), help="Denoising steps.")
@click.option("--guidance", type=click.FloatRange(0, 100), help="Guidance scale.")
@click.option("--negative", help="What the pictures should not show.")
@click.option("--quality", type=click.Choice(["low", "medium", "high"]))
@click.option("--style", type=click.Choice(["vivid", "natural"]))
@click.option("--scheduler", metavar="CLASS", help="Noise scheduler, by diffusers' class name.")
@click.option("--lora", "loras", metavar="NAME[:WEIGHT]", multiple=True, help="A LoRA; may be given several times.")
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
    key: str | None,
    image: Path | None,
    mask: Path | None,
    **wish: Any,
) -> None:
    """Make pictures from PROMPT and write them to files, without a server."""
    from hub.types import DEFAULT_SIZE, ImageRequest

    if not prompt.strip():
        raise click.BadParameter("say what to draw", param_hint="PROMPT")
    _check_folder(output)
    request = ImageRequest(
        prompt=prompt,
        n=wish["n"],
        size=_size(wish["size"]),
        default_size=DEFAULT_SIZE if image is None and wish["size"] is None else None,
        seed=wish["seed"],
        num_inference_steps=wish["steps"],
        guidance_scale=wish["guidance"],
        negative_prompt=wish["negative"],
        quality=wish["quality"],
        style=wish["style"],
        strength=wish["strength"],
        scheduler=wish["scheduler"],
        loras=_loras(wish["loras"]),
        images=(image.read_bytes(),) if image else (),
        mask=mask.read_bytes() if mask else None,
        output_format=_format(output),
        output_compression=wish["compression"],
        owner=key or "",
    )
    with told_plainly():
        settings = settings_from(config, log_level="warning")
        check_key(settings, key)
        with _naming_key(settings, key):
            result = asyncio.run(_generate(settings, model or settings.default_model, request))
    for warning in result.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for index, picture in enumerate(result.images):
        path = output if len(result.images) == 1 else output.with_stem(f"{output.stem}-{index + 1}")
        path.write_bytes(picture)
        click.echo(str(path) if result.seed is None else f"{path} (seed {result.seed + index})")


@contextlib.contextmanager
def _naming_key(settings: Settings, key: str | None) -> Iterator[None]:
    """What nobody may do, one of the hub's keys may, perhaps."""
    from hub.errors import BudgetExceeded, ModelForbidden, RemoteNotAllowed
    from hub.refusal import with_words

    try:
        yield
    except (BudgetExceeded, ModelForbidden, RemoteNotAllowed) as error:
        if key is not None or not settings.api_keys:
            raise
        raise with_words(error, f"{error.message} `--key NAME` asks as one of this hub's keys.") from None


def _check_folder(output: Path) -> None:
    if not output.parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.parent}", param_hint="--output")


def _size(text: str | None) -> Size | None:
    """The size in pixels; None where nobody asks for one."""
    from hub.manifest import SIZE, parse_size

    if text is None:
        return None
    if not SIZE.fullmatch(text):
        raise click.BadParameter("write it as WIDTHxHEIGHT, for example 1024x1024", param_hint="--size")
    return parse_size(text)


def _loras(texts: tuple[str, ...]) -> tuple[Lora, ...]:
    """What NAME or NAME:WEIGHT say, in the API's bounds."""
    import msgspec

    from hub.types import MAX_LORAS, Lora

    found: list[Lora] = []
    for text in texts:
        name, _, weight = text.rpartition(":")
        try:
            wanted = {"name": name, "weight": float(weight)} if name else {"name": text}
            found.append(msgspec.convert(wanted, Lora))
        except ValueError:  # of float, and msgspec's
            words = "write it as NAME, or NAME:WEIGHT with a weight from -10 to 10"
            raise click.BadParameter(words, param_hint="--lora") from None
    if len(found) > MAX_LORAS:
        raise click.BadParameter(f"at most {MAX_LORAS} can be given", param_hint="--lora")
    return tuple(found)


def _format(output: Path) -> OutputFormat:
    """The format that a file's ending names."""
    found = FORMATS.get(output.suffix.lower())
    if found is None:
        raise click.BadParameter(f"let the name end in one of {', '.join(FORMATS)}", param_hint="--output")
    return found


async def _generate(settings: Settings, model: str, request: ImageRequest) -> ImageResult:
    from hub.hub import open_hub

    with _progress() as on_event:
        async with open_hub(settings) as hub:
            return await hub.generate(model, request, on_event)


@contextlib.contextmanager
def _progress() -> Iterator[OnEvent]:
    """A progress bar, and what moves it."""
    from hub.types import Progress

    with click.progressbar(length=100, label="Drawing", show_eta=False) as bar:

        def on_event(event: Event) -> None:
            if isinstance(event, Progress):
                bar.update(event.step * 100 // event.steps - bar.pos)

        yield on_event


@click.command("replay")
@config_option
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The picture that it was an edit of; several in their order.",
)
@click.option("--mask", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The edit's mask.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to put the new picture.")
@click.option(
    "--tolerance",
    type=click.IntRange(0, 255),
    default=1,
    show_default=True,
    help="Largest difference of a pixel's value that counts as the same: a batch's other members change rounding.",
)
def replay_command(
    *,
    config: Path | None,
    file: Path,
    images: tuple[Path, ...],
    mask: Path | None,
    output: Path | None,
    tolerance: int,
) -> None:
    """Make the picture in FILE, a PNG of a hub, again from what the file tells, and report the difference.

    Exits with 1 where it differs by more than the tolerance.
    """
    from hub.receipt import NoReceipt

    if output is not None:
        _check_folder(output)
        if output.suffix.lower() != ".png":
            raise click.BadParameter("let the name end in .png", param_hint="--output")
    with told_plainly():
        settings = settings_from(config, log_level="warning", receipts=True)
        sources = tuple(image.read_bytes() for image in images)
        try:
            made = asyncio.run(_replay(settings, file.read_bytes(), sources, mask.read_bytes() if mask else None))
        except NoReceipt as error:
            raise click.ClickException(f"{file}: {error}.") from None
    for change in made.changed:
        click.echo(f"Changed: {change}", err=True)
    if output is not None:
        output.write_bytes(made.picture)
        click.echo(f"{output}")
    if made.largest == 0:
        click.echo("The same picture, pixel by pixel.")
        return
    words = f"Largest difference {made.largest} of 255, mean {made.mean:.2g}; {made.share:.2g} of all pixels differ."
    click.echo(words)
    if made.largest > tolerance:
        raise click.exceptions.Exit(1)
    click.echo(f"That counts as the same (--tolerance {tolerance}).")


async def _replay(settings: Settings, file: bytes, images: tuple[bytes, ...], mask: bytes | None) -> Replay:
    from hub.hub import open_hub
    from hub.receipt import receipt_in
    from hub.replay import replay

    receipt_in(file)  # before anything is started
    with _progress() as on_event:
        async with open_hub(settings) as hub:
            return await replay(hub, file, images, mask, on_event)
