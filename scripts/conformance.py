"""Runs real clients, each as its users install it, against a hub of this checkout: `scripts/conformance`.

Every client has an environment of its own under .conformance/, made once and reused while its requirements are the
same, and a program in tests/clients/ that prints one JSON line per check. Installing needs the package registries.
After it the hub and all clients run inside one network namespace that has only the loopback device, where the machine
permits that, so that a client that secretly talks to somebody else fails here.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".conformance"
PROGRAMS = ROOT / "tests" / "clients"
DOCS = ROOT / "docs" / "clients.md"
TABLE_BEGIN, TABLE_END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
INSTALL_TIMEOUT = 1200
KEY, SECOND_KEY = "sk-conformance-first-0123456789abcdef", "sk-conformance-second-0123456789abcdef"
NODE_NEEDED = (20, 0)
NODE_HELP = """Node.js 20 or newer, with npm, is needed for the JavaScript clients and was not found.
  Debian, Ubuntu:  apt-get install nodejs npm   (from Debian 13 or Ubuntu 25.04 on; else nodejs.org)
  macOS:           brew install node
  anywhere:        https://nodejs.org/en/download
Or leave those clients out:  scripts/conformance --python"""


@dataclass(frozen=True)
class Client:
    """A client of the hub: what to install, and the program that drives it."""

    name: str
    title: str
    version: str
    program: str
    requirements: tuple[str, ...]
    node: bool = False
    overrides: dict[str, str] = field(default_factory=dict)
    """npm's `overrides`."""
    unpacked: tuple[str, ...] = ()
    """Packages of which the files are needed without what they depend on."""
    timeout: float = 240


CLIENTS = (
    Client("openai-3", "openai (Python) 3", "3.57.0", "openai_sdk.py", ("openai==3.57.0", "pillow==13.0.0")),
    Client("openai-2", "openai (Python) 2", "2.54.0", "openai_sdk.py", ("openai==2.54.0", "pillow==13.0.0")),
    Client("openai-1", "openai (Python) 1", "1.109.1", "openai_sdk.py", ("openai==1.109.1", "pillow==13.0.0")),
    Client(
        "langchain",
        "LangChain DallEAPIWrapper",
        "0.4.2",
        "langchain_dalle.py",
        ("langchain-community==0.4.2", "openai==2.54.0", "pillow==13.0.0"),
    ),
    Client("litellm", "LiteLLM", "1.110.2", "litellm_images.py", ("litellm==1.110.2", "pillow==13.0.0")),
    Client(
        "pydantic-ai",
        "Pydantic AI ImageGenerator",
        "2.68.0",
        "pydantic_ai_images.py",
        ("pydantic-ai-slim[openai]==2.68.0", "pillow==13.0.0"),
    ),
    Client(
        "open-webui",
        "Open WebUI",
        "0.12.4",
        "open_webui_images.py",
        (
            "aiofiles==25.1.0",
            "aiohttp==3.14.5",
            "beautifulsoup4==4.14.3",
            "cryptography==48.0.1",
            "fastapi==0.136.3",
            "langchain-core==1.4.8",
            "markdown==3.10.2",
            "pillow==13.0.0",
            "pydantic==2.13.4",
            "python-mimeparse==2.0.0",
            "python-multipart==0.0.32",
            "python-socketio==5.16.2",
            "requests==2.34.2",
            "sqlalchemy[asyncio]==2.0.50",
            "validators==0.35.0",
        ),
        unpacked=("open-webui==0.12.4",),
    ),
    Client("openai-node", "openai (Node)", "7.57.0", "openai.mjs", ("openai@7.57.0", "sharp@0.35.5"), node=True),
    Client(
        "ai-sdk",
        "Vercel AI SDK",
        "7.0.173",
        "ai-sdk.mjs",
        ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "sharp@0.35.5"),
        node=True,
    ),
    Client(
        "aigne",
        "AIGNE Hub client",
        "0.10.16",
        "aigne.mjs",
        ("@aigne/aigne-hub@0.10.16", "sharp@0.35.5"),
        node=True,
        overrides={"@aws-sdk/client-bedrock-runtime": "3.1164.0", "@aws-sdk/core": "3.981.0"},
    ),
    Client(
        "n8n",
        "n8n OpenAI node",
        "2.41.1",
        "n8n.cjs",
        ("n8n-core@2.41.1", "n8n-workflow@2.41.0", "form-data@4.0.6", "sharp@0.35.5"),
        node=True,
        unpacked=("@n8n/n8n-nodes-langchain@2.41.1", "@n8n/ai-utilities@0.34.1"),
    ),
)


class Failure(Exception):
    """Told to the user in one line."""


def say(words: str) -> None:
    """Progress, beside the results."""
    print(f"\033[1m==> {words}\033[0m" if sys.stderr.isatty() else f"==> {words}", file=sys.stderr, flush=True)


# Environments


def environment_of(client: Client) -> Path:
    """Where the client is installed."""
    return HOME / client.name


def stamp_of(client: Client) -> str:
    """What the environment must have been made from to be reused."""
    made_from = [client.requirements, sorted(client.overrides.items()), client.unpacked, client.node]
    runtime = node_version() if client.node else sys.version_info[:2]
    return hashlib.sha256(json.dumps([made_from, runtime, 1]).encode()).hexdigest()


def is_installed(client: Client) -> bool:
    """Whether the environment is there and made from the same requirements."""
    stamp = environment_of(client) / ".stamp"
    return stamp.is_file() and stamp.read_text() == stamp_of(client)


def install(client: Client) -> None:
    """Makes the client's environment anew."""
    say(f"Installing {client.title} {client.version} into .conformance/{client.name}")
    start = time.monotonic()
    folder = environment_of(client)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if client.node:
        install_node(client, folder)
    else:
        install_python(client, folder)
    (folder / ".stamp").write_text(stamp_of(client))
    say(f"Installed {client.name} in {time.monotonic() - start:.0f} s")


def install_python(client: Client, folder: Path) -> None:
    """A virtual environment; `unpacked` wheels only as source files, in source/."""
    run_installer(client, [sys.executable, "-m", "venv", str(folder / "venv")])
    pip = [str(python_of(client)), "-m", "pip", "--disable-pip-version-check"]
    run_installer(client, [*pip, "install", "--quiet", *client.requirements])
    for package in client.unpacked:
        with tempfile.TemporaryDirectory(dir=folder) as downloads:
            wanted = ["--no-deps", "--only-binary", ":all:", "--dest", downloads, package]
            run_installer(client, [*pip, "download", "--quiet", *wanted])
            for wheel in Path(downloads).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    names = [name for name in archive.namelist() if name.endswith((".py", "METADATA"))]
                    archive.extractall(folder / "source", names)


def install_node(client: Client, folder: Path) -> None:
    """A package.json and its node_modules; `unpacked` packages lie beside the others, without their dependencies."""
    exact = dict(one.rsplit("@", 1) for one in client.requirements)
    package = {"private": True, "dependencies": exact, "overrides": client.overrides}
    (folder / "package.json").write_text(json.dumps(package, indent=2))
    npm = shutil.which("npm")
    if npm is None:
        raise Failure(NODE_HELP)
    run_installer(client, [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    for one in client.unpacked:
        name = one.rsplit("@", 1)[0]
        with tempfile.TemporaryDirectory(dir=folder) as downloads:
            run_installer(client, [npm, "pack", "--silent", "--pack-destination", downloads, one], folder)
            for archive in Path(downloads).glob("*.tgz"):
                unpack_npm(archive, folder / "node_modules" / name)


def unpack_npm(archive: Path, target: Path) -> None:
    """npm's tarballs hold everything under one folder, `package`."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(scratch, filter="data")
            else:
                tar.extractall(scratch)
        (folder,) = Path(scratch).iterdir()
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)


def run_installer(client: Client, command: list[str], where: Path | None = None) -> None:
    """One step of an installation; its output is told only when it fails."""
    nice = ["nice"] if shutil.which("nice") else []
    try:
        done = subprocess.run(
            [*nice, *command], cwd=where, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{client.name}: '{' '.join(command[:4])} …' took longer than {INSTALL_TIMEOUT} s") from None
    if done.returncode:
        print((done.stdout + done.stderr)[-4000:], file=sys.stderr)
        raise Failure(f"{client.name}: '{' '.join(command[:4])} …' failed")


def python_of(client: Client) -> Path:
    """The interpreter of a Python client."""
    return environment_of(client) / "venv" / "bin" / "python"


def node_version() -> tuple[int, ...]:
    """Node's version; (0,) where there is none."""
    node = shutil.which("node")
    if node is None:
        return (0,)
    words = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in re.findall(r"[0-9]+", words)[:2]) or (0,)


def prepare(clients: list[Client], *, offline: bool) -> None:
    """Sees to it that every client is installed."""
    if any(client.node for client in clients) and (node_version() < NODE_NEEDED or shutil.which("npm") is None):
        raise Failure(NODE_HELP)
    HOME.mkdir(exist_ok=True)
    missing = [client for client in clients if not is_installed(client)]
    if offline and missing:
        raise Failure(f"not installed, and --offline forbids it: {', '.join(client.name for client in missing)}")
    for client in missing:
        install(client)


# The network


def enter_namespace(arguments: list[str]) -> None:
    """Starts this program again inside a network namespace of its own and does not return; or returns, told loudly."""
    for flags in (["-n"], ["-rn"]):
        command = ["unshare", *flags]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
            if done.returncode == 0:
                sys.stdout.flush()
                os.execvp("unshare", [*command, sys.executable, __file__, "--inside", *arguments])
    say("!!! No network namespace could be made here (unshare). The clients run WITHOUT isolation from the network.")


def raise_loopback() -> None:
    """Switches the loopback device on, and makes sure that it is the only one that is up."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    names = [name for _, name in socket.if_nameindex()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            asked = struct.pack("16sh14x", name.encode(), 0)
            flags = struct.unpack("16sh14x", fcntl.ioctl(probe, get_flags, asked))[1]
            if name == "lo":
                fcntl.ioctl(probe, set_flags, struct.pack("16sh14x", b"lo", flags | up))
            elif flags & up:
                raise Failure(f"the network namespace has a device beside loopback that is up: {name}")


# The hub


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[str]:
    """A fresh hub with two keys, on loopback; gives its origin."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    environment |= {
        "HUB_API_KEYS": f"first:{KEY},second:{SECOND_KEY}",
        "HUB_CACHE_DIR": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": str(ROOT),
    }
    log = HOME / "hub.log"
    with log.open("wb") as output:
        hub = subprocess.Popen(
            [sys.executable, "-m", "hub", "serve", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    origin = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not is_ready(origin):
            if hub.poll() is not None or time.monotonic() > end:
                raise Failure(f"the hub did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield origin
        if hub.poll() is not None:
            raise Failure(f"the hub ended while the clients ran:\n{log.read_text()[-4000:]}")
    finally:
        hub.terminate()
        try:
            hub.wait(20)
        except subprocess.TimeoutExpired:
            hub.kill()
            hub.wait()


def is_ready(origin: str) -> bool:
    """Whether the hub takes requests."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{origin}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# The clients


@dataclass
class Outcome:
    """What a client's program reported."""

    client: Client
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0


def command_of(client: Client) -> list[str]:
    """How to run the client's program. Node finds packages from where the program lies, so it is copied there."""
    if not client.node:
        return [str(python_of(client)), str(PROGRAMS / client.program)]
    folder = environment_of(client) / "program"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for source in PROGRAMS.glob("*.*js"):
        shutil.copy(source, folder)
    return [shutil.which("node") or "node", str(folder / client.program)]


def run_client(client: Client, origin: str, only_checks: str | None) -> Outcome:
    """Runs the program and prints each check as it comes."""
    outcome = Outcome(client)
    planned: list[str] = []
    complaints: list[str] = []
    start = time.monotonic()
    folder = environment_of(client)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    environment |= {
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CONFORMANCE_URL": origin,
        "CONFORMANCE_KEY": KEY,
        "CONFORMANCE_SECOND_KEY": SECOND_KEY,
        "CONFORMANCE_FOLDER": str(folder),
        "CONFORMANCE_ONLY": only_checks or "",
    }

    def take(line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            complaints.append(line)
        elif "plan" in told:
            planned.extend(told["plan"])
        elif told.get("ok") is True:
            outcome.passed.append(told["check"])
            print(f"pass {client.name}: {told['check']}", flush=True)
        else:
            fail(outcome, str(told.get("check")), str(told.get("detail")))

    log = folder / "client.log"
    with log.open("wb") as noise:
        program = subprocess.Popen(
            command_of(client),
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            start_new_session=True,
        )
        in_time = False
        try:
            in_time = read_lines(program, start + client.timeout, take)
        finally:
            if not in_time:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
            code = program.wait()
    if not in_time:
        fail(outcome, "ends in time", f"it was stopped after {client.timeout:.0f} s")
    if code != 0 and in_time:
        fail(outcome, "ends well", f"exit status {code}: {log.read_text(errors='replace')[-1500:]}{complaints[-5:]}")
    for name in planned:
        if name not in outcome.passed and not any(each == name for each in outcome.failed):
            fail(outcome, name, "it never ran")
    if not planned:
        fail(outcome, "says what it checks", "the program printed no plan")
    outcome.seconds = time.monotonic() - start
    return outcome


def read_lines(program: subprocess.Popen[bytes], end: float, take: Callable[[str], None]) -> bool:
    """Hands each line of the program's output to `take`, until it ends; False where it takes too long."""
    assert program.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(program.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            chunk = os.read(program.stdout.fileno(), 1 << 16)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    take(line.decode(errors="replace"))
            if not chunk:
                return True
    return False


def fail(outcome: Outcome, check: str, detail: str) -> None:
    """Notes and prints a failed check."""
    outcome.failed.append(check)
    print(f"FAIL {outcome.client.name}: {check} ({detail})", flush=True)


# The table and the docs


def print_table(outcomes: list[Outcome]) -> None:
    """Client, version, checks passed and failed."""
    width = max(len(outcome.client.title) for outcome in outcomes)
    print(f"\n{'client':<{width}}  {'version':<9} {'passed':>6} {'failed':>6} {'seconds':>7}")
    for outcome in outcomes:
        numbers = f"{len(outcome.passed):>6} {len(outcome.failed):>6} {outcome.seconds:>7.1f}"
        print(f"{outcome.client.title:<{width}}  {outcome.client.version:<9} {numbers}")
    passed = sum(len(outcome.passed) for outcome in outcomes)
    print(f"{passed} passed, {sum(len(outcome.failed) for outcome in outcomes)} failed")


def docs_row(client: Client, result: str) -> str:
    """A client's row in docs/clients.md."""
    return f"| [{client.title}](#{client.name}) | {client.version} | {result} |"


def update_docs(outcomes: list[Outcome]) -> None:
    """Writes the results into docs/clients.md, between the markers; clients that did not run keep their rows."""
    text = DOCS.read_text()
    head, begin, rest = text.partition(TABLE_BEGIN)
    old, end, tail = rest.partition(TABLE_END)
    if not begin or not end:
        raise Failure(f"docs/clients.md lacks the markers {TABLE_BEGIN} and {TABLE_END}")
    rows = ["| client | version | checks |", "| --- | --- | --- |"]
    results = {outcome.client.name: outcome for outcome in outcomes}
    for client in CLIENTS:
        if (outcome := results.get(client.name)) is not None:
            failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
            rows.append(docs_row(client, f"{len(outcome.passed)} passed{failed}"))
            continue
        known = re.search(
            rf"^\| \[[^]]*\]\(#{re.escape(client.name)}\) \| {re.escape(client.version)} \|.*$", old, re.MULTILINE
        )
        rows.append(known[0] if known else docs_row(client, "not yet run"))
    DOCS.write_text(f"{head}{begin}\n" + "\n".join(rows) + f"\n{end}{tail}")
    say("Wrote docs/clients.md")


def missing_in_docs() -> list[str]:
    """What docs/clients.md lacks: for each client a section with the hub's address in it, and a row in the table."""
    text = DOCS.read_text() if DOCS.is_file() else ""
    table = text.partition(TABLE_BEGIN)[2].partition(TABLE_END)[0]
    missing = []
    for client in CLIENTS:
        section = text.partition(f'<a id="{client.name}"></a>')[2].partition("\n<a id=")[0]
        if f"## {client.title}" not in section or "127.0.0.1:8000" not in section:
            missing.append(f"a section on {client.title}")
        if f"(#{client.name}) | {client.version} |" not in table:
            missing.append(f"a row of {client.title} {client.version} (scripts/conformance --update-docs)")
    return missing


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/conformance",
        description="Installs real clients under .conformance/ and runs them against a hub of this checkout, cut off"
        " from the network where the machine permits. Exit status 1 on any failed check.",
    )
    names = [client.name for client in CLIENTS]
    parser.add_argument("--python", action="store_true", help="only the Python clients, which need no Node.js")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"only these: {', '.join(names)}")
    parser.add_argument("--checks", metavar="TEXT", help="only checks with TEXT in their name")
    parser.add_argument("--offline", action="store_true", help="install nothing; fail where something is missing")
    parser.add_argument("--no-netns", action="store_true", help="no network namespace")
    parser.add_argument("--install-only", action="store_true", help="install and stop")
    parser.add_argument("--update-docs", action="store_true", help="write the results into docs/clients.md")
    parser.add_argument("--list", action="store_true", help="list the clients and stop")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Installs, runs, and tells; the exit status."""
    asked = parse(arguments)
    if asked.list:
        for client in CLIENTS:
            print(f"{client.name:<12} {client.title} {client.version}")
        return 0
    clients = [client for client in CLIENTS if not asked.only or client.name in asked.only]
    if asked.python:
        clients = [client for client in clients if not client.node]
    if not clients:
        raise Failure("no client is left to run")
    if asked.checks and asked.update_docs:
        raise Failure("--update-docs counts all checks; leave --checks out")
    if asked.inside:
        raise_loopback()
    else:
        prepare(clients, offline=asked.offline)
        if asked.install_only:
            return 0
        if not asked.no_netns:
            enter_namespace(arguments)
        else:
            say("The clients run WITHOUT isolation from the network (--no-netns).")
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch, running_hub(Path(scratch)) as origin:
        where = "in a network namespace with only loopback" if asked.inside else "on this machine's network"
        say(f"The hub listens on {origin}, {where}")
        outcomes = [run_client(client, origin, asked.checks) for client in clients]
    print_table(outcomes)
    if asked.update_docs:
        update_docs(outcomes)
    missing = missing_in_docs()
    for each in missing:
        print(f"FAIL docs/clients.md: it lacks {each}")
    return 1 if missing or any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
