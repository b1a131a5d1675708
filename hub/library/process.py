"""`python -m hub.library.process`: does one order in a process of its own, for the admin API.

A pull is threads that wait on sockets, a verification reads gigabytes: neither belongs into the process that answers
requests, and a process can be ended. Standard input has the order as JSON; each line of standard output is an event:
progress, a note, and last of all what came of it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

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
        with lock:
            output.write(msgspec.json.encode(event) + b"\n")

    call = msgspec.json.decode(sys.stdin.buffer.read(), type=Call)
    signal.signal(signal.SIGTERM, stop)
    prepare(offline=call.places.offline)
    try:
        result = Library(call.places, cancelled).perform(call.order, tell)
    except HubError as error:
        tell(Failed(error=error.body, status=error.status))
    except ConfigurationError as error:
        log.error("%s", error)
        words = "The hub's models cannot be read as they are; its log says which and why."
        tell(Failed(error=HubError(words).body, status=500))
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception:
        log.exception("an order failed")
        tell(Failed(error=HubError("The hub failed on this; its log says why.").body, status=500))
    else:
        tell(Completed(result=result))


if __name__ == "__main__":
    main()
