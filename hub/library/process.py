"""`python -m hub.library.process`: does one order in a process of its own, for the admin API.

A pull is threads that wait on sockets, a verification reads gigabytes: neither belongs into the process that answers
requests, and a process can be ended. The first line of standard input is the order as JSON; each line of standard
output is an event: progress, a note, and last of all what came of it.

Standard input stays open for as long as somebody wants that: its end is the end of who began this, and interrupts the
order as SIGTERM does. What has come stays then, and the same order goes on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from hub.errors import ConfigurationError, ErrorBody, HubError
from hub.library.library import Library
from hub.library.orders import Order, Pull, Result
from hub.library.places import Places
from hub.library.progress import Note, Progress
from hub.offline import prepare

log = logging.getLogger("hub.library")


class Call(Struct, frozen=True, kw_only=True):
    """What the process is told."""

    places: Places
    order: Order


class Completed(Struct, frozen=True, kw_only=True, tag_field="type", tag="completed"):
    """The last event of an order that was done."""

    result: Result


class Failed(Struct, frozen=True, kw_only=True, tag_field="type", tag="failed"):
    """The last event of an order that was not: OpenAI's error object, and the status that it would have had."""

    error: ErrorBody
    status: int


GRACE = 3.0
"""Seconds in which an order has to end when nobody waits for it any more."""


class Unheard(BaseException):
    """Nobody listens any more. No Exception: it is no failure of the order, after which its work would be undone."""


LibraryEvent = Progress | Note | Completed | Failed


def main() -> None:
    """Reads the order, does it, and tells of it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for client in ("httpx2", "httpcore2", "huggingface_hub"):  # they would write whole URLs, signatures and all
        logging.getLogger(client).setLevel(logging.ERROR)
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no event
    lock, cancelled = threading.Lock(), threading.Event()

    def stop(*_: object) -> None:
        cancelled.set()
        if not isinstance(call.order, Pull):  # whose threads look at it
            raise KeyboardInterrupt

    def tell(event: LibraryEvent) -> None:
        try:
            with lock:
                output.write(msgspec.json.encode(event) + b"\n")
        except BrokenPipeError:
            raise Unheard from None

    call = msgspec.json.decode(_read_line(), type=Call)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    prepare(offline=call.places.offline)
    try:
        _perform(call, tell, cancelled)
    except (KeyboardInterrupt, Unheard):
        sys.exit(1)


def _perform(call: Call, tell: Callable[[LibraryEvent], None], cancelled: threading.Event) -> None:
    try:
        result = Library(call.places, cancelled).perform(call.order, tell)
    except HubError as error:
        tell(Failed(error=error.body, status=error.status))
    except ConfigurationError as error:
        log.error("%s", error)
        words = "The hub's models cannot be read as they are; its log says which and why."
        tell(Failed(error=HubError(words).body, status=500))
    except Exception:
        log.exception("an order failed")
        tell(Failed(error=HubError("The hub failed on this; its log says why.").body, status=500))
    else:
        tell(Completed(result=result))


def _read_line() -> bytes:
    """The order. Without a buffer, whose lock the thread that waits for the end would hold as the interpreter ends."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            sys.exit(1)
        line += chunk
    return line


def _end_with_parent() -> None:
    """Waits for the end of standard input, which comes however the parent ends, and ends this process. A pipe, since it
    works on every system; also where the order waits for a lock or computes, and tells nothing."""
    while os.read(0, 1 << 16):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # wakes it where it waits
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main()
