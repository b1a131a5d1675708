"""Models from Hugging Face: what a pull would bring, and the pull itself.

Nothing is believed before it is checked: the list of files, then model_index.json, then every configuration, and only
then weights, each by its digest and its header. What is refused leaves nothing behind; what was interrupted stays, and
the next pull goes on from there, in whatever process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

from hub.errors import InvalidRequest, ModelRefused, PullFailed
from hub.library import selection
from hub.library.contents import INDEX, check_file, is_kept, is_plain_path, is_weights, read_config, shown
from hub.library.download import Download, RemoteFile, of_disk, part_of, present, verified
from hub.library.hugging_face import HuggingFace, Patience, Stop
from hub.library.layout import Weights
from hub.library.orders import REVISION_PATTERN
from hub.library.progress import Meter, Note, Report, silent
from hub.library.views import check_complete
from hub.library.writing import sync_folder
from hub.manifest import COMMIT_PATTERN, REPO_PATTERN, VARIANT_PATTERN, SourceSection

MAX_INDEX = 1 << 20
MOST_KINDS = 6
USUAL = Patience()


class Wanted(Struct, frozen=True, kw_only=True):
    """What somebody asked for. `revision`: branch, tag or commit; `variant`: fp16 …"""

    repo: str
    revision: str = "main"
    variant: str | None = None


class Found(Struct, frozen=True, kw_only=True):
    """What a pull would fetch. `source`: with the commit that `wanted.revision` is now. `files`: by name. `license`: as
    the model card has it. `gated`: auto or manual, where its terms must be accepted. `variants`: each with the bytes
    that a pull of it would take. `skipped`: names of files that a pull leaves where they are."""

    wanted: Wanted
    source: SourceSection
    files: dict[str, RemoteFile]
    license: str | None
    gated: str | None
    variants: dict[str, int]
    skipped: list[str]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return total_of(self.files.values())


def total_of(files: Iterable[RemoteFile]) -> int:
    """Bytes, of what several names share once."""
    return sum({file.digest: file.size for file in files}.values())


def parse_repo(text: str) -> Wanted:
    """`REPO[@REV]`, as in `stabilityai/sdxl-turbo@main`; raises InvalidRequest."""
    repo, at, revision = text.partition("@")
    if "://" in text or text.lower().startswith(("huggingface.co/", "hf.co/", "www.")):
        path = re.sub(r"^([a-z]+://)?[^/]*/", "", text, flags=re.IGNORECASE).split("/")
        example = "/".join(path[:2])
        known = re.fullmatch(REPO_PATTERN, example)
        raise InvalidRequest(
            f"Write the repository as {example if known else 'ORG/NAME'}, without an address.", param="repo"
        )
    wanted = Wanted(repo=repo, revision=revision) if at else Wanted(repo=repo)
    check_wanted(wanted)
    return wanted


def check_wanted(wanted: Wanted) -> None:
    """Raises InvalidRequest for names that Hugging Face cannot have."""
    if "/" not in wanted.repo.strip("/"):
        raise InvalidRequest(
            f"'{shown(wanted.repo)}' has no namespace: write it as ORG/NAME, as in stabilityai/sdxl-turbo.",
            param="repo",
        )
    if not re.fullmatch(REPO_PATTERN, wanted.repo) or re.search(r"(\.git|[-.]|[-.]/.*)$", wanted.repo):
        raise InvalidRequest(
            f"'{shown(wanted.repo)}' is not a repository's name: ORG/NAME, of letters, digits, '-', '_' and '.'.",
            param="repo",
        )
    if not re.fullmatch(REVISION_PATTERN, wanted.revision):
        raise InvalidRequest(f"'{shown(wanted.revision)}' is not a branch, tag or commit.", param="revision")
    if wanted.variant is not None and not re.fullmatch(VARIANT_PATTERN, wanted.variant):
        raise InvalidRequest(f"'{shown(wanted.variant)}' is not a variant, as fp16 is one.", param="variant")


def look_up(
    wanted: Wanted,
    *,
    report: Report = silent,
    cancelled: threading.Event | None = None,
    patience: Patience = USUAL,
    offline: bool = False,
) -> Found:
    """Asks Hugging Face what a pull would bring; nothing of it is kept. Raises RepoNotFound, RepoForbidden,
    ModelRefused, PullFailed, Offline, InvalidRequest, and JobCancelled once `cancelled` is set."""
    check_wanted(wanted)
    there = HuggingFace(
        wanted.repo, wanted.revision, patience=patience, report=report, cancelled=Stop(cancelled), offline=offline
    )
    info = there.model_info()
    listed = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    selection.check_names(listed)
    if INDEX not in listed:
        look = selection.look_of(listed, info.tags or ())
        raise ModelRefused(f"{wanted.repo} is not in diffusers' layout (it has no {INDEX}); {look}.", param="repo")
    source = SourceSection(repo=wanted.repo, revision=_commit(info.sha))
    there.revision = source.revision
    index = _read_index(there, _remote(listed[INDEX]))
    components = selection.read_components(index, listed)
    chosen = selection.choose(components, listed, wanted.variant)
    check_complete({**dict.fromkeys(chosen), INDEX: json.dumps(index).encode()}, wanted.variant)
    files = {path: _remote(listed[path]) for path in chosen}
    selection.check_sizes({path: file.size for path, file in files.items()})
    found = Found(
        wanted=wanted,
        source=source,
        files=files,
        license=_license(info),
        gated=info.gated or None,
        variants={
            name: total_of(_remote(listed[path]) for path in paths)
            for name, paths in selection.variants_of(components, listed).items()
        },
        skipped=sorted(set(listed) - set(chosen)),
    )
    for words in _notes(found):
        report(Note(message=words))
    return found


def _notes(found: Found) -> Iterator[str]:
    """What its owner should know beside its size."""
    seen = [path for path in found.skipped if not path.rpartition("/")[2].startswith(".")]
    if seen:
        kinds = sorted({PurePosixPath(path).suffix for path in seen} - {""})
        files = (
            "1 file of another kind or variant is"
            if len(seen) == 1
            else f"{len(seen)} files of other kinds or variants are"
        )
        named = shown(", ".join(kinds[:MOST_KINDS])) + (" …" if len(kinds) > MOST_KINDS else "")
        yield f"{files} left out{f' ({named})' if named else ''}."
    odd = [path for path in seen if is_kept(path) and not is_plain_path(path)]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        yield f"Left out for its name, which a file of a model may not have: '{shown(odd[0])}'{more}."
    if found.gated:
        yield f"{found.source.repo} is gated: whoever gets the model from you has to accept its terms, too."


def _commit(sha: Any) -> str:
    if not isinstance(sha, str) or not re.fullmatch(COMMIT_PATTERN, sha):
        raise PullFailed("Hugging Face did not say which commit the revision is. Is HF_ENDPOINT right?")
    return sha


def _remote(sibling: Any) -> RemoteFile:
    """What the list says of a file, in shapes that can be trusted to be names and numbers."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    size, digest = (sibling.lfs.size, sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
    if (
        type(size) is int
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}" if sha256 else "[0-9a-f]{40}", digest)
    ):
        return RemoteFile(size, digest, sha256)
    raise PullFailed(f"Hugging Face did not say what {shown(sibling.rfilename)} is (size and digest).")


def _license(info: Any) -> str | None:
    card = info.card_data
    name = getattr(card, "license", None)
    if name == "other":
        name = getattr(card, "license_name", None) or name
    name = name[0] if isinstance(name, list) and name else name
    return shown(name) if isinstance(name, str) and name else None


def _read_index(there: HuggingFace, remote: RemoteFile) -> Any:
    if remote.size > MAX_INDEX:
        raise ModelRefused(f"{INDEX} would have {remote.size} bytes, which is absurd.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetched = Download(
                there, Path(folder, remote.digest), INDEX, remote, meter=Meter("download", 0, silent), report=silent
            )
            fetched.run()
        except OSError as error:
            raise of_disk(error) from None
        return read_config(fetched.part, INDEX)


def fetch(
    found: Found,
    weights: Weights,
    report: Report,
    *,
    workers: int = 4,
    cancelled: threading.Event | None = None,
    patience: Patience = USUAL,
    offline: bool = False,
) -> dict[str, str]:
    """Fetches what is missing, `workers` files at a time, and links all of it; returns the SHA-256 of every file by
    name. Every one was verified in this call, also those that were there.

    Raises PullFailed, StorageFull and JobCancelled, after which what has come stays for the next call; ModelRefused,
    after which nothing of it does; and what `look_up` raises.
    """
    stop = Stop(cancelled)
    there = HuggingFace(
        found.source.repo, found.source.revision, patience=patience, report=report, cancelled=stop, offline=offline
    )
    with _disk_errors(), weights.changing(found.source.repo, report):
        return _Pull(found, weights, there, stop, report).run(workers)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except ConnectionError:  # of whoever is reported to
        raise
    except OSError as error:
        raise of_disk(error) from None


class _Pull:
    """One call of `fetch`, which holds the repository's lock."""

    def __init__(self, found: Found, weights: Weights, there: HuggingFace, stop: Stop, report: Report) -> None:
        self._found, self._weights, self._there, self._stop, self._report = found, weights, there, stop, report
        self._names: dict[str, list[str]] = {}  # by digest: what several names share is fetched once
        for path, remote in found.files.items():
            self._names.setdefault(remote.digest, []).append(path)
        self._meter = Meter("download", found.total, report)

    def run(self, workers: int) -> dict[str, str]:
        found, weights = self._found, self._weights
        blobs = [(self._blob(digest), found.files[names[0]]) for digest, names in self._names.items()]
        weights.check_room(found.total - present(blobs), f"What is to come of {found.source.repo}")
        heavy = {digest for digest, names in self._names.items() if any(map(is_weights, names))}
        try:
            sha256 = self._bring(sorted(set(self._names) - heavy), workers)
            self._check_complete(heavy)
            sha256 |= self._bring(sorted(heavy, key=lambda digest: self._names[digest]), workers)
        except ModelRefused:
            self._sweep()
            raise
        weights.link_all(found.source, {path: remote.digest for path, remote in found.files.items()})
        self._name_revision()
        return {path: sha256[remote.digest] for path, remote in sorted(found.files.items())}

    def _check_complete(self, heavy: Collection[str]) -> None:
        """What `look_up` could tell by names alone, now that configurations and indices of shards are there. All of the
        weights comes before anything is linked."""
        files = self._found.files
        check_complete(
            {path: None if each.digest in heavy else self._blob(each.digest) for path, each in files.items()},
            self._found.wanted.variant,
        )

    def _blob(self, digest: str) -> Path:
        return self._weights.blob(self._found.source.repo, digest)

    def _bring(self, digests: Iterable[str], workers: int) -> dict[str, str]:
        """SHA-256 by digest. The first failure stops all others, and is the one that is raised."""
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="pull") as pool:
            tasks = {pool.submit(self._bring_one, digest): digest for digest in digests}
            try:
                return {tasks[task]: task.result() for task in as_completed(tasks)}
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _bring_one(self, digest: str) -> str:
        names, blob = self._names[digest], self._blob(digest)
        remote = self._found.files[names[0]]
        sha256 = verified(blob, remote, self._there.check_wanted)
        if sha256 is not None:
            self._meter.add(names[0], remote.size, remote.size, moved=False)
            self._check(blob, names)
            return sha256
        if blob.exists():
            self._report(Note(message=f"{names[0]} was damaged on the disk; fetching it again."))
        download = Download(self._there, blob, names[0], remote, meter=self._meter, report=self._report)
        sha256 = download.run()
        self._check(download.part, names)
        download.part.replace(blob)
        sync_folder(blob.parent)
        return sha256

    def _check(self, file: Path, names: Iterable[str]) -> None:
        for name in names:
            try:
                check_file(file, name)
            except ModelRefused:
                if file.exists():
                    raise
                raise PullFailed(f"{shown(name)} was deleted while it came. Pull it again.") from None

    def _sweep(self) -> None:
        """Removes what was fetched of a model that is refused, in this call or before; not what a snapshot has."""
        folder = self._weights.repo(self._found.source.repo)
        linked = {link.readlink().name for link in (folder / "snapshots").rglob("*") if link.is_symlink()}
        for digest in set(self._names) - linked:
            self._blob(digest).unlink(missing_ok=True)
            part_of(self._blob(digest)).unlink(missing_ok=True)
        for empty in (folder / "blobs", folder):
            with contextlib.suppress(OSError):
                empty.rmdir()  # where anything else lies in it, it stays

    def _name_revision(self) -> None:
        """Writes refs/NAME, by which other programs find the snapshot."""
        wanted, source = self._found.wanted, self._found.source
        if wanted.revision == source.revision:
            return
        place = self._weights.repo(source.repo) / "refs" / wanted.revision
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{secrets.token_hex(4)}.tmp")
        with fresh.open("w") as stream:
            stream.write(source.revision)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(place)
