"""From Hugging Face over a kill, a bundle and a gap to a picture: the commands that a user would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hugging_face import StandIn
from tests.library.shelves import most_fetched
from tests.test_offline import IN_NAMESPACE, can_make_namespaces

REPO = "org/small"
UNET = "unet/diffusion_pytorch_model.safetensors"

CLOSED = """
import base64, json, subprocess, sys, time, urllib.request
hub = [sys.executable, "-m", "hub"]
def run(*arguments):
    done = subprocess.run([*hub, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
listed = json.loads(run("models", "import", sys.argv[1], "--list", "--json"))
run("models", "import", sys.argv[1])
verified = [json.loads(line) for line in run("models", "verify", "--json").splitlines()][-1]
server = subprocess.Popen([*hub, "serve", "--port", "8766"])
def post(path, body):
    request = urllib.request.Request("http://127.0.0.1:8766" + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())
for _ in range(1200):
    try:
        urllib.request.urlopen("http://127.0.0.1:8766/ready").close()
        break
    except OSError:
        time.sleep(0.05)
made = post("/v1/images/generations", {"model": "org/small", "prompt": "a cat", "seed": 3, "size": "64x64",
                                       "num_inference_steps": 2, "response_format": "b64_json"})
server.terminate()
server.wait(30)
print(json.dumps({"listed": listed, "verified": verified, "b64": made["data"][0]["b64_json"]}))
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HUB_", "HF_"))}
    (folder / "models").mkdir(parents=True, exist_ok=True)
    places = {"HUB_CACHE_DIR": str(folder / "cache"), "HUB_MODELS_DIR": str(folder / "models")}
    return {**clean, **places, "PYTHONPATH": str(ROOT), **more}


def hub(folder: Path, *arguments: str, code: int = 0, **more: str) -> str:
    """A command of the hub's; what it writes to standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "hub", *arguments],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


@pytest.mark.skipif(not can_make_namespaces(), reason="needs unshare with user namespaces, and ip or ifconfig")
def test_a_model_goes_over_a_kill_and_a_gap_and_draws_the_same_picture(
    tmp_path: Path, small_stable_diffusion: Path
) -> None:
    import base64

    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    bundle = tmp_path / "one.hubmodels"
    with StandIn() as stand_in:
        stand_in.add(REPO, small_stable_diffusion, licence="apache-2.0")
        stand_in.fault(UNET, "stall", at=1_000_000, seconds=60)
        online = {"HF_ENDPOINT": stand_in.url}
        pulling = subprocess.Popen(
            [sys.executable, "-m", "hub", "models", "pull", REPO],
            cwd=here,
            env=environment(here, **online),
            stderr=subprocess.DEVNULL,
        )
        partial = here / "cache" / "weights" / "models--org--small" / "blobs"
        end = time.monotonic() + 60
        while most_fetched(partial) < 900_000:
            assert time.monotonic() < end and pulling.poll() is None
            time.sleep(0.02)
        pulling.kill()
        pulling.wait()
        assert list((here / "models").glob("*.toml")) == [], "what is not whole is no model"
        lines = hub(here, "models", "pull", REPO, "--json", **online).splitlines()
        assert json.loads(lines[-1])["result"]["models"] == [REPO]
        assert any(seen.range and seen.path.endswith(UNET) for seen in stand_in.seen if seen.range), "it was resumed"
    result = json.loads(hub(here, "models", "verify", REPO, "--json").splitlines()[-1])["result"]
    assert (result["faults"], result["models"]) == ([], [REPO])
    hub(here, "models", "export", REPO, "-o", str(bundle))

    closed = subprocess.run(
        ["unshare", "-rn", "sh", "-c", IN_NAMESPACE, "sh", sys.executable, "-c", CLOSED, str(bundle)],
        cwd=there,
        env=environment(there, HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert closed.returncode == 0, closed.stderr[-3000:]
    told = json.loads(closed.stdout.splitlines()[-1])
    assert told["listed"]["models"][0]["license"] == "apache-2.0"
    assert told["verified"]["result"]["faults"] == []
    drawn = pixels(base64.b64decode(told["b64"]))
    assert len(set(drawn)) > 20, "a picture, not one colour"
    hub(here, "generate", "a cat", "-m", REPO, "--seed", "3", "--size", "64x64", "--steps", "2", "-o", "same.png")
    assert pixels((here / "same.png").read_bytes()) == drawn

    blob = max(
        (there / "cache" / "weights" / "models--local--small" / "blobs").parent.parent.rglob("blobs/*"), key=size
    )
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 4
    blob.write_bytes(data)
    lines = hub(there, "models", "verify", REPO, "--json", code=1).splitlines()
    faults = json.loads(lines[-1])["result"]["faults"]
    assert [(fault["problem"], fault["quarantined"]) for fault in faults] == [("damaged", True)]


def size(file: Path) -> int:
    return file.stat().st_size
