"""A pull from end to end: which repository, its files, and the manifest that makes a model of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import ModelExists, ModelRefused, PullFailed
from hub.library.orders import Made, Pull
from hub.library.places import Places, bytes_of
from hub.library.progress import Note, Report, as_bytes
from hub.manifest import ModelManifest
from hub.registry import Registry

if TYPE_CHECKING:
    from hub.library.pull import Found


def pull(order: Pull, places: Places, report: Report, cancelled: threading.Event | None = None) -> Made:
    """Fetches a model and writes its manifest, or mends that of a model which is here already, whose owner may have
    edited it: only where it came from and its hashes change. Raises HubError."""
    from hub.library.manifests import check_id, check_writable
    from hub.library.pull import Wanted, fetch, look_up, parse_repo

    registry = places.registry()
    known = _known(order, registry)
    if known is not None and known.source is not None:
        revision = order.revision or known.source.revision
        variant = order.variant or known.pipeline.variant
        wanted = Wanted(repo=known.source.repo, revision=revision, variant=variant)
    else:
        wanted = parse_repo(order.repo)
        revision = order.revision or wanted.revision
        wanted = Wanted(repo=wanted.repo, revision=revision, variant=order.variant)
        check_id(order.id or wanted.repo)
        known = _named(order.id or wanted.repo, wanted.repo, registry)
    check_writable(Path(places.owned))
    report(Note(message=f"Looking up {wanted.repo}@{wanted.revision}."))
    found = look_up(wanted, report=report, cancelled=cancelled, offline=places.offline)
    report(Note(message=_told(found)))
    if known is not None:
        _check_pinned(known, found)
    digests = fetch(found, places.weights, report, cancelled=cancelled, offline=places.offline)
    with places.weights.changing(found.source.repo, report):
        _check_whole(found, places)
        name, guessed = _write(order, found, digests, places, report)
    made = places.registry().get(name).local
    return Made(models=[name], bytes=bytes_of(made), guessed=guessed)


def _check_pinned(known: ModelManifest, found: Found) -> None:
    """Raises ModelRefused where the same revision has other weights than the manifest says: a mirror may lie, and the
    owner's table is not overwritten unasked."""
    if known.source is None or known.source.revision != found.source.revision:
        return
    for path, file in sorted(found.files.items()):
        pinned = known.sha256.get(path)
        if pinned is not None and file.sha256 is not None and pinned != file.sha256:
            words = f"{path} there is not what the table sha256 of the manifest of '{known.id}' says."
            raise ModelRefused(f"{words} Nothing was fetched; if the table is wrong, take that line out.")


def _check_whole(found: Found, places: Places) -> None:
    """Raises PullFailed where somebody has deleted what has just come: a manifest would promise what is not there."""
    snapshot = places.weights.snapshot(found.source)
    if not all((snapshot / path).is_file() for path in found.files):
        raise PullFailed(f"What came of {found.source.repo} was deleted at the same moment. Pull it again.")


def _write(
    order: Pull, found: Found, digests: Mapping[str, str], places: Places, report: Report
) -> tuple[str, list[str]]:
    """The manifest; of a model that is here by now, only what has changed. The model's id, and what was guessed."""
    from hub.library.describe import describe
    from hub.library.manifests import update_manifest, write_manifest

    weights = {path: digest for path, digest in digests.items() if path.endswith(".safetensors")}
    with places.changing_manifests():
        known = _wanted(order, found.wanted.repo, places.registry())
        if known is not None and (source := places.manifest_file(known.id)) is not None:
            update_manifest(source, source=found.source, sha256=weights, variant=found.wanted.variant)
            return known.id, []
        draft = describe(
            places.weights.snapshot(found.source),
            id=order.id or found.wanted.repo,
            license=found.license,
            source=found.source,
            variant=found.wanted.variant,
            sha256=weights,
        )
        for note in draft.notes:
            report(Note(message=note))
        made_by = _command(found.wanted.repo, order)
        write_manifest(Path(places.owned), draft.manifest, guessed=draft.guessed, made_by=made_by)
        return draft.manifest.id, draft.guessed


def _wanted(order: Pull, repo: str, registry: Registry) -> ModelManifest | None:
    """The model that is to be mended."""
    return _known(order, registry) or _named(order.id or repo, repo, registry)


def _known(order: Pull, registry: Registry) -> ModelManifest | None:
    """The model that is asked for by its own name."""
    for listed in registry:
        if listed.id == order.repo and order.id in (None, listed.manifest.id):
            found = listed.manifest
            if isinstance(found, ModelManifest) and found.source and found.source.kind == "huggingface":
                return found
    return None


def _named(name: str, repo: str, registry: Registry) -> ModelManifest | None:
    """The model that has the name already; raises ModelExists where it comes from elsewhere."""
    listed = next((each for each in registry if each.id == name), None)
    if listed is None:
        return None
    found = listed.manifest
    if listed.is_alias:
        words = f"'{name}' is an alias of '{found.id}'. Give this model another name with --id, and that name to it"
        raise ModelExists(f"{words} with `hub models alias`.", param="id")
    source = found.source if isinstance(found, ModelManifest) else None
    if not isinstance(found, ModelManifest) or not source or source.kind != "huggingface" or source.repo != repo:
        raise ModelExists(f"There is a model '{name}' already. Give this one another name with --id.", param="id")
    return found


def _told(found: Found) -> str:
    """What is about to be fetched, and whether there would be less of it."""
    words = f"{found.source.repo}@{found.source.revision[:12]}: {as_bytes(found.total)} in {len(found.files)} files."
    smaller = {name: size for name, size in found.variants.items() if size < found.total}
    if not found.wanted.variant and smaller:
        name = min(smaller, key=lambda each: smaller[each])
        words += f" Its variant {name} would be {as_bytes(smaller[name])} (--variant {name})."
    return words


def _command(repo: str, order: Pull) -> str:
    variant = f" --variant {order.variant}" if order.variant else ""
    return f"hub models pull {repo}{variant}"
