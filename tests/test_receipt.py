from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hub.imaging.png import encode_png
from hub.receipt import NoReceipt, Receipt, receipt_in
from hub.types import Size

VERSIONS = {"hub": "1", "torch": "2", "diffusers": "3", "transformers": "4"}


def receipt(**changes: Any) -> Receipt:
    return Receipt(
        **{
            "model": "small",
            "weights": "ab" * 32,
            "task": "text-to-image",
            "prompt": "a cat, ünïcode 猫",
            "seed": 2**63 - 1,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
            "scheduler": "DDIMScheduler",
            "native": Size(64, 64),
            "size": Size(128, 128),
            "dtype": "float32",
            "device": "cpu",
            "versions": VERSIONS,
            **changes,
        }
    )


def png(**text: str) -> bytes:
    return encode_png(np.zeros((4, 4, 3), np.uint8), text)


def test_a_receipt_comes_back_from_the_file_as_it_was() -> None:
    full = receipt(
        negative_prompt="dogs\nand more",
        strength=0.5,
        sources=("cd" * 32,),
        mask="ef" * 32,
        arguments={"eta": 0.5},
        lossy={"skip": 0.1},
    )
    for each in (receipt(), full):
        assert receipt_in(png(**each.texts())) == each


def test_other_programs_read_the_parameters() -> None:
    file = png(**receipt(negative_prompt="dogs").texts())
    prompt, negative, settings = Image.open(io.BytesIO(file)).text["parameters"].splitlines()  # type: ignore[attr-defined]
    assert (prompt, negative) == ("a cat, ünïcode 猫", "Negative prompt: dogs")
    assert settings.startswith(
        "Steps: 20, Sampler: DDIMScheduler, CFG scale: 7.5, Seed: 9223372036854775807, Size: 64x64"
    )
    assert settings.endswith(", Model hash: ababababab, Model: small, Version: hub 1")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "not a PNG that can be read"),
        (b"GIF89a", "not a PNG that can be read"),
        (png()[:40], "not a PNG that can be read"),
        (png(), "no receipt"),
        (png(parameters="a cat"), "no receipt"),
        (png(hub="{"), "damaged"),
        (png(hub='{"model": 1}'), "damaged"),
        (png(hub="[]"), "damaged"),
        (png(hub=receipt(num_inference_steps=0).texts()["hub"]), "damaged"),
        (png(hub=receipt(seed=-5).texts()["hub"]), "damaged"),
        (png(hub=receipt(guidance_scale=-1.0).texts()["hub"]), "damaged"),
    ],
    ids=itertools.count(),  # not the files, whose compression differs from process to process
)
def test_what_has_no_receipt_is_told(file: bytes, words: str) -> None:
    with pytest.raises(NoReceipt, match=words):
        receipt_in(file)


def test_what_changed_is_told_by_name() -> None:
    assert receipt().differences(receipt(seed=1, size=Size(64, 64))) == []
    found = receipt().differences(
        receipt(weights="cd" * 32, sources=("ef" * 32,), lossy={"skip": 0.1}, versions={**VERSIONS, "torch": "9"})
    )
    assert found == [
        "weights: ababababab then, cdcdcdcdcd now",
        "sources: none then, efefefefef now",
        "lossy: none then, {'skip': 0.1} now",
        "torch: 2 then, 9 now",
    ]
