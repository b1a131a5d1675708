"""Who may call: every route is closed unless its handler is marked `opt={"public": True}`, and those that are marked
`opt={"admin": True}` are open to the owner's keys alone."""

from __future__ import annotations

import re
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from hub.api.wire import KEY_NAME, own_hosts
from hub.errors import AdminRequired, HostNotAllowed, InvalidApiKey
from hub.hub import Hub

MAX_SHOWN = 100
"""How much of a foreign name an error repeats."""
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
"""What allowed_hosts takes (hub/settings.py)."""


async def require_key(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A Litestar guard. With keys set: a known Bearer key. Without: only this machine's own programs. A coroutine,
    since Litestar has plain functions wait for a thread.

    An open hub listens on loopback, but a web page in the owner's browser reaches that too, by DNS rebinding (a
    foreign Host) or by a cross-site request (a foreign Origin). Both are refused.
    """
    if handler.opt.get("public"):
        return
    hub: Hub = connection.app.state.hub
    if hub.keys:
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey("Give your API key in the header 'Authorization: Bearer KEY'.")
        name = hub.keys.name_of(key.strip())
        if name is None:
            raise InvalidApiKey("This API key is not known to this hub.")
        connection.scope["state"][KEY_NAME] = name
        if handler.opt.get("admin") and name not in hub.settings.admin_keys:
            words = (
                "Only the owner's keys may do this; the setting admin_keys names them, and this one is not among them."
            )
            raise AdminRequired(words)
        return
    hosts = own_hosts(connection, hub.settings)  # type: ignore[arg-type]  # reads scope and headers alone
    presented = connection.headers.getall("host", [])
    if len(presented) != 1 or presented[0].lower() not in hosts:
        raise foreign_host(presented)
    origin = connection.headers.get("origin")
    foreign = origin is not None and origin.lower().partition("://")[2] not in hosts
    if foreign or connection.headers.get("sec-fetch-site") == "cross-site":
        raise HostNotAllowed("This hub has no API keys, so other sites' pages may not call it.")


def foreign_host(presented: list[str]) -> HostNotAllowed:
    """The refusal of these Host headers: by which name the hub was addressed, and what its owner sets to allow it."""
    words = "This hub has no API keys, so it answers only under its own names"
    if len(presented) != 1:
        return HostNotAllowed(f"{words}: send one Host header, not {len(presented)}.")
    sent = presented[0]
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in sent[:MAX_SHOWN])
    named = f"{words}, and '{shown}' is none of them."
    if not _HOST.fullmatch(sent) or len(sent) > MAX_SHOWN:
        return HostNotAllowed(named)
    return HostNotAllowed(f"{named} If it should be, its owner adds '{sent.lower()}' to the setting allowed_hosts.")
