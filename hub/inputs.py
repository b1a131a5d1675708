"""Source pictures of an edit: a data URL, bare base64, a link of this hub, or a URL of a host the owner allows.

A string is never a path. Nothing is fetched unless the owner listed the host under `image_hosts`; what is fetched
goes to the very address that was checked (no second look-up), without redirects, with limits on size and time.
"""

from __future__ import annotations

import asyncio
import binascii
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import SplitResult, urlsplit

import pybase64

from hub.errors import HubError, InvalidRequest, Offline
from hub.files import Files
from hub.offline import is_here

MAX_BYTES = 50 * 1024 * 1024
TIMEOUT = 20.0

Resolve = Callable[[str, int], Awaitable[list[str]]]

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_OWN_PATH = re.compile(r"/files/(?P<signature>[\w.-]{1,80})/(?P<name>[\w.-]{1,64})", re.ASCII)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, from the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


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
        if "\\" in url or not url.isascii() or not url.isprintable() or " " in url or len(url) > 4096:
            raise _bad(param, "is not a valid URL.")
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise _bad(param, "is not a valid URL.") from None
        if parts.username is not None or parts.password is not None or not parts.hostname:
            raise _bad(param, "must be a URL with a host and without user name or password.")
        own = _OWN_PATH.fullmatch(parts.path)
        if own and f"{parts.scheme}://{parts.netloc}" in own_origins:
            try:
                return await self._files.read(own["signature"], own["name"])
            except HubError as error:
                raise InvalidRequest(error.message, param=param, code=error.code) from None
        return await self._fetch(parts, port, param)

    async def _fetch(self, parts: SplitResult, port: int, param: str) -> bytes:
        host = str(parts.hostname)
        if self._offline and not is_here(host):
            words = "is a URL of another machine, and this hub is offline. Send the picture as base64."
            raise Offline(f"'{param}' {words}", param=param)
        named = host in self._hosts or f"{host}:{port}" in self._hosts
        if not named and "*" not in self._hosts:
            raise _bad(
                param,
                "is a URL of a host that this hub may not fetch from. Send the picture as base64, or have the "
                "owner list the host under image_hosts.",
                code="image_host_not_allowed",
            )
        try:
            async with asyncio.timeout(TIMEOUT):
                addresses = await self._resolve(host, port)
                if not named and not all(is_public(address) for address in addresses):
                    raise _bad(param, "leads into a private network.", code="image_host_not_allowed")
                return await _download(parts, addresses, port, param)
        except (OSError, UnicodeError, TimeoutError):  # UnicodeError: a name that no resolver takes
            raise _bad(param, "could not be downloaded.", code="image_fetch_failed") from None


async def _download(parts: SplitResult, addresses: Sequence[str], port: int, param: str) -> bytes:
    """From the first address that takes the connection."""
    import httpx2

    for address in addresses:
        try:
            return await _download_from(address, parts, port, param)
        except httpx2.ConnectError:
            continue
        except httpx2.HTTPError:
            break
    raise _bad(param, "could not be downloaded.", code="image_fetch_failed")


async def _download_from(address: str, parts: SplitResult, port: int, param: str) -> bytes:
    import httpx2

    literal = f"[{address}]" if ":" in address else address
    target = f"{parts.scheme}://{literal}:{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, "Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity"}
    extensions = {"sni_hostname": parts.hostname}
    async with (
        httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=TIMEOUT) as client,
        client.stream("GET", target, headers=headers, extensions=extensions) as answer,
    ):
        if answer.status_code != 200:
            raise _bad(param, f"answered {answer.status_code} instead of a picture.", code="image_fetch_failed")
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > MAX_BYTES:
                raise _bad(param, f"is larger than {MAX_BYTES >> 20} MB.", code="image_too_large")
        return bytes(body)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, with IPv4 addresses inside IPv6 ones unwrapped.

    `ipaddress.is_global` alone is True for NAT64 and 6to4 forms of private addresses and for multicast.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and (ip in ipaddress.ip_network("64:ff9b::/96") or int(ip) >> 32 == 0):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b:1::/48") or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


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
