"""Nothing leaves the machine: the hub in a network namespace that has only loopback, and under strace.

Short versions of scripts/prove-offline, which takes minutes; tests/test_offline_guard.py is about the guard.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for

sys.path.insert(0, str(ROOT / "scripts"))

from network_watch import LOOPBACK_UP, attempts, attempts_in, can_make_namespaces, strace

IN_NAMESPACE = f'{LOOPBACK_UP}; exec "$@"'

CLIENT = """
import json, subprocess, sys, time, urllib.request, os
port = 8765
server = subprocess.Popen([sys.executable, "-m", "hub", "serve", "--port", str(port)])
def get(path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()
for _ in range(3000):
    try:
        get("/ready")
        break
    except OSError:
        time.sleep(0.05)
made = json.loads(get("/api/images/generations", {"prompt": "a red circle", "n": 1, "size": "1024x1024"}))
png = get(made["data"][0]["url"].partition(str(port))[2])
edited = json.loads(get("/v1/images/generations", {"prompt": "a blue star", "image": made["data"][0]["url"],
                                                   "size": "64x64", "response_format": "b64_json"}))
server.terminate()
server.wait(30)
print(json.dumps({"bytes": len(png), "b64": edited["data"][0]["b64_json"]}))
"""


def environment(folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HUB_", "HF_"))}
    return {**clean, "HUB_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(not can_make_namespaces(), reason="needs unshare with user namespaces, and ip or ifconfig")
@pytest.mark.slow
def test_the_whole_path_works_where_there_is_no_network(tmp_path: Path) -> None:
    result = subprocess.run(
        ["unshare", "-rn", "sh", "-c", IN_NAMESPACE, "sh", sys.executable, "-c", CLIENT],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["bytes"] > 1000
    assert base64.b64decode(answer["b64"]).startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.slow
def test_no_process_of_the_hub_even_tries_to_reach_another_machine(tmp_path: Path) -> None:
    """Attempts count, so libraries that swallow errors are caught too."""
    trace = tmp_path / "trace"
    result = subprocess.run(
        [*strace(trace), sys.executable, "-c", CLIENT],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "127.0.0.1" in trace.read_text(errors="replace"), "the client's own calls must be seen, or nothing would be"
    assert attempts_in(trace) == []


@pytest.mark.skipif(shutil.which("strace") is None or not can_make_namespaces(), reason="needs strace and unshare")
def test_that_detector_sees_each_kind_of_attempt(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tries = """
import contextlib, socket
for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, "192.0.2.1"),
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    (socket.AF_INET6, socket.SOCK_STREAM, "2001:db8::1"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:192.0.2.2"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.1"),
):
    with contextlib.suppress(OSError):
        socket.socket(family, kind).connect((address, 9))
for address in ("192.0.2.3", "127.0.0.1"):
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, 9))
with contextlib.suppress(OSError):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("192.0.2.4", 9))
"""
    command = ["unshare", "-rn", "sh", "-c", IN_NAMESPACE, "sh", *strace(trace), sys.executable, "-c", tries]
    subprocess.run(command, check=True, timeout=60)
    assert [(each.call, each.address) for each in attempts_in(trace)] == [
        ("connect", "192.0.2.1"),
        ("connect", "2001:db8::1"),
        ("connect", "::ffff:192.0.2.2"),
        ("sendto", "192.0.2.3"),
        ("sendmsg", "192.0.2.4"),
    ]


DNS = '{sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.53")}'


def test_it_reads_names_asked_for_packets_sent_past_the_kernel_and_what_hides_from_it() -> None:
    lines = [
        "7 1.5 sendmmsg(3, [{msg_name="
        + DNS
        + "}, {msg_name="
        + DNS.replace("192.0.2.53", "127.0.0.53")
        + "}], 2) = 2",
        "7 2.5 sendto(3, ..., {sa_family=AF_PACKET, sll_protocol=htons(ETH_P_IP)}, 20) = 14",
        "8 3.5 io_uring_setup(8, {flags=0}) = 4",
        '8 4.5 connect(3, {sa_family=AF_INET, sin_addr=inet_addr("192.0.2.9")}, 16 <unfinished ...>',
        '8 5.5 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = 0',
        "8 6.5 connect(3, {sa_family=AF_UNSPEC, sa_data=...}, 16) = 0",
        "8 7.5 sendto(3, {nlmsg_len=20}, 20, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12) = 20",
        "8 8.5 <... connect resumed>) = 0",
    ]
    assert [(each.pid, each.time, each.call, each.address) for each in attempts(lines)] == [
        (7, 1.5, "sendmmsg", "192.0.2.53"),
        (7, 2.5, "sendto", "AF_PACKET"),
        (8, 3.5, "io_uring_setup", "unseen"),
        (8, 4.5, "connect", "192.0.2.9"),
    ]


def test_an_interrupted_server_ends_cleanly_and_takes_its_worker_along(tmp_path: Path) -> None:
    import psutil

    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "hub", "serve", "--port", "0"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stderr=output,
        )
    wait_for(lambda: "the engine is ready" in log.read_text() or server.poll() is not None)
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    server.send_signal(signal.SIGINT)
    assert server.wait(20) in (0, 130, -signal.SIGINT)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert "Traceback" not in log.read_text()
