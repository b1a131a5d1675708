"""A bundle into weights_dir and the folder of manifests: checked as it is read, and seen by nobody before all is right.

What bundle.json says is checked before the disk is touched; then each blob goes under its SHA-256, once it has it and
holds what its name says; then all is linked; and last of all the manifests are written, which make it models. What a
bundle that is refused has brought is taken away again, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from hub.errors import ModelRefused
from hub.library import signing
from hub.library.bundles.archive import Reader
from hub.library.bundles.index import check_content, replaced_in
from hub.library.bundles.manifests import Shelf
from hub.library.bundles.reading import Bundle, Opened, open_bundle
from hub.library.contents import INDEX, shown
from hub.library.layout import Weights
from hub.library.progress import Meter, Note, Report
from hub.library.views import check_complete
from hub.library.writing import digest_of, sync_folder, unwritable
from hub.manifest import ModelManifest, SourceSection
from hub.registry import ListedModel, absence


class ImportResult(Struct, frozen=True):
    """`signer`: the fingerprint of the key that signed the bundle; where it was told which keys are trusted, one of
    these."""

    models: tuple[str, ...]
    signer: str | None


def import_bundle(
    path: Path,
    weights: Weights,
    manifests_dir: Path,
    report: Report,
    *,
    trust: Path | None = None,
    known: Iterable[ListedModel] = (),
    decided: Collection[str] = (),
    replace: bool = False,
) -> ImportResult:
    """Reads a bundle in. `trust`: public keys, one of which must have signed it. `known`: all models of the hub by all
    their names; `decided`: aliases of which hub.toml says whose they are. `replace`: models with the same ids are
    replaced.

    Raises ModelRefused for whatever is wrong with it, ModelExists, StorageFull and NotFound. A run that was killed goes
    on where it was when it is called again."""
    with open_bundle(path) as opened:
        _check_signer(opened.key, trust, report)
        bundle, known = opened.read(), list(known)
        shelf = Shelf(manifests_dir, known, decided, replace=replace)
        shelf.check(bundle)
        with contextlib.ExitStack() as locks:
            try:
                for repo in sorted({model.source.repo for model in bundle.index.models}):
                    locks.enter_context(weights.changing(repo, report))
            except ConnectionError:  # of whoever is reported to
                raise
            except OSError as error:
                raise unwritable(error, "The folder of weights") from None
            run = _Run(bundle, weights, known, report)
            with run.undone_if_refused():
                run.look()
                run.copy(opened)
                run.check_complete()
                run.link()
                shelf.prepare(bundle, weights.root)
            shelf.publish()
    models = tuple(model.id for model in bundle.index.models)
    return ImportResult(models, bundle.signer)


def _check_signer(key: bytes | None, trust: Path | None, report: Report) -> None:
    """Raises ModelRefused where the signature, which is right, must be by a key that is trusted, and is not."""
    trusted = signing.read_trusted(trust) if trust is not None else None
    if key is None:
        if trusted is not None:
            raise ModelRefused("The bundle is not signed, and only signed ones are taken.")
        return
    name = signing.fingerprint(key)
    if trusted is None:
        report(Note(message=f"The bundle is signed by {name} (not checked: no --trust)."))
    elif key not in trusted:
        raise ModelRefused(f"The bundle is signed by {name}, which is none of the keys that are trusted.")


class _Run:
    """One import's work on weights_dir, and what must be taken away again if it fails."""

    def __init__(self, bundle: Bundle, weights: Weights, known: Iterable[ListedModel], report: Report) -> None:
        self._weights, self._report = weights, report
        self._known = known
        self._models, self._manifests = bundle.index.models, bundle.manifests
        self._sizes = bundle.index.blobs
        self._names: dict[str, list[str]] = {}
        """What a blob is called, in all models: each name asks for checks of its own."""
        self._repos: dict[str, list[str]] = {}
        """The repositories that need a blob."""
        for model in self._models:
            for file in model.files:
                self._names.setdefault(file.sha256, []).append(file.path)
                if model.source.repo not in self._repos.setdefault(file.sha256, []):
                    self._repos[file.sha256].append(model.source.repo)
        self._lacking: dict[str, list[str]] = {}
        self._new_links: list[tuple[SourceSection, dict[str, str]]] = []
        self._made: list[Path] = []
        self._replaced: dict[Path, Path] = {}
        self._folders = self._folders_before()

    def _folders_before(self) -> dict[Path, bool]:
        """Whether the folders that the import needs were there."""
        files = [self._weights.blob(repo, digest) for digest, repos in self._repos.items() for repo in repos]
        files += [self._place(model.source, file.path) for model in self._models for file in model.files]
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self._weights.root)}
        return {folder: folder.is_dir() for folder in folders}

    def _place(self, source: SourceSection, path: str) -> Path:
        return self._weights.snapshot(source) / path

    def look(self) -> None:
        """What is there already: blobs that are right are kept, and no snapshot is given other files than it has."""
        there = [(repo, digest) for digest, repos in self._repos.items() for repo in repos if self._has(repo, digest)]
        meter = Meter("verify", sum(self._sizes[digest] for _, digest in there), self._report)
        right = {(repo, digest) for repo, digest in there if self._is_right(repo, digest, meter)}
        self._lacking = {
            digest: [repo for repo in repos if (repo, digest) not in right] for digest, repos in self._repos.items()
        }
        used = self._used_places()
        for source, files in self._snapshots():
            self._new_links.append((source, self._links_needed(source, files, used)))
        new = [digest for digest, repos in self._lacking.items() if len(repos) == len(self._repos[digest])]
        needed = sum(self._sizes[digest] for digest in new)  # what repositories share takes no more, nearly everywhere
        self._weights.check_room(needed, "The bundle")

    def _has(self, repo: str, digest: str) -> bool:
        blob = self._weights.blob(repo, digest)
        return blob.is_file() and not blob.is_symlink() and blob.stat().st_size == self._sizes[digest]

    def _is_right(self, repo: str, digest: str, meter: Meter) -> bool:
        blob = self._weights.blob(repo, digest)
        return digest_of(blob, self._names[digest][0], self._sizes[digest], meter) == digest

    def _snapshots(self) -> list[tuple[SourceSection, dict[str, str]]]:
        """Every folder with all its files, whichever models of the bundle they are of."""
        found: dict[tuple[str, str], tuple[SourceSection, dict[str, str]]] = {}
        for model in self._models:
            key = model.source.repo, model.source.revision
            found.setdefault(key, (model.source, {}))[1].update(model.digests)
        return list(found.values())

    def _used_places(self) -> list[Path]:
        """Where the files lie of the models that are here and can be loaded."""
        places: list[str | None] = []
        for each in {listed.manifest.id: listed.manifest for listed in self._known}.values():
            if isinstance(each, ModelManifest) and absence(each) is None:
                places += [each.path, each.pipeline.config, each.lossy.vae, *each.components.values()]
        # The last name's own link is not followed: it leads among the blobs.
        named = [Path(place) for place in places if place is not None]
        return [Path(os.path.realpath(place.parent), place.name) for place in named]

    def _links_needed(self, source: SourceSection, files: dict[str, str], used: list[Path]) -> dict[str, str]:
        """Files of the snapshot that are not there yet. One that is there with other contents belongs to a model that
        somebody has: a bundle may not change it by claiming the same source.

        Nor may it add files to one: what is read of a component is found by its files' names, and a table sha256 has to
        name all weights there are. That also refuses an honest bundle with another variant of the same revision. It is
        not put under a name of its own instead (kind local): its manifest would not be the one that was signed, the
        model could never be fetched again, and the next import would not find it. What is missing of a snapshot that
        was never whole, or that `verify` has taken apart, may come.
        """
        needed = {}
        for path, digest in files.items():
            place, blob = self._place(source, path), self._weights.blob(source.repo, digest)
            if place.is_symlink() and os.path.realpath(place) == os.path.realpath(blob):
                continue
            if not place.exists():
                needed[path] = digest
            elif not place.is_file() or _sha256(place) != digest:
                raise ModelRefused(
                    f"{source.repo} is here already, and has another {shown(path)} than the bundle's at "
                    "the same revision. Remove that model first if it is the bundle's that you want."
                )
        # The revision of a local one is made of all its files' names and digests, which was checked.
        if needed and source.kind != "local" and self._is_somebodys(source, used):
            raise ModelRefused(
                f"{source.repo} is here already, without the bundle's {shown(min(needed))} at the same revision, and "
                "an import adds nothing to it. Remove that model first if it is the bundle's that you want."
            )
        return needed

    def _is_somebodys(self, source: SourceSection, used: list[Path]) -> bool:
        """Whether a snapshot is whole, or has something that a model of this hub is made of."""
        snapshot = self._weights.snapshot(source)
        real = os.path.realpath(snapshot)
        return os.path.lexists(snapshot / INDEX) or any(place.is_relative_to(real) for place in used)

    def copy(self, opened: Opened) -> None:
        """All blobs that are lacking, in the bundle's order."""
        lacking = {digest for digest, repos in self._lacking.items() if repos}
        meter = Meter("copy", sum(self._sizes[digest] for digest in lacking), self._report)
        for digest, reader in opened.blobs(self._sizes):
            if len(self._lacking[digest]) < len(self._repos[digest]):
                reader.skip()
                self._check(next(self._places_with(digest)), digest)
            else:
                self._receive(digest, reader, meter)
            self._share(digest)

    def _places_with(self, digest: str) -> Iterator[Path]:
        """Where a blob lies that is right."""
        for repo in self._repos[digest]:
            if repo not in self._lacking[digest]:
                yield self._weights.blob(repo, digest)

    def _receive(self, digest: str, reader: Reader, meter: Meter) -> None:
        """A blob's bytes to the first repository that needs it; named only when it is whole, right, and looked at."""
        blob = self._weights.blob(self._lacking[digest][0], digest)
        part = self._begin(blob)
        found, name = hashlib.sha256(), self._names[digest][0]
        with part.open("xb") as stream:
            for chunk in reader.chunks():
                found.update(chunk)
                stream.write(chunk)
                meter.add(name, self._sizes[digest], len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
        if found.hexdigest() != digest:
            raise ModelRefused(f"{shown(name)} is damaged in the bundle: it is not what bundle.json says.")
        self._check(part, digest)
        self._end(part, blob)
        del self._lacking[digest][0]

    def _share(self, digest: str) -> None:
        """The same blob for the other repositories: a second name for it, where the file system has such."""
        for repo in self._lacking[digest]:
            blob = self._weights.blob(repo, digest)
            part = self._begin(blob)
            source = next(self._places_with(digest))
            try:
                os.link(source, part)
            except OSError:
                shutil.copyfile(source, part)
            self._end(part, blob)
        self._lacking[digest] = []

    def _begin(self, blob: Path) -> Path:
        part = blob.with_name(f"{blob.name}.incomplete")
        blob.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # of a run that was killed
        self._made.append(part)
        return part

    def _end(self, part: Path, blob: Path) -> None:
        if not blob.exists():  # a damaged one is mended for good
            self._made.append(blob)
        part.replace(blob)

    def _check(self, file: Path, digest: str) -> None:
        for name in dict.fromkeys(self._names[digest]):
            check_content(file, name)

    def check_complete(self) -> None:
        """Raises ModelRefused for a model that `add` would not take: that lacks a part, or asks for other code."""
        for model in self._models:
            manifest = self._manifests[model.id]
            check_complete(
                {path: self._weights.blob(model.source.repo, digest) for path, digest in model.digests.items()},
                manifest.pipeline.variant,
                single=model.source.file,
                config=manifest.pipeline.config,
                replaced=replaced_in(manifest),
            )

    def link(self) -> None:
        """Every file under its name, when what it leads to is on the disk for good."""
        for repo in {model.source.repo for model in self._models}:
            sync_folder(self._weights.repo(repo) / "blobs")
        for source, needed in self._new_links:
            for path in needed:
                place = self._place(source, path)
                if place.is_symlink():  # it led nowhere
                    self._replaced[place] = place.readlink()
                self._made.append(place)
            self._weights.link_all(source, needed)

    @contextlib.contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """Takes away what was made where the context ends in an error. Not where it is interrupted: what has come then
        is right, and the next run need not read it again. That nobody listens any more is an interruption, too."""
        try:
            yield
        except ConnectionError:
            raise
        except OSError as error:
            self._undo()
            raise unwritable(error, "The bundle's files in weights_dir") from None
        except Exception:
            self._undo()
            raise

    def _undo(self) -> None:
        for place in reversed(self._made):
            with contextlib.suppress(OSError):
                place.unlink()
        for place, target in self._replaced.items():
            with contextlib.suppress(OSError):
                place.symlink_to(target)
        for folder, was in sorted(self._folders.items(), reverse=True):
            if not was:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    folder.rmdir()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
