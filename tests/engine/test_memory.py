"""Models come and go in a real worker: when they are unloaded, what they share, and what does not fit."""

from __future__ import annotations

import asyncio
import gc
import queue
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from hub.engine.loader import Loaded, loading_bytes
from hub.engine.memo import Memo
from hub.engine.models import Models, TooLittleMemory
from hub.engine.protocol import EngineModel, Failed, HeldModel, Load, Memory, from_worker, receive_frame
from hub.engine.residency import Residency
from hub.engine.worker import Worker
from hub.errors import ModelUnusable, OutOfMemory
from hub.hub import Hub
from hub.pipelines import Unsupported
from hub.receipt import receipt_in
from hub.settings import Settings
from hub.types import ImageRequest, ImageResult, Size
from tests.conftest import ROOT, with_hub, write_manifest
from tests.engine.test_supervisor import pixels

MEGABYTE = 1024 * 1024
CPU = torch.device("cpu")


def request(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a", "size": Size(64, 64), "seed": 1, "num_inference_steps": 3, **changes})


def write(folder: Path, name: str, model: Path, **lines: str) -> None:
    write_manifest(folder, model, id=f'id = "{name}"', **{key: f"{key} = {value}" for key, value in lines.items()})
    (folder / "small.toml").rename(folder / f"of-{name}.toml")


def another(model: Path, folder: Path, *parts: str) -> Path:
    """The same model with other weights in these parts."""
    shutil.copytree(model, folder)
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            weights = load_file(file)
            changed = {k: v * 1.01 if v.is_floating_point() else v for k, v in weights.items()}
            save_file(changed, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def settings(tmp_path: Path, small_stable_diffusion: Path) -> Settings:
    """Two models: b is a fine-tune of a, with the same text encoder and VAE."""
    folder = tmp_path / "models"
    write(folder, "a", small_stable_diffusion)
    write(folder, "b", another(small_stable_diffusion, tmp_path / "b", "unet"))
    return Settings(cache_dir=tmp_path / "cache", models_dir=folder, device="cpu", reuse_results=False)


@pytest.fixture
def large(settings: Settings, tmp_path: Path) -> Settings:
    """The built-in model, which is cheap at sizes that it was not made for."""
    folder = tmp_path / "large"
    folder.mkdir()
    size = "{ native = '128x128', multiple = 8, min = 64, max = 2048 }"
    write(folder, "a", ROOT / "models" / "builtin", size=size)
    return changed(settings, models_dir=folder)


def same(one: ImageResult, other: ImageResult) -> bool:
    """Whether the pictures are; the files need not be, whose compression may differ."""
    return bool(np.array_equal(pixels(one.images[0]), pixels(other.images[0])))


def changed(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, **changes)


def memory(hub: Hub) -> Memory:
    ((_, holds),) = hub.engine.holds
    assert holds is not None
    return holds


def loaded(hub: Hub) -> dict[str, HeldModel]:
    ((_, holds),) = hub.engine.holds
    return {model.id: model for model in holds.models} if holds else {}


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.02)


def test_a_model_leaves_when_it_was_idle_for_its_keep_alive_and_the_next_request_loads_it_again(
    settings: Settings, small_stable_diffusion: Path
) -> None:
    assert settings.models_dir
    write(settings.models_dir, "a", small_stable_diffusion, keep_alive="0")
    write(settings.models_dir, "b", small_stable_diffusion, keep_alive="-1")

    async def test(hub: Hub) -> None:
        first = await hub.generate("a", request())
        await hub.generate("b", request())
        await until(lambda: set(loaded(hub)) == {"b"})
        again = await hub.generate("a", request())
        assert same(again, first)
        await asyncio.sleep(1.5)
        assert set(loaded(hub)) == {"b"}, "which stays for ever, whatever the setting says"

    with_hub(changed(settings, keep_alive=1), test)


@pytest.mark.slow
def test_the_setting_is_for_manifests_that_say_nothing(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        await hub.generate("a", request())
        await until(lambda: loaded(hub)["a"].keep_alive == 1)
        start = loaded(hub)["a"].used
        await until(lambda: not loaded(hub))
        assert 0.9 <= time.time() - start < 4

    with_hub(changed(settings, keep_alive=1), test)


@pytest.mark.slow
def test_a_pinned_model_stays_also_in_the_worker_that_replaces_one_that_died(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        await hub.load("a", pinned=True)
        assert loaded(hub)["a"].pinned
        await hub.load("b")
        await until(lambda: set(loaded(hub)) == {"a"})
        psutil.Process(hub.engine.worker_pids[0]).kill()
        await until(lambda: not loaded(hub))
        await until(lambda: "a" in loaded(hub) and loaded(hub)["a"].pinned, 60)
        await hub.load("a", pinned=False)
        await until(lambda: not loaded(hub))

    with_hub(changed(settings, keep_alive=0), test)


@pytest.mark.slow
def test_what_cannot_be_pinned_is_not_tried_again_and_to_unpin_loads_nothing(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        await hub.load("a", pinned=False)
        assert not loaded(hub)
        assert settings.models_dir
        (settings.models_dir.parent / "b" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
        with pytest.raises(ModelUnusable):
            await hub.load("b", pinned=True)
        assert not hub.engine._kept

    with_hub(settings, test)


def test_models_are_unloaded_on_demand_and_busy_ones_when_they_have_answered(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        assert await hub.unload(None) == ([], [])
        await hub.generate("a", request())
        work = asyncio.create_task(hub.generate("b", request(num_inference_steps=300)))
        await until(lambda: loaded(hub).get("b") is not None and loaded(hub)["b"].busy == 1)
        assert await hub.unload(None) == (["a"], ["b"])
        assert set(loaded(hub)) == {"b"}
        assert len((await work).images) == 1
        await until(lambda: not loaded(hub))
        assert len((await hub.generate("b", request())).images) == 1, "and it is loaded again when it is asked for"
        assert await hub.unload("b") == (["b"], [])

    with_hub(settings, test)


def test_equal_modules_of_two_models_are_loaded_once(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        first = await hub.generate("a", request())
        await until(lambda: memory(hub).uploads == 3)
        of_a = {module.name: module.bytes for module in loaded(hub)["a"].modules}
        one, alone = memory(hub).weights, memory(hub).uploads
        other = await hub.generate("b", request())
        await until(lambda: memory(hub).uploads > alone)
        assert memory(hub).weights == one + of_a["unet"], "its own denoiser is all that came"
        assert memory(hub).uploads == alone + 1
        assert await hub.unload("a") == (["a"], [])
        await until(lambda: memory(hub).weights == one)
        assert same(await hub.generate("b", request()), other), "what both had is still there"
        assert same(await hub.generate("a", request()), first)
        assert not same(first, other)

    with_hub(changed(settings, device_memory_mb=512), test)


@pytest.mark.slow
def test_idle_models_leave_when_another_program_takes_memory_that_is_scarce(settings: Settings) -> None:
    """The reserve is more than the machine has: what is free is always too little."""
    everything = psutil.virtual_memory().total // MEGABYTE * 2

    async def test(hub: Hub) -> None:
        await hub.load("a", pinned=True)
        await hub.generate("b", request())
        await asyncio.sleep(5)
        assert set(loaded(hub)) == {"a", "b"}, "nobody needs more than before"
        program = "held = bytearray(400 << 20); held[::4096] = b'1' * len(held[::4096]); input()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as other:
            try:
                await until(lambda: set(loaded(hub)) == {"a"})
            finally:
                other.kill()
        assert len((await hub.generate("b", request())).images) == 1

    with_hub(changed(settings, device_reserve_mb=everything), test)


@pytest.mark.slow
def test_a_size_that_does_not_fit_is_refused_in_words_that_say_what_would(large: Settings) -> None:
    async def test(hub: Hub) -> None:
        with pytest.raises(OutOfMemory) as caught:
            await hub.generate("a", request(size=Size(2048, 2048)))
        assert caught.value.status == 503
        assert caught.value.headers["x-should-retry"] == "false"
        assert "too little memory for 2048x2048 with a" in caught.value.message
        side = caught.value.message.rpartition(". ")[2].partition(" would fit")[0]
        width, height = map(int, side.split("x"))
        assert 128 < width < 2048
        assert len((await hub.generate("a", request(size=Size(width, height), num_inference_steps=1))).images) == 1

    with_hub(changed(large, device_memory_mb=250), test)


def test_a_decode_that_does_not_fit_at_once_is_done_in_tiles_and_the_answer_says_so(large: Settings) -> None:
    drawn = {}

    def draw_with(limit: int) -> None:
        async def test(hub: Hub) -> None:
            drawn[limit] = await hub.generate("a", request(size=Size(512, 512), num_inference_steps=2))

        with_hub(changed(large, device_memory_mb=limit), test)

    draw_with(2000)
    draw_with(60)
    assert [word for word in drawn[60].warnings if "in tiles" in word]
    assert not [word for word in drawn[2000].warnings if "in tiles" in word]
    whole, tiled = (pixels(drawn[limit].images[0]).astype(int) for limit in (2000, 60))
    assert np.corrcoef(whole.flatten(), tiled.flatten())[0, 1] > 0.9
    assert receipt_in(drawn[60].images[0]).lossy == {"vae_tiling": True}
    assert receipt_in(drawn[2000].images[0]).lossy == {}


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_a_worker_that_is_out_of_memory_says_so_and_goes_on(large: Settings) -> None:
    """For real: the kernel gives it no more."""

    async def test(hub: Hub) -> None:
        first = await hub.generate("a", request())
        pid = hub.engine.worker_pids[0]
        assert pid
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + 40 * MEGABYTE, before[1]))
        with pytest.raises(OutOfMemory) as caught:
            await hub.generate("a", request(size=Size(1024, 1024), num_inference_steps=1))
        assert "would fit" in caught.value.message
        assert same(await hub.generate("a", request()), first)
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        assert len((await hub.generate("a", request(size=Size(1024, 1024), num_inference_steps=1))).images) == 1
        assert hub.engine.worker_pids[0] == pid

    with_hub(large, test)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"keep_alive": 0}, {"device_memory_mb": 14}], ids=["from disk", "from main memory"]
)
def test_fifty_rounds_of_two_models_leave_no_growth(settings: Settings, tmp_path: Path, changes: Any) -> None:
    """a, b, a, b …: each time the other one is loaded anew, or brought to a device that holds one of them."""
    assert settings.models_dir
    write(settings.models_dir, "b", another(tmp_path / "b", tmp_path / "c", "unet", "vae", "text_encoder"))
    sizes = []

    async def test(hub: Hub) -> None:
        for number in range(50):
            for model in ("a", "b"):
                await hub.generate(model, request(seed=number))
            if "keep_alive" in changes:
                await hub.unload(None)
            sizes.append(psutil.Process(hub.engine.worker_pids[0]).memory_info().rss / MEGABYTE)
        uploads.append(memory(hub).uploads)

    uploads: list[int] = []
    with_hub(changed(settings, **changes), test)
    early, late = (float(np.median(part)) for part in (sizes[10:20], sizes[40:]))
    assert late - early < 0.03 * early, sizes
    assert "keep_alive" in changes or uploads[0] > 50, "they did take turns"


# In this process, where one can look


def books(residency: Residency, memo: Memo | None = None) -> tuple[Models, queue.SimpleQueue[Loaded]]:
    inbox: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
    return Models(CPU, residency, memo or Memo(), inbox.put), inbox


def key(name: str, model: Path) -> EngineModel:
    return EngineModel(name, str(model), "float32")


def put_in_place(models: Models, residency: Residency, loaded: Loaded, busy: dict[EngineModel, int]) -> None:
    models.take(loaded)
    assert loaded.pipeline is not None
    for module in loaded.pipeline.modules.values():
        residency.hold(module)
    models.load_next(busy)


def test_nothing_of_a_model_is_left_when_its_memory_is_given_back(
    small_stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor of it: whoever still had one at that moment would keep a GPU's memory from being given back."""
    found: list[int] = []

    def parameters(*_: Any) -> None:
        gc.collect()
        found.append(sum(type(each) is torch.nn.Parameter for each in gc.get_objects()))

    residency = Residency(CPU)
    models, inbox = books(residency)
    parameters()
    models.wait_for(Load(1, key("a", small_stable_diffusion)), {})
    put_in_place(models, residency, inbox.get(timeout=60), {})
    parameters()
    monkeypatch.setattr("hub.engine.models.free_caches", parameters)
    assert models.release(["a"], {}) == (["a"], [])
    before, loaded, after = found
    assert after == before < loaded


def test_a_module_that_another_model_is_about_to_share_does_not_go_with_its_own(
    small_stable_diffusion: Path, tmp_path: Path
) -> None:
    """It lies in main memory at that moment, where its only copy is."""
    residency = Residency(CPU, 1 << 30)
    models, inbox = books(residency)
    first, second = key("a", small_stable_diffusion), key("b", another(small_stable_diffusion, tmp_path / "b", "unet"))
    models.wait_for(Load(1, first), {})
    put_in_place(models, residency, inbox.get(timeout=60), {})
    models.wait_for(Load(2, second), {})
    assert models.release(["a"], {}) == (["a"], [])
    put_in_place(models, residency, inbox.get(timeout=60), {})
    pipeline = models.get(second)
    assert pipeline is not None
    for module in pipeline.modules.values():
        residency.bring(module)
        assert not any(each.isnan().any() for each in module.parameters())
    assert models.release(None, {}) == (["b"], [])
    assert residency.on_device == 0


def test_models_are_loaded_one_after_another_each_if_there_is_room_then(
    small_stable_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = Residency(CPU)
    models, inbox = books(residency)
    keys = [key(name, another(small_stable_diffusion, tmp_path / name, "unet")) for name in "abc"]
    size = loading_bytes(keys[0], CPU)
    weights = sum(each.stat().st_size for each in small_stable_diffusion.glob("*/*.safetensors"))
    assert size == pytest.approx(weights, rel=0.05)
    taken = 0
    monkeypatch.setattr("hub.engine.models.main_memory", lambda: (1 << 40, 2 * size + size // 2 - taken))
    for number, each in enumerate(keys):
        models.wait_for(Load(number, each), {})
    for each in keys[:2]:
        loaded = inbox.get(timeout=60)
        assert (loaded.model, loaded.error) == (each, None)
        taken += size
        put_in_place(models, residency, loaded, {keys[0]: 1, keys[1]: 1})
    refused = inbox.get(timeout=60)
    assert refused.model == keys[2]
    assert isinstance(refused.error, TooLittleMemory)
    assert "of main memory" in str(refused.error)
    assert models.take(refused) == [Load(2, keys[2])]
    models.wait_for(Load(3, keys[2]), {keys[0]: 1})
    assert not models.has(loaded.pipeline), "b has nothing to do, and went"  # type: ignore[arg-type]


def test_the_type_that_weights_are_loaded_in_counts(tmp_path: Path, small_stable_diffusion: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(small_stable_diffusion, half)
    for file in half.glob("*/*.safetensors"):
        save_file({name: each.half() for name, each in load_file(file).items()}, file, metadata={"format": "pt"})
    whole = loading_bytes(key("a", small_stable_diffusion), CPU)
    assert loading_bytes(key("a", half), CPU) == pytest.approx(whole, rel=0.05)
    assert loading_bytes(EngineModel("a", str(half), "float16"), CPU) == pytest.approx(whole / 2, rel=0.05)


def test_a_folder_that_makes_no_sense_has_no_size_and_is_told_by_its_load(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    models, inbox = books(Residency(CPU))
    for number, path in enumerate((tmp_path, tmp_path / "gone")):
        assert loading_bytes(key("a", path), CPU) == 0
        models.wait_for(Load(number, key("a", path)), {})
        loaded = inbox.get(timeout=60)
        assert isinstance(loaded.error, Unsupported)
        assert models.take(loaded) == [Load(number, key("a", path))]


def test_a_model_that_is_unloaded_while_it_is_loaded_serves_those_who_wait_and_goes(
    small_stable_diffusion: Path,
) -> None:
    residency = Residency(CPU)
    models, inbox = books(residency)
    a = key("a", small_stable_diffusion)
    models.wait_for(Load(1, a, pinned=True), {})
    assert models.release(None, {}) == ([], ["a"])
    loaded = inbox.get(timeout=60)
    assert models.take(loaded) == [Load(1, a, pinned=False)]
    models.expire({a: 1})
    assert models.get(a) is not None, "somebody works with it"
    models.expire({})
    assert models.get(a) is None


def test_a_model_that_cannot_be_set_up_is_answered_for_and_leaves_nothing(
    small_stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, CPU, 1)

        def fail(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(worker._residency, "hold", fail)
        worker._admit(Load(7, key("a", small_stable_diffusion)))
        worker._on_loaded(worker.inbox.get(timeout=60))  # type: ignore[arg-type]
        ours.settimeout(20)
        answer = from_worker.decode(receive_frame(ours) or b"")
        assert isinstance(answer, Failed)
        assert (answer.id, answer.kind) == (7, "memory")
        assert not worker._models
