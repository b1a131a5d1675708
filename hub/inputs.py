"""Source pictures of an edit: a data URL, bare base64, a link of this hub, or a URL of a host the owner allows.

A string is never a path. Nothing is fetched unless the owner listed the host under `image_hosts`; what is fetched
goes to the very address that was checked (no second look-up), without redirects, with limits on size and time.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Sequence

import pybase64

from hub.errors import HubError, InvalidRequest, Offline
from hub.fetching import Resolve, Unfetchable, fetch, resolve, split
from hub.files import Files
from hub.offline import is_here

MAX_BYTES = 50 * 1024 * 1024
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_OWN_PATH = re.compile(r"/files/(?P<signature>[\w.-]{1,80})/(?P<name>[\w.-]{1,64})", re.ASCII)


class InputImages:
    """Turns what stands in `image` into the bytes of a file."""

    def __init__(
        self, files: Files, image_hosts: Sequence[str], resolve: Resolve = resolve, *, offline: bool = False
    ) -> None:
        """`image_hosts`: host or host:port, or `*` for every public host. `resolve`: for tests. `offline`: nothing is
        fetched but from this machine."""
        self._files = files
        self._hosts = frozenset(host.lower().replace("[", "").replace("]", "") for host in image_hosts)
        self._resolve = resolve
        self._offline = offline

    async def read(self, text: str, own_origins: Sequence[str], param: str = "image") -> bytes:
        """The encoded file. `own_origins`: origins under which this hub's links were handed out.

        Raises InvalidRequest, or Offline, naming `param`.
        """
        head = text[:8].lower()
        if head.startswith(("http://", "https:/")):
            return await self._read_url(text, own_origins, param)
        match = _DATA_URL.match(text)
        if match is None and (":" in text[:32] or head.startswith("data")):
            raise _bad(param, "must be an http(s) URL, a base64 data URL or bare base64.")
        encoded = text[match.end() :] if match else text
        return await asyncio.to_thread(_decode_base64, encoded, param)

    async def _read_url(self, url: str, own_origins: Sequence[str], param: str) -> bytes:
        try:
            parts, port = split(url)
        except Unfetchable:
            words = "is not a valid URL with a host and without user name or password."
            raise _bad(param, words) from None
        own = _OWN_PATH.fullmatch(parts.path)
        if own and f"{parts.scheme}://{parts.netloc}" in own_origins:
            try:
                return await self._files.read(own["signature"], own["name"])
            except HubError as error:
                raise InvalidRequest(error.message, param=param, code=error.code) from None
        host = str(parts.hostname)
        if not self._offline or is_here(host):
            named = host in self._hosts or f"{host}:{port}" in self._hosts
            if not named and "*" not in self._hosts:
                words = "is a URL of a host that this hub may not fetch from. Send the picture as base64, or have the "
                raise _bad(param, f"{words}owner list the host under image_hosts.", code="image_host_not_allowed")
        try:
            return await fetch(
                url, trusted=self._hosts, max_bytes=MAX_BYTES, resolve=self._resolve, offline=self._offline
            )
        except Unfetchable as error:
            raise _unfetchable(error, param) from None


def _unfetchable(error: Unfetchable, param: str) -> HubError:
    match error.why:
        case "offline":
            words = "is a URL of another machine, and this hub is offline. Send the picture as base64."
            return Offline(f"'{param}' {words}", param=param)
        case "private":
            return _bad(param, "leads into a private network.", code="image_host_not_allowed")
        case "large":
            return _bad(param, f"is larger than {MAX_BYTES >> 20} MB.", code="image_too_large")
        case "status":
            return _bad(param, f"answered {error.status} instead of a picture.", code="image_fetch_failed")
    return _bad(param, "could not be downloaded.", code="image_fetch_failed")


def _decode_base64(text: str, param: str) -> bytes:
    try:
        data = pybase64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _bad(param, "is neither a URL nor valid base64.") from None
    if not data:
        raise _bad(param, "is empty.")
    if len(data) > MAX_BYTES:
        raise _bad(param, f"is larger than {MAX_BYTES >> 20} MB.", code="image_too_large")
    return data


def _bad(param: str, words: str, code: str = "invalid_image") -> InvalidRequest:
    return InvalidRequest(f"'{param}' {words}", param=param, code=code)
