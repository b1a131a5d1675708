"""`hub models list` and `show`: what there is, here and elsewhere. Nobody is asked but a hub that runs here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.common import config_option, loaded_models, settings_from, told_plainly
from hub.library.progress import as_bytes

if TYPE_CHECKING:
    from hub.library.orders import LibraryModel
    from hub.manifest import ModelManifest, RemoteManifest, RouteManifest
    from hub.registry import Registry
    from hub.settings import Settings

model_argument = click.argument("model")
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


@click.command("list")
@config_option
@json_option
def list_models(config: Path | None, *, as_json: bool) -> None:
    """List every model: size, where it is from, when it was used, whether it is loaded, licence, aliases; of remote
    ones the provider, and whether there is a key; and routes with their targets."""
    from hub.cli.elsewhere import elsewhere, in_words
    from hub.library.orders import LibraryModel

    with told_plainly():
        settings = settings_from(config)
        registry = _registry(settings)
        found = [*_listing(settings, registry), *elsewhere(registry, settings)]
    if as_json:
        print_json(found)
        return
    for model in found:
        words = _in_words(model) if isinstance(model, LibraryModel) else in_words(model)
        click.echo(f"{model.id}  {model.name} ({', '.join(model.tasks)}){'  [default]' if model.default else ''}")
        click.echo(f"    {'; '.join(words)}")
        click.echo(f"    aliases: {', '.join(model.aliases) or 'none'}")


def _in_words(model: LibraryModel) -> list[str]:
    words = [as_bytes(model.bytes), _from(model), _used(model), model.license]
    if model.loaded:
        words.insert(2, "loaded")
    if model.state == "missing":
        words[0] = "WEIGHTS MISSING"
    return words


@click.command()
@model_argument
@config_option
@json_option
def show(model: str, config: Path | None, *, as_json: bool) -> None:
    """Show all about MODEL, and the manifest that its owner may edit."""
    from hub.manifest import ModelManifest

    with told_plainly():
        settings = settings_from(config)
        registry = _registry(settings)
        manifest = registry.get(model).manifest
        if isinstance(manifest, ModelManifest):
            _show_local(manifest, registry, settings, as_json=as_json)
        else:
            _show_elsewhere(manifest, registry, settings, as_json=as_json)


def _show_elsewhere(
    manifest: RemoteManifest | RouteManifest, registry: Registry, settings: Settings, *, as_json: bool
) -> None:
    from hub.cli.elsewhere import elsewhere, in_rows
    from hub.library.places import Places

    found = next(each for each in elsewhere(registry, settings) if each.id == manifest.id)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.id}  {found.name}\n{found.description}\n")
    made_of_alias = "hub.toml, [aliases]" if manifest.id in settings.aliases else "part of the hub"
    source = Places.of(settings).manifest_file(manifest.id) or made_of_alias
    for name, text in (*in_rows(found, manifest), ("manifest", str(source))):
        if text:
            click.echo(f"{name:>9}  {text}")


def _show_local(manifest: ModelManifest, registry: Registry, settings: Settings, *, as_json: bool) -> None:
    from hub.library.places import Places, files_of, size_of_file

    found = next(each for each in _listing(settings, registry) if each.id == manifest.id)
    source = Places.of(settings).manifest_file(manifest.id)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.id}  {found.name}\n{found.description}\n")
    rows = {
        "licence": found.license,
        "tasks": ", ".join(found.tasks),
        "from": _from(found),
        "weights": f"{as_bytes(found.bytes)} in {manifest.path}" if found.state == "ready" else "MISSING",
        "variant": found.variant or "",
        "size": f"{manifest.size.native} (sides {manifest.size.min} to {manifest.size.max})",
        "steps": str(manifest.defaults.num_inference_steps),
        "guidance": "" if manifest.defaults.guidance_scale is None else f"{manifest.defaults.guidance_scale:g}",
        "aliases": ", ".join(found.aliases),
        "used": _used(found),
        "manifest": str(source or "part of the hub"),
    }
    for name, text in rows.items():
        if text:
            click.echo(f"{name:>9}  {text}")
    for name, file in files_of(manifest):
        click.echo(f"{as_bytes(size_of_file(file)):>12}  {name}")


def _registry(settings: Settings) -> Registry:
    from hub.library.places import Places

    return Places.of(settings).registry()


def _listing(settings: Settings, registry: Registry) -> list[LibraryModel]:
    from hub.library.library import listing
    from hub.library.places import Places

    return listing(registry, Places.of(settings), loaded=loaded_models(settings), default=settings.default_model)


def _from(model: LibraryModel) -> str:
    source = model.source
    if source is not None and source.kind == "huggingface":
        return f"{source.repo}@{source.revision[:12]}"
    return {"built-in": "built in", "local": "imported or copied", "folder": "a folder", "file": "a single file"}.get(
        model.origin, model.origin
    )


def _used(model: LibraryModel) -> str:
    if model.last_used_at is None:
        return "not used"
    return time.strftime("used %Y-%m-%d %H:%M", time.localtime(model.last_used_at))


def print_json(value: Any) -> None:
    """For people, and for programs."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
