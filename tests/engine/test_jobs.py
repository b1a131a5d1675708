from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hub.engine.jobs import Blocked, Refused, encode_picture, failed_by, to_uint8
from hub.types import Size


def test_a_picture_is_scaled_and_rounded_to_the_nearest_level() -> None:
    picture = torch.tensor([[[0.0, 1.0]], [[0.5, 0.25]], [[-1.0, 2.0]]])  # 3 x 1 x 2
    assert to_uint8(picture).tolist() == [[[0, 128, 0], [255, 64, 255]]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ArithmeticError):
        to_uint8(torch.tensor([[[0.5]], [[bad]], [[0.5]]]))


@pytest.mark.parametrize("output", [Size(64, 64), Size(100, 60), Size(640, 320), Size(1, 1)])
def test_an_encoded_picture_has_exactly_the_output_size_and_says_its_text(output: Size) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    with Image.open(io.BytesIO(encode_picture(pixels, output, {"Seed": "7"}))) as drawn:
        drawn.load()
        assert drawn.size == (output.width, output.height)
        assert drawn.text == {"Seed": "7"}
        if output == Size(64, 64):
            assert np.array_equal(np.asarray(drawn), pixels)


def test_what_a_client_reads_of_a_failure_never_holds_the_exceptions_own_words() -> None:
    secret = "/srv/weights at 0x7f00deadbeef"
    for error in (RuntimeError(secret), OSError(secret), ArithmeticError(secret), torch.OutOfMemoryError(secret)):
        failed = failed_by(1, error)
        assert failed.kind == "failed"
        assert "/srv" not in failed.message
        assert "0x" not in failed.message
    assert failed_by(1, Refused("image", "No.")).param == "image"
    assert failed_by(1, Blocked()).kind == "blocked"
