"""What all tests share: small random pipelines built from config, and real server processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hub.hub import Hub
    from hub.settings import Settings

# Two OpenMP threads that wait for each other on a busy machine make small models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

LONG = (
    "test_shared_cache.py",
    "test_air_gap.py",
    "test_real_servers.py",
    "test_cli.py",
    "test_canary.py",
    "test_provider_tutorial.py",
    "test_replay.py",
    "test_auto_pull.py",
    "test_paid_once.py",
    "test_joining.py",
    "test_openapi.py",
)
"""Files of few tests that take long. They are begun first: of two processes, none waits at the end for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@dataclass
class Server:
    """A running `hub serve`."""

    process: subprocess.Popen[bytes]
    url: str
    cache: Path
    log: Path


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_server(folder: Path, *arguments: str, ready: bool = True, **environ: str) -> Iterator[Server]:
    """Starts `hub serve` on a free port with its cache under `folder`, and stops it at the end."""
    port = _free_port()
    log = folder / "server.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HUB_")}
    environment |= {"HUB_CACHE_DIR": str(folder / "cache"), **environ}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub", "serve", "--port", str(port), *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    server = Server(process, f"http://127.0.0.1:{port}", folder / "cache", log)
    try:
        wait_for(lambda: status(f"{server.url}/{'ready' if ready else 'health'}") == 200, server=server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status(url: str) -> int | None:
    """The HTTP status of a GET; None where nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:  # else the socket is left to the garbage collector, which complains in some later test
            return error.code
    except OSError:
        return None


def wait_for(condition: Callable[[], bool], timeout: float = 120, server: Server | None = None) -> None:
    """Polls until the condition holds; fails with the server's log where it does not."""
    end = time.monotonic() + timeout
    while not condition():
        died = server is not None and server.process.poll() is not None
        if died or time.monotonic() > end:
            words = server.log.read_text() if server else ""
            pytest.fail(f"{'the server ended' if died else 'timed out'}\n{words[-4000:]}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open hub on loopback with the built-in model, shared by the tests that do not harm it."""
    with run_server(tmp_path_factory.mktemp("open")) as running:
        yield running


@pytest.fixture(scope="session")
def small_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Stable Diffusion of a few hundred thousand parameters, at 64x64."""
    return build_small_stable_diffusion(tmp_path_factory.mktemp("small-sd"))


def build_small_stable_diffusion(folder: Path) -> Path:
    """Builds the pipeline from config and saves it as any diffusers folder."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    end = vocabulary["<|endoftext|>"]
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=16,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=16,
    )
    pipe = StableDiffusionPipeline(
        vae,
        text_encoder,
        tokenizer,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def write_manifest(folder: Path, model: Path, **changes: str) -> Path:
    """A models folder with one manifest, `small`, for a 64x64 model; `changes` replace whole lines by their key."""
    lines = {
        "id": 'id = "small"',
        "name": 'name = "Small"',
        "description": 'description = "random weights"',
        "license": 'license = "Apache-2.0"',
        "path": f'path = "{model}"',
        "tasks": 'tasks = ["text-to-image", "image-to-image"]',
        "dtype": 'dtype = "float32"',
        "quality": "quality = { low = 3, medium = 6, high = 12 }",
        "style": 'style = { vivid = "vivid" }',
        "size": "size = { native = '64x64', multiple = 8, min = 32, max = 128, max_output = 2048 }",
        "max_inference_steps": "max_inference_steps = 500",
        "defaults": "defaults = { num_inference_steps = 6, guidance_scale = 5.0, size = '64x64' }",
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "small.toml").write_text("\n".join(lines.values()) + "\n")
    return folder


def with_hub(settings: Settings, test: Callable[[Hub], Coroutine[Any, Any, None]]) -> None:
    """Runs the test with a hub that runs, without its API."""
    from hub.hub import open_hub

    async def main() -> None:
        async with open_hub(settings) as hub, asyncio.timeout(120):
            await test(hub)

    asyncio.run(main())
