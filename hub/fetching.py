"""A file behind a URL that a stranger gave: fetched from the very address that was checked (no second look-up), without
credentials, with limits on size and time, and each hop of a redirect checked anew.

Who fetches says which hosts may lie in a private network; all others have to be public.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

from hub.offline import is_here

if TYPE_CHECKING:
    import ssl

    import httpx2

TIMEOUT = 20.0
SMALL = 1 << 14
CONNECT = 5.0
"""Seconds for an address to take a connection; then the host's next one is tried."""
ACCEPT = "image/png, image/jpeg, image/webp"
WHO_ASKS = {"User-Agent": "hub", "Accept-Encoding": "identity"}
"""Headers of every request to elsewhere: no answer is compressed."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
Why = Literal["invalid", "offline", "private", "unreachable", "timeout", "status", "large"]


class Unfetchable(Exception):
    """What is wrong; `status` is the answer's, where there was one. `place`: the `host:port` that it was about."""

    def __init__(self, why: Why, status: int = 0) -> None:
        super().__init__(why)
        self.why: Why = why
        self.status = status
        self.place = ""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, from the system's resolver."""
    with contextlib.suppress(ValueError):  # the unusual forms of addresses are for the system
        return [str(ipaddress.IPv4Address(host))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def split(url: str) -> tuple[SplitResult, int]:
    """The parts of an http(s) URL, and its port; raises Unfetchable for one that parsers read in several ways, and for
    one with a user name or a password."""
    if "\\" in url or not url.isascii() or not url.isprintable() or " " in url or len(url) > 4096:
        raise Unfetchable("invalid")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Unfetchable("invalid") from None
    userless = parts.username is None and parts.password is None
    if parts.scheme not in ("http", "https") or not parts.hostname or not userless:
        raise Unfetchable("invalid")
    return parts, port


async def fetch(
    url: str,
    *,
    trusted: Collection[str] = (),
    max_bytes: int,
    resolve: Resolve = resolve,
    patience: float | None = None,
    redirects: int = 0,
    offline: bool = False,
    connections: httpx2.AsyncBaseTransport | None = None,
) -> bytes:
    """The body behind a URL.

    `trusted`: `host` or `host:port` that may lie in a private network. `patience`: seconds for all of it, TIMEOUT if
    nothing else is said. `redirects`: how many are followed, each checked like the first. `connections`: to be
    used, kept apart by `sni_hostname`; else they are made for this. Raises Unfetchable.
    """
    place = ""
    try:
        async with asyncio.timeout(patience or TIMEOUT):
            for left in range(redirects, -1, -1):
                parts, port = split(url)
                host = str(parts.hostname)
                place = f"{host}:{port}"
                if offline and not is_here(host):
                    raise Unfetchable("offline")
                addresses = await resolve(host, port)
                named = host in trusted or place in trusted
                if not named and not all(is_public(address) for address in addresses):
                    raise Unfetchable("private")
                async with _connections(connections) as through:
                    body, location = await _from_any(through, parts, addresses, port, max_bytes, follow=left > 0)
                if location is None:
                    return body
                url = _joined(url, location)
            raise AssertionError("the last one is not followed")
    except Unfetchable as error:
        found = error
    except TimeoutError:
        found = Unfetchable("timeout")
    except (OSError, UnicodeError):  # UnicodeError: a name that no resolver takes
        found = Unfetchable("unreachable")
    found.place = place
    raise found from None


def why_not(url: str, error: Unfetchable) -> str:
    """Why a URL was not fetched, for the log. Paths and queries may be secrets: they are left out."""
    place = error.place or "its address"
    match error.why:
        case "invalid":
            scheme = url.partition(":")[0]
            known = scheme.isascii() and scheme.isalpha() and len(scheme) < 10
            return f"{place} is none that is asked" + (f" ({scheme}:)" if known else "")
        case "offline":
            return f"{place} is on another machine, and nothing may leave this one"
        case "private":
            return f"{place} lies in a private network, and nobody has named it"
        case "status":
            return f"{place} answered {error.status}" + (", a redirect" if 300 <= error.status < 400 else "")
        case "timeout":
            return f"{place} did not answer in time"
        case "large":
            return f"{place} sent too much"
        case "unreachable":
            return f"{place} cannot be reached"


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:  # brackets that hold no address
        raise Unfetchable("invalid") from None


@contextlib.asynccontextmanager
async def _connections(given: httpx2.AsyncBaseTransport | None) -> AsyncIterator[httpx2.AsyncBaseTransport]:
    if given is not None:
        yield given
        return
    from hub.http1 import AsyncioTransport

    async with AsyncioTransport(certificates()) as connections:
        yield connections


async def _from_any(
    through: httpx2.AsyncBaseTransport,
    parts: SplitResult,
    addresses: Sequence[str],
    port: int,
    max_bytes: int,
    *,
    follow: bool,
) -> tuple[bytes, str | None]:
    """From the first address that takes the connection: the body, or where it is said to be."""
    import httpx2

    for address in addresses:
        try:
            return await _from(through, address, parts, port, max_bytes, follow=follow)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            continue
        except httpx2.TimeoutException:
            raise Unfetchable("timeout") from None
        except httpx2.InvalidURL:
            raise Unfetchable("invalid") from None
        except (httpx2.HTTPError, httpx2.StreamError):
            break
    raise Unfetchable("unreachable")


async def _from(
    through: httpx2.AsyncBaseTransport, address: str, parts: SplitResult, port: int, max_bytes: int, *, follow: bool
) -> tuple[bytes, str | None]:
    import httpx2

    literal = f"[{address}]" if ":" in address else address
    target = f"{parts.scheme}://{literal}:{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, **WHO_ASKS, "Accept": ACCEPT}
    extensions = {"sni_hostname": parts.hostname, "timeout": {"connect": CONNECT}, "whole": max_bytes}
    request = httpx2.Request("GET", target, headers=headers, extensions=extensions)
    async with contextlib.aclosing(await through.handle_async_request(request)) as answer:
        if answer.is_redirect and follow and answer.headers.get("location"):
            return b"", str(answer.headers["location"])
        if answer.status_code != 200:
            raise Unfetchable("status", answer.status_code)
        if int(answer.headers.get("content-length", "0")) > max_bytes:
            raise Unfetchable("large")
        body = await joined(answer.aiter_raw(), max_bytes)
        if body is None:
            raise Unfetchable("large")
        return bytes(body), None


async def joined(pieces: AsyncGenerator[bytes], most: int) -> bytes | bytearray | None:
    """A body that comes in pieces; None where it is larger. Copied once at most, and never many times its size in
    memory, as a list would be of pieces that are bytes."""
    body: list[bytes] = []
    small, total = bytearray(), 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            total += len(piece)
            if total > most:
                return None
            if len(piece) < SMALL:
                small += piece
                continue
            if small:
                body.append(bytes(small))
                small.clear()
            body.append(piece)
    if small:
        body.append(bytes(small))
    return body[0] if len(body) == 1 else b"".join(body)


@functools.cache
def certificates() -> ssl.SSLContext:
    """Whom HTTPS trusts: read once, which takes longer than fetching a picture from near."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


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
