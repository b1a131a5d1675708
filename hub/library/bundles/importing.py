"""A bundle into weights_dir and the folder of manifests: checked as it is read, and seen by nobody before all is right.

What bundle.json says is checked before the disk is touched; then each blob goes under its SHA-256, once it has it and
holds what its name says; then all is linked; and last of all the manifests are written, which make it models. What a
bundle that is refused has brought is taken away again, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from hub.errors import HubError, ModelRefused, StorageFull
from hub.library import signing
from hub.library.bundles.archive import CHUNK, Reader, sync_folder
from hub.library.bundles.index import BundledModel, check_content
from hub.library.bundles.manifests import Shelf
from hub.library.bundles.reading import Bundle, Opened, open_bundle
from hub.library.contents import shown
from hub.library.layout import Weights
from hub.library.progress import Meter, Note, Report
from hub.manifest import SourceSection


class ImportResult(Struct, frozen=True):
    """`copied`: bytes that came out of the bundle; `kept`: bytes that were there before; `signer`: the fingerprint of
    the key that signed it, `trusted` whether it was among those that are."""

    models: tuple[str, ...]
    copied: int
    kept: int
    signer: str | None
    trusted: bool


def import_bundle(
    path: Path,
    weights: Weights,
    manifests_dir: Path,
    report: Report,
    *,
    trust: Path | None = None,
    require_signature: bool = False,
    replace: bool = False,
) -> ImportResult:
    """Reads a bundle in. `trust`: public keys, one of which must have signed it; `require_signature` refuses what is
    not signed, and what is signed by a key of which nothing is known. `replace`: models with the same ids are replaced.

    Raises ModelRefused for whatever is wrong with it, ModelExists, StorageFull and NotFound. A run that was killed goes
    on where it was when it is called again."""
    with open_bundle(path) as opened:
        trusted = _check_signer(opened.key, trust, require_signature, report)
        bundle = opened.read()
        shelf = Shelf(manifests_dir, replace)
        shelf.check(bundle)
        with contextlib.ExitStack() as locks:
            try:
                for repo in sorted({model.source.repo for model in bundle.index.models}):
                    locks.enter_context(weights.changing(repo, report))
            except OSError as error:
                raise HubError(f"The folder of weights cannot be written: {error.strerror}.") from None
            run = _Run(bundle, weights, report)
            with run.undone_if_refused():
                run.look()
                run.copy(opened)
                run.link()
                shelf.prepare(bundle, weights.root)
            shelf.publish()
    models = tuple(model.id for model in bundle.index.models)
    return ImportResult(models, run.copied, run.kept, bundle.signer, trusted)


def _check_signer(key: bytes | None, trust: Path | None, required: bool, report: Report) -> bool:
    """Whether the signature, which is right, is by a key that is trusted; raises ModelRefused where it must be."""
    known = signing.read_trusted(trust) if trust is not None else None
    if key is None:
        if required or known is not None:
            raise ModelRefused("The bundle is not signed, and only signed ones are taken.")
        return False
    name = signing.fingerprint(key)
    if known is None:
        if required:
            raise ModelRefused(f"The bundle is signed by {name}, and no file says which keys are trusted.")
        report(Note(message=f"The bundle is signed by {name} (not checked: no --trust)."))
        return False
    if key not in known:
        raise ModelRefused(f"The bundle is signed by {name}, which is none of the keys that are trusted.")
    return True


class _Run:
    """One import's work on weights_dir, and what must be taken away again if it fails."""

    def __init__(self, bundle: Bundle, weights: Weights, report: Report) -> None:
        self._weights, self._report = weights, report
        self._models = bundle.index.models
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
        self._new_links: list[tuple[BundledModel, dict[str, str]]] = []
        self._made: list[Path] = []
        self._replaced: dict[Path, Path] = {}
        self._folders = self._folders_before()
        self.copied = self.kept = 0

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
        for model in self._models:
            self._new_links.append((model, self._links_needed(model)))
        new = [digest for digest, repos in self._lacking.items() if len(repos) == len(self._repos[digest])]
        needed = sum(self._sizes[digest] for digest in new)  # what repositories share takes no more, nearly everywhere
        self._weights.check_room(needed, "The bundle")

    def _has(self, repo: str, digest: str) -> bool:
        blob = self._weights.blob(repo, digest)
        return blob.is_file() and not blob.is_symlink() and blob.stat().st_size == self._sizes[digest]

    def _is_right(self, repo: str, digest: str, meter: Meter) -> bool:
        return self._hash(self._weights.blob(repo, digest), digest, meter) == digest

    def _hash(self, file: Path, digest: str, meter: Meter) -> str:
        found = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
                meter.add(self._names[digest][0], self._sizes[digest], len(chunk))
        return found.hexdigest()

    def _links_needed(self, model: BundledModel) -> dict[str, str]:
        """Files of the snapshot that are not there yet. One that is there with other contents belongs to a model that
        somebody has: a bundle may not change it by claiming the same source."""
        needed = {}
        for file in model.files:
            place, blob = self._place(model.source, file.path), self._weights.blob(model.source.repo, file.sha256)
            if place.is_symlink() and os.path.realpath(place) == os.path.realpath(blob):
                continue
            if not place.exists():
                needed[file.path] = file.sha256
            elif not place.is_file() or _sha256(place) != file.sha256:
                raise ModelRefused(
                    f"{model.source.repo} is here already, and has another {shown(file.path)} than the bundle's at "
                    "the same revision. Remove that model first if it is the bundle's that you want."
                )
        return needed

    def copy(self, opened: Opened) -> None:
        """All blobs that are lacking, in the bundle's order."""
        lacking = {digest for digest, repos in self._lacking.items() if repos}
        meter = Meter("copy", sum(self._sizes[digest] for digest in lacking), self._report)
        for digest, reader in opened.blobs(self._sizes):
            if len(self._lacking[digest]) < len(self._repos[digest]):
                reader.skip()
                self._check(next(self._places_with(digest)), digest)
                self.kept += self._sizes[digest]
            else:
                self._receive(digest, reader, meter)
                self.copied += self._sizes[digest]
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

    def link(self) -> None:
        """Every file under its name, when what it leads to is on the disk for good."""
        for repo in {model.source.repo for model in self._models}:
            sync_folder(self._weights.repo(repo) / "blobs")
        for model, needed in self._new_links:
            for path in needed:
                place = self._place(model.source, path)
                if place.is_symlink():  # it led nowhere
                    self._replaced[place] = place.readlink()
                self._made.append(place)
            self._weights.link_all(model.source, needed)

    @contextlib.contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """Takes away what was made where the context ends in an error. Not where it is interrupted: what has come then
        is right, and the next run need not read it again."""
        try:
            yield
        except Exception as error:
            self._undo()
            if not isinstance(error, OSError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull("The disk with weights_dir has no room for the bundle's files.") from None
            raise HubError(f"The bundle's files cannot be written: {error.strerror}.") from None

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
