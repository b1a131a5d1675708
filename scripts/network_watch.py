"""Who tries to reach another machine: system calls under strace, a canary in a proxy's stead, an interface that counts.

Shared by scripts/prove-offline and tests. It judges addresses by itself, not with the hub's own guard (hub/offline.py):
what proves must not share mistakes with what is proven.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOWHERE = "192.0.2.1"
"""RFC 5737: an address for documentation, which belongs to nobody."""
NAME_SERVER = "192.0.2.53"
LOOPBACK_UP = "ip link set lo up 2>/dev/null || ifconfig lo up"

CALLS = "connect,sendto,sendmsg,sendmmsg,io_uring_setup,execve"
"""The last one is no attempt, but shows which programs were watched."""
_LINE = re.compile(r"^(\d+)\s+(\d+\.\d+) (\w+)\(")
_ADDRESS = re.compile(r"sa_family=(AF_\w+|0x[0-9a-f]+|\d+)(?:(?!sa_family=).)*")
_LITERAL = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_LOCAL = {"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"}  # the last one takes an address away


@dataclass(frozen=True)
class Attempt:
    """A system call that would have gone to another machine; whether it could is all the same."""

    pid: int
    time: float
    call: str
    address: str


@functools.cache
def strace_options() -> tuple[str, ...]:
    """For the whole family of a process; by seccomp, where this strace can, which leaves other calls at full speed."""
    told = subprocess.run(["strace", "--help"], capture_output=True, text=True, check=False)
    fast = ("--seccomp-bpf",) if "--seccomp-bpf" in told.stdout else ()
    return ("-f", *fast, "-qq", "-ttt", "-s", "32", "-e", f"trace={CALLS}", "-e", "signal=none")


def strace(trace: Path) -> list[str]:
    """What to put before a command, to have its attempts written down."""
    return ["strace", *strace_options(), "-o", str(trace)]


def is_loopback(text: str) -> bool:
    """Of a literal address."""
    address = ipaddress.ip_address(text)
    inner = getattr(address, "ipv4_mapped", None)
    return (inner or address).is_loopback


def attempts(lines: Iterable[str]) -> list[Attempt]:
    """All that strace saw go, or try to go, beyond loopback. A call into io_uring counts: what goes through that is
    hidden from strace."""
    found = []
    for line in lines:
        begun = _LINE.match(line)
        if begun is None:
            continue
        pid, when, call = int(begun[1]), float(begun[2]), begun[3]
        if call == "io_uring_setup":
            found.append(Attempt(pid, when, call, "unseen"))
        for address in _ADDRESS.finditer(line):
            literal = _LITERAL.search(address[0])
            words = (literal[1] or literal[2]) if literal else address[1]
            if address[1] not in _LOCAL and not (literal and is_loopback(words)):
                found.append(Attempt(pid, when, call, words))
    return found


def attempts_in(trace: Path) -> list[Attempt]:
    """As `attempts`, of a file that strace writes or has written."""
    with trace.open(errors="replace") as lines:
        return attempts(lines)


def can_make_namespaces() -> bool:
    """Whether this user may make a network namespace of his own here."""
    if shutil.which("unshare") is None or (shutil.which("ip") or shutil.which("ifconfig")) is None:
        return False
    return subprocess.run(["unshare", "-rnm", "true"], capture_output=True, check=False).returncode == 0


def can_trace() -> bool:
    """Whether strace may do its work in such a namespace."""
    command = ["unshare", "-rnm", "strace", "-f", "-qq", "-o", os.devnull, "true"]
    return (
        shutil.which("strace") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def plain_environment(**more: str) -> dict[str, str]:
    """Of the machine's own, without what would make a proof of something else."""
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    dropped = ("HUB_", "HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_")
    telling = {"DO_NOT_TRACK", "DISABLE_TELEMETRY"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(dropped) and name.lower() not in proxies and name not in telling
    }
    return {**kept, "OMP_NUM_THREADS": "1", **more}


class Canary:
    """A listener on loopback that counts who comes; those do that take it for a proxy, or for Hugging Face."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.hits = 0
        threading.Thread(target=self._count, daemon=True).start()

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            self.hits += 1
            connection.close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that have clients take it for that."""
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        names = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return dict.fromkeys(names, url) | {"NO_PROXY": "", "no_proxy": ""}


class WayOut:
    """An interface with an address, a default route and nobody behind it, in a namespace of our own: packets could
    leave, and are counted, and get nowhere."""

    def __init__(self, kind: str | None, resolver: bool) -> None:
        """kind: of the interface, None where this kernel makes none. resolver: whether names are asked through it."""
        self.kind = kind
        self.resolver = resolver

    @property
    def packets(self) -> int:
        """How many were sent. From /proc/net, which is this namespace's; /sys may be the machine's."""
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "out0":
                return int(numbers.split()[9])
        return 0


def make_way_out() -> WayOut:
    """To be called in new user, network and mount namespaces. Brings up loopback, and the way out where that can be."""
    subprocess.run(["sh", "-c", LOOPBACK_UP], check=True)
    return WayOut(_make_interface() if shutil.which("ip") else None, _redirect_resolver())


def _make_interface() -> str | None:
    """A dummy, or a pair of which nobody listens at the other end; its kind."""
    for kind, more in (("dummy", []), ("veth", ["peer", "name", "in0"])):
        if subprocess.run(
            ["ip", "link", "add", "out0", "type", kind, *more], capture_output=True, check=False
        ).returncode:
            continue
        for name in ("out0", *more[2:]):
            subprocess.run(["ip", "link", "set", name, "arp", "off", "multicast", "off"], check=True)
            quiet = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")  # it would look for routers by itself
            if quiet.exists():
                quiet.write_text("1")
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        subprocess.run(["ip", "address", "add", "192.0.2.2/24", "dev", "out0"], check=True)
        subprocess.run(["ip", "route", "add", "default", "via", "192.0.2.254", "dev", "out0"], check=True)
        return kind
    return None


def _redirect_resolver() -> bool:
    """Names are asked at an address beyond the interface, not of a resolver on this machine."""
    files = {
        "/etc/resolv.conf": f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    for path, text in files.items():
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        mounted = subprocess.run(
            ["mount", "--bind", file.name, os.path.realpath(path)], capture_output=True, check=False
        )
        Path(file.name).unlink()  # the mount holds it
        if mounted.returncode and path == "/etc/resolv.conf":
            return False
    if Path("/run/nscd").is_dir():  # it would ask for us
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run/nscd"], capture_output=True, check=False)
    return True
