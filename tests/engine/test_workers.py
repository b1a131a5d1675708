"""Several workers: real ones on the CPU, and scripts that say they were GPUs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import psutil
import pytest

from hub.engine.protocol import EngineModel, Generate
from hub.engine.supervisor import Engine, threads_for
from hub.errors import EngineUnavailable
from hub.hub import Hub
from hub.pipelines.weights import size_of
from hub.settings import Settings
from hub.types import Size
from tests.conftest import write_manifest
from tests.engine.test_supervisor import LONG, Started, fake_worker, request, until, with_hub


def write_models(folder: Path, weights: Path, **pins: str | None) -> Path:
    """Manifests for models of these names; the values are the devices that they are pinned to."""
    for name, pin in pins.items():
        also = {"device": f'device = "{pin}"'} if pin else {}
        write_manifest(folder, weights, id=f'id = "{name}"', **also)
        (folder / "small.toml").rename(folder / f"of-{name}.toml")
    return folder


async def all_up(hub: Hub, count: int = 2) -> None:
    await until(lambda: [each.status for each in hub.engine.devices] == ["ok"] * count)


@pytest.mark.slow
def test_two_models_spread_over_two_workers_and_the_death_of_one_is_not_the_others(
    tmp_path: Path, small_stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    folder = write_models(tmp_path / "models", small_stable_diffusion, one=None, two=None)
    settings = Settings(cache_dir=tmp_path / "cache", models_dir=folder, device="cpu,cpu")

    async def test(hub: Hub) -> None:
        await all_up(hub)
        pids = hub.engine.worker_pids
        cores = len(os.sched_getaffinity(0))
        for pid in pids:
            assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == str(max(1, cores // 2))
        first = await Started(hub, request(num_inference_steps=LONG), "one").running()
        second = await Started(hub, request(num_inference_steps=40), "two").running()
        assert [set(worker.state.held) for worker in hub.engine._workers] == [{"one"}, {"two"}]
        os.kill(pids[0] or 0, signal.SIGKILL)
        with pytest.raises(EngineUnavailable) as caught:
            await first.task
        assert (caught.value.status, caught.value.code) == (503, "engine_unavailable")
        assert [each.status for each in hub.engine.devices] == ["starting", "ok"]
        assert len((await hub.generate("one", request())).images) == 1, "by the other worker, at once"
        assert len((await second.task).images) == 1
        assert hub.engine.worker_pids[1] == pids[1]
        assert [set(worker.state.held) for worker in hub.engine._workers] == [set(), {"one", "two"}]
        await all_up(hub)

    with_hub(settings, test)


GPUS = """
from pathlib import Path
device = sys.argv[sys.argv.index("--device") + 1].replace("auto", "cuda:0")
broken = Path({broken!r})
if broken.exists() and device in broken.read_text().split():
    connection.sendall(pack(CannotStart(device + " has fallen off the bus")))
    raise SystemExit
devices = [DeviceMemory("cuda:%d" % index, 80 << 30, 80 << 30) for index in range({count})]
connection.sendall(pack(Ready(device, devices)))
held = []
while (frame := receive_frame(connection)):
    message = to_worker.decode(frame)
    if isinstance(message, Ping):
        connection.sendall(pack(Pong()))
    elif isinstance(message, Generate):
        if message.model.id not in held:
            held.append(message.model.id)
            models = [HeldModel(name, 0, 0, -1, False, 0, []) for name in held]
            left = DeviceMemory(device, 80 << 30, (80 - 10 * len(held)) << 30)
            connection.sendall(pack(Memory(left, 0, None, models, tried=message.model.id)))
        if message.prompt != "wait":
            connection.sendall(pack(Finished(message.id, [device.encode()], [])))
"""
"""A worker that answers every request with its device's name, except for the prompt `wait`."""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file with the names of the devices that do not start."""
    return tmp_path / "broken"


@pytest.fixture
def gpus(tmp_path: Path, small_stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch, broken: Path) -> Settings:
    """A hub on a machine with three GPUs, and models of which some are pinned."""
    monkeypatch.setattr("hub.engine.worker_process.MAX_BACKOFF", 0.2)
    fake_worker(tmp_path, monkeypatch, GPUS.format(broken=str(broken), count=3))
    pins = {"small": None, "large": None, "other": None, "third": "cuda:2", "beyond": "cuda:7", "main": "cpu"}
    folder = write_models(tmp_path / "models", small_stable_diffusion, **pins)
    return Settings(cache_dir=tmp_path / "cache", models_dir=folder)


async def place(hub: Hub, model: str) -> str:
    """The device that answers."""
    return (await hub.generate(model, request())).images[0].decode()


def test_auto_uses_every_gpu_that_the_first_worker_finds_and_spreads_the_models(gpus: Settings) -> None:
    async def test(hub: Hub) -> None:
        assert [each.device for each in hub.engine.devices] == ["auto"]
        first, second = await asyncio.gather(place(hub, "small"), place(hub, "large"))
        assert {first, second} == {"cuda:0", "cuda:1"} or {first, second} == {"cuda:0", "cuda:2"}
        await all_up(hub, 3)
        assert [each.device for each in hub.engine.devices] == ["cuda:0", "cuda:1", "cuda:2"]
        places = [await place(hub, model) for model in ("small", "large", "other", "third", "small", "large")]
        assert places[:2] == places[4:] == [first, second], "where the model is"
        assert sorted(places[:3]) == ["cuda:0", "cuda:1", "cuda:2"], "where there is most room"
        assert places[3] == "cuda:2", "where it is pinned to"
        assert hub.engine.problem is None

    with_hub(gpus, test)


def test_a_restarted_worker_keeps_its_device_and_no_further_ones_are_started(gpus: Settings) -> None:
    async def test(hub: Hub) -> None:
        await all_up(hub, 3)
        old = hub.engine.worker_pids
        os.kill(old[0] or 0, signal.SIGKILL)
        await until(lambda: hub.engine.worker_pids[0] not in (None, old[0]))
        await all_up(hub, 3)
        assert [each.device for each in hub.engine.devices] == ["cuda:0", "cuda:1", "cuda:2"]
        assert hub.engine.worker_pids[1:] == old[1:]

    with_hub(gpus, test)


def test_a_model_with_a_queue_is_loaded_by_an_idle_gpu_too(gpus: Settings) -> None:
    async def test(hub: Hub) -> None:
        await all_up(hub, 3)
        home = await place(hub, "small")
        waiting = asyncio.ensure_future(hub.generate("small", request(prompt="wait", n=3)))
        await until(lambda: sum(worker.state.queue for worker in hub.engine._workers) == 3)
        assert await place(hub, "small") == home
        more = asyncio.ensure_future(hub.generate("small", request(prompt="wait")))
        await until(lambda: sum(worker.state.queue for worker in hub.engine._workers) == 4)
        assert await place(hub, "small") != home
        for task in (waiting, more):
            task.cancel()
        await asyncio.wait({waiting, more})
        assert hub.engine.in_flight == 0

    with_hub(gpus, test)


def test_a_gpu_that_fails_stops_nobody_but_the_models_that_are_pinned_to_it(gpus: Settings, broken: Path) -> None:
    broken.write_text("cuda:2")

    async def test(hub: Hub) -> None:
        await until(lambda: [each.status for each in hub.engine.devices] == ["ok", "ok", "failed"])
        assert hub.engine.devices[2].reason == "The engine cannot start: cuda:2 has fallen off the bus"
        assert hub.engine.problem is None
        assert {await place(hub, model) for model in ("small", "large", "other")} == {"cuda:0", "cuda:1"}
        with pytest.raises(EngineUnavailable, match="cuda:2 has fallen off the bus") as caught:
            await place(hub, "third")
        assert caught.value.retry_after
        broken.write_text("")
        await all_up(hub, 3)
        assert await place(hub, "third") == "cuda:2"
        broken.write_text("cuda:0 cuda:1 cuda:2")
        for pid in hub.engine.worker_pids:
            os.kill(pid or 0, signal.SIGKILL)
        await until(lambda: all(each.status == "failed" for each in hub.engine.devices))
        assert hub.engine.problem == "The engine cannot start: cuda:0 has fallen off the bus"
        with pytest.raises(EngineUnavailable, match="has fallen off the bus"):
            await place(hub, "small")

    with_hub(gpus, test)


def test_a_pin_to_a_device_that_the_hub_does_not_use_is_told_at_the_start_and_to_requests(
    gpus: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(hub: Hub) -> None:
        with pytest.raises(EngineUnavailable) as caught:
            await place(hub, "beyond")
        assert caught.value.message == (
            "The manifest of beyond pins it to cuda:7 (`device`), but this hub uses cuda:0, cuda:1, cuda:2. "
            "The owner has to change the manifest, or HUB_DEVICE (`device` in hub.toml)."
        )
        assert caught.value.headers == {"x-should-retry": "false"}
        with pytest.raises(EngineUnavailable, match="pins it to cpu"):
            await place(hub, "main")
        told = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert len([words for words in told if "pins it to" in words]) == 2
        assert all(any(f"manifest of {model}" in words for words in told) for model in ("beyond", "main"))

    with_hub(gpus, test)


def test_named_devices_are_used_and_no_others_and_the_cpu_beside_them_only_by_its_own(gpus: Settings) -> None:
    gpus.device = "cpu, cuda:2,cuda"

    async def test(hub: Hub) -> None:
        await all_up(hub, 3)
        assert [each.device for each in hub.engine.devices] == ["cpu", "cuda:2", "cuda:0"]
        assert await place(hub, "main") == "cpu"
        assert [await place(hub, model) for model in ("small", "large", "other")] == ["cuda:2", "cuda:0", "cuda:2"]

    with_hub(gpus, test)


def wish(folder: Path, model: str, weights: int, prompt: str = "") -> Generate:
    """A request for a model with so many bytes of weights, none of them written."""
    (folder / model / "unet").mkdir(parents=True, exist_ok=True)
    with (folder / model / "unet" / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    wanted = EngineModel(model, str(folder / model), "float32")
    size = Size(64, 64)
    return Generate(
        id=0,
        model=wanted,
        task="text-to-image",
        prompt=prompt,
        seeds=[1],
        native=size,
        output=size,
        num_inference_steps=1,
    )


def test_room_is_made_before_a_load_that_wants_more_than_is_free_and_an_empty_device_is_told(
    gpus: Settings, tmp_path: Path
) -> None:
    gpus.device = "cuda:0"
    heard: list[str] = []
    small, large = wish(tmp_path, "s", 1 << 30), wish(tmp_path, "l", 60 << 30)

    async def make_room() -> None:
        assert not engine._workers[0].state.has("l")
        heard.append("room")

    engine = Engine(gpus, None, make_room, lambda: heard.append("empty"))

    async def main() -> None:
        async with engine.running():
            await engine.generate(small)
            assert heard == [], "80 GB are free"
            await engine.generate(large)
            assert heard == ["room"], "70 GB are free, and 72 are wanted"
            await engine.generate(large)
            assert heard == ["room"], "it is there"
            pid = engine.worker_pids[0]
            waiting = asyncio.ensure_future(engine.generate(wish(tmp_path, "s", 1, prompt="wait")))
            await until(lambda: engine._workers[0].state.queue == 1)
            os.kill(pid or 0, signal.SIGKILL)
            await until(waiting.done)
            await until(lambda: heard == ["room", "empty"])
            assert isinstance(waiting.exception(), EngineUnavailable)
            assert len((await engine.generate(large)).images) == 1
            assert heard == ["room", "empty"], "80 GB are free again"

    asyncio.run(main())


def test_a_device_is_not_empty_while_somebody_waits_for_room_and_is_when_they_have_left(
    gpus: Settings, tmp_path: Path
) -> None:
    gpus.device = "cuda:0"
    heard: list[str] = []
    large = wish(tmp_path, "l", 90 << 30)
    made = asyncio.Event()

    async def make_room() -> None:
        heard.append("room")
        await made.wait()

    engine = Engine(gpus, None, make_room, lambda: heard.append("empty"))

    async def main() -> None:
        async with engine.running():
            first = asyncio.ensure_future(engine.generate(large))
            second = asyncio.ensure_future(engine.generate(large))
            await until(lambda: heard == ["room", "room"])
            pid = engine.worker_pids[0]
            os.kill(pid or 0, signal.SIGKILL)
            await until(lambda: engine.worker_pids[0] not in (None, pid))
            first.cancel()
            await asyncio.wait({first})
            assert heard == ["room", "room"], "the second one still waits"
            made.set()
            assert len((await second).images) == 1, "by the worker that was started since"
            assert heard == ["room", "room"]
            made.clear()
            third = asyncio.ensure_future(engine.generate(wish(tmp_path, "x", 90 << 30)))
            await until(lambda: heard == ["room"] * 3)
            os.kill(engine.worker_pids[0] or 0, signal.SIGKILL)
            await until(lambda: not engine._workers[0].is_ready)
            third.cancel()
            await until(lambda: heard == [*["room"] * 3, "empty"])

    asyncio.run(main())


def test_each_worker_remembers_batch_sizes_in_a_file_of_its_own(gpus: Settings) -> None:
    async def test(hub: Hub) -> None:
        await all_up(hub, 3)
        lines = [psutil.Process(pid).cmdline() for pid in hub.engine.worker_pids]
        files = [Path(line[line.index("--learned") + 1]).name for line in lines]
        assert files == ["saturation.json", "saturation.1.json", "saturation.2.json"]

    with_hub(gpus, test)


def test_cores_are_divided_among_workers_on_the_cpu_and_the_owner_may_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_for(["cpu", "cpu"]) == {"OMP_NUM_THREADS": "4"}
    assert threads_for(["cpu"] * 20) == {"OMP_NUM_THREADS": "1"}
    assert threads_for(["cpu"]) == threads_for(["auto"]) == threads_for(["cuda:0", "cuda:1", "cpu"]) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(["cpu", "cpu"]) == {}


def test_the_size_of_a_model_is_what_is_loaded_of_its_folder(tmp_path: Path) -> None:
    for name, size in {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": 1000,
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": 200,
        "unet/diffusion_pytorch_model.fp16.safetensors": 7,
        "unet/diffusion_pytorch_model.bin": 7,
        "text_encoder/model.safetensors": 30,
        "sd_xl_base.safetensors": 7,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert size_of(tmp_path) == 1230
    own = tmp_path / "own.gguf"
    own.write_bytes(bytes(5))
    assert size_of(tmp_path / "sd_xl_base.safetensors", {"vae": str(own)}) == 12
    assert size_of(tmp_path, {"unet": str(own), "vae": str(tmp_path / "text_encoder")}) == 65
