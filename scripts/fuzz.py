"""Fuzzes hubs with schemathesis, by their own OpenAPI documents; see scripts/fuzz."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from diffusers import DiffusionPipeline  # noqa: E402

from scripts.fuzz_hooks import LORAS  # noqa: E402
from tests.conftest import Server, build_small_stable_diffusion, run_server, status, write_manifest  # noqa: E402
from tests.families.loras import ATTENTION, save, tensors  # noqa: E402

KEY = "sk-fuzz-1234567890abcdef"
KINDS = ("open", "keyed")
KNOWN_BREAK = "Unsupported type: 'Binary'"


@contextmanager
def small_hub(folder: Path, model: Path, *, keyed: bool) -> Iterator[Server]:
    """A hub whose default model has random weights and draws 64x64 pixels in a few milliseconds.

    Larger sides and more steps than a fuzzer needs are refused by its manifest, so that no request takes seconds.
    """
    models = write_manifest(
        folder / "models",
        model,
        tasks='tasks = ["text-to-image", "image-to-image", "inpainting"]',
        quality="quality = { low = 1, medium = 2, high = 3 }",
        size="size = { native = '64x64', multiple = 8, min = 32, max = 128, max_output = 1024 }",
        max_inference_steps="max_inference_steps = 4",
        defaults="defaults = { num_inference_steps = 2, guidance_scale = 5.0, size = '64x64' }",
    )
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    save(models / "loras", LORAS[0]["name"], tensors(pipeline, {"unet": ATTENTION}))
    names = ("dall-e-2", "dall-e-3", "gpt-image-1")
    environ = {
        "HUB_MODELS_DIR": str(models),
        "HUB_DEFAULT_MODEL": "small",
        "HUB_ALIASES": ",".join(f"{name}:small" for name in names),
        "HUB_LOG_LEVEL": "info",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there: a fuzzer's pulls lead nowhere
        **({"HUB_API_KEYS": f"fuzz:{KEY}"} if keyed else {}),
    }
    with run_server(folder, **environ) as server:
        yield server


def fuzz(server: Server, kind: str, folder: Path, asked: argparse.Namespace) -> bool:
    """One run of schemathesis; True where nothing was found, in the answers and in the hub's own log."""
    config, report = folder / "fuzz.toml", folder / "report.json"
    auth = '\n[auth.openapi.bearer]\nbearer = "${HUB_FUZZ_KEY}"\n' if kind == "keyed" else ""
    config.write_text((ROOT / "scripts" / "fuzz.toml").read_text() + auth)
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "--config-file",
        str(config),
        "run",
        *([asked.document, f"--url={server.url}"] if asked.document else [f"{server.url}/openapi/openapi.json"]),
        f"--max-examples={asked.examples}",
        f"--max-time={asked.seconds}",
        f"--seed={asked.seed}",
        "--report=json",
        f"--report-json-path={report}",
        *asked.more,
    ]
    print(f"\n==> the {kind} hub, seed {asked.seed}", flush=True)
    code, words = run(command, folder, server)
    clean = code == 0 or broke_by_itself(report, words)
    if server.process.poll() is not None or status(f"{server.url}/ready") != 200:
        print("error: the hub did not survive", flush=True)
        clean = False
    faults = re.findall(r"^.*Traceback.*(?:\n.*){0,30}", server.log.read_text(errors="replace"), re.MULTILINE)
    if faults:
        print(f"error: the hub's log tells of a fault of its own\n{faults[0]}", flush=True)
    return clean and not faults


def run(command: list[str], folder: Path, server: Server) -> tuple[int, str]:
    """Runs schemathesis and shows what it says; returns its exit status and its words."""
    environ = {
        **os.environ,
        "HUB_FUZZ_KEY": KEY,
        "HUB_FUZZ_LINK": a_link(server),
        "SCHEMATHESIS_HOOKS": "scripts.fuzz_hooks",
        "PYTHONPATH": str(ROOT),
    }
    words = []
    with subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            words.append(line)
    return process.returncode, "".join(words)


def broke_by_itself(report: Path, words: str) -> bool:
    """Whether the only trouble was schemathesis's own: 4.32 now and then breaks on the file of a form while it makes
    a broken request. That ends the fuzzing of one operation, is no fault of the hub, and is said."""
    if not report.is_file():
        return False
    told = json.loads(report.read_text())
    reasons = set(re.findall(r"^Runtime Error\s+(\S.*)$", words, re.MULTILINE))
    broke = {each["title"] for each in told["errors"]} == {"Runtime Error"} and reasons == {KNOWN_BREAK}
    if broke and not told["failures"]:
        print(
            f"note: schemathesis itself broke ({KNOWN_BREAK}); another seed fuzzes that operation further", flush=True
        )
        return True
    return False


def a_link(server: Server) -> str:
    """The path of a generated picture's link."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps({"prompt": "a", "size": "64x64"}).encode()
    request = urllib.request.Request(f"{server.url}/api/images/generations", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return urlsplit(json.load(answer)["data"][0]["url"]).path


def main() -> int:
    """0 where nothing was found, 1 where something was."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--only", choices=KINDS, help="one of the two hubs: without keys, or with one")
    parser.add_argument("--examples", type=int, default=60, metavar="N", help="most tries per operation and phase")
    parser.add_argument("--seconds", type=int, default=200, metavar="S", help="most time per hub")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed makes the same requests")
    parser.add_argument("--document", metavar="FILE", help="an OpenAPI document instead of the hub's own")
    parser.add_argument("more", nargs="*", metavar="-- …", help="for `schemathesis run`, such as --include-path PATH")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="hub-fuzz-") as name:
        model = build_small_stable_diffusion(_folder(Path(name) / "model"))
        for kind in (asked.only,) if asked.only else KINDS:
            folder = _folder(Path(name) / kind)
            with small_hub(folder, model, keyed=kind == "keyed") as server:
                if not fuzz(server, kind, folder, asked):
                    found.append(kind)
    for kind in found:
        limits = f"--examples {asked.examples} --seconds {asked.seconds}"
        more = f" -- {' '.join(asked.more)}" if asked.more else ""
        print(f"to repeat: scripts/fuzz --only {kind} --seed {asked.seed} {limits}{more}")
    return 1 if found else 0


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
