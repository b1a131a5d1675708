"""The data, the captions, the judge and the tokenizer of the built-in model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import builtin_captions as captions  # noqa: E402
import builtin_data as data  # noqa: E402
import builtin_judge as judging  # noqa: E402


def _specs(count: int, seed: int = 0, held_out: bool = False) -> list[data.Spec]:
    rng = np.random.default_rng(seed)
    return [data.draw_spec(rng, held_out) for _ in range(count)]


def _combination(spec: data.Spec) -> tuple[str, str, str, str]:
    return spec.shape, spec.colour, spec.background, spec.position


def test_training_never_draws_a_held_out_combination() -> None:
    trained = {_combination(spec) for spec in _specs(20_000)}
    asked = {_combination(spec) for spec in _specs(1_000, held_out=True)}
    assert not trained & asked
    assert not any(data.is_held_out(*combination) for combination in trained)


def test_about_a_tenth_of_all_combinations_is_held_out() -> None:
    every = [
        data.is_held_out(shape, colour, background, position)
        for shape in data.SHAPES
        for colour in data.COLOURS
        for background in data.COLOURS
        for position in data.POSITIONS
        if colour != background
    ]
    assert 0.08 < np.mean(every) < 0.12


def test_every_shape_colour_and_position_occurs_among_the_held_out_ones() -> None:
    specs = _specs(600, held_out=True)
    assert {spec.shape for spec in specs} == set(data.SHAPES)
    assert {spec.colour for spec in specs} == {spec.background for spec in specs} == set(data.COLOURS)
    assert {spec.position for spec in specs} == set(data.POSITIONS)


def test_the_same_seed_gives_the_same_pictures_and_captions() -> None:
    def draw(seed: int) -> tuple[bytes, list[str]]:
        rng = np.random.default_rng(seed)
        specs = [data.draw_spec(rng) for _ in range(20)]
        return b"".join(data.render(spec).tobytes() for spec in specs), [
            captions.training_caption(spec, rng).text for spec in specs
        ]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_pictures_have_the_colours_that_the_spec_names() -> None:
    for spec in _specs(60, seed=1):
        picture = data.render(spec, 64)
        assert np.abs(picture[0, 0] - data.colour_rgb(spec.background, spec.style)).max() <= 1
        inside = data.coverage(spec, 64) == 1
        assert inside.any()
        assert np.abs(picture[inside] - data.colour_rgb(spec.colour, spec.style)).max() <= 1


def test_a_plain_caption_names_the_colours_and_what_is_not_the_default() -> None:
    rng = np.random.default_rng(2)
    for spec in _specs(300, seed=2):
        text = captions.caption(spec, rng, plain=True).text
        words = set(text.replace(",", " ").replace(".", " ").split())
        assert words & set(captions.COLOUR_WORDS[spec.colour]), text
        assert words & set(captions.SHAPE_WORDS[spec.shape]), text
        assert spec.background == "white" or words & set(captions.COLOUR_WORDS[spec.background]), text
        assert spec.position == "centre" or any(p in text for p in captions.POSITION_WORDS[spec.position]), text
        assert spec.style == "vivid" or text.endswith(", natural")


def test_a_tenth_of_the_training_captions_is_empty() -> None:
    rng = np.random.default_rng(5)
    texts = [captions.training_caption(spec, rng).text for spec in _specs(2_000, seed=5)]
    assert 0.08 < np.mean([text == "" for text in texts]) < 0.12


def test_natural_colours_are_less_saturated_than_vivid_ones() -> None:
    for name in data.COLOURS:
        vivid, natural = data.colour_rgb(name), data.colour_rgb(name, "natural")
        assert np.ptp(natural) == pytest.approx(data.NATURAL_KEEP * np.ptp(vivid), abs=1)


def test_the_judge_finds_drawn_pictures_right() -> None:
    scores = [judging.score(spec, judging.judge(data.render(spec))) for spec in _specs(120, seed=7)]
    for key in scores[0]:
        assert np.mean([score[key] for score in scores]) >= 0.99, key


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("colour", {"colour": "green"}),
        ("background", {"background": "black"}),
        ("position", {"position": "left"}),
        ("shape", {"shape": "cross"}),
    ],
)
def test_the_judge_finds_wrong_pictures_wrong(key: str, change: dict[str, str]) -> None:
    asked = data.Spec("circle", "red", "yellow", "right")
    drawn = data.place(replace(asked, **change), np.random.default_rng(0))
    wrong = {name for name, right in judging.score(asked, judging.judge(data.render(drawn))).items() if not right}
    assert wrong == {key}


def test_the_judge_sees_no_shape_in_an_empty_picture_or_in_noise() -> None:
    empty = judging.judge(np.full((128, 128, 3), 132, dtype=np.uint8))
    assert (empty.background, empty.colour, empty.shape) == ("gray", "none", "none")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert judging.judge(noise).shape == "none"


def test_the_shipped_tokenizer_keeps_each_known_word_in_one_token() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(ROOT / "models" / "builtin" / "tokenizer")
    assert tokenizer.model_max_length == 77
    for word in captions.known_words():
        assert len(tokenizer(word).input_ids) == 3, word  # begin, the word, end
        assert tokenizer(word.upper()).input_ids == tokenizer(word).input_ids
    assert len(tokenizer("xylophone").input_ids) > 3


def test_every_word_of_a_caption_without_gibberish_is_known() -> None:
    rng = np.random.default_rng(9)
    known = set(captions.known_words())
    for spec in _specs(500, seed=9):
        text = captions.caption(spec, rng, plain=True).text
        for mark in ",.-":
            text = text.replace(mark, " ")
        assert set(text.split()) <= known, text
