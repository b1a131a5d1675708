"""The seam of remote providers: an adapter maps a wish to calls, and answers to pictures. Pure: no I/O, no clock.

    class Example(Adapter):
        name = "example"
        base_url = "https://api.example.com/v1"
        key_variable = "EXAMPLE_API_KEY"
        honours = frozenset({"size", "seed"})

        def call(self, wish, n, first): return Call("/images", json={"prompt": wish.prompt, "n": n})
        def read(self, wish, answer):   return Made([Link(each.url) for each in answer.read(Body).data])

    adapter = Example()

in hub/providers/example.py is a whole provider; docs/providers.md walks through it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Struct

from hub.errors import (
    HubError,
    InvalidRequest,
    NoCredit,
    NothingMade,
    ProviderBusy,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
)
from hub.manifest import RemoteManifest
from hub.remote.wish import Notice, Wish
from hub.types import Background, Effort, ImageRequest, Usage

T = TypeVar("T")


class JobFailed(NothingMade):
    """The provider says that it has given up what it was waited for: asking again cannot help."""


class NotForThisModel(ProviderKeyRefused):
    """The provider takes the key, perhaps, but not for this model: others may use it."""


class Form(Struct, frozen=True, kw_only=True):
    """A multipart body: text fields, and files as (field, file name, content, media type)."""

    fields: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str, bytes, str]] = ()

    @classmethod
    def of(cls, body: Mapping[str, object], files: Sequence[tuple[str, str, bytes, str]] = ()) -> Form:
        """The fields of a body: text as it is, all else as JSON writes it."""
        texts = {
            name: each if isinstance(each, str) else msgspec.json.encode(each).decode() for name, each in body.items()
        }
        return cls(fields=list(texts.items()), files=files)


class Call(Struct, frozen=True):
    """One HTTP request. `url`: a path that is added to the base URL, or a whole URL that an answer of the provider has
    named. `stream`: whether the answer is server-sent events. `method`: GET is for questions, which may be repeated."""

    url: str
    json: Any = None
    form: Form | None = None
    headers: Mapping[str, str] = {}
    method: Literal["POST", "GET", "PUT", "DELETE"] = "POST"
    stream: bool = False


class Unreadable(ProviderFailed):
    """A good status with something else than the provider's JSON: from a proxy on the way, perhaps. While one waits for
    a job it is asked for again."""


class Answer(Struct, frozen=True):
    """What came back: of headers the names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray

    @property
    def media_type(self) -> str:
        """The Content-Type without its options, in small letters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def read(self, kind: type[T]) -> T:
        """The body as JSON of this kind; raises Unreadable where it is something else."""
        try:
            return msgspec.json.decode(self.body, type=kind, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unreadable("The provider answered with something else than pictures.", may_have_billed=True) from None

    def peek(self, *path: str) -> Any:
        """What stands at a path of names in a JSON body; None where it is not there, or the body is no JSON."""
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found


class Base64(Struct, frozen=True):
    """A picture in base64, as it stood in the answer, or a view of where it stands."""

    text: bytes | memoryview


def raw_base64(value: msgspec.Raw) -> bytes | None:
    """The text of a JSON string of base64, as it stands there; None for null and for an empty one. Escapes are rare:
    they are undone, and line breaks, which come as nothing else, left out."""
    text = bytes(value)
    if text in (b"null", b'""'):
        return None
    if not text.startswith(b'"'):
        raise ProviderFailed("The provider answered with something else than pictures.", may_have_billed=True)
    if b"\\" in text:
        return b"".join(msgspec.json.decode(text, type=str).encode().split())
    return text[1:-1]


class Link(Struct, frozen=True):
    """A picture behind a URL, or in a data URL."""

    url: str


class File(Struct, frozen=True):
    """A picture's bytes."""

    data: bytes


Picture = Base64 | Link | File


class Made(Struct, frozen=True):
    """What one call has made, in order. `usage` and `cost` (US dollars) where the provider tells them. `warnings`: what
    it says that it did otherwise, in the hub's own words."""

    pictures: Sequence[Picture]
    usage: Usage | None = None
    cost: float | None = None
    seed: int | None = None
    revised_prompts: Sequence[str] = ()
    background: Background | None = None
    quality: Effort | None = None
    notices: Sequence[Notice] = ()


class Pending(Struct, frozen=True):
    """Not ready: `ask` again after so many seconds. `progress`: per cent, where the provider tells it. `cancel`: what
    to send if nobody wants the pictures any more. `cost`: in US dollars, where it is told now and not with the
    pictures. Of an answer to a question, `ask`, `cancel` and `cost` may be None: then they are as before."""

    ask: Call | None = None
    after: float = 1.0
    progress: int | None = None
    cancel: Call | None = None
    cost: float | None = None

    def since(self, before: Pending) -> Pending:
        """With all that was known before and that this one does not tell."""
        return Pending(
            self.ask or before.ask,
            self.after,
            self.progress,
            self.cancel or before.cancel,
            before.cost if self.cost is None else self.cost,
        )


class Partial(Struct, frozen=True):
    """A picture that is not finished: `index` of the call's pictures, its `partial`-th preview from 0."""

    index: int
    partial: int
    picture: Picture


class Adapter:
    """A remote provider. One instance for the life of the process; it keeps nothing."""

    name: ClassVar[str]
    """That of its file, and of `provider` in manifests."""
    title: ClassVar[str]
    """How people call it."""
    base_url: ClassVar[str | None] = None
    """Its own address, without a closing slash; None where every manifest has to say it."""
    key_variable: ClassVar[str] = ""
    """The environment variable with its key, as its own SDK calls it."""
    needs_key: ClassVar[bool] = True
    honours: ClassVar[frozenset[str]] = frozenset()
    """The parameters of a request that it is told of, beside the prompt, n and the pictures. All others are warned
    about, or refused where the request is strict: see wish.OPTIONAL for their names."""
    sites: ClassVar[frozenset[str]] = frozenset()
    """Domains of its own, beside that of the base URL, to which its answers may send a further call with the key."""
    documentation: ClassVar[str] = ""
    """Where its API is described."""

    def honoured(self, manifest: RemoteManifest) -> frozenset[str]:
        """`honours`, for those whose models differ."""
        del manifest
        return self.honours

    def asks_for_key(self, manifest: RemoteManifest) -> bool:
        """Whether nothing is sent without a key: one that the manifest names is wanted in any case."""
        return self.needs_key or manifest.remote.credentials is not None

    def most(self, manifest: RemoteManifest, request: ImageRequest) -> int:
        """How many pictures one call may ask for; more are had by several calls."""
        del request
        return manifest.remote.max_n

    def unmet(self, wish: Wish) -> Sequence[Notice]:
        """What of this wish it cannot honour, although it honours the parameter elsewhere: a size in edits, perhaps."""
        del wish
        return ()

    def headers(self, key: str) -> Mapping[str, str]:
        """What proves who asks."""
        return {"Authorization": f"Bearer {key}"}

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """The request for n pictures (at most `most`), which are those from number `first` on. Raises
        InvalidRequest, naming the parameter, for what cannot be asked for and must not be left out."""
        raise NotImplementedError

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """A good answer (2xx). Raises HubError for one that tells of a failure."""
        raise NotImplementedError

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """One event of a stream: a preview, the finished picture, or nothing of interest."""
        raise NotImplementedError

    def refusal(self, answer: Answer) -> HubError:
        """What an answer other than 2xx means, by its status; providers that tell more override it. The provider's own
        words never become the hub's. `may_have_billed` is for statuses behind which work may have been done: 408, and
        every 5xx but 503 and 529; by those and by all other statuses, nothing was begun."""
        status = answer.status
        if status == 401:
            return ProviderKeyRefused(f"{self.title} does not take this hub's key. Its owner has to act.")
        if status == 403:
            return NotForThisModel(f"{self.title} does not take this hub's key for this model. Its owner has to act.")
        if status == 402:
            return no_credit(self.title)
        if status == 404:
            words = f"{self.title} does not know this model, or this path. This hub's owner has to act."
            return NothingMade(words).for_good()
        if status == 413:
            return InvalidRequest(
                f"The request is larger than {self.title} takes.", param="image", code="provider_refused"
            )
        if status in (425, 429, 503, 529):
            return ProviderBusy(f"{self.title} takes no request just now.", retry_after=retry_after(answer))
        if status in (408, 504, 524):  # a proxy on the way gave up waiting; LiteLLM's says so by a 408
            return ProviderTimeout(f"{self.title} did not answer in time ({status}).", may_have_billed=True)
        if 400 <= status < 500:
            words = f"{self.title} refused this request ({status}): a parameter, or the prompt, is not to its liking."
            return InvalidRequest(words, code="provider_refused")
        if 300 <= status < 400:
            return NothingMade(f"{self.title} sent the request elsewhere, and it was not sent there.")
        return ProviderFailed(f"{self.title} failed ({status}).", may_have_billed=True)


def no_credit(title: str) -> NoCredit:
    """The key is good, and nothing is left on it."""
    return NoCredit(f"There is no credit left with {title}. This hub's owner has to act.")


def retry_after(answer: Answer) -> int | None:
    """Seconds of a Retry-After header, at most an hour; None where there is none. A date is taken relative to the
    answer's own, so that no two clocks are compared."""
    text = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(text) if text[:1].isdigit() else _date(text) - _date(answer.headers.get("date", ""))
        return min(3600, max(1, math.ceil(seconds)))
    except (ValueError, OverflowError):
        return None


def _date(text: str) -> float:
    """Unix seconds of an HTTP date; raises ValueError."""
    return parsedate_to_datetime(text).timestamp()


BLOCKED = "content_policy_violation"


def blocked(title: str) -> InvalidRequest:
    """The provider's own rules forbid the prompt, a picture or the result."""
    return InvalidRequest(
        f"{title} refused the prompt, a picture or the result by its own content policy.",
        param="prompt",
        code=BLOCKED,
    )
