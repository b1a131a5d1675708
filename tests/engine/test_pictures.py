"""What comes out of the real worker: previews, masks, formats; with the built-in model and with a random one."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hub.engine.supervisor import Engine
from hub.errors import InvalidRequest
from hub.loras import Loras
from hub.providers.local import LocalProvider
from hub.registry import open_registry
from hub.settings import Settings
from hub.types import Event, ImageRequest, ImageResult, Preview, Progress, Size
from tests.conftest import write_manifest

RANDOM = np.random.RandomState(0)


class Studio:
    """A worker that lives as long as the module, and a loop on a thread to ask it from."""

    def __init__(self, settings: Settings) -> None:
        self.registry = open_registry(settings.models_dirs, {})
        self.engine = Engine(settings)
        self.provider = LocalProvider(self.engine, Loras(settings.loras_folder))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._running = self.engine.running()
        self.do(self._running.__aenter__())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def generate(
        self, model: str, wish: ImageRequest, on_event: Callable[[Event], None] | None = None
    ) -> Coroutine[Any, Any, ImageResult]:
        return self.provider.generate(self.registry.get(model).manifest, wish, on_event)

    def ask(self, model: str, **wish: Any) -> tuple[ImageResult, list[Event]]:
        events: list[Event] = []
        return self.do(self.generate(model, request(**wish), events.append)), events

    def close(self) -> None:
        self.do(self._running.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, small_stable_diffusion: Path) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    tasks = 'tasks = ["text-to-image", "image-to-image", "inpainting"]'
    write_manifest(folder / "models", small_stable_diffusion, tasks=tasks)
    studio = Studio(Settings(cache_dir=folder / "cache", models_dir=folder / "models", device="cpu"))
    try:
        yield studio
    finally:
        studio.close()


def request(**changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a", "size": Size(64, 64), "seed": 1, **changes})


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int, height: int) -> bytes:
    return encoded(Image.fromarray(RANDOM.randint(0, 256, (height, width, 3), np.uint8)))


def mask(width: int, height: int, box: tuple[float, float, float, float]) -> bytes:
    """Black with a white box."""
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    return encoded(picture)


def previews(events: list[Event]) -> list[Preview]:
    return [event for event in events if isinstance(event, Preview)]


# Previews


@pytest.mark.parametrize(
    ("prompt", "seed"),
    [
        ("a red circle on a white background", 1),
        ("a large yellow star on a blue background", 2),
        ("a small green heart on the left, black background", 3),
        ("an orange triangle on a purple background", 4),
        ("a black ring at the top, white background", 5),
    ],
)
def test_each_preview_is_nearer_to_the_picture_than_the_one_before(studio: Studio, prompt: str, seed: int) -> None:
    result, events = studio.ask("builtin", prompt=prompt, seed=seed, size=Size(128, 128), partial_images=3)
    seen = previews(events)
    assert [(each.index, each.partial) for each in seen] == [(0, 0), (0, 1), (0, 2)]
    final = pixels(result.images[0])
    distances = [float(np.abs(pixels(each.image) - final).mean()) for each in seen]
    assert all(later < earlier for earlier, later in pairwise(distances)), distances
    assert distances[0] < 30, "the first is the picture already, and no noise"


def test_a_preview_follows_its_step_and_precedes_later_ones(studio: Studio) -> None:
    """18 steps: after 5, 9 and 14; the encoder may take a step or two. The last step comes with none."""
    _, events = studio.ask("builtin", prompt="a red circle", size=Size(128, 128), partial_images=3)
    steps_before = [
        max(each.step for each in events[:at] if isinstance(each, Progress))
        for at, event in enumerate(events)
        if isinstance(event, Preview)
    ]
    assert len(steps_before) == 3
    for found, due in zip(steps_before, (5, 9, 14), strict=True):
        assert due <= found <= due + 3


def test_previews_of_all_pictures_come_each_in_order(studio: Studio) -> None:
    result, events = studio.ask("small", n=3, num_inference_steps=8, partial_images=2)
    seen = previews(events)
    assert sorted((each.index, each.partial) for each in seen) == [(i, p) for i in range(3) for p in range(2)]
    for index in range(3):
        assert [each.partial for each in seen if each.index == index] == [0, 1]
    assert len(result.images) == 3


def test_the_steps_really_run_decide_where_previews_stand(studio: Studio) -> None:
    """Strength 0.5 of 8 steps runs 4; of 2 steps one preview is left, and of one step none."""
    source = noise(64, 64)
    for steps, strength, expected in ((8, 0.5, 3), (4, 0.5, 1), (2, 0.5, 0), (1, 1.0, 0)):
        _, events = studio.ask(
            "small", images=(source,), num_inference_steps=steps, strength=strength, partial_images=3
        )
        assert len(previews(events)) == expected, (steps, strength)


def test_previews_change_nothing_about_the_picture(studio: Studio) -> None:
    plain, _ = studio.ask("small", num_inference_steps=7, n=2)
    shown, _ = studio.ask("small", num_inference_steps=7, n=2, partial_images=3)
    assert plain.images == shown.images
    assert shown.warnings == ()


def test_a_request_that_wants_no_previews_gets_none_beside_one_that_does(studio: Studio) -> None:
    async def both() -> tuple[list[Event], list[Event]]:
        wanted: list[Event] = []
        plain: list[Event] = []
        await asyncio.gather(
            studio.generate("small", request(num_inference_steps=9, partial_images=3), wanted.append),
            studio.generate("small", request(num_inference_steps=9, seed=2), plain.append),
        )
        return wanted, plain

    wanted, plain = studio.do(both())
    assert (len(previews(wanted)), len(previews(plain))) == (3, 0)


def test_after_a_cancellation_nothing_more_is_heard(studio: Studio) -> None:
    async def cancelled() -> int:
        events: list[Event] = []
        wish = request(num_inference_steps=100, partial_images=3, n=2)
        work = asyncio.ensure_future(studio.generate("small", wish, events.append))
        async with asyncio.timeout(60):
            while not previews(events):
                await asyncio.sleep(0.005)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        heard = len(events)
        await studio.generate("small", request(num_inference_steps=3))
        return len(events) - heard

    assert studio.do(cancelled()) == 0


def test_a_preview_has_the_size_and_the_format_of_the_picture(studio: Studio) -> None:
    for kind in ("png", "jpeg", "webp"):
        result, events = studio.ask(
            "small", size=Size(300, 200), num_inference_steps=4, partial_images=1, output_format=kind
        )
        for data in (*result.images, *(each.image for each in previews(events))):
            with Image.open(io.BytesIO(data)) as picture:
                assert (picture.format, picture.size) == (kind.upper(), (300, 200))


# Masks


def red_circle() -> Image.Image:
    source = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(source).ellipse((156, 156, 356, 356), fill=(220, 30, 30))
    return source


@pytest.mark.parametrize("strength", [None, 0.8, 0.6])
@pytest.mark.parametrize(("prompt", "colour"), [("a blue square", 2), ("a green square", 1)])
def test_a_red_circle_becomes_another_shape_in_another_colour_and_around_it_nothing_changes(
    studio: Studio, prompt: str, colour: int, strength: float | None
) -> None:
    box = (140, 140, 372, 372)
    result, events = studio.ask(
        "builtin",
        prompt=f"{prompt} on a white background",
        seed=3,
        size=Size(512, 512),
        images=(encoded(red_circle()),),
        mask=mask(512, 512, box),
        strength=strength,
        partial_images=2,
    )
    outside = pixels(mask(512, 512, box))[..., 0] == 0
    original, final = np.asarray(red_circle(), np.int16), pixels(result.images[0])
    assert np.array_equal(final[outside], original[outside])
    middle = final[216:296, 216:296].mean((0, 1))
    assert middle.argmax() == colour
    assert middle[0] < 110, "no red is left"
    for each in previews(events):
        assert np.array_equal(pixels(each.image)[outside], original[outside]), "a preview keeps it, too"


def test_a_mask_over_half_of_a_shape_keeps_the_other_half(studio: Studio) -> None:
    box = (256, 130, 390, 390)
    result, _ = studio.ask(
        "builtin",
        prompt="a blue square on a white background",
        seed=3,
        size=Size(512, 512),
        images=(encoded(red_circle()),),
        mask=mask(512, 512, box),
    )
    final = pixels(result.images[0])
    assert np.array_equal(final[:, :256], np.asarray(red_circle(), np.int16)[:, :256])
    blue = final[240:272, 280:330].mean((0, 1))
    assert blue[2] > 180
    assert blue[0] < 90, "the red half does not bleed into it"


def test_an_images_own_hole_is_filled_and_the_rest_stays(studio: Studio) -> None:
    source = red_circle().convert("RGBA")
    source.paste((0, 0, 0, 0), (140, 140, 372, 372))
    wish = {"prompt": "a blue square on a white background", "seed": 3, "size": None}
    result, _ = studio.ask("builtin", images=(encoded(source),), **wish)
    final = pixels(result.images[0])
    assert result.size == Size(512, 512)
    assert (final[:140] == 255).all()
    assert final[216:296, 216:296].mean((0, 1)).argmax() == 2


@pytest.mark.parametrize("size", [Size(64, 64), Size(90, 50), Size(128, 128), Size(301, 97)])
def test_outside_of_a_mask_a_png_is_the_source_bit_for_bit_at_any_size(studio: Studio, size: Size) -> None:
    source = noise(size.width, size.height)
    box = (size.width // 3, size.height // 4, size.width // 2, size.height // 2)
    area = mask(size.width, size.height, box)
    result, _ = studio.ask("small", images=(source,), mask=area, size=None, num_inference_steps=3, n=2)
    outside = pixels(area)[..., 0] == 0
    for data in result.images:
        assert np.array_equal(pixels(data)[outside], pixels(source)[outside])
        assert not np.array_equal(pixels(data)[~outside], pixels(source)[~outside])


def test_soft_parts_of_a_mask_blend_old_and_new(studio: Studio) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(255, 0, 64).astype(np.uint8), (64, 1)))
    source = Image.new("RGBA", (64, 64), (250, 250, 0, 255))
    blank = encoded(Image.merge("RGBA", (*Image.new("RGB", (64, 64)).split(), ramp)))
    wish = {"images": (encoded(source),), "mask": blank, "num_inference_steps": 3}
    soft = pixels(studio.ask("small", **wish)[0].images[0])
    hard_mask = encoded(Image.new("L", (64, 64), 255))
    hard = pixels(studio.ask("small", **{**wish, "mask": hard_mask})[0].images[0])
    share = (255 - np.asarray(ramp, np.float32))[..., None] / 255
    expected = np.array([250, 250, 0]) * (1 - share) + hard * share
    assert np.abs(soft - expected).max() <= 2


def test_with_a_mask_a_picture_in_a_batch_of_strangers_equals_itself_alone(studio: Studio) -> None:
    source = noise(64, 64)
    wishes = [
        request(seed=1, images=(source,), mask=mask(64, 64, (8, 8, 40, 40)), num_inference_steps=9),
        request(seed=2, images=(source,), mask=mask(64, 64, (0, 0, 63, 20)), num_inference_steps=6, strength=0.6),
        request(seed=3, images=(source,), num_inference_steps=12, strength=0.5),
        request(seed=4, num_inference_steps=7, guidance_scale=2.0, partial_images=3),
        request(seed=5, images=(source,), mask=mask(64, 64, (9, 9, 33, 60)), n=2, partial_images=2),
    ]

    async def ask() -> tuple[list[ImageResult], list[ImageResult]]:
        alone = [await studio.generate("small", wish) for wish in wishes]
        return alone, await asyncio.gather(*(studio.generate("small", wish) for wish in wishes))

    alone, together = studio.do(ask())
    for one, other in zip(alone, together, strict=True):
        for first, second in zip(one.images, other.images, strict=True):
            assert np.abs(pixels(first) - pixels(second)).max() <= 1


def test_a_manifest_that_promises_masks_for_a_pipeline_without_them_is_answered_with_the_parameter(
    studio: Studio, tmp_path: Path, small_stable_diffusion: Path
) -> None:
    """A pipeline of a class that diffusers knows no sibling of."""
    import json
    import shutil

    folder = tmp_path / "lonely"
    shutil.copytree(small_stable_diffusion, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionSAGPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    write_manifest(tmp_path / "models", folder, id='id = "lonely"', tasks='tasks = ["text-to-image", "inpainting"]')
    manifest = open_registry([tmp_path / "models"], {}).get("lonely").manifest
    wish = request(images=(noise(64, 64),), mask=mask(64, 64, (0, 0, 20, 20)))
    with pytest.raises(InvalidRequest) as caught:
        studio.do(studio.provider.generate(manifest, wish))
    assert caught.value.param == "mask"


# Variations


def test_a_variation_follows_its_image_without_a_word(studio: Studio) -> None:
    source = encoded(Image.new("RGB", (128, 128), (30, 60, 220)))
    result, _ = studio.ask("builtin", prompt="", images=(source,), variation=True, strength=0.3, size=Size(128, 128))
    assert pixels(result.images[0]).mean((0, 1)).argmax() == 2
    assert [warning for warning in result.warnings if not warning.startswith("size")] == []
