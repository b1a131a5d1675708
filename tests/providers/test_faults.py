"""Everything that can go wrong with a provider, at each point of its protocol: what the client is told, how often the
provider was asked, and that none of its words comes through."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hub.errors import (
    HubError,
    InvalidRequest,
    NoCredit,
    NothingMade,
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderTimeout,
    ProviderUnavailable,
)
from hub.remote import caller, transport
from tests.providers.conftest import Driven
from tests.providers.test_contract import check, sources
from tests.providers.upstream import (
    KEY,
    Asked,
    Fault,
    answers,
    cut,
    dripping,
    dropped,
    elsewhere,
    endless,
    huge,
    nothing,
    raw,
    slow,
)

SOON = (0.25, 1.0, 4.0)
"""Timeouts for what would take for ever; the longer ones for a machine that is too busy to get there sooner."""
HTML = f"<html><body>secret words {KEY}</body></html>".encode()
SHAPES = {
    "null": b"null",
    "a list": b"[]",
    "a text": b'"secret words"',
    "a number": b"1",
    "an empty object": b"{}",
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "objects in depth": b'{"data":' * 50_000 + b"1" + b"}" * 50_000,
    "nulls where lists should be": b'{"data":null,"images":null,"output":null,"id":null,"candidates":null}',
    "lists where objects should be": b'{"data":[[]],"images":[1],"output":[{}],"id":[],"candidates":[[]],"result":[]}',
    "texts where lists should be": b'{"data":"secret","images":"secret","output":1,"id":"","candidates":"x"}',
    "half of it": b'{"data": [{"b64_json": "iVBOR',
    "no UTF-8": b'{"data": "\xff\xfe"}',
    "HTML": HTML,
    "nothing at all": b"",
}


FLAT = 24
"""Mebibytes of an answer of 64 that a hub with a limit of one can have let come; the kernel's buffers hold some."""

SLOW = (slow(30), dripping(30))


@dataclass(frozen=True)
class Told:
    """How a fault is told, and how often the provider was asked for work."""

    kind: type[HubError]
    billed: bool
    posts: int = 1


def told(driven: Driven, error: HubError) -> Told:
    billed = isinstance(error, ProviderError) and error.may_have_billed
    in_vain = billed or isinstance(error, ProviderKeyRefused) or "owner has to act" in error.message
    assert (error.headers.get("x-should-retry") == "false") == in_vain
    return Told(kind_of(error), billed, len(driven.upstream.work))


def kind_of(error: HubError) -> type[HubError]:
    """The public one, by its code."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == HubError.__module__)
    return next(kind for kind in kinds if kind not in (NothingMade, NoCredit))


BY_STATUS = {
    400: Told(InvalidRequest, False),
    401: Told(ProviderKeyRefused, False),
    402: Told(ProviderKeyRefused, False),
    403: Told(ProviderKeyRefused, False),
    404: Told(ProviderFailed, False),
    408: Told(ProviderTimeout, True),
    413: Told(InvalidRequest, False),
    422: Told(InvalidRequest, False),
    425: Told(ProviderBusy, False, 3),
    429: Told(ProviderBusy, False, 3),
    500: Told(ProviderFailed, True),
    502: Told(ProviderFailed, True),
    503: Told(ProviderBusy, False, 3),
    504: Told(ProviderTimeout, True),
    529: Told(ProviderBusy, False, 3),
}
OTHERWISE: dict[tuple[str, int], Told] = {}
"""Providers that mean something else by a status."""
STATUS_OF = {InvalidRequest: 400, ProviderFailed: 502, ProviderTimeout: 504}


@pytest.mark.parametrize("status", BY_STATUS)
def test_a_status_is_told_by_kind_and_sent_again_only_where_nothing_was_done(driven: Driven, status: int) -> None:
    driven.upstream.faults.extend([answers(status)] * 3)
    error = driven.fail(**sources(driven))
    assert told(driven, error) == OTHERWISE.get((driven.protocol.provider, status), BY_STATUS[status])
    assert error.status == STATUS_OF.get(kind_of(error), 503)


def test_a_busy_provider_is_asked_again_and_the_request_succeeds(driven: Driven) -> None:
    driven.upstream.faults.extend([answers(429), answers(503)])
    check(driven, driven.make(**sources(driven)))
    assert len(driven.upstream.work) == 3


def test_a_wait_that_is_too_long_is_told_to_the_client_instead(driven: Driven) -> None:
    driven.upstream.faults.extend([answers(429, Retry_After="77")])
    error = driven.fail(**sources(driven))
    assert told(driven, error) == Told(ProviderBusy, False, 1)
    assert error.headers["Retry-After"] == "77"


def test_another_key_is_tried_after_one_that_is_refused(driven: Driven) -> None:
    driven.upstream.faults.append(answers(401))
    check(driven, driven.make(keys=2, **sources(driven)))
    assert len(driven.upstream.work) == 2


UNCLEAR: dict[str, tuple[Fault, type[HubError]]] = {
    "cut": (cut(2000), ProviderFailed),
    "dropped": (dropped(), ProviderFailed),
    "gzip": (raw(gzip.compress(b'{"data": []}'), Content_Encoding="gzip"), ProviderFailed),
    "huge": (huge(64), ProviderFailed),
    "endless": (endless(64), ProviderFailed),
    "not HTTP": (lambda handler, _: bool(handler.wfile.write(b"\x00\x01secret\r\n\r\n" * 9)), ProviderFailed),
    "slow headers": (SLOW[0], ProviderTimeout),
    "slow body": (SLOW[1], ProviderTimeout),
    **{shape: (raw(body), ProviderFailed) for shape, body in SHAPES.items()},
    "HTML as such": (raw(HTML, content_type="text/html"), ProviderFailed),
    "a stream of nothing": (raw(b"data: 1\n\n", content_type="text/event-stream"), ProviderFailed),
}
"""Faults after which nobody knows whether the pictures were made."""


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER", 1 << 20)
    monkeypatch.setattr(transport, "MAX_PICTURE", 1 << 20)


def fail(driven: Driven, fault: Fault, *, at: str = "work", times: int = 1) -> HubError:
    """How a request fails with a fault at a point of the protocol, within its time."""
    reached = threading.Event()

    def noticed(handler: Any, asked: Asked) -> bool:
        reached.set()
        return fault(handler, asked)

    for timeout in SOON if fault in SLOW else (20,):
        driven.upstream.forget()
        faults = driven.upstream.picture_faults if at == "picture" else driven.upstream.faults
        faults.extend([*([nothing()] if at == "poll" else []), *[noticed] * times])
        error = driven.fail({"timeout": timeout}, **sources(driven))
        if reached.is_set():
            break
        time.sleep(timeout)  # what comes late of this try is not counted with the next
    assert driven.took < timeout + 5
    return error


@pytest.mark.parametrize("name", UNCLEAR)
def test_after_an_unclear_answer_nothing_is_sent_again(driven: Driven, name: str) -> None:
    fault, kind = UNCLEAR[name]
    assert told(driven, fail(driven, fault)) == Told(kind, True)
    assert driven.upstream.written < FLAT


def test_where_nobody_listens_the_provider_is_out_of_reach(driven: Driven) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = driven.fail({"base_url": f"http://127.0.0.1:{closed.getsockname()[1]}"}, **sources(driven))
    assert told(driven, error) == Told(ProviderUnavailable, False, 0)
    assert error.code == "provider_unreachable"


class Canary(ThreadingHTTPServer):
    """Somebody else on loopback, whom nobody should ask."""

    daemon_threads = True

    def __init__(self) -> None:
        self.hits = 0
        canary = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canary.hits += 1
                self.send_error(500)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    server = Canary()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_of_a_call_is_followed(driven: Driven, canary: Canary, status: int) -> None:
    driven.upstream.faults.append(elsewhere(f"{canary.url}/v1", status))
    error = driven.fail(**sources(driven))
    assert told(driven, error) == Told(ProviderFailed, False)
    assert canary.hits == 0


def skip_unless_it_polls(driven: Driven) -> None:
    if not driven.protocol.polls:
        pytest.skip("its answers are whole at once")


def skip_unless_it_links(driven: Driven) -> None:
    if not driven.protocol.links:
        pytest.skip("its pictures come with the answer")


PASSING: dict[str, Fault] = {
    "500": answers(500),
    "429": answers(429),
    "503": answers(503, Retry_After="1"),
    "400": answers(400),
    "404": answers(404),
    "408": answers(408),
    "422": answers(422),
    "cut": cut(500),
    "dropped": dropped(),
    "HTML": raw(HTML),
    "nothing": raw(b""),
    "a list": raw(b"[]"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_question_that_fails_is_asked_again(driven: Driven, name: str) -> None:
    skip_unless_it_polls(driven)
    driven.upstream.faults.extend([nothing(), PASSING[name]])
    check(driven, driven.make(**sources(driven)))
    assert len(driven.upstream.work) == 1


LASTING: dict[str, tuple[Fault, type[HubError]]] = {
    "400": (answers(400), ProviderFailed),
    "500": (answers(500), ProviderFailed),
    "401": (answers(401), ProviderKeyRefused),
    "403": (answers(403), ProviderKeyRefused),
    "429": (answers(429), ProviderBusy),
    "503": (answers(503), ProviderBusy),
    "504": (answers(504), ProviderTimeout),
    "cut": (cut(500), ProviderFailed),
    "dropped": (dropped(), ProviderFailed),
    "HTML": (raw(HTML), ProviderFailed),
    "huge": (huge(64), ProviderFailed),
    "endless": (endless(64), ProviderFailed),
    "nested": (raw(SHAPES["nested"]), ProviderFailed),
    "slow headers": (SLOW[0], ProviderTimeout),
    "slow body": (SLOW[1], ProviderTimeout),
}


@pytest.mark.parametrize("name", LASTING)
def test_questions_that_always_fail_end_the_waiting_and_may_have_cost(driven: Driven, name: str) -> None:
    skip_unless_it_polls(driven)
    fault, kind = LASTING[name]
    error = fail(driven, fault, at="poll", times=caller.POLL_FAILURES)
    assert told(driven, error) == Told(kind, True)
    assert driven.upstream.written < FLAT * caller.POLL_FAILURES


def test_a_question_is_not_sent_elsewhere(driven: Driven, canary: Canary) -> None:
    skip_unless_it_polls(driven)
    driven.upstream.faults.extend([nothing(), *[elsewhere(canary.url)] * caller.POLL_FAILURES])
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)
    assert canary.hits == 0


PICTURES: dict[str, tuple[Fault, type[HubError]]] = {
    "404": (raw(b"secret", 404), ProviderFailed),
    "500": (raw(b"secret", 500), ProviderFailed),
    "HTML": (raw(HTML, content_type="text/html"), ProviderFailed),
    "HTML that says it is a picture": (raw(HTML, content_type="image/png"), ProviderFailed),
    "nothing": (raw(b""), ProviderFailed),
    "cut": (cut(500), ProviderFailed),
    "dropped": (dropped(), ProviderFailed),
    "too large": (huge(64), ProviderFailed),
    "endless": (endless(64), ProviderFailed),
    "slow headers": (SLOW[0], ProviderTimeout),
    "slow body": (SLOW[1], ProviderTimeout),
    "a file of this machine": (elsewhere("file:///etc/passwd"), ProviderFailed),
    "an address that is none": (elsewhere("http://[secret"), ProviderFailed),
    "the cloud's own address": (elsewhere("http://169.254.169.254/latest/meta-data"), ProviderFailed),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_fetched_is_told_and_not_drawn_again(driven: Driven, name: str) -> None:
    skip_unless_it_links(driven)
    fault, kind = PICTURES[name]
    assert told(driven, fail(driven, fault, at="picture")) == Told(kind, True)
    assert driven.upstream.written < FLAT


def test_a_picture_whose_redirects_end_nowhere_is_given_up(driven: Driven) -> None:
    skip_unless_it_links(driven)
    driven.upstream.picture_faults.extend([elsewhere("/pictures/again", 302)] * 50)
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)
    assert sum(asked.path.startswith("/pictures/") for asked in driven.upstream.asked) == 1 + transport.REDIRECTS


def test_a_picture_is_not_fetched_from_a_private_network(driven: Driven, canary: Canary) -> None:
    skip_unless_it_links(driven)
    driven.addresses["pictures.example"] = ["127.0.0.1"]
    driven.upstream.pictures_at = f"http://pictures.example:{canary.server_port}"
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)
    driven.upstream.forget()
    driven.upstream.picture_faults.append(elsewhere(f"{canary.url}/pictures/1"))
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)
    assert canary.hits == 0


def flipped(data: bytes, at: int) -> bytes:
    """A checksum tells it in a PNG, wherever it is; in other formats, only a length in the head does."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "HTML": lambda data: HTML,
    "cut": lambda data: data[:-20],
    "a flipped bit": lambda data: flipped(data, 60 if data.startswith(b"\x89PNG") else 4),
    "another format": lambda data: b"GIF89a" + data,
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_whole_picture_is_no_answer(driven: Driven, name: str) -> None:
    driven.upstream.spoil = SPOILT[name]
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)


def test_one_spoilt_picture_of_several_fails_them_all(driven: Driven) -> None:
    drawn: list[bytes] = []

    def third(data: bytes) -> bytes:
        drawn.append(data)
        return data[:-20] if len(drawn) == 3 else data

    driven.upstream.spoil = third
    error = driven.fail(n=3, **sources(driven))
    assert (kind_of(error), error.headers.get("x-should-retry")) == (ProviderFailed, "false")
    driven.upstream.spoil = bytes
    assert len(driven.make(**sources(driven)).images) == 1


GARBLED: dict[str, Callable[[str], str]] = {
    "no base64": lambda text: "!" + text,
    "secret words": lambda text: f"secret words {KEY}",
    "a quote": lambda text: text + '"',
    "not padded": lambda text: text + "A",
    "letters of the world": lambda text: "é" * 40,
}


@pytest.mark.parametrize("name", GARBLED)
def test_base64_that_is_none_is_no_answer(driven: Driven, name: str) -> None:
    if driven.protocol.links:
        pytest.skip("its pictures are behind links")
    driven.upstream.garble = GARBLED[name]
    assert told(driven, driven.fail(**sources(driven))) == Told(ProviderFailed, True)


def test_after_all_that_it_works_as_ever(driven: Driven) -> None:
    check(driven, driven.make(n=2, **sources(driven)), 2)
