"""`hub models`: what there is, and all that an owner does with it. Works on the folders, whether a hub runs or not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.common import config_option, settings_from, told_plainly
from hub.cli.listing import list_models, print_json, show
from hub.library.progress import as_bytes

if TYPE_CHECKING:
    from hub.library.orders import Order, Result
    from hub.settings import Settings

events_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: progress, notes, and last what came of it."
)
model_argument = click.argument("model")


@click.group()
def models() -> None:
    """Models: list, fetch, add, verify, remove, and carry to other machines."""


models.add_command(list_models)
models.add_command(show)


@models.command()
@click.argument("repo", metavar="REPO[@REVISION]")
@click.option("--id", "name", help="What it is called here (default: the repository's name).")
@click.option("--variant", help="Which files, where a component has several: fp16, for example.")
@config_option
@events_option
def pull(*, repo: str, name: str | None, variant: str | None, config: Path | None, as_json: bool) -> None:
    """Fetch REPO, a model in diffusers' layout, from Hugging Face, and write its manifest. Goes on where it was
    interrupted. REPO may also be the id of a model whose manifest says where it comes from.

    A token, where one is needed, is taken from HF_TOKEN, or from the file that `hf auth login` writes. HF_ENDPOINT
    names a mirror."""
    from hub.library.orders import Pull

    text, _, revision = repo.partition("@")
    _perform(config, lambda _: Pull(repo=text, revision=revision or None, variant=variant, id=name), as_json=as_json)


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--id", "model", help="What it is called here (default: the name of the folder or file).")
@click.option("--name", help="A name for people.")
@click.option("--license", "license_", help="Its licence, where it brings none.")
@click.option("--copy", is_flag=True, help="Copy it into weights_dir; else it stays where it is.")
@click.option(
    "--from", "configs", help="For a single file: a folder of configurations, or the id of a model with them."
)
@click.option("--variant", help="Which files, where a component has several: fp16, for example.")
@config_option
@events_option
def add(
    *, path: Path, model: str | None, license_: str | None, configs: str | None, as_json: bool, **more: Any
) -> None:
    """Add the diffusers folder or single safetensors file PATH: write a manifest for it."""
    from hub.library.orders import Add

    order = Add(
        path=str(path.absolute()),
        id=model,
        name=more["name"],
        license=license_,
        copy=more["copy"],
        config=configs,
        variant=more["variant"],
    )
    _perform(more["config"], lambda _: order, as_json=as_json)


@models.command()
@click.argument("models_", metavar="[MODEL]...", nargs=-1)
@config_option
@events_option
def verify(*, models_: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Read every file of the MODELs, or of all, and compare it with what it should be. What is damaged in weights_dir
    is set aside; `hub models pull` brings it back. Exits with 1 where anything is wrong."""
    from hub.library.orders import Verify

    _perform(config, lambda _: Verify(models=list(models_) or None), as_json=as_json)


@models.command("rm")
@model_argument
@config_option
@events_option
def remove(*, model: str, config: Path | None, as_json: bool) -> None:
    """Remove MODEL: its manifest, and its weights where they lie in weights_dir and no other model uses them."""
    from hub.library.orders import Remove

    _perform(config, lambda _: Remove(model=model), as_json=as_json)


@models.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@config_option
@events_option
def gc(*, dry_run: bool, config: Path | None, as_json: bool) -> None:
    """Delete from weights_dir what no model uses: interrupted downloads, damaged files, old revisions."""
    from hub.library.orders import Clean

    _perform(config, lambda _: Clean(dry_run=dry_run), as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Take the alias away.")
@config_option
@events_option
def alias(*, name: str, target: str | None, remove: bool, config: Path | None, as_json: bool) -> None:
    """Let the id NAME be answered by the model TARGET."""
    from hub.library.orders import Alias

    if (target is None) != remove:
        raise click.UsageError("Give a TARGET, or --remove.")
    _perform(config, lambda _: Alias(name=name, target=target), as_json=as_json)


@models.command()
@click.argument("models_", metavar="MODEL...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write (.hubmodels).")
@click.option("--sign-with", type=click.Path(path_type=Path, exists=True), help="An Ed25519 private key (ssh-keygen).")
@config_option
@events_option
def export(
    *, models_: tuple[str, ...], output: Path, sign_with: Path | None, config: Path | None, as_json: bool
) -> None:
    """Write the MODELs into one file, a bundle, that `hub models import` takes on another machine. Goes on where it was
    interrupted. A passphrase of the key is read from HUB_SIGNING_PASSPHRASE."""
    from hub.library.orders import Export

    key = str(sign_with.absolute()) if sign_with else None
    order = Export(models=list(models_), bundle=str(output.absolute()), sign_with=key)
    _perform(config, lambda _: order, as_json=as_json)


@models.command("import")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--list", "only_list", is_flag=True, help="Only say what is in it.")
@click.option(
    "--trust",
    type=click.Path(path_type=Path, exists=True),
    help="Public keys, one of which must have signed it (default: the setting bundle_signers).",
)
@click.option("--replace", is_flag=True, help="Also models that are here already.")
@config_option
@events_option
def import_command(
    *, bundle: Path, only_list: bool, trust: Path | None, replace: bool, config: Path | None, as_json: bool
) -> None:
    """Take the models of BUNDLE. All of it is checked; what is not as it should be is refused, and nothing of it stays.
    Goes on where it was interrupted."""
    from hub.library.orders import Import

    if only_list:
        with told_plainly():
            _show_bundle(bundle, as_json=as_json)
        return

    def order(settings: Settings) -> Order:
        signers = trust.absolute() if trust else settings.bundle_signers
        return Import(bundle=str(bundle.absolute()), trust=str(signers) if signers else None, replace=replace)

    _perform(config, order, as_json=as_json)


def _show_bundle(bundle: Path, *, as_json: bool) -> None:
    from hub.library.bundles import read_bundle

    found = read_bundle(bundle)
    models: list[dict[str, Any]] = [
        {
            "id": model.id,
            "license": found.manifests[model.id].license,
            "bytes": sum(file.size for file in model.files),
            "source": {"kind": model.source.kind, "repo": model.source.repo, "revision": model.source.revision},
        }
        for model in found.index.models
    ]
    if as_json:
        print_json({"signed_by": found.signer, "bytes": found.size, "models": models})
        return
    click.echo(f"signed by {found.signer}" if found.signer else "not signed")
    for model in models:
        click.echo(f"{model['id']}  {as_bytes(model['bytes'])}; {model['license']}")


def _perform(config: Path | None, order: Callable[[Settings], Order], *, as_json: bool) -> None:
    """Does an order, with bars where there is a terminal, and says what came of it."""
    from hub.cli.progress import Bars, JsonLines, Lines

    with told_plainly():
        settings = settings_from(config)
        from hub.errors import HubError, JobCancelled
        from hub.library.library import Library
        from hub.library.places import Places

        terminal = sys.stderr.isatty()
        with JsonLines() if as_json else Bars() if terminal else Lines() as told:
            try:
                result = Library(Places.of(settings)).perform(_checked(order(settings)), told.report)
            except HubError as error:
                if as_json:
                    told.failed(error)
                    sys.exit(1)
                raise
            except KeyboardInterrupt:
                told.failed(JobCancelled())
                click.echo("Interrupted. Run it again, and it goes on from there.", err=True)
                sys.exit(130)
            told.completed(result)
    if not as_json:
        _say(result)
    if getattr(result, "faults", None):
        sys.exit(1)


def _checked(order: Order) -> Order:
    """As the admin API would take it: Structs that are made in Python are not checked. Raises InvalidRequest."""
    import msgspec

    from hub.api.refusals import invalid

    try:
        return msgspec.convert(msgspec.to_builtins(order), type(order))
    except msgspec.ValidationError as error:
        raise invalid(str(error), type(order)) from None


def _say(result: Result) -> None:
    from hub.library.orders import Bundled, Gone, Made, Renamed, Verified

    match result:
        case Made():
            click.echo(f"{', '.join(result.models)}: ready ({as_bytes(result.bytes)}).")
            if result.signed_by:
                click.echo(f"Signed by {result.signed_by}.")
            if result.guessed:
                words = (
                    f"Guessed, so check it (`hub models show` says where the manifest is): {', '.join(result.guessed)}"
                )
                click.echo(words)
        case Verified():
            for fault in result.faults:
                aside = "; set aside" if fault.quarantined else ""
                click.echo(f"{fault.model}: {fault.file} is {fault.problem}{aside}")
            end = f"{len(result.faults)} faults" if result.faults else "all as it should be"
            click.echo(f"{len(result.models)} models, {result.files} files, {as_bytes(result.bytes)}: {end}.")
        case Gone():
            for name in (*result.models, *result.deleted):
                click.echo(f"{'would delete' if result.dry_run else 'deleted'} {name}")
            click.echo(f"{as_bytes(result.bytes)} {'would be' if result.dry_run else 'are'} free.")
        case Renamed():
            target = result.target
            click.echo(f"{result.name} is answered by {target}." if target else f"{result.name} is no alias any more.")
        case Bundled():
            signed = f", signed by {result.signed_by}" if result.signed_by else ""
            click.echo(f"{result.bundle}: {', '.join(result.models)} ({as_bytes(result.bytes)}{signed}).")
