"""Hugging Face as it is asked here: what a repository has, and its files byte for byte.

huggingface_hub knows the wire: its client, its headers, its errors. Its own download is not used: it writes to a file
of a fresh name and removes that when it is stopped, so that nothing is ever resumed. No token stands in an error, a
note or a log. HF_ENDPOINT, HF_TOKEN and HF_TOKEN_PATH mean what they mean to every other program.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from msgspec import Struct

from hub import __version__
from hub.errors import HubError, JobCancelled, Offline, PullFailed, RepoForbidden, RepoNotFound
from hub.library.contents import shown
from hub.library.progress import Note, Report

SILENT = (
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_UPDATE_CHECK",
)
DEFAULT_ENDPOINT = "https://huggingface.co"
KEPT = "What has come is kept: pull again, and it goes on from there."
T = TypeVar("T")


class Patience(Struct, frozen=True, kw_only=True):
    """How long failures are borne, in seconds: `stall` without a byte is one, after which it goes on from there;
    `tries` in a row without getting further, `wait` after the first, doubled after each; `longest` wait between two,
    whatever the server asks for."""

    stall: float = 30.0
    tries: int = 5
    wait: float = 1.0
    longest: float = 60.0


class Trouble(Exception):
    """Something that may pass. `what` happened, in public words; `after`: seconds that the server asks to wait."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.after = what, after


class Stop:
    """Set by whoever asked, or by the first of several threads that fails."""

    def __init__(self, asked: threading.Event | None = None) -> None:
        self._asked, self._own = asked, threading.Event()

    def set(self) -> None:
        """Everybody who looks stops; the asker's own event stays as it is."""
        self._own.set()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._own.is_set() or (self._asked is not None and self._asked.is_set())

    def wait(self, seconds: float) -> None:
        """So long at most."""
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            self._own.wait(min(0.1, left))


def refuse_offline(offline: bool) -> None:
    """Raises Offline where the caller, HUB_OFFLINE or HF_HUB_OFFLINE say that nothing leaves the machine."""
    named = [name for name in ("HUB_OFFLINE", "HF_HUB_OFFLINE") if _is_true(os.environ.get(name))]
    if offline or named:
        raise Offline(
            f"Nothing is fetched, because {named[0] if named else '`offline`'} is set. Unset it, or bring the model "
            "here as a file (`hub models import`)."
        )


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes", "on")


def library() -> Any:
    """huggingface_hub, which takes half a second; it looks at these variables when it is imported first."""
    for name in SILENT:
        os.environ.setdefault(name, "1")
    import huggingface_hub

    return huggingface_hub


class HuggingFace:
    """One repository there, for one call. Used by any number of threads."""

    def __init__(
        self,
        repo: str,
        revision: str,
        *,
        patience: Patience,
        report: Report,
        cancelled: Stop,
        offline: bool = False,
    ) -> None:
        """`revision`: a branch, tag or commit. Raises Offline, and RepoForbidden for a token that cannot be one."""
        refuse_offline(offline)
        self.repo, self.revision, self._report = repo, revision, report
        self.patience, self.cancelled = patience, cancelled
        self._endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._token = self._own_token()

    def _own_token(self) -> str | None:
        try:
            with _Errors(self.repo, self.revision, False, "your token"):
                token: str | None = library().get_token()
        except Trouble as trouble:
            raise PullFailed(f"{trouble.what}. Try again, or set HF_TOKEN.") from None
        except (OSError, ValueError):
            raise RepoForbidden("The file with your token for Hugging Face cannot be read.") from None
        # The client's own error for such a header would repeat it.
        if token is not None and not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
            raise RepoForbidden("The token in HF_TOKEN (or in its file) is not one: it has odd characters.")
        return token

    def model_info(self) -> Any:
        """huggingface_hub's ModelInfo, with size and digest of every file."""
        api = library().HfApi(endpoint=self._endpoint, token=self._token or False, **_agent())

        def ask() -> Any:
            return api.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=self.patience.stall)

        return self.persist(lambda: self._typed(ask, "the list of files"))

    def stream(self, path: str, start: int) -> Generator[tuple[int, bytes], None, None]:
        """The bytes of a file from `start` on, with their places; from 0 where the server ignores or refuses that.
        Raises Trouble for what may pass, and typed errors; one try."""
        utils = library().utils
        url = library().hf_hub_url(self.repo, path, revision=self.revision, endpoint=self._endpoint)
        # Of a compressed answer nothing could be resumed, and its length would not be the file's.
        headers = {**utils.build_hf_headers(token=self._token or False, **_agent()), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            self._errors(path),
            utils.get_session().stream("GET", url, headers=headers, timeout=self.patience.stall) as answer,
        ):
            if answer.status_code == 416:
                yield 0, b""  # the file there is shorter than what was kept of it: none of that is worth anything
                raise Trouble(f"Hugging Face has no byte {start} of {shown(path)}")
            utils.hf_raise_for_status(answer)
            place = _start_of(answer.headers.get("Content-Range", "")) if answer.status_code == 206 else 0
            if place != start:
                if place:
                    raise Trouble(f"Hugging Face sent another part of {shown(path)} than it was asked for")
                yield 0, b""
            for chunk in answer.iter_bytes():
                yield place, chunk
                place += len(chunk)

    def persist(self, work: Callable[[], T], progressed: Callable[[], bool] = lambda: False) -> T:
        """Does the work, again after every Trouble, until it fails too often in a row without getting further; raises
        PullFailed then, and JobCancelled where nobody wants it any more."""
        tries = 0
        while True:
            self.check_wanted()
            try:
                return work()
            except Trouble as trouble:
                tries = 1 if progressed() else tries + 1
                if tries >= self.patience.tries:
                    raise PullFailed(f"{trouble.what}, {tries} times. {KEPT}") from None
                wait = self.patience.wait * 2 ** (tries - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                wait = min(max(wait, trouble.after), self.patience.longest)
                self._report(Note(message=f"{trouble.what}; trying again in {max(1, round(wait))} s."))
                self.cancelled.wait(wait)

    def check_wanted(self) -> None:
        """Raises JobCancelled where the caller wants no more."""
        if self.cancelled.is_set():
            raise JobCancelled

    def _typed(self, work: Callable[[], T], what: str) -> T:
        with self._errors(what):
            try:
                return work()
            except (ValueError, TypeError, KeyError, AttributeError):
                raise Trouble(f"Hugging Face answered something that is not {what}") from None

    def _errors(self, what: str) -> _Errors:
        return _Errors(self.repo, self.revision, self._token is not None, what)


def _agent() -> dict[str, str]:
    return {"library_name": "image-hub", "library_version": __version__}


def _start_of(content_range: str) -> int:
    """Where a part begins; 0 where it does not say."""
    match = re.match(r"bytes (\d{1,18})-", content_range)
    return int(match[1]) if match else 0


class _Errors:
    """A context in which huggingface_hub's and its client's errors become ours: Trouble for what may pass."""

    def __init__(self, repo: str, revision: str, has_token: bool, what: str) -> None:
        self._repo, self._revision, self._has_token, self._what = repo, revision, has_token, shown(what)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        if isinstance(error, HfHubHTTPError):
            raise self._of_status(error) from None
        if isinstance(error, OfflineModeIsEnabled):
            raise Offline("Nothing is fetched, because HF_HUB_OFFLINE was set at the start.") from None
        if isinstance(error, httpx2.TimeoutException):
            raise Trouble(f"Hugging Face sent nothing of {self._what} for too long") from None
        if isinstance(error, httpx2.ConnectError):
            raise Trouble("Hugging Face cannot be reached (network, proxy, certificate, HF_ENDPOINT?)") from None
        if isinstance(error, httpx2.UnsupportedProtocol):
            raise PullFailed("HF_ENDPOINT is not an address: it begins with https://.") from None
        if isinstance(error, (httpx2.TransportError, httpx2.DecodingError, httpx2.StreamError)):
            raise Trouble(f"The connection broke while {self._what} came") from None
        if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
            raise PullFailed(f"Hugging Face leads nowhere for {self._what}. Is HF_ENDPOINT right?") from None

    def _of_status(self, error: Any) -> Trouble | HubError:
        from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return RepoForbidden(self._gated())
        if status in (401, 403):
            return RepoForbidden(self._hidden(status))
        if isinstance(error, RevisionNotFoundError):
            return RepoNotFound(
                f"{self._repo} has no revision '{shown(self._revision)}': name a branch, tag or commit."
            )
        if status in (404, 410, 451):
            if error.response.headers.get("X-Error-Code") == "EntryNotFound":
                return RepoNotFound(f"{self._repo} has no file {self._what}.")
            return RepoNotFound(f"There is no repository {self._repo} on Hugging Face, or it is gone. Check its name.")
        if status in (408, 425, 429) or status >= 500:
            after = error.response.headers.get("Retry-After", "")
            why = "says that it is asked too often (429)" if status == 429 else f"answered {status}"
            return Trouble(f"Hugging Face {why} for {self._what}", float(after) if after.isdecimal() else 0.0)
        return PullFailed(f"Hugging Face answered {status} for {self._what}, which trying again does not mend.")

    def _gated(self) -> str:
        if self._has_token:
            return (
                f"{self._repo} is gated, and your token's account has no access: accept its terms on the model's page "
                "with that account (or wait until its owner has), and see that the token may read gated repositories."
            )
        return f"{self._repo} is gated: accept its terms on the model's page, then set HF_TOKEN to a token of yours."

    def _hidden(self, status: int) -> str:
        if self._has_token:
            return f"Hugging Face does not accept your token for {self._repo} ({status}). Check HF_TOKEN, or unset it."
        return (
            f"Hugging Face shows no {self._repo} to those without a token: there is none, or it is private. Check its "
            "name, or set HF_TOKEN."
        )
