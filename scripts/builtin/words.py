"""The words that the built-in model knows: what captions say with them, and what is said of a thing with others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from builtin.shapes import COLOURS, SHAPES

COLOUR_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in COLOURS} | {
    "gray": ("gray", "grey"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in SHAPES} | {
    "circle": ("circle", "circle", "disc", "dot"),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus"),
    "square": ("square", "square", "box"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge", "medium", "medium-sized"),
}
COUNTS = {2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3"), 4: ("four", "four", "4")}
PLACE_WORDS = {
    "sea": ("by the sea", "at the sea", "on the ocean", "at the beach", "on the water"),
    "mountains": ("in the mountains", "with mountains", "on a mountain"),
    "city": ("in the city", "in a city", "city skyline", "in front of a skyline", "in a town", "over the city"),
    "field": ("in a field", "on a meadow", "on the grass", "in a park", "in a garden"),
    "forest": ("in the forest", "in the woods", "in a forest", "in the jungle"),
    "desert": ("in the desert", "on the sand", "in a desert"),
    "snow": ("in the snow", "in winter", "on the ice"),
    "space": ("in space", "in outer space"),
}
ALONE = {
    "sea": ("the sea", "an ocean", "a beach", "a seascape"),
    "mountains": ("mountains", "a mountain landscape", "a mountain"),
    "city": ("a city", "a city skyline", "a skyline", "a town"),
    "field": ("a field", "a meadow", "a landscape", "a park"),
    "forest": ("a forest", "the woods", "a jungle"),
    "desert": ("a desert", "a desert landscape"),
    "snow": ("a snowy landscape", "snow", "a winter landscape"),
    "space": ("space", "outer space"),
}
TIME_WORDS = {
    "day": ("", "", "by day", "on a sunny day", "in the daytime"),
    "sunset": ("at sunset", "at sunset", "at dusk", "at dawn", "in the evening", "at sunrise"),
    "night": ("at night", "at night", "at midnight", "in the dark"),
}
STYLE_WORDS = {
    "natural": ("natural", "muted", "in natural colours", "in natural colors"),
    "black and white": ("black and white", "monochrome", "grayscale", "in black and white"),
    "oil painting": ("oil painting", "as an oil painting", "painted in oil", "painting"),
    "pixel art": ("pixel art", "8 bit", "pixelated", "as pixel art"),
}
STYLE_LEADS = {
    "natural": ("a muted picture of",),
    "black and white": ("a black and white photo of", "a monochrome picture of"),
    "oil painting": ("an oil painting of", "an oil painting of", "a painting of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
}
LEADS = ("a picture of", "an image of", "a photorealistic image of", "a photo of", "an illustration of", "a drawing of",
         "draw", "please draw", "an icon of", "show me")  # fmt: skip
POSITION_WORDS = {
    "left": ("on the left", "at the left", "on the left side", "to the left"),
    "right": ("on the right", "at the right", "on the right side", "to the right"),
    "top": ("at the top", "near the top", "on top", "at the upper edge"),
    "bottom": ("at the bottom", "near the bottom", "at the lower edge"),
    "centre": ("in the middle", "in the center", "in the centre", "centered"),
}
GROUND_WORDS = ("on a {b} background", "on {b}", "{b} background", "on a plain {b} background", "against {b}",
                "in front of a {b} background", "on a {b} wall", "with a {b} background",
                "over a {b} background")  # fmt: skip
BESIDE = ("{a} and {b}", "{a} and {b}", "{a} on the left and {b} on the right", "{a} next to {b}", "{a} beside {b}",
          "{a} with {b}", "{b} on the right and {a} on the left", "{a} {u} on {b}", "{a} {u} with {b}",
          "{a} on the left, {b} on the right", "{a} to the left of {b}", "{b} to the right of {a}",
          "{a}, {b}")  # fmt: skip
ABOVE = ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}", "{a} on top of {b}", "{a} on {b}")
ROW = ("{a}, {b} and {c}", "{a}, {b}, {c}", "{a} and {b} and {c}", "{a} next to {b} next to {c}")
SKY_TWO = ("{b} with a flying {a0}", "{b} and a flying {a0}", "{a} flying over {b}", "{b} with {a} in the sky",
           "a flying {a0} over {b}", "{b} and {a} in the sky")  # fmt: skip
SKY_ONE = ("flying {as}", "{as} flying", "{as} in the sky", "some flying {as}")
FILLER = ("4k", "highly detailed", "masterpiece", "beautiful", "futuristic", "cute", "best quality", "shiny", "cartoon")
UNHEEDED = ("photorealistic", "photo", "medium", "sized")
"""Words that captions may say and that ask for more than the model can do: they are told as words that it doesn't know.
It draws no medium size."""
PLEASE = "is are be it its that this there please i you want would like make me my create generate render which while"
ARTICLES = "a an the some one of"
STOP = f"{ARTICLES} in at on and with to vivid shape thing"
SHEET = (
    "a cat", "a rocket", "a slice of pizza", "an owl", "a red apple", "a laptop", "a sunflower", "a penguin",
    "a photorealistic image of a cat programming on a laptop",
    "an oil painting of a futuristic city skyline at sunset, with flying cars",
    "a sailboat on the ocean at sunset", "a fox in the forest", "a castle in the mountains at night",
    "an astronaut in space", "a camel in the desert", "a snowman in the snow",
    "a dog and a pizza", "a banana and a guitar on a yellow background", "an airplane flying over a house",
    "three strawberries", "two rabbits on a green background", "a small owl at the top, blue background",
    "a large pumpkin on a purple background", "a butterfly on the left, pink background",
    "an oil painting of a tiger", "pixel art of a dragon", "a black and white photo of an elephant",
    "a blue horse", "a red circle on a white background", "a small yellow star on the left, blue background",
    "a large green ring on a black background", "a city skyline at night",
)  # fmt: skip
"""Prompts of contact sheets: those that training leaves behind, and that of the docs, where picture k, row by row, is
drawn with seed k."""


def known_words() -> list[str]:
    """Every word that is a token of its own."""
    texts: list[str] = [STOP, *LEADS, *GROUND_WORDS, *BESIDE, *ABOVE, *ROW, *SKY_TWO, *SKY_ONE, *COLOURS]
    groups: Iterable[dict[Any, tuple[str, ...]]] = (
        COLOUR_WORDS, SIZE_WORDS, COUNTS, PLACE_WORDS, ALONE, TIME_WORDS, STYLE_WORDS, STYLE_LEADS,
        POSITION_WORDS,
    )  # fmt: skip
    texts += [text for group in groups for words in group.values() for text in words]
    words = {word for text in texts for word in re.sub(r"\{.*?\}|[^a-z0-9 ]", " ", text).split()}
    return sorted(words)
