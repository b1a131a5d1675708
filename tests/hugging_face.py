"""A stand-in of Hugging Face on loopback, true to its wire as far as the real huggingface_hub client looks at it.

It serves repositories from folders, with commits, LFS files behind a redirect to another origin, gated and private
repositories, and the errors that the real one sends. It fails on demand (`fault`), and records every request.

    with StandIn() as there:
        there.add("org/name", folder, licence="mit")
        there.fault("unet/diffusion_pytorch_model.safetensors", "cut", at=1000)
        monkeypatch.setenv("HF_ENDPOINT", there.url)

As a program: `python -m tests.hugging_face FOLDER --port P` serves FOLDER/ORG/NAME as ORG/NAME.

One thing differs, because the client expects https there: a repository that is hidden from those without a token is
answered with X-Error-Code: RepoNotFound, which the client would else conclude from the address.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".onnx", ".gguf", ".msgpack", ".h5", ".model", ".png")
LARGE = 10 << 20
SIGNATURE = "X-Amz-Signature=0123456789abcdef"
PIECE = 64 << 10

FaultKind = Literal["cut", "stall", "drip", "flip", "status", "ignore_range", "length", "shift", "garbage", "more"]


@dataclass
class Fault:
    """Something that goes wrong with a path, `times` times, for answers from `after` bytes on.

    cut: the connection ends after `at` bytes. stall: nothing comes after `at` bytes, for `seconds`. drip: pieces of
    `at` bytes, with `seconds` between. flip: one bit of the file's byte `at` is wrong. status: `at` is answered, with
    Retry-After where `seconds` is set. ignore_range: 200 with all of it. length: Content-Length is wrong by `at`.
    shift: a part begins `at` bytes later than it was asked for. garbage: a page of HTML. more: `at` bytes too many."""

    kind: FaultKind
    at: int = 0
    times: int = 1
    seconds: float = 0


@dataclass
class Seen:
    """A request that came, and what was answered."""

    server: str
    method: str
    path: str
    file: str | None
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Entry:
    """A file of a commit."""

    path: str
    content: bytes | Path
    size: int
    git: str
    sha256: str
    lfs: bool

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    @property
    def pointer(self) -> bytes:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            self.sha256.encode(),
            self.size,
        )

    @property
    def blob_id(self) -> str:
        """Of an LFS file Git keeps a pointer."""
        if not self.lfs:
            return self.git
        return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer).hexdigest()


@dataclass
class Repo:
    """A repository with its commits; branches and tags name them."""

    name: str
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    library: str | None = None
    gated: str | bool = False
    private: bool = False
    listing: dict[str, dict[str, Any]] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        if revision in self.revisions:
            return self.revisions[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            return next((commit for commit in self.commits if commit.startswith(revision)), None)
        return None


def _entry(path: str, content: bytes | Path) -> Entry:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    git, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
    entry = Entry(path, content, size, "", "", path.endswith(LFS) or size > LARGE)
    with entry.open() as stream:
        while piece := stream.read(1 << 20):
            git.update(piece)
            sha256.update(piece)
    entry.git, entry.sha256 = git.hexdigest(), sha256.hexdigest()
    return entry


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, stand_in: StandIn, name: str, port: int) -> None:
        self.stand_in, self.name = stand_in, name
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here."""


class StandIn:
    """The server: its API and small files at `url`, its large files at `cdn_url`, which is another origin."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        """Repositories, gated or private, that a token may read."""
        self.seen: list[Seen] = []
        self.closed = threading.Event()
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._servers = [_Server(self, "hub", port), _Server(self, "cdn", 0)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed.set()
        for server in self._servers:
            server.shutdown()
            for connection in list(server.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            server.server_close()

    def add(
        self,
        repo: str,
        files: Path | Mapping[str, bytes | Path],
        revision: str = "main",
        *,
        licence: str | None = None,
        tags: tuple[str, ...] = (),
        gated: str | bool = False,
        private: bool = False,
        library: str | None = "diffusers",
    ) -> str:
        """Commits the files to a branch; returns the commit. Later arguments count for all of the repository."""
        if isinstance(files, Path):
            files = {file.relative_to(files).as_posix(): file for file in files.rglob("*") if file.is_file()}
        entries = {path: _entry(path, content) for path, content in sorted(files.items())}
        listing = "".join(f"{entry.blob_id} {path}\n" for path, entry in entries.items())
        commit = hashlib.sha1(f"{repo} {listing}".encode()).hexdigest()
        kept = self.repos.setdefault(repo, Repo(repo))
        kept.commits[commit] = entries
        kept.revisions[revision] = commit
        kept.card = {"license": licence} if licence else kept.card
        kept.tags = list(tags) or kept.tags
        kept.gated, kept.private, kept.library = gated or kept.gated, private or kept.private, library
        return commit

    def fault(self, path: str, kind: FaultKind, at: int = 0, *, times: int = 1, seconds: float = 0) -> None:
        """Of the file `path`, or of `api`: the list of files."""
        with self._lock:
            self._faults.setdefault(path, []).append(Fault(kind, at, times, seconds))

    def take(self, path: str) -> Fault | None:
        """The fault that this answer has."""
        with self._lock:
            for fault in self._faults.get(path, ()):
                if fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def of(self, file: str) -> list[Seen]:
        """The requests for a file that were answered with its bytes, or with an error."""
        return [seen for seen in list(self.seen) if seen.file == file and seen.status not in (302, 307)]

    @property
    def sent(self) -> int:
        """Bytes of files, in all."""
        return sum(seen.sent for seen in list(self.seen))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's word on its head
    server: _Server
    seen: Seen

    def log_message(self, *_: Any) -> None:
        """Quiet: what was asked for stands in `seen`."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    @property
    def there(self) -> StandIn:
        return self.server.stand_in

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Seen(self.server.name, self.command, self.path, None, headers)
        self.there.seen.append(self.seen)
        parts = urlsplit(self.path)
        # Routes are told apart before %2F becomes a slash: a revision may have some.
        if self.server.name == "cdn":
            self._cdn(parts.path, parts.query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", parts.path):
            self._api(unquote(match[1]), match[2], unquote(match[3] or "main"), parse_qs(parts.query))
        elif match := re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", parts.path):
            self._resolve(unquote(match[1]), unquote(match[2]), unquote(match[3]), cached=True)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            self._resolve(unquote(match[1]), unquote(match[2]), unquote(match[3]), cached=False)
        else:
            self._error(404, None, "Sorry, we can't find the page you are looking for.")

    # --- who may see what ---

    def _repo(self, name: str) -> Repo | None:
        """The repository; None where an error was sent."""
        token = self._token()
        if token is not None and token not in self.there.tokens:
            return self._error(401, None, "Invalid credentials in Authorization header")
        repo = self.there.repos.get(name)
        if repo is not None and (not repo.private or name in self.there.tokens.get(token or "", ())):
            return repo
        if token is None:
            return self._error(401, "RepoNotFound", "Invalid username or password.")
        return self._error(404, "RepoNotFound", "Repository not found")

    def _token(self) -> str | None:
        said = self.headers.get("Authorization")
        return said.removeprefix("Bearer ") if said else None

    def _commit(self, repo: Repo, revision: str) -> str | None:
        return repo.commit_of(revision) or self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    # --- the API ---

    def _api(self, name: str, kind: str | None, revision: str, query: dict[str, list[str]]) -> None:
        if self._fault_first(self.there.take("api")):
            return
        repo = self._repo(name)
        commit = repo and self._commit(repo, revision)
        if repo is None or commit is None:
            return
        entries = repo.commits[commit]
        if kind == "tree":
            self._json([self._tree(entry) for entry in entries.values()])
            return
        blobs = query.get("blobs", [""])[0].lower() in ("1", "true")
        listed = [self._sibling(repo, entry, blobs) for entry in entries.values()]
        tags = [*repo.tags, *(f"license:{value}" for key, value in repo.card.items() if key == "license")]
        about = {
            "_id": commit[:24],
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": commit,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 7,
            "likes": 1,
            "tags": tags,
            "pipeline_tag": "text-to-image",
            "library_name": repo.library,
            "cardData": repo.card,
            "siblings": listed,
            "spaces": [],
            "usedStorage": sum(entry.size for entry in entries.values()),
        }
        self._json({key: value for key, value in about.items() if value is not None})

    @staticmethod
    def _sibling(repo: Repo, entry: Entry, blobs: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"rfilename": entry.path}
        if blobs:
            said |= {"blobId": entry.blob_id, "size": entry.size}
            if entry.lfs:
                said["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
            said |= repo.listing.get(entry.path, {})
        return said

    @staticmethod
    def _tree(entry: Entry) -> dict[str, Any]:
        said: dict[str, Any] = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": entry.path}
        if entry.lfs:
            said["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
        return said

    # --- files ---

    def _resolve(self, name: str, revision: str, path: str, cached: bool) -> None:
        repo = self._repo(name)
        commit = repo and self._commit(repo, revision)
        if repo is None or commit is None:
            return
        if repo.gated and name not in self.there.tokens.get(self._token() or "", ()):
            if self._token() is None:
                words = "You must have access to it and be authenticated to access it. Please log in."
                self._error(401, "GatedRepo", f"Access to model {name} is restricted. {words}")
            else:
                words = f"you are not in the authorized list. Visit https://huggingface.co/{name} to ask for access."
                self._error(403, "GatedRepo", f"Access to model {name} is restricted and {words}")
            return
        entry = repo.commits[commit].get(path)
        if entry is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        self.seen.file = path
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.blob_id}"'}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
            target = f"{self.there.cdn_url}/cdn/{name}/{commit}/{quote(path)}?{SIGNATURE}"
            self._answer(302, {**headers, "Location": target}, b"Found. Redirecting")
        elif not cached:
            target = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}?etag={quote(headers['ETag'])}"
            self._answer(307, {**headers, "X-Linked-Size": str(entry.size), "Location": target}, b"Temporary Redirect")
        else:
            self._file(entry, headers)

    def _cdn(self, path: str, query: str) -> None:
        match = re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        if match is None or SIGNATURE not in query:
            self._error(403, None, "AccessDenied")
        elif "Authorization" in self.headers:  # as S3 does: one way to sign in, not two
            self._error(400, None, "Only one auth mechanism allowed")
        else:
            entry = self.there.repos[unquote(match[1])].commits[match[2]][unquote(match[3])]
            self.seen.file = entry.path
            self._file(entry, {"ETag": f'"{entry.sha256[:32]}"'})

    def _file(self, entry: Entry, headers: dict[str, str]) -> None:
        fault = self.there.take(entry.path) if self.command == "GET" else None
        if self._fault_first(fault):
            return
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        start, end = 0, entry.size
        said = self.headers.get("Range")
        if said and kind != "ignore_range":
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", said)
            first, last = match.groups() if match else ("", "")
            start = int(first) if first else max(0, entry.size - int(last or 0))
            end = min(entry.size, int(last) + 1) if first and last else entry.size
            if start >= entry.size:
                self._answer(416, {"Content-Range": f"bytes */{entry.size}"}, b"")
                return
            start += at if kind == "shift" else 0
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        length = end - start + (at if kind in ("length", "more") else 0)
        status = 206 if "Content-Range" in headers else 200
        self._head(status, {**headers, "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}, length)
        if self.command == "GET":
            self._body(entry, start, end, fault)

    def _body(self, entry: Entry, start: int, end: int, fault: Fault | None) -> None:
        kind, at, seconds = (fault.kind, fault.at, fault.seconds) if fault else ("", 0, 0.0)
        piece = max(1, at) if kind == "drip" else PIECE
        with entry.open() as stream:
            stream.seek(start)
            place = start
            while place < end:
                size = min(piece, end - place)
                if kind in ("cut", "stall") and start + at > place:
                    size = min(size, start + at - place)
                elif kind in ("cut", "stall"):
                    if kind == "stall":
                        self.there.closed.wait(seconds)
                    self._hang_up()
                    return
                data = bytearray(stream.read(size))
                if kind == "flip" and place <= at < place + size:
                    data[at - place] ^= 1
                self.wfile.write(data)
                self.seen.sent += len(data)
                place += len(data)
                if kind == "drip":
                    time.sleep(seconds)
        if kind == "more":
            self.wfile.write(b"x" * at)
        if kind == "length":
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    # --- answers ---

    def _fault_first(self, fault: Fault | None) -> bool:
        """Whether all of the answer is a fault."""
        if fault is None or fault.kind not in ("status", "garbage"):
            return False
        if fault.kind == "garbage":
            self._answer(200, {"Content-Type": "text/html"}, b"<html>Sign in to the network of this hotel</html>")
        else:
            self._error(fault.at, None, "So it was asked for", retry_after=fault.seconds)
        return True

    def _error(self, status: int, code: str | None, message: str, retry_after: float = 0) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json; charset=utf-8"}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"Retry-After": f"{retry_after:.0f}"} if retry_after else {}
        self._answer(status, headers, json.dumps({"error": message}).encode())

    def _json(self, content: Any) -> None:
        self._answer(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(content).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in {**headers, "X-Request-Id": "Root=1-stand-in", "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def repositories(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of everything two levels below."""
    for place in sorted(folder.glob("*/*")):
        if place.is_dir():
            yield place.relative_to(folder).as_posix(), place


def main() -> None:
    """Serves a folder until it is stopped."""
    parser = argparse.ArgumentParser(description="A stand-in of Hugging Face, for tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    with StandIn(chosen.port) as there, contextlib.suppress(KeyboardInterrupt):
        for name, place in repositories(chosen.folder):
            print(f"{name} {there.add(name, place)}")  # noqa: T201 - a program
        print(f"HF_ENDPOINT={there.url}", flush=True)  # noqa: T201 - a program
        threading.Event().wait()


if __name__ == "__main__":
    main()
