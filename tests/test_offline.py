"""Nothing leaves the machine: the hub in a network namespace that has only loopback, and under strace."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for

IN_NAMESPACE = """
ip link set lo up 2>/dev/null || ifconfig lo up
exec "$@"
"""

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


def can_make_namespaces() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
        and (shutil.which("ip") or shutil.which("ifconfig")) is not None
    )


def environment(folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HUB_", "HF_"))}
    return {**clean, "HUB_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(not can_make_namespaces(), reason="needs unshare with user namespaces, and ip or ifconfig")
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


FOREIGN = re.compile(
    r"(?:connect|sendto|sendmsg)\(.*sa_family=AF_INET6?.*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)"
)


def foreign_addresses(trace: str) -> set[str]:
    return {address for address in FOREIGN.findall(trace) if not address.startswith(("127.", "::1"))}


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_process_of_the_hub_even_tries_to_reach_another_machine(tmp_path: Path) -> None:
    """Attempts count, so libraries that swallow errors are caught too. The last lines show the detector alive."""
    trace = tmp_path / "trace"
    arguments = ["strace", "-f", "-qq", "-s", "200", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    result = subprocess.run(
        [*arguments, sys.executable, "-c", CLIENT],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    text = trace.read_text(errors="replace")
    assert "127.0.0.1" in text, "the client's own calls must be seen, or nothing would be"
    assert foreign_addresses(text) == set()
    example = (
        'connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = -1 ENETUNREACH'
    )
    assert foreign_addresses(example) == {"192.0.2.1"}


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
