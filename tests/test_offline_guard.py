"""The guard of the offline switch, in processes of its own: it cannot be taken out again.

Children run in a network namespace without a way out where one can be made, so that nothing leaves even if it fails.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

from hub.cli import main
from hub.errors import InvalidRequest, Offline
from hub.files import Files
from hub.inputs import InputImages
from hub.offline import OFFLINE, QUIET, is_here, variables
from tests.conftest import ROOT, Server, run_server, wait_for

sys.path.insert(0, str(ROOT / "scripts"))

from network_watch import LOOPBACK_UP, attempts_in, can_make_namespaces, strace
from prove_offline_life import PICTURE, PLANTED, ask

PREAMBLE = """
import asyncio, json, os, socket, sys, urllib.request
import _socket
from hub import offline

def why(error):
    '''Whether the guard is at the bottom of it; libraries wrap errors in their own.'''
    seen = []
    while error is not None and error not in seen:
        if isinstance(error, offline.OfflineRefused):
            return "refused"
        seen.append(error)
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, Exception) else error.__cause__ or error.__context__
    return f"let through: {seen[0]!r}"

def outcome(call):
    try:
        made = call()
        if asyncio.iscoroutine(made):
            made = asyncio.run(made)
        return f"let through: {made!r}"
    except Exception as error:
        return why(error)

def tcp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_STREAM)

def udp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_DGRAM)

async def loop_call(name, *arguments, **more):
    return await getattr(asyncio.get_running_loop(), name)(*arguments, **more)

def unblocked(made):
    made.setblocking(False)
    return made
"""

REFUSED = {
    "TCP": 'socket.create_connection(("192.0.2.1", 9), 1)',
    "TCP whose error is a number": 'tcp().connect_ex(("192.0.2.1", 9))',
    "TCP of the C module": '_socket.socket().connect(("192.0.2.1", 9))',
    "an address as bytes": 'tcp().connect((b"192.0.2.1", 9))',
    "IPv6": 'tcp(socket.AF_INET6).connect(("2001:db8::1", 9))',
    "IPv4 in IPv6": 'tcp(socket.AF_INET6).connect(("::ffff:192.0.2.1", 9))',
    "IPv6 of a link": 'tcp(socket.AF_INET6).connect(("fe80::1%lo", 9, 0, 1))',
    "no address": 'tcp().connect(("0.0.0.0", 9))',
    "no address in IPv6": 'tcp(socket.AF_INET6).connect(("::", 9))',
    "an empty name": 'tcp().connect(("", 9))',
    "a shorthand": 'tcp().connect(("127.1", 9))',
    "a number": 'tcp().connect(("2130706433", 9))',
    "an IPv4 address with a scope": 'tcp().connect(("127.0.0.1%lo", 9))',
    "a name": 'tcp().connect(("example.invalid", 9))',
    "a name that begins well": 'tcp().connect(("localhost.example.invalid", 9))',
    "broadcast": 'udp().sendto(b"x", ("<broadcast>", 9))',
    "UDP": 'udp().sendto(b"x", ("192.0.2.1", 9))',
    "UDP with flags": 'udp().sendto(b"x", 0, ("192.0.2.1", 9))',
    "UDP, connected": 'udp().connect(("192.0.2.1", 9))',
    "UDP by sendmsg": 'udp().sendmsg([b"x"], [], 0, ("192.0.2.1", 9))',
    "UDP by name": 'udp().sendto(b"x", ("example.invalid", 9))',
    "UDP by name and sendmsg": 'udp().sendmsg([b"x"], [], 0, ("example.invalid", 9))',
    "UDP in IPv6": 'udp(socket.AF_INET6).sendto(b"x", ("2001:db8::1", 9))',
    "multicast": 'udp().sendto(b"x", ("224.0.0.251", 5353))',
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "another family": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "getaddrinfo": 'socket.getaddrinfo("example.invalid", 80)',
    "getaddrinfo of bytes": 'socket.getaddrinfo(b"example.invalid", 80)',
    "gethostbyname": 'socket.gethostbyname("example.invalid")',
    "gethostbyname_ex": 'socket.gethostbyname_ex("example.invalid")',
    "gethostbyaddr": 'socket.gethostbyaddr("192.0.2.1")',
    "getnameinfo": 'socket.getnameinfo(("192.0.2.1", 80), 0)',
    "listening on a name": 'tcp().bind(("example.invalid", 0))',
    "asyncio": 'asyncio.open_connection("192.0.2.1", 9)',
    "asyncio in IPv6": 'asyncio.open_connection("2001:db8::1", 9)',
    "asyncio by name": 'asyncio.open_connection("example.invalid", 9)',
    "asyncio's sockets": 'loop_call("sock_connect", unblocked(tcp()), ("192.0.2.1", 9))',
    "asyncio's datagrams": 'loop_call("create_datagram_endpoint", asyncio.Protocol, remote_addr=("192.0.2.1", 9))',
    "asyncio's sendto": 'loop_call("sock_sendto", unblocked(udp()), b"x", ("192.0.2.1", 9))',
    "asyncio's resolver": 'loop_call("getaddrinfo", "example.invalid", 80)',
    "urllib": 'urllib.request.urlopen("http://192.0.2.1/", timeout=1)',
    "urllib by name": 'urllib.request.urlopen("http://example.invalid/", timeout=1)',
    "httpx2": '__import__("httpx2").get("http://192.0.2.1/", timeout=1, trust_env=False)',
    "httpx2 by name": '__import__("httpx2").get("http://example.invalid/", timeout=1, trust_env=False)',
    "httpx2, asynchronous": '__import__("httpx2").AsyncClient(trust_env=False, timeout=1).get("http://192.0.2.1/")',
    "huggingface_hub": '__import__("huggingface_hub").HfApi().model_info("nobody/nothing", timeout=1)',
}

ALLOWED = """
import contextlib, tempfile, threading
offline.forbid()

@contextlib.contextmanager
def listening(family, host):
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen()
        yield listener.getsockname()[1]

with listening(socket.AF_INET, "0.0.0.0") as port:
    for host in ("127.0.0.1", "127.8.8.8", "localhost", b"127.0.0.1"):
        with tcp() as client:
            client.connect((host, port))
    socket.create_connection(("127.0.0.1", port)).close()
    udp().sendto(b"x", ("127.0.0.1", port))
    udp().sendmsg([b"x"], [], 0, ("127.0.0.1", port))
    connected = udp()
    connected.connect(("127.0.0.1", port))
    connected.sendmsg([b"x"])
    if socket.has_ipv6:
        with tcp(socket.AF_INET6) as client:
            client.connect(("::ffff:127.0.0.1", port))
with contextlib.suppress(OSError), listening(socket.AF_INET6, "::1") as port:  # a machine may have no IPv6
    for address in (("::1", port), ("::1", port, 0, 0), ("::1%lo", port)):
        with tcp(socket.AF_INET6) as client:
            assert client.connect_ex(address) == 0
with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener, socket.socket(
    socket.AF_UNIX
) as client:
    listener.bind(f"{folder}/socket")
    listener.listen()
    client.connect(f"{folder}/socket")
socket.socketpair()
if hasattr(socket, "AF_NETLINK"):
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).connect((0, 0))
for host in ("localhost", "LOCALHOST", "127.0.0.1", "::1", "0.0.0.0", None):
    socket.getaddrinfo(host, 80)
socket.gethostbyname("localhost")
socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST)
assert socket.getfqdn("192.0.2.1") == "192.0.2.1", "who can do without an answer goes on"

async def both_ends():
    async def serve(reader, writer):
        writer.write(await reader.read(1))
        writer.close()
    server = await asyncio.start_server(serve, "0.0.0.0", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("localhost", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()

asyncio.run(both_ends())
print("all allowed")
"""


def child(code: str, *before: str, **environment: str) -> str:
    """What a Python says that runs the code where there is loopback only."""
    alone = ["unshare", "-rn", "sh", "-c", f'{LOOPBACK_UP}; exec "$@"', "sh"] if can_make_namespaces() else []
    # A hub that another test made in this process has set the variables for its children.
    ours = variables(offline=True)
    clean = {name: at for name, at in os.environ.items() if not name.startswith(("HUB_", "HF_")) and name not in ours}
    result = subprocess.run(
        [*alone, *before, sys.executable, "-c", PREAMBLE + code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of all calls, in one process, and what strace saw of that."""
    trace = tmp_path_factory.mktemp("guard") / "trace"
    calls = ", ".join(f"{name!r}: outcome(lambda: {call})" for name, call in REFUSED.items())
    before = strace(trace) if shutil.which("strace") else []
    outcomes: dict[str, Any] = json.loads(child(f"offline.forbid(); print(json.dumps({{{calls}}}))", *before))
    return outcomes | {"attempts": attempts_in(trace) if before else None}


@pytest.mark.parametrize("call", REFUSED)
def test_whatever_would_leave_the_machine_is_refused(outcomes: dict[str, Any], call: str) -> None:
    assert outcomes[call] == "refused"


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_none_of_that_becomes_a_system_call(outcomes: dict[str, Any]) -> None:
    assert outcomes["attempts"] == []


def test_loopback_local_sockets_and_listening_work_as_ever() -> None:
    assert child(ALLOWED).strip() == "all allowed"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "127.0.0.1", "127.255.0.9", "::1", "::1%lo", "::ffff:127.0.0.1", b"127.0.0.1", b"::1"],
)
def test_a_host_is_here(host: object) -> None:
    assert is_here(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", None, 5, "0.0.0.0", "::", "127.1", "0177.0.0.1", "0x7f000001", "2130706433", "127.0.0.1.", " 127.0.0.1"),
        *("localhost.", "localhost.localdomain", "127.0.0.1%lo", "[::1]", "192.0.2.1", "10.0.0.1", "169.254.169.254"),
        *("::ffff:192.0.2.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1", "①②⑦.0.0.1", b"\xff"),
    ],
)
def test_a_host_is_elsewhere_or_not_to_be_known(host: object) -> None:
    assert not is_here(host)


def test_the_guard_is_set_once_and_tells_whether_it_is() -> None:
    code = """
before = offline.in_force()
offline.forbid()
real, sys.addaudithook = sys.addaudithook, None
offline.forbid()
print(before, offline.in_force())
"""
    assert child(code).split() == ["False", "True"]


def test_a_guard_that_is_not_let_in_is_an_error() -> None:
    code = """
def other(event, _):
    if event == "sys.addaudithook":
        raise RuntimeError
sys.addaudithook(other)
try:
    offline.forbid()
except RuntimeError as error:
    print(error)
"""
    assert "could not be set" in child(code)


def test_each_destination_is_logged_once_and_not_without_end() -> None:
    code = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
offline.forbid()
for _ in range(3):
    for last in range(150):
        outcome(lambda: tcp().connect((f"192.0.2.{last}", 9)))
"""
    lines = child(code).splitlines()
    assert lines[0] == "WARNING refused a connection to 192.0.2.0: this hub is offline (`offline`, HUB_OFFLINE)"
    assert len(lines) == len(set(lines)) == 100


def test_the_variables_are_set_for_the_process_and_its_children() -> None:
    code = """
import subprocess
offline.prepare(offline=sys.argv == ["-c"] and os.environ["WISH"] == "1")
show = "import json, os; print(json.dumps(dict(os.environ)))"
print(subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout)
"""
    for wish in (False, True):
        environment = json.loads(child(code, WISH=str(int(wish))))
        assert environment.items() >= variables(offline=wish).items()
        assert ("HUB_OFFLINE" in environment, "HF_HUB_OFFLINE" in environment) == (wish, wish)
        assert environment.items() >= QUIET.items(), "telemetry is off, offline or not"


def test_the_libraries_read_these_variables() -> None:
    code = """
from huggingface_hub import constants
print(constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_UPDATE_CHECK, constants.HF_HUB_OFFLINE,
      constants.HF_HUB_DISABLE_XET)
"""
    assert child(code).split() == ["False"] * 4
    assert child(f"offline.prepare(offline=False); {code}").split() == ["True", "True", "False", "False"]
    assert child(f"offline.prepare(offline=True); {code}").split() == ["True"] * 4


def test_a_program_that_embeds_the_hub_is_guarded_too(tmp_path: Path) -> None:
    code = f"""
from hub.hub import Hub
from hub.settings import Settings
from pathlib import Path
Hub(Settings(cache_dir=Path({str(tmp_path)!r}), offline=True, neighbours=["ollama:http://127.0.0.1:11434"]))
print(offline.in_force(), os.environ["DO_NOT_TRACK"], "HUB_OFFLINE" in os.environ)
"""
    assert child(code).split() == ["True", "1", "False"]


@pytest.mark.parametrize("arguments", [["generate", "a star", "-m", "nope"], ["replay", "README.md"]])
def test_the_commands_that_draw_are_guarded_before_all_else(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
import contextlib, os
from hub.cli import main
os.chdir({str(ROOT)!r})
with contextlib.suppress(SystemExit):
    main({arguments!r})
print(offline.in_force())
"""
    assert child(code, HUB_OFFLINE="1", HUB_CACHE_DIR=str(tmp_path)).split()[-1] == "True"


COMMANDS = {
    "serve": [],
    "generate": ["a star", "-m", "nope"],
    "replay": ["drawn.png"],
    "engine status": [],
    "engine load": ["builtin"],
    "engine pin": ["builtin"],
    "engine unpin": ["builtin"],
    "engine unload": ["--all"],
    "models list": [],
    "models show": ["builtin"],
    "models pull": ["org/name"],
    "models add": ["drawn.png"],
    "models verify": [],
    "models rm": ["nope"],
    "models gc": ["--dry-run"],
    "models alias": ["other", "builtin"],
    "models export": ["builtin", "-o", "a.hubmodels"],
    "models import": ["drawn.png"],
    "route": ["builtin"],
    "usage": [],
    "loras list": [],
    "keys new": ["alice"],
    "doctor": [],
}
"""Each command, and what makes it do something."""


def leaves(command: click.Command, *words: str) -> list[str]:
    if isinstance(command, click.Group):
        return [leaf for name, each in command.commands.items() for leaf in leaves(each, *words, name)]
    return [" ".join(words)]


def test_every_command_is_tried() -> None:
    assert sorted(leaves(main)) == sorted(COMMANDS)


def tried(folder: Path, *arguments: str, settings: str) -> tuple[list[str], str]:
    """What a command tries to reach that is not this machine, where the hub listens at a name; and what it says."""
    (folder / "models").mkdir(exist_ok=True)
    places = 'host = "hub.example.invalid"\ncache_dir = "cache"\nmodels_dir = "models"'
    (folder / "hub.toml").write_text(f"{places}\n{settings}")
    folder.joinpath("drawn.png").write_bytes(base64.b64decode("iVBORw0KGgo="))
    trace = folder / "trace"
    alone = ["unshare", "-rn", "sh", "-c", f'{LOOPBACK_UP}; exec "$@"', "sh"] if can_make_namespaces() else []
    # A hub that another test made in this process has set the variables for its children.
    ours = variables(offline=True)
    clean = {name: at for name, at in os.environ.items() if not name.startswith(("HUB_", "HF_")) and name not in ours}
    done = subprocess.run(
        [*alone, *strace(trace), sys.executable, "-m", "hub", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), "HUB_API_KEYS": "alice:sk-0123456789"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return [each.address for each in attempts_in(trace)], done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_of_an_offline_hub_asks_anybody_where_the_host_is_a_name(command: str, tmp_path: Path) -> None:
    found, said = tried(tmp_path, *command.split(), *COMMANDS[command], settings="offline = true")
    assert found == [], said


@pytest.mark.skipif(shutil.which("strace") is None or not can_make_namespaces(), reason="needs strace and unshare")
@pytest.mark.slow
def test_the_doctor_asks_nobody_where_its_own_option_says_so(tmp_path: Path) -> None:
    found, said = tried(tmp_path, "doctor", "--offline", settings="")
    assert found == []
    assert "http://hub.example.invalid:8000 was not asked, since that would leave the machine" in said
    assert "refused" not in said.replace("a connection to another machine was refused", "")


@pytest.mark.skipif(shutil.which("strace") is None or not can_make_namespaces(), reason="needs strace and unshare")
def test_an_offline_command_says_why_it_did_not_ask_the_hub(tmp_path: Path) -> None:
    assert "no hub answers at http://hub.example.invalid:8000" in tried(tmp_path, "engine", "status", settings="")[1]
    _, said = tried(tmp_path, "engine", "status", settings="offline = true")
    assert "http://hub.example.invalid:8000 was not asked" in said


@pytest.mark.parametrize("neighbour", ["ollama:http://192.0.2.1:11434", "vllm:http://gpu.example.org:8001"])
def test_a_neighbour_on_another_machine_stops_the_start_of_an_offline_hub(neighbour: str, tmp_path: Path) -> None:
    environment = {"HUB_OFFLINE": "1", "HUB_NEIGHBOURS": neighbour, "HUB_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "hub", "serve", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert f"neighbours: {neighbour} is not this machine" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def offline_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub whose processes hold a thread that dials 0.0.0.0 upon a sign: the guard refuses that, and without it the
    packet would stay on this machine."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(PLANTED)
    paths = os.pathsep.join([str(folder / "site"), str(ROOT)])
    planted = {"PYTHONPATH": paths, "PLANTED": str(folder), "PLANTED_DIALS": "0.0.0.0"}
    allowed = {"HUB_IMAGE_HOSTS": "192.0.2.1,*", "HUB_PUBLIC_URL": "https://images.example.org"}
    with run_server(folder, HUB_OFFLINE="1", **planted, **allowed) as running:
        yield running


def processes_of(server: Server) -> tuple[psutil.Process, psutil.Process]:
    """The API process and its worker."""
    process = psutil.Process(server.process.pid)
    return process, next(each for each in process.children() if "hub.engine.worker" in each.cmdline())


def draw(server: Server, **more: object) -> tuple[int, dict[str, Any]]:
    status, answer = ask(f"{server.url}/v1/images/generations", json.dumps(PICTURE | more).encode())
    return status, json.loads(answer)


def test_an_offline_hub_draws(offline_server: Server) -> None:
    status, answer = draw(offline_server)
    assert status == 200
    assert answer["data"][0]["url"].startswith("https://images.example.org/files/"), "public_url may be any"


def test_the_guard_is_in_force_in_the_server_and_in_its_worker(offline_server: Server) -> None:
    server, worker = processes_of(offline_server)
    assert "--offline" in worker.cmdline()
    files = [offline_server.cache.parent / f"{process.pid}.json" for process in (server, worker)]
    (offline_server.cache.parent / "go").touch()
    wait_for(lambda: all(file.exists() for file in files), 30)
    assert [json.loads(file.read_text())["outcome"] for file in files] == ["OfflineRefused"] * 2
    assert offline_server.log.read_text().count("refused a connection to 0.0.0.0") == 2


def test_the_worker_of_an_offline_hub_has_all_variables(offline_server: Server) -> None:
    _, worker = processes_of(offline_server)
    assert worker.environ().items() >= variables(offline=True).items()


def test_any_worker_is_quiet_and_looks_at_local_files_alone(server: Server) -> None:
    _, worker = processes_of(server)
    assert worker.environ().items() >= (QUIET | OFFLINE).items()
    assert "--offline" not in worker.cmdline()


@pytest.mark.parametrize("host", ["192.0.2.1", "images.example.org:8443", "[2001:db8::1]", "0.0.0.0"])
def test_a_picture_of_another_machine_is_a_503_that_says_why(offline_server: Server, host: str) -> None:
    status, answer = draw(offline_server, image=f"http://{host}/a.png")
    error = answer["error"]
    assert (status, error["code"], error["param"], error["type"]) == (503, "offline", "image", "server_error")
    assert "offline" in error["message"]
    assert host not in error["message"]


def read(folder: Path, url: str, *hosts: str) -> bytes:
    async def never(host: str, port: int) -> list[str]:
        pytest.fail("a look-up")

    inputs = InputImages(Files(folder, ttl=60), hosts, never, offline=True)
    return asyncio.run(inputs.read(url, ["http://192.0.2.7"]))


def test_nothing_is_looked_up_before_that_and_clients_are_told_not_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(Offline) as told:
        read(tmp_path, "https://images.example.org/a.png", "*")
    assert told.value.headers["x-should-retry"] == "false"


def test_this_machine_and_links_of_this_hub_are_as_ever(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as told:
        read(tmp_path, "http://127.0.0.1:9/a.png")
    assert told.value.code == "image_host_not_allowed"
    with pytest.raises(InvalidRequest) as told:
        read(tmp_path, "http://192.0.2.7/files/nothing/here.png")
    assert told.value.code in ("invalid_signature", "file_expired")
