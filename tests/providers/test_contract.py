"""What every remote provider promises. A new one is covered as soon as its two files are there, hub/providers/NAME.py
and tests/providers/protocols/NAME.py."""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageChops

from hub import providers
from hub.errors import HubError, InvalidRequest, ProviderUnavailable
from hub.http1.connection import SPAN
from hub.imaging.verify import verify_image
from hub.manifest import RemoteManifest, parse_size
from hub.registry import REMOTE, read_manifest
from hub.remote.adapter import Made
from hub.remote.wish import OPTIONAL, noting, plan
from hub.types import ImageRequest, ImageResult, Lora, Preview, Size
from tests.providers import upstream
from tests.providers.conftest import Driven
from tests.providers.upstream import KEY, Fault, nothing, slow

READY_MADE = sorted((Path(__file__).parents[2] / "models" / REMOTE).glob("*.toml"))
PROMPT = "a fox in the snow, unmistakable"
SIDE = 256
UNUSUAL: dict[str, Any] = {
    "size": Size(1024, 1024),
    "quality": "high",
    "style": "vivid",
    "seed": 7,
    "num_inference_steps": 20,
    "guidance_scale": 5.5,
    "negative_prompt": "rain",
    "strength": 0.5,
    "scheduler": "DDIMScheduler",
    "loras": (Lora(name="ink"),),
    "output_format": "webp",
    "output_compression": 50,
    "background": "transparent",
    "moderation": "low",
    "input_fidelity": "high",
    "partial_images": 2,
}
"""A value of each parameter that a provider may not have."""


def picture(colour: str = "red", image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(buffer, image_format)
    return buffer.getvalue()


@functools.cache
def noise(width: int, height: int, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 100).convert("RGB").save(buffer, image_format, quality=90, compress_level=1)
    return buffer.getvalue()


def half(mode: str) -> bytes:
    """A mask by which the left half may change: transparent there (RGBA), or white (L)."""
    drawn = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255)) if mode == "RGBA" else Image.new("L", (SIDE, SIDE), 0)
    drawn.paste((0, 0, 0, 0) if mode == "RGBA" else 255, (0, 0, SIDE // 2, SIDE))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return buffer.getvalue()


def sources(driven: Driven) -> dict[str, Any]:
    """A source where the model draws nothing without one."""
    return {} if "text-to-image" in driven.protocol.tasks else {"images": (picture(),)}


def check(driven: Driven, result: ImageResult, n: int = 1) -> None:
    """What holds of every answer, and of every request that led to it."""
    upstream = driven.upstream
    assert upstream.failures == []
    assert len(result.images) == n
    assert len(set(result.images)) == n
    assert set(result.images) <= set(upstream.made)
    assert verify_image(result.images[0]) == (result.output_format, result.size)
    if upstream.encoded:
        assert len(result.encoded) == n
    for image, text in zip(result.images, result.encoded, strict=False):
        assert text == base64.b64encode(image)
        assert bytes(text).decode() in upstream.encoded
    for asked in upstream.asked:
        holding = [name for name, value in asked.headers.items() if KEY in value]
        assert len(holding) == (0 if asked.path.startswith("/pictures/") else 1), (asked.path, holding)
        assert KEY not in f"{asked.path} {asked.query}"
        assert KEY.encode() not in asked.body
        assert "fox" not in f"{asked.path} {asked.query} {asked.headers}"


def test_it_makes_a_picture_of_a_prompt(driven: Driven) -> None:
    result = driven.make(prompt=PROMPT, **sources(driven))
    check(driven, result)
    assert any(PROMPT.encode() in asked.body for asked in driven.upstream.work)


def test_a_picture_of_megabytes_stays_as_it_is(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a connection reads at once: such an answer is read, and its base64 passed on, where it lies."""
    monkeypatch.setattr(upstream, "_drawn", noise)
    result = driven.make(prompt=PROMPT, **sources(driven))
    check(driven, result)
    assert len(result.images[0]) > SPAN


def test_its_protocol_says_truly_what_it_can(driven: Driven) -> None:
    """What is skipped elsewhere is skipped by these words of its."""
    protocol, upstream, manifest = driven.protocol, driven.upstream, driven.protocol.manifest(driven.upstream)
    driven.make(prompt=PROMPT, **sources(driven))
    fetched = [asked for asked in upstream.asked if asked.path.startswith("/pictures/")]
    assert protocol.links == bool(fetched) == (not upstream.encoded)
    assert protocol.polls == (len(upstream.asked) > len(upstream.work) + len(fetched))
    assert protocol.streams == ("partial_images" in driven.adapter.honoured(manifest))
    ready = [each for each in map(read_manifest, READY_MADE) if getattr(each, "provider", "") == protocol.provider]
    for task in ("text-to-image", "image-to-image") if ready else ():
        assert (task in protocol.tasks) == any(task in each.tasks for each in ready)


def test_it_makes_as_many_pictures_as_asked_for(driven: Driven) -> None:
    result = driven.make(prompt=PROMPT, n=3, **sources(driven))
    check(driven, result, 3)
    assert not [warning for warning in result.warnings if warning.startswith("n:")]


def test_a_seed_is_used_and_told_or_warned_about(driven: Driven) -> None:
    result = driven.make(prompt=PROMPT, seed=4711, **sources(driven))
    check(driven, result)
    if "seed" in driven.adapter.honoured(driven.protocol.manifest(driven.upstream)):
        assert result.seed == 4711
        assert any(b"4711" in asked.body for asked in driven.upstream.work)
    else:
        assert [warning for warning in result.warnings if warning.startswith("seed:")]


def test_a_size_is_honoured_or_warned_about(driven: Driven) -> None:
    asked = parse_size(driven.protocol.size or "1024x1024")
    result = driven.make(prompt=PROMPT, size=asked, **sources(driven))
    check(driven, result)
    warned = [warning for warning in result.warnings if warning.startswith("size:")]
    assert bool(warned) == (driven.protocol.size is None)
    assert warned or result.size == asked


def test_a_size_that_it_does_not_draw_is_warned_about_or_refused(driven: Driven) -> None:
    odd = Size(1000, 333)
    try:
        result = driven.make(prompt=PROMPT, size=odd, **sources(driven))
    except InvalidRequest as error:
        assert error.param in ("size", None)  # by the hub, or by a provider that does not say what it dislikes
        return
    check(driven, result)
    assert result.size == odd or [warning for warning in result.warnings if warning.startswith("size:")]


@pytest.mark.parametrize("images", [1, 2])
def test_it_edits_pictures(driven: Driven, images: int) -> None:
    manifest = driven.protocol.manifest(driven.upstream)
    given = (picture("red"), picture("blue", "JPEG"))[:images]
    if "image-to-image" not in manifest.tasks or images > manifest.remote.max_images:
        error = driven.fail(images=given)
        assert (type(error), error.param) == (InvalidRequest, "image")
        assert driven.upstream.asked == []
        return
    check(driven, driven.make(prompt=PROMPT, images=given))
    sent = [data for asked in driven.upstream.asked for data in asked.pictures]
    assert [data for data in given if data not in sent] == []


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_a_mask_of_either_kind_lets_the_same_part_change(driven: Driven, mode: str) -> None:
    if "inpainting" not in driven.protocol.tasks:
        error = driven.fail(images=(picture(),), mask=half(mode))
        assert (type(error), error.param) == (InvalidRequest, "mask")
        assert driven.upstream.asked == []
        return
    check(driven, driven.make(prompt=PROMPT, images=(picture(),), mask=half(mode)))
    sent = [data for asked in driven.upstream.asked for data in asked.pictures if data != picture()]
    assert len(sent) == 1
    with Image.open(io.BytesIO(sent[0])) as mask:
        match driven.protocol.mask:
            case "transparent":
                changes = ImageChops.invert(mask.convert("RGBA").getchannel("A"))
            case "white":
                changes = mask.convert("L")
            case "black":
                changes = ImageChops.invert(mask.convert("L"))
    assert changes.size == (SIDE, SIDE)
    assert changes.getpixel((SIDE // 4, SIDE // 2)) == 255
    assert changes.getpixel((3 * SIDE // 4, SIDE // 2)) == 0


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_parameter_that_it_does_not_have_is_warned_about_by_name_and_refused_if_strict(
    driven: Driven, name: str
) -> None:
    manifest = driven.protocol.manifest(driven.upstream)
    if name in driven.adapter.honoured(manifest):
        pytest.skip("it has it")
    edits = name in ("strength", "input_fidelity") and "image-to-image" in manifest.tasks
    given = {"images": (picture(),)} if edits else sources(driven)
    wanted = {name: UNUSUAL[name]} | ({"output_format": "jpeg"} if name == "output_compression" else {})
    error = driven.fail(prompt=PROMPT, strict=True, **given, **wanted)
    assert isinstance(error, InvalidRequest)
    assert error.param in wanted
    assert driven.upstream.asked == []
    try:
        result = driven.make(prompt=PROMPT, **given, **wanted)
    except InvalidRequest as refused:
        assert refused.param == name == "background"  # pictures that were to be transparent
        assert driven.upstream.asked == []
        return
    check(driven, result)
    assert result.output_format == "webp" or [each for each in result.warnings if each.startswith(f"{name}:")]


def test_previews_come_where_it_streams(driven: Driven) -> None:
    result = driven.make(prompt=PROMPT, partial_images=2, **sources(driven))
    previews = [event for event in driven.events if isinstance(event, Preview)]
    check(driven, result)
    if driven.protocol.streams:
        assert [each.partial for each in previews] == [0, 1]
        assert all(each.image in driven.upstream.made for each in previews)
    else:
        assert previews == []
        assert [warning for warning in result.warnings if warning.startswith("partial_images:")]


@pytest.mark.parametrize("point", ["work", "poll", "picture"])
def test_a_cancelled_request_ends_at_once_and_leaves_nothing_behind(driven: Driven, point: str) -> None:
    protocol, upstream = driven.protocol, driven.upstream
    if (point == "poll" and not protocol.polls) or (point == "picture" and not protocol.links):
        pytest.skip("it has no such point")
    hanging: list[Fault] = [slow(30)] * 12
    (upstream.picture_faults if point == "picture" else upstream.faults).extend(
        [nothing(), *hanging] if point == "poll" else hanging
    )
    expected = {"work": 1, "poll": 2, "picture": 1}[point]

    async def main() -> float:
        task = asyncio.create_task(driven.asking(prompt=PROMPT, **sources(driven)))
        reached: Callable[[], int] = lambda: sum(  # noqa: E731
            asked.path.startswith("/pictures/") or point != "picture" for asked in upstream.asked
        )
        while reached() < expected:
            assert not task.done()
            await asyncio.sleep(0.005)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return time.monotonic() - start

    assert driven.runner.run(main()) < 1


def test_a_base_url_of_the_owners_gets_no_key_that_the_manifest_does_not_name(driven: Driven) -> None:
    manifest = {"credentials": None}
    error = driven.fail(manifest, prompt=PROMPT, **sources(driven))
    assert KEY not in str([asked.headers for asked in driven.upstream.asked])
    if driven.adapter.needs_key:
        assert isinstance(error, ProviderUnavailable)
        assert driven.upstream.asked == []


WRONG: tuple[Any, ...] = (None, "secret words", -1, 1.5, True, False, {}, {"a": 1}, [], [None], ["x"], 2**70)
"""What a field may hold by mistake, or by a later version of the provider's API."""


def spoilt(told: Any, needed: Callable[[str, Any], bool], name: str = "") -> Iterator[Any]:
    """What was told, with one thing after another in it spoilt that is not needed; what is a verdict stays one, and so
    does what stands with pictures in one list."""
    if not needed(name, told):
        yield from (each for each in WRONG if not isinstance(told, bool) or not isinstance(each, bool))
    keys = list(told) if isinstance(told, dict) else range(len(told)) if isinstance(told, list) else ()
    holding = [key for key in keys if isinstance(key, int) and needed("", told[key])]
    for key in holding or keys:
        for each in spoilt(told[key], needed, str(key)):
            changed = copy.copy(told)
            changed[key] = each
            yield changed


@pytest.mark.parametrize("previews", [0, 2])
def test_what_stands_beside_the_pictures_cannot_lose_them(
    driven: Driven, previews: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, heard, events = driven.adapter, [], []
    read, event = adapter.read, adapter.event
    monkeypatch.setattr(adapter, "read", lambda *told: (heard.append(told), read(*told))[1])
    monkeypatch.setattr(adapter, "event", lambda *told: (events.append(told), event(*told))[1])
    check(driven, driven.make(prompt=PROMPT, partial_images=previews, **sources(driven)))

    def needed(name: str, told: Any) -> bool:
        """Pictures, whatever holds them, and a verdict on all; an event's kind."""
        text = json.dumps(told)
        marks = [json.dumps(each) for each in driven.upstream.encoded] + ["/pictures/"]
        return any(mark in text for mark in marks) or name in ("status", "type")

    for wish, answer in heard:
        if isinstance(made := read(wish, answer), Made):
            for changed in spoilt(json.loads(answer.body), needed):
                told = msgspec.structs.replace(answer, body=json.dumps(changed).encode())
                again = read(wish, told)
                assert isinstance(again, Made), changed
                assert again.pictures == made.pictures, changed
    for wish, name, data in events:
        if isinstance(found := event(wish, name, data), Made) and found.pictures:
            for changed in spoilt(json.loads(data), needed):
                again = event(wish, name, json.dumps(changed).encode())
                assert isinstance(again, Made), changed
                assert again.pictures == found.pictures, changed


def test_its_adapter_tells_who_it_is(driven: Driven) -> None:
    adapter = driven.adapter
    assert adapter.name == driven.protocol.provider
    assert adapter.title
    assert adapter.documentation.startswith("https://")
    assert adapter.base_url is None or adapter.base_url.startswith("https://")
    assert not (adapter.base_url or "").endswith("/")
    assert adapter.key_variable or not adapter.needs_key
    assert adapter.honours <= set(OPTIONAL)


@pytest.mark.parametrize("source", READY_MADE, ids=lambda source: source.stem)
def test_a_ready_made_manifest_can_be_asked(source: Path) -> None:
    manifest = read_manifest(source)
    assert isinstance(manifest, RemoteManifest)
    assert manifest.provider in providers.names()
    assert manifest.id.startswith(f"{manifest.provider.replace('_', '-')}/")
    assert source.stem.startswith(manifest.provider.replace("_", "-"))
    assert manifest.owned_by != "local"
    adapter = providers.adapter(manifest.provider)
    for task in manifest.tasks:
        images = {} if task == "text-to-image" else {"images": (picture(),)}
        masks = {"mask": half("L")} if task == "inpainting" else {}
        for size in (None, Size(1024, 1024), Size(1600, 900)):
            request = ImageRequest(prompt=PROMPT, size=size, **images, **masks)
            wish = plan(manifest, adapter.honoured(manifest), request)
            wish = noting(wish, adapter.unmet(wish))
            call = adapter.call(wish, min(adapter.most(wish.manifest, wish.request), 2), 0)
            assert call.method == "POST"
            assert "fox" not in call.url


@pytest.mark.parametrize("source", READY_MADE, ids=lambda source: source.stem)
def test_a_ready_made_manifest_that_prices_tokens_says_how_many_a_picture_takes(source: Path) -> None:
    """Else they would be the hub's own count, which is less than a picture of high quality takes."""
    manifest = read_manifest(source)
    assert isinstance(manifest, RemoteManifest)
    known = set(manifest.prices.tokens.output_tokens) if manifest.prices.tokens else {"*/*"}
    sizes = set(manifest.remote.sizes) or {"*"}
    for quality in ("low", "medium", "high"):
        assert {"*/*", f"{quality}/*"} & known or {f"{quality}/{size}" for size in sizes} <= known


def test_no_two_ready_made_manifests_have_one_id() -> None:
    ids = [read_manifest(source).id for source in READY_MADE]
    assert len(ids) == len(set(ids))


def test_errors_of_an_unknown_provider_are_the_owners() -> None:
    with pytest.raises(HubError):
        providers.adapter("nobody")
