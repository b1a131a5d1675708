"""One short question to the hub that listens, or to whatever does in its stead."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from hub.offline import is_here
from hub.settings import Settings

ANSWER = 5.0
"""Seconds that a hub may take for a step of its answer."""
MAX_BYTES = 1 << 20

Silence = Literal["nothing listens", "unknown name", "no TLS", "too slow", "no HTTP", "elsewhere"]
"""`elsewhere`: not asked, since that would leave this machine."""


class Answer(NamedTuple):
    """What came back; of its body no more than a megabyte."""

    status: int
    body: bytes
    location: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        try:
            return dict(msgspec.json.decode(self.body))
        except (msgspec.DecodeError, TypeError, ValueError):
            return {}

    @property
    def code(self) -> str | None:
        """Of a hub's error."""
        error = self.json.get("error")
        return str(error.get("code")) if isinstance(error, dict) else None

    @property
    def is_health(self) -> bool:
        """Whether this is how a hub answers GET /health."""
        return self.status == 200 and self.json.get("status") == "ok" and "version" in self.json


def hub_url(settings: Settings) -> str:
    """Where the hub of these settings listens, as this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def leads_here(url: str) -> bool:
    """Whether a URL leads to this machine, and no name service has to be asked to know it."""
    try:
        return is_here(urlsplit(url).hostname)
    except ValueError:
        return False


def get(url: str, key: str | None = None, *, offline: bool, patience: float = ANSWER) -> Answer | Silence:
    """Asks without proxies and redirects; never raises. `offline`: nobody but this machine. `patience`: seconds for
    each step of an answer; twice as many for all of it."""
    if offline and not leads_here(url):
        return "elsewhere"
    import httpx2

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    end = time.monotonic() + 2 * patience
    body = b""
    try:
        with (
            httpx2.Client(trust_env=False, timeout=patience, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    return "too slow"
                if len(body) > MAX_BYTES:
                    break
            return Answer(answer.status_code, body, answer.headers.get("location", ""))
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        return _why(error)
    except httpx2.TimeoutException:
        return "too slow"
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError):
        return "no HTTP"


def _why(error: BaseException) -> Silence:
    """Why there is no connection, as its causes tell."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "unknown name"
        if isinstance(cause, ssl.SSLError):
            return "no TLS"
        cause = cause.__cause__ or cause.__context__
    return "nothing listens"
