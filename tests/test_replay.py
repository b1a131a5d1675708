"""Pictures made again from what their files tell, by the real engine."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from hub.errors import InvalidRequest, ModelNotFound
from hub.hub import Hub
from hub.receipt import NoReceipt, receipt_in
from hub.replay import replay
from hub.settings import Settings
from hub.types import ImageRequest, Size
from tests.conftest import with_hub, write_manifest
from tests.routes import write_remote


@pytest.fixture
def settings(tmp_path: Path, small_stable_diffusion: Path) -> Settings:
    tasks = 'tasks = ["text-to-image", "image-to-image", "inpainting"]'
    models = write_manifest(tmp_path / "models", small_stable_diffusion, tasks=tasks)
    return Settings(models_dir=models, cache_dir=tmp_path / "cache", device="cpu")


def wish(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a cat", "size": Size(64, 64), "seed": 3, **changes})


def picture(colour: tuple[int, int, int], mode: str = "RGB", size: int = 64) -> bytes:
    buffer = io.BytesIO()
    shown = Image.new("RGB", (size, size), colour)
    shown.paste((255, 255, 255), (0, 0, size // 2, size))
    shown.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_file_that_names_a_remote_model_has_nobody_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_remote(Path(settings.models_dir or ""), "far", "http://127.0.0.1:9", leaves=False)

    async def test(hub: Hub) -> None:
        made = await hub.generate("small", wish())
        receipt = msgspec.structs.replace(receipt_in(made.images[0]), model="far")
        monkeypatch.setattr("hub.replay.receipt_in", lambda _: receipt)
        with pytest.raises(InvalidRequest, match="'far' is a remote provider's"):
            await replay(hub, made.images[0])

    with_hub(settings, test)


def test_pictures_of_a_batch_of_strangers_are_made_again_alone(settings: Settings) -> None:
    wishes = [
        wish(),
        wish(prompt="a dog", seed=4, num_inference_steps=9, guidance_scale=3.0),
        wish(prompt="a fish", seed=2**63 - 1, negative_prompt="bones", scheduler="EulerAncestralDiscreteScheduler"),
        wish(prompt="a bird", seed=6, quality="low", style="vivid", size=Size(96, 64)),
        wish(prompt="a car", seed=7, images=(picture((0, 0, 255)),), strength=0.7),
        wish(prompt="", seed=8, variation=True, images=(picture((0, 90, 0)),), size=None),
    ]

    async def test(hub: Hub) -> None:
        results = await asyncio.gather(*(hub.generate("small", each) for each in wishes))
        for each, result in zip(wishes, results, strict=True):
            again = await replay(hub, result.images[0], each.images)
            assert again.changed == []
            assert again.largest <= 1, each
            assert receipt_in(again.picture) == receipt_in(result.images[0])

    with_hub(settings, test)


@pytest.mark.slow
def test_each_of_several_pictures_has_a_receipt_of_its_own(settings: Settings) -> None:
    async def test(hub: Hub) -> None:
        result = await hub.generate("small", wish(n=3))
        assert [receipt_in(image).seed for image in result.images] == [3, 4, 5]
        assert (await replay(hub, result.images[2])).largest <= 1
        assert receipt_in(result.images[0]).weights == receipt_in(result.images[2]).weights != ""

    with_hub(settings, test)


@pytest.mark.slow
def test_an_edit_needs_its_sources_and_tells_when_they_are_others(settings: Settings) -> None:
    mask = picture((0, 0, 0), "L")
    source = picture((200, 0, 0))

    async def test(hub: Hub) -> None:
        made = (await hub.generate("small", wish(images=(source,), mask=mask))).images[0]
        assert (await replay(hub, made, (source,), mask)).largest <= 1
        with pytest.raises(InvalidRequest, match="source picture"):
            await replay(hub, made, (), mask)
        with pytest.raises(InvalidRequest, match="mask"):
            await replay(hub, made, (source,))
        other = await replay(hub, made, (picture((0, 200, 0)),), mask)
        assert other.largest > 1
        assert [change.partition(":")[0] for change in other.changed] == ["sources"]

    with_hub(settings, test)


def test_without_receipts_a_file_tells_nothing_of_its_prompt(settings: Settings) -> None:
    settings.receipts = False

    async def test(hub: Hub) -> None:
        made = (await hub.generate("small", wish(prompt="a secret"))).images[0]
        assert b"secret" not in made
        with pytest.raises(NoReceipt, match="receipts = false"):
            await replay(hub, made)

    with_hub(settings, test)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
@pytest.mark.slow
def test_a_prompt_of_any_length_fits_into_any_file(settings: Settings, output_format: str) -> None:
    async def test(hub: Hub) -> None:
        long = wish(prompt="ü猫" * 16_000, num_inference_steps=1)
        assert receipt_in((await hub.generate("small", long)).images[0]).prompt == long.prompt
        other = wish(prompt="ü猫" * 16_000, num_inference_steps=1, output_format=output_format)
        assert Image.open(io.BytesIO((await hub.generate("small", other)).images[0])).size == (64, 64)

    with_hub(settings, test)


@pytest.mark.slow
def test_a_model_that_is_gone_is_told(settings: Settings, tmp_path: Path) -> None:
    made: list[bytes] = []

    async def first(hub: Hub) -> None:
        made.extend((await hub.generate("small", wish(num_inference_steps=1))).images)

    async def then(hub: Hub) -> None:
        with pytest.raises(ModelNotFound, match="'small'"):
            await replay(hub, made[0])

    with_hub(settings, first)
    with_hub(Settings(cache_dir=tmp_path / "cache", device="cpu"), then)
