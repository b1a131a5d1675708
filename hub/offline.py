"""The offline switch: what keeps this process, and those that it starts, from reaching another machine.

Two means. The variables of the libraries, of which telemetry is off always (`QUIET`) and the way to model hubs where
the owner says `offline` (`OFFLINE`). And `forbid`, a guard at the connection layer of Python itself: whatever module
dials, it is refused before the kernel hears of it, unless it dials this machine.

The guard is an audit hook (PEP 578): it cannot be taken out again, sees every socket of Python's, whoever made it, and
asyncio's, httpx2's and urllib's calls all pass it. It hears of a connection after C code has looked up its host, so
sockets' methods are wrapped besides, for those few who give them names (DNS questions are traffic).

It does NOT see what native code does by itself: a Rust or C++ library that calls connect(2), ctypes, a program that is
started. For those there are the variables, and `scripts/prove-offline`, which watches system calls. Nor is it a sandbox
against hostile code.

Listening and accepting are not touched: an offline hub may serve its network.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

QUIET = {
    # Read by the libraries when they are imported, hence to be set before.
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it diffusers, transformers, accelerate, peft
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_XET_TELEMETRY_ENABLED": "false",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask a server to convert weights
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "USE_HUB_KERNELS": "NO",  # transformers would take compiled code from a hub
    "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "0",
    "TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE": "0",
    "TORCHINDUCTOR_BUNDLED_AUTOTUNE_REMOTE_CACHE": "0",
}
"""Nobody is told of the hub's use, and nothing is fetched that was not asked for; in every process, always."""

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",  # it has a client of its own, in Rust, which the guard would not see
}
"""The libraries look at local files alone. In workers always: what is fetched, the API process fetches."""

_MOST_TOLD = 100
"""Destinations that are named in the log; a program that tries all the world does not fill the disk."""

_HERE = {socket.AF_UNIX, getattr(socket, "AF_NETLINK", socket.AF_UNIX)} if hasattr(socket, "AF_UNIX") else set()
"""Families that end at this machine: local sockets, and questions to the kernel."""
_INTERNET = {socket.AF_INET, socket.AF_INET6}
_FROM_DESCRIPTOR = -1
"""In a family's stead: that of the descriptor which the socket takes over."""

_ADDRESS_AT = {"bind": 1, "connect": 1, "connect_ex": 1, "sendto": -1, "sendmsg": 4}
"""Methods of sockets, and where in their arguments the address stands."""

_told: set[str] = set()


class OfflineRefused(PermissionError):
    """The hub is offline, and this would have left the machine."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EPERM, f"the hub is offline: {what} was refused")


def variables(*, offline: bool) -> dict[str, str]:
    """The environment of the hub's processes and of all that they start."""
    return QUIET | OFFLINE | {"HUB_OFFLINE": "1"} if offline else dict(QUIET)


def prepare(*, offline: bool) -> None:
    """For programs, before they import anything that might dial: sets the variables of this process, and with them
    those of its children; offline, it forbids too."""
    os.environ.update(variables(offline=offline))
    if offline:
        forbid()


def forbid() -> None:
    """Refuses whatever would leave this machine, from now on until the process ends; there is no way back.

    Raises RuntimeError where another audit hook does not let it in.
    """
    if in_force():
        return
    sys.addaudithook(_hook)
    for name, position in _ADDRESS_AT.items():
        setattr(socket.socket, name, _without_look_up(getattr(socket.socket, name), position))
    if not in_force():  # sys.addaudithook says nothing when it fails
        raise RuntimeError("The guard of the offline switch could not be set: another audit hook is in its way.")


def in_force() -> bool:
    """Whether the guard is set in this process."""
    try:
        sys.audit(f"{__name__}.in_force")
    except OfflineRefused:
        return True
    return False


def is_here(host: object) -> bool:
    """Whether a host is this machine by loopback: `localhost`, or a literal address (IPv4 in IPv6 is unwrapped).

    0.0.0.0 and :: are not, nor are shorthands such as 127.1, which resolvers read in ways of their own.
    """
    text = _text(host)
    if text.lower() == "localhost":
        return True
    address = _literal(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


def _text(host: object) -> str:
    if isinstance(host, str):
        return host
    if isinstance(host, (bytes, bytearray)):
        with contextlib.suppress(UnicodeDecodeError):
            return host.decode("ascii")
    return ""


def _literal(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _refuse(what: str) -> None:
    if what not in _told and len(_told) < _MOST_TOLD:
        _told.add(what)  # before the log, which may itself dial
        log.warning("refused %s: this hub is offline (`offline`, HUB_OFFLINE)", what)
    raise OfflineRefused(what)


def _check_family(_: object, family: int, *__: object) -> None:
    if family not in _HERE | _INTERNET and family != _FROM_DESCRIPTOR:
        _refuse(f"a socket of the family {int(family)}")


def _check_destination(sock: socket.socket, address: Any) -> None:
    """connect, connect_ex, sendto, sendmsg; the last one has no address where the socket is connected."""
    if address is None or sock.family in _HERE:
        return
    host = address[0] if isinstance(address, tuple) and address else None
    if sock.family not in _INTERNET or not is_here(host):
        _refuse(f"a connection to {_text(host) or 'an address'}")


def _without_look_up(method: Callable[..., Any], position: int) -> Callable[..., Any]:
    """A method of sockets that refuses names, but localhost, which C code would look up before the hook is asked."""

    @functools.wraps(method)
    def checked(*args: Any) -> Any:
        address = args[position] if position < len(args) else None
        host = address[0] if isinstance(address, tuple) and address else None
        if isinstance(host, (str, bytes, bytearray)) and host not in ("", "<broadcast>"):
            _check_name(host)
        return method(*args)

    return checked


def _check_name(host: object, *_: object) -> None:
    """Literal addresses are asked of nobody, and servers resolve what they listen on; to dial them is refused later."""
    if host is not None and not is_here(host) and _literal(_text(host)) is None:
        _refuse(f"the look-up of {_text(host) or 'a name'}")


def _check_address(host: object) -> None:
    """The look-up of an address's name, which goes to the network for literals too."""
    host = host[0] if isinstance(host, tuple) and host else host
    if not is_here(host):
        _refuse(f"the look-up of {_text(host) or 'an address'}")


def _answer() -> None:
    raise OfflineRefused("the question whether it is")


_CHECKS: dict[str, Callable[..., None]] = {
    "socket.__new__": _check_family,
    "socket.connect": _check_destination,
    "socket.sendto": _check_destination,
    "socket.sendmsg": _check_destination,
    "socket.getaddrinfo": _check_name,
    "socket.gethostbyname": _check_name,
    "socket.gethostbyaddr": _check_address,
    "socket.getnameinfo": _check_address,
    f"{__name__}.in_force": _answer,
}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    check = _CHECKS.get(event)
    if check is not None:
        check(*args)
