"""Captions for the drawn pictures, and the vocabulary of the built-in model's tokenizer.

A caption may leave things out: no background means white, no position the centre, no size medium,
no style vivid.  Some captions carry words the model knows nothing about, so that it learns to look
past them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from builtin_data import COLOURS, SHAPES, Spec
from numpy.random import Generator

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
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
POSITION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left", "on the left side", "to the left", "left"),
    "right": ("on the right", "at the right", "on the right side", "to the right", "right"),
    "top": ("at the top", "on top", "near the top", "at the upper edge", "top"),
    "bottom": ("at the bottom", "on the bottom", "near the bottom", "at the lower edge", "bottom"),
    "centre": ("in the center", "in the centre", "in the middle", "centered", "center"),
}
LEADS = ("", "", "", "", "a drawing of ", "a picture of ", "an image of ", "a painting of ", "a photo of ",
         "please draw ", "draw ", "an illustration of ", "an icon of ", "a sticker of ", "make ",
         "show me ")  # fmt: skip
FILLER = ("photorealistic", "oil painting", "highly detailed", "4k", "beautiful", "simple", "flat", "minimal",
          "vector art", "clean", "on canvas", "masterpiece", "cute", "geometric", "best quality", "logo",
          "cartoon", "digital art", "sharp")  # fmt: skip
# {s} is "<article> <size> <colour> <shape>", {p} the position, {b} the background's colour.
TEMPLATES = {
    "s": ("{s}",),
    "sp": ("{s} {p}", "{s}, {p}", "{p}, {s}"),
    "sb": (
        "{s} on a {b} background", "{s} on a plain {b} background", "{s} on {b}", "{s}, {b} background",
        "{b} background, {s}", "{s} over a {b} background", "{s} in front of a {b} background",
        "a {b} background with {s}", "on a {b} background, {s}", "{s} with a {b} background",
        "{s}, background {b}", "{s} against {b}", "{s}. the background is {b}", "{s} on a {b} wall",
    ),
    "spb": (
        "{s} {p} on a {b} background", "{s} {p}, {b} background", "{s} {p} of a {b} background",
        "{b} background, {s} {p}", "a {b} background with {s} {p}", "{s} on a {b} background, {p}",
        "{s} {p}, on {b}", "{p}, {s} on a {b} background", "{s} {p} on a plain {b} background",
        "on a {b} background, {s} {p}", "{s} {p}. the background is {b}", "{s}, {p}, {b} background",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """The text, and which of the spec's fields it settles (by name or by leaving them out)."""

    text: str
    settles: frozenset[str]


def _pick(rng: Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _gibberish(rng: Generator) -> str:
    """A made-up word of two to eight letters, which the tokenizer spells out."""
    return "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in rng.integers(26, size=rng.integers(2, 9)))


def _filler(rng: Generator) -> str:
    return _gibberish(rng) if rng.random() < 0.4 else _pick(rng, FILLER)


def caption(spec: Spec, rng: Generator, plain: bool = False) -> Caption:
    """Describe the spec in one of many ways.

    ``plain`` names everything that is not the default and adds no unknown words; the evaluation
    uses it so that every prompt has exactly one right answer.
    """
    settles = {"shape", "colour", "background", "position", "size", "style"}
    shape, colour = _pick(rng, SHAPE_WORDS[spec.shape]), _pick(rng, COLOUR_WORDS[spec.colour])
    if not plain and rng.random() < 0.03:
        shape = _pick(rng, ("shape", "thing", _gibberish(rng)))
        settles.discard("shape")
    if not plain and rng.random() < 0.03:
        colour = ""
        settles.discard("colour")
    say_size = spec.size != "medium" or rng.random() < 0.15
    size = _pick(rng, SIZE_WORDS[spec.size]) if say_size else ""
    article = _pick(rng, ("a", "a", "the", "one", "", "")) if not plain else "a"
    noise = _filler(rng) if not plain and rng.random() < 0.08 else ""
    subject = " ".join(word for word in (article, noise, size, colour, shape) if word)

    # The shortest prompts are what people try first, so nothing but "red circle" has to be common.
    if not plain and (spec.background, spec.position) == ("white", "centre") and rng.random() < 0.5:
        return Caption(subject + f", {spec.style}" * (spec.style == "natural"), frozenset(settles))

    say_background = spec.background != "white" or rng.random() < 0.6
    say_position = spec.position != "centre" or rng.random() < 0.3
    key = "s" + "p" * say_position + "b" * say_background
    text = _pick(rng, TEMPLATES[key]).format(
        s=subject,
        p=_pick(rng, POSITION_WORDS[spec.position]),
        b=_pick(rng, COLOUR_WORDS[spec.background]),
    )
    text = _pick(rng, LEADS) + text
    if not plain and rng.random() < 0.12:
        text = f"{_filler(rng)}, {text}"
    if spec.style == "natural" or rng.random() < 0.25:
        text += f", {spec.style}"
    if not plain and rng.random() < 0.15:
        text += f", {_filler(rng)}"
    return Caption(text, frozenset(settles))


def training_caption(spec: Spec, rng: Generator) -> Caption:
    """A caption for training: one in ten is empty (for guidance), one in fifty says nothing useful."""
    chance = rng.random()
    if chance < 0.10:
        return Caption("", frozenset())
    if chance < 0.12:
        words = [_filler(rng) for _ in range(rng.integers(1, 5))]
        return Caption(", ".join(words), frozenset())
    return caption(spec, rng)


def known_words() -> list[str]:
    """Every word any template can produce (fillers included), sorted: each becomes one token."""
    texts: list[str] = [*LEADS, *FILLER, "vivid natural a an the one shape thing"]
    for group in (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, POSITION_WORDS):
        texts += [text for words in group.values() for text in words]
    for templates in TEMPLATES.values():
        texts += [text.format(s="", p="", b="") for text in templates]
    words = {word for text in texts for word in text.replace("-", " ").replace("4k", "k").split()}
    return sorted({word.strip(".,") for word in words} - {""})


def _byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2 and CLIP vocabularies are spelled in."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def _apply(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: merge the best-ranked neighbours until none is left."""
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], best[0] + best[1], *pieces[at + 2 :]]
    return pieces


def _merges() -> Iterator[tuple[str, str]]:
    """Merges that make each known word one token.

    New merges rank below all earlier ones, so they never break up a word that is already whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in known_words():
        pieces = _apply([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _apply(pieces, ranks)
    yield from ranks


def write_tokenizer(folder: Path) -> int:
    """Write a CLIP tokenizer's files and return the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters, merges = _byte_letters(), list(_merges())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
               "unk_token": "<|endoftext|>"}  # fmt: skip
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True,
                        "add_prefix_space": False, "errors": "replace"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return len(tokens)
