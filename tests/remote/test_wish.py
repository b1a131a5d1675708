from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, ImageOps

from hub.errors import InvalidRequest
from hub.imaging.verify import NotAnImage, verify_image
from hub.remote.wish import OPTIONAL, Wish, noting, plan
from hub.types import ImageRequest, Size
from tests.remote.fake import manifest, png

ALL = frozenset(OPTIONAL)


def wish(honoured: frozenset[str] = ALL, remote: dict[str, Any] | None = None, **asked: Any) -> Wish:
    return plan(manifest("http://127.0.0.1", **(remote or {})), honoured, ImageRequest(**{"prompt": "x", **asked}))


def refused(**given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        wish(**given)
    return caught.value


def jpeg(**options: Any) -> bytes:
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste((0, 0, 255), (0, 0, 30, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def white(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), 255).save(buffer, "PNG")
    return buffer.getvalue()


def held(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif.tobytes())


def test_a_request_that_says_nothing_has_nothing_to_be_told() -> None:
    found = wish(frozenset())
    assert (found.notices, found.size, found.aspect_ratio, found.effort, found.images, found.mask) == (
        (),
        None,
        None,
        None,
        (),
        None,
    )


def test_a_source_is_sent_as_it_came() -> None:
    for data in (png(), jpeg(), held(1)):
        assert wish(images=(data,)).images[0].data == data


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_source_that_a_camera_says_to_turn_is_turned_since_the_mask_is_for_the_upright_one(orientation: int) -> None:
    data = held(orientation)
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    Image.new("L", upright.size, 255).save(buffer, "PNG")
    found = wish(images=(data,), mask=buffer.getvalue())
    (source,) = found.images
    assert (source.format, source.size) == verify_image(source.data)
    with Image.open(io.BytesIO(source.data)) as sent:
        assert sent.size == upright.size
        assert sent.tobytes() == upright.tobytes()
        assert sent.getexif().get(0x0112, 1) == 1
    assert found.mask is not None
    assert found.mask.picture.size == upright.size


def test_a_mask_that_was_resampled_is_told_and_refused_where_the_request_is_strict() -> None:
    found = wish(images=(png(side=64),), mask=white(32))
    assert found.mask is not None
    assert found.mask.picture.size == (64, 64)
    assert [(each.param, "resampled" in each.message) for each in found.notices] == [("mask", True)]
    assert refused(images=(png(side=64),), mask=white(32), strict=True).param == "mask"
    assert wish(images=(png(side=64),), mask=white(64), strict=True).notices == ()


def test_a_source_without_its_end_which_decoders_forgive_is_mended() -> None:
    data = png()[:-12]
    with pytest.raises(NotAnImage):
        verify_image(data)
    (source,) = wish(images=(data,)).images
    assert verify_image(source.data) == ("png", Size(64, 64))


@pytest.mark.parametrize("data", [b"", b"GIF89a", png()[:50], jpeg()[:200]])
def test_a_source_that_is_none_is_the_callers_fault(data: bytes) -> None:
    error = refused(images=(data,))
    assert (error.param, error.status) == ("image", 400)


def test_each_kind_of_mask_says_the_same() -> None:
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    half.save(buffer, "PNG")
    mask = wish(images=(png(),), mask=buffer.getvalue()).mask
    assert mask is not None
    left, right = (10, 30), (50, 30)
    with (
        Image.open(io.BytesIO(mask.white_changes)) as white,
        Image.open(io.BytesIO(mask.black_changes)) as black,
        Image.open(io.BytesIO(mask.transparent_changes)) as clear,
    ):
        assert (white.mode, white.getpixel(left), white.getpixel(right)) == ("L", 255, 0)
        assert (black.mode, black.getpixel(left), black.getpixel(right)) == ("L", 0, 255)
        assert (clear.mode, clear.getpixel(left)[3], clear.getpixel(right)[3]) == ("RGBA", 0, 255)  # type: ignore[index]


def test_what_the_model_does_not_do_is_refused_by_name() -> None:
    assert refused(variation=True, images=(png(),)).param == "image"
    assert refused(mask=png()).param == "mask"
    assert refused(images=(png(), png(1))).param == "image"


def test_more_notices_replace_those_of_the_same_parameter_and_strict_refuses_any() -> None:
    from hub.remote.wish import Notice

    found = wish(frozenset(), seed=1, style="vivid")
    assert [each.param for each in found.notices] == ["style", "seed"]
    more = noting(found, [Notice("seed", "better words")])
    assert [str(each) for each in more.notices] == [str(found.notices[0]), "seed: better words"]
    assert refused(honoured=frozenset({"output_format"}), seed=1, strict=True).param == "seed"


def test_a_value_that_means_nothing_is_not_warned_about() -> None:
    same = {"quality": "auto", "background": "auto", "moderation": "auto", "input_fidelity": "low"}
    assert wish(frozenset(), **same, output_compression=100, partial_images=0).notices == ()


def test_a_seed_of_later_calls_follows_the_first_and_stays_within_bounds() -> None:
    found = wish(seed=5)
    assert [found.seed(first) for first in (0, 3)] == [5, 8]
    assert wish(seed=99).seed(1, most=99) == 0
    with pytest.raises(InvalidRequest, match="seed"):
        wish(seed=100).seed(0, most=99)
    assert wish().seed(3) is None
