"""The worker as a real process: progress, cancellation, death, and more requests than it may hold."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from hub.engine.supervisor import Engine
from hub.engine.worker_process import WorkerProcess
from hub.errors import EngineUnavailable, GenerationFailed, InvalidRequest, ModelUnusable
from hub.hub import Hub
from hub.settings import Settings
from hub.types import Accepted, Event, ImageRequest, Progress, Size
from tests.conftest import ROOT, with_hub, write_manifest
from tests.pipelines.checkpoints import write_ldm

LONG = 400
"""Steps of a request that runs until it is stopped."""


@pytest.fixture
def settings(tmp_path: Path, small_stable_diffusion: Path) -> Settings:
    folder = write_manifest(tmp_path / "models", small_stable_diffusion)
    return Settings(cache_dir=tmp_path / "cache", models_dir=folder, device="cpu", max_queue=6)


def request(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a", "size": Size(64, 64), "seed": 1, "num_inference_steps": 5, **changes})


async def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


class Started:
    """A request in the background, and how far it is."""

    def __init__(self, hub: Hub, wish: ImageRequest, model: str = "small") -> None:
        self.progress: list[Progress] = []
        self.task = asyncio.ensure_future(hub.generate(model, wish, self._hear))

    def _hear(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress.append(event)

    async def running(self) -> Started:
        await until(lambda: len(self.progress) >= 2 or self.task.done())
        return self


def test_progress_reaches_the_api_process_from_the_first_step_to_the_last(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        events: list[Event] = []
        await hub.generate("small", request(n=2, num_inference_steps=40), events.append)
        accepted, *progress = events
        assert accepted == Accepted(size=Size(64, 64), quality="medium", output_format="png")
        steps = [(event.step, event.steps) for event in progress if isinstance(event, Progress)]
        assert steps == sorted(steps) and len(steps) == len(progress)
        assert steps[0] == (1, 80) and steps[-1] == (80, 80)

    with_hub(settings, test)


def test_a_killed_worker_is_a_clear_error_for_its_request_and_the_next_one_works(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        lost = await Started(hub, request(num_inference_steps=LONG)).running()
        first = hub.engine.worker_pids[0]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EngineUnavailable) as caught:
            await lost.task
        assert caught.value.status == 503
        assert caught.value.retry_after
        assert len((await hub.generate("small", request())).images) == 1
        assert hub.engine.worker_pids[0] not in (None, first)
        assert hub.engine.in_flight == 0

    with_hub(settings, test)


FAKE = """#!{python}
import socket, sys, time
sys.path.insert(0, {root!r})
from hub.engine.protocol import *
connection = socket.socket(fileno=int(sys.argv[sys.argv.index("--socket") + 1]))
"""


def fake_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Puts a script in the worker's stead, that has no torch to import."""
    script = folder / "fake-worker"
    script.write_text(FAKE.format(python=sys.executable, root=str(ROOT)) + body)
    script.chmod(0o755)
    monkeypatch.setattr("hub.engine.worker_process.sys.executable", str(script))


ANSWERS_PINGS = """
connection.sendall(pack(Ready("cpu")))
while (frame := receive_frame(connection)):
    if isinstance(to_worker.decode(frame), Ping):
        connection.sendall(pack(Pong()))
"""


def test_a_frozen_worker_is_killed_and_restarted_and_one_that_works_for_long_is_not(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hub.engine.worker_process.PING_EVERY", 0.2)
    fake_worker(tmp_path, monkeypatch, ANSWERS_PINGS)

    async def test(hub: Hub) -> None:
        lost = asyncio.ensure_future(hub.generate("small", request()))
        await until(lambda: hub.engine.device is not None)
        worker = hub.engine.worker_pids[0]
        assert worker is not None
        await asyncio.sleep(1.5)  # more than six pings, and not a step done
        assert (hub.engine.worker_pids[0], lost.done()) == (worker, False)
        os.kill(worker, signal.SIGSTOP)
        async with asyncio.timeout(10):
            with pytest.raises(EngineUnavailable, match="try again"):
                await lost
        assert "has not answered" in caplog.text
        await until(lambda: hub.engine.device is not None)
        assert hub.engine.worker_pids[0] != worker

    with_hub(settings, test)


def test_a_hub_that_stood_still_itself_does_not_blame_its_worker(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-Z and fg: time has passed for both."""
    monkeypatch.setattr("hub.engine.worker_process.PING_EVERY", 0.2)
    fake_worker(tmp_path, monkeypatch, ANSWERS_PINGS)

    async def test(hub: Hub) -> None:
        await until(lambda: hub.engine.device is not None)
        worker = hub.engine.worker_pids[0]
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1.5)  # not asyncio's: nothing of the hub runs
        os.kill(worker, signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert (hub.engine.worker_pids[0], hub.engine.device) == (worker, "cpu")

    with_hub(settings, test)


@pytest.mark.slow
def test_requests_that_come_while_the_worker_restarts_wait_for_it(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        await hub.generate("small", request())
        os.kill(hub.engine.worker_pids[0] or 0, signal.SIGKILL)
        await until(lambda: hub.engine.device is None)
        results = await asyncio.gather(*(hub.generate("small", request(seed=seed)) for seed in range(3)))
        assert len(results) == 3

    with_hub(settings, test)


async def idle(hub: Hub) -> None:
    """Fails unless the worker stops computing within a few seconds."""
    worker = psutil.Process(hub.engine.worker_pids[0])
    for _ in range(20):
        before = sum(worker.cpu_times()[:2])
        await asyncio.sleep(0.25)
        if sum(worker.cpu_times()[:2]) - before < 0.05:
            return
    pytest.fail("the worker still computes")


def test_a_cancelled_request_frees_the_device_at_once(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        gone = await Started(hub, request(num_inference_steps=LONG, n=2, size=Size(128, 128))).running()
        gone.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone.task
        assert hub.engine.in_flight == 0
        await idle(hub)

    with_hub(settings, test)


def test_a_request_cancelled_while_its_model_loads_never_runs(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        await until(lambda: hub.engine.device is not None)
        early = asyncio.ensure_future(hub.generate("small", request(num_inference_steps=LONG, size=Size(128, 128))))
        await asyncio.sleep(0.01)
        early.cancel()
        result = await hub.generate("small", request())
        assert len(result.images) == 1
        await idle(hub)

    with_hub(settings, test)


def test_unlike_requests_run_together_and_equal_themselves_alone(settings: Settings) -> None:
    buffer = io.BytesIO()
    Image.fromarray((np.random.RandomState(0).rand(64, 64, 3) * 255).astype("uint8")).save(buffer, "PNG")
    wishes = [
        request(seed=1, num_inference_steps=9),
        request(seed=2, num_inference_steps=14, guidance_scale=2.0),
        request(seed=3, num_inference_steps=12, images=(buffer.getvalue(),), strength=0.5),
        request(seed=4, n=2),
    ]

    async def test(hub: Hub) -> None:
        alone = [await hub.generate("small", wish) for wish in wishes]
        together = await asyncio.gather(*(hub.generate("small", wish) for wish in wishes))
        for one, other in zip(alone, together, strict=True):
            for first, second in zip(one.images, other.images, strict=True):
                assert np.abs(pixels(first) - pixels(second)).max() <= 1

    with_hub(settings, test)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), np.int16)


@pytest.mark.slow
def test_a_strict_request_fails_where_the_worker_would_only_warn(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        wish = request(prompt="word " * 100)
        assert any(warning.startswith("prompt: ") for warning in (await hub.generate("small", wish)).warnings)
        with pytest.raises(InvalidRequest) as caught:
            await hub.generate("small", request(prompt="word " * 100, strict=True))
        assert caught.value.param == "prompt"

    with_hub(settings, test)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"<html>not found</html>", "unet/diffusion_pytorch_model.safetensors is "),
        (lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "sha256 says: it was damaged"),
    ],
)
def test_broken_weights_make_their_model_unusable_and_not_the_worker(
    settings: Settings, small_stable_diffusion: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    broken = settings.cache_dir / "broken"
    shutil.copytree(small_stable_diffusion, broken)
    files = {str(file.relative_to(broken)): file for file in broken.rglob("*.safetensors")}
    table = "".join(f'"{name}" = "{hashlib.sha256(file.read_bytes()).hexdigest()}"\n' for name, file in files.items())
    unet = files["unet/diffusion_pytorch_model.safetensors"]
    whole = unet.read_bytes()
    unet.write_bytes(damage(whole))
    assert settings.models_dir is not None
    manifest = (settings.models_dir / "small.toml").read_text().replace('id = "small"', 'id = "broken"')
    manifest = manifest.replace(str(small_stable_diffusion), str(broken))
    (settings.models_dir / "broken.toml").write_text(manifest + f"[sha256]\n{table}")

    async def test(hub: Hub) -> None:
        with pytest.raises(ModelUnusable, match=words) as caught:
            await hub.generate("broken", request())
        assert str(broken) not in caught.value.message
        assert (caught.value.status, caught.value.code) == (503, "model_unusable")
        assert caught.value.headers == {"x-should-retry": "false"}
        assert len((await hub.generate("small", request())).images) == 1
        unet.write_bytes(whole)
        assert len((await hub.generate("broken", request())).images) == 1

    with_hub(settings, test)


@pytest.mark.slow
def test_a_single_file_is_served_like_the_folder_that_it_was_made_of(
    settings: Settings, small_stable_diffusion: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    file = write_ldm(pipe, tmp_path / "original.safetensors")
    assert settings.models_dir is not None
    text = (settings.models_dir / "small.toml").read_text().replace(str(small_stable_diffusion), str(file))
    more = f'[pipeline]\nconfig = "{small_stable_diffusion}"\n'
    (settings.models_dir / "single.toml").write_text(text.replace('id = "small"', 'id = "single"') + more)

    async def test(hub: Hub) -> None:
        (small,), (single,) = [(await hub.generate(model, request())).images for model in ("small", "single")]
        assert np.array_equal(pixels(small), pixels(single))

    with_hub(settings, test)


@pytest.mark.slow
def test_quantized_weights_are_served_and_every_answer_says_so(
    settings: Settings, small_stable_diffusion: Path
) -> None:
    assert settings.models_dir is not None
    text = (settings.models_dir / "small.toml").read_text().replace('id = "small"', 'id = "quantized"')
    (settings.models_dir / "quantized.toml").write_text(
        f'{text}lossy = {{ quantization = "torchao:int8_weight_only" }}\n'
    )

    async def test(hub: Hub) -> None:
        wishes = [request(seed=seed) for seed in (1, 2, 3)]
        quantized = await asyncio.gather(*(hub.generate("quantized", wish) for wish in wishes))
        whole = await asyncio.gather(*(hub.generate("small", wish) for wish in wishes))
        for small, plain in zip(quantized, whole, strict=True):
            assert 0 < np.abs(pixels(small.images[0]) - pixels(plain.images[0])).mean() < 3
            assert small.warnings[0].endswith("the weights are quantized by torchao:int8_weight_only")

    with_hub(settings, test)


def test_weights_that_give_nan_are_an_error_for_that_request_alone_and_never_a_black_picture(
    settings: Settings, small_stable_diffusion: Path
) -> None:
    """Several pictures of one request fail in one forward; the worker and a stranger's request go on."""
    from safetensors.torch import load_file, save_file

    poisoned = settings.cache_dir / "poisoned"
    shutil.copytree(small_stable_diffusion, poisoned)
    weights = poisoned / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    assert settings.models_dir is not None
    text = (settings.models_dir / "small.toml").read_text().replace(str(small_stable_diffusion), str(poisoned))
    (settings.models_dir / "poisoned.toml").write_text(text.replace('id = "small"', 'id = "poisoned"'))

    async def test(hub: Hub) -> None:
        await hub.generate("small", request())
        worker = hub.engine.worker_pids[0]
        stranger = await Started(hub, request(num_inference_steps=60)).running()
        with pytest.raises(GenerationFailed, match="no valid picture"):
            await hub.generate("poisoned", request(n=3))
        assert len((await stranger.task).images) == 1
        assert hub.engine.worker_pids[0] == worker

    with_hub(settings, test)


def test_a_picture_that_the_models_safety_checker_hides_is_a_refusal_and_not_black(
    settings: Settings, small_stable_diffusion: Path
) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPConfig(vision_config={**tiny, "image_size": 32, "patch_size": 16}, text_config=tiny, projection_dim=32)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data = torch.full_like(checker.concept_embeds_weights, -2.0)  # flags everything
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    plain = StableDiffusionPipeline.from_pretrained(small_stable_diffusion, local_files_only=True)
    parts = {**plain.components, "safety_checker": checker, "feature_extractor": processor}
    folder = settings.cache_dir / "prudish"
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    assert settings.models_dir is not None
    write_manifest(settings.models_dir, folder)

    async def test(hub: Hub) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await hub.generate("small", request(n=2))
        assert caught.value.code == "content_policy_violation"

    with_hub(settings, test)


@pytest.mark.slow
def test_a_listener_that_fails_harms_nobody(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        def broken(_: Event) -> None:
            raise RuntimeError

        def breaks(event: Event) -> None:
            if isinstance(event, Progress):
                raise RuntimeError

        for listener in (broken, breaks):
            assert len((await hub.generate("small", request(), listener)).images) == 1

    with_hub(settings, test)


def test_a_worker_that_hangs_at_its_start_is_killed_and_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = tmp_path / "asleep"
    asleep.write_text("#!/bin/sh\nexec sleep 600\n")
    asleep.chmod(0o755)
    monkeypatch.setattr("hub.engine.worker_process.sys.executable", str(asleep))
    settings.engine_start_timeout = 1

    async def test(hub: Hub) -> None:
        with pytest.raises(EngineUnavailable):
            await hub.generate("small", request())
        await until(lambda: hub.engine.worker_pids[0] is None)
        assert hub.engine.problem == "The engine process did not become ready within 1 s and was killed."

    with_hub(settings, test)


def test_why_a_worker_cannot_start_is_told_to_its_requests_and_in_the_log_until_one_starts(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hub.engine.worker_process.MAX_BACKOFF", 0.3)
    flag = tmp_path / "mended"
    body = f"""
from pathlib import Path
connection.sendall(pack(Ready("cpu") if Path({str(flag)!r}).exists() else CannotStart("no such device")))
receive_frame(connection)
"""
    fake_worker(tmp_path, monkeypatch, body)

    async def test(hub: Hub) -> None:
        assert hub.engine.problem is None
        with pytest.raises(EngineUnavailable, match="cannot start: no such device"):
            await hub.generate("small", request())
        assert hub.engine.problem == "The engine cannot start: no such device"
        assert "no such device" in caplog.text
        flag.touch()
        await until(lambda: hub.engine.device is not None)
        assert hub.engine.problem is None

    with_hub(settings, test)


def test_a_worker_that_never_starts_is_tried_for_ever(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.engine.worker_process.MAX_BACKOFF", 0.0)
    engine, tries = Engine(settings), 0

    async def fail(_: WorkerProcess) -> bool:
        nonlocal tries
        tries += 1
        return False

    async def main() -> None:
        monkeypatch.setattr(WorkerProcess, "_run_once", fail)
        async with engine.running():
            await until(lambda: tries > 1100)  # 2.0**1024 is too large for a float

    asyncio.run(main())


def test_a_worker_that_cannot_start_is_a_clear_error_and_is_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.engine.worker_process.sys.executable", "/bin/false")

    async def test(hub: Hub) -> None:
        with pytest.raises(EngineUnavailable, match="could not be started"):
            await hub.generate("small", request())
        monkeypatch.undo()
        assert len((await hub.generate("small", request())).images) == 1

    with_hub(settings, test)


def test_the_worker_is_reached_by_no_name_and_ends_with_the_hub(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file that others could open, and none that a killed hub would leave behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    pids: list[int] = []

    async def test(hub: Hub) -> None:
        await until(lambda: hub.engine.device is not None)
        assert hub.engine.worker_pids[0] is not None
        pids.append(hub.engine.worker_pids[0])
        assert not list((tmp_path / "temporary").iterdir())
        sockets = psutil.Process(pids[0]).net_connections("unix")
        assert [connection.laddr for connection in sockets] == [""]

    with_hub(settings, test)
    assert not psutil.pid_exists(pids[0])


def test_a_worker_whose_hub_was_killed_ends_in_the_middle_of_its_work(tmp_path: Path, settings: Settings) -> None:
    """SIGKILL leaves the supervisor no chance to say good-bye; the worker sees the closed socket."""
    import subprocess

    script = f"""
import asyncio
from pathlib import Path
from hub.hub import open_hub
from hub.settings import Settings
from hub.types import ImageRequest, Progress, Size

async def main():
    settings = Settings(cache_dir=Path({str(settings.cache_dir)!r}), models_dir=Path({str(settings.models_dir)!r}))
    async with open_hub(settings) as hub:
        said = []
        def on_event(event):
            if isinstance(event, Progress) and not said:
                said.append(print(hub.engine.worker_pids[0], flush=True))
        wish = ImageRequest(prompt="a", size=Size(64, 64), num_inference_steps={LONG})
        await hub.generate("small", wish, on_event)

asyncio.run(main())
"""
    hub = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert hub.stdout is not None
    with hub.stdout:
        worker = psutil.Process(int(hub.stdout.readline()))
        hub.kill()
        hub.wait()
    assert worker.wait(timeout=20) in (0, None)


def test_a_missing_model_folder_is_told_at_start_and_when_the_model_is_asked_for(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings.models_dir is not None
    write_manifest(settings.models_dir, tmp_path / "nowhere")
    hub = Hub(settings)
    assert re.search(r"small cannot be used .*: path: .* has no model_index\.json", caplog.text)
    with pytest.raises(ModelUnusable, match="weights of small are not on this machine") as caught:
        asyncio.run(hub.generate("small", ImageRequest(prompt="x")))
    assert str(tmp_path) not in caught.value.message


def test_a_device_that_is_not_there_is_told_with_the_setting(settings: Settings) -> None:
    settings.device = "cuda:77"

    async def test(hub: Hub) -> None:
        with pytest.raises(
            EngineUnavailable, match=r"HUB_DEVICE=cuda:77 .*, but torch finds .* Set it to auto or cpu\."
        ):
            await hub.generate("small", request())

    with_hub(settings, test)


def test_long_work_is_answered_when_the_hub_ends(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        running = await Started(hub, request(num_inference_steps=LONG)).running()
        hub.engine.end_soon(0.1)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await running.task

    with_hub(settings, test)
