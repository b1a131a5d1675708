"""What the built-in model is told: captions of scenes, and the tokenizer that reads them.

A thing's name becomes PATCHES tokens, one for each part of its picture: the tokenizer's normalizer puts that many
characters of Unicode's private use in its place, for the name, its plural, and every word that leads to it. So the text
encoder's table holds the things' pictures, and the denoiser has to learn where a part belongs, not how each of a
thousand things looks. Words that are neither things nor known are one and the same token, and looked past.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.random import Generator
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from builtin.scenes import ACROSS, Scene
from builtin.shapes import COLOURS, SHAPES
from builtin.things import Thing, plural

PATCHES = ACROSS**2
"""Parts of a thing's picture, and tokens of its name."""
FIRST = 0xF0000
"""The character of the first thing's first part."""
PARTS = f"{chr(FIRST)}-{chr(FIRST + 0xFFFD)}"
LENGTH = 144
"""Tokens of a caption: three things and some thirty words."""
MANY = "\ue000"
"""Follows a thing that was named in the plural."""
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")

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
UNHEEDED = ("photorealistic", "photo")
"""Words of LEADS that ask for more than the model can do: they are told as words that it doesn't know."""
PLEASE = "is are be it its that this there please i you want would like make me my create generate render which while"
ARTICLES = "a an the some one of"
STOP = f"{ARTICLES} in at on and with to vivid shape thing"


class Captions:
    """Describes scenes in words; in one of many ways."""

    def __init__(self, things: Sequence[Thing], *, as_tokens: bool = False) -> None:
        """`as_tokens`: what the tokenizer makes of a thing's name in the name's place, for
        `new_tokenizer(names=False)`: eight thousand names are looked for in each text otherwise."""
        self.names = [tokens_of(at) if as_tokens else thing.name for at, thing in enumerate(things)]
        self.shapes = {
            name: (tokens_of(len(things) + at),) * len(words) if as_tokens else words
            for at, (name, words) in enumerate(SHAPE_WORDS.items())
        }

    def of(self, scene: Scene, rng: Generator, *, plain: bool = False) -> str:
        """`plain`: everything that is not the default is named, and nothing else."""
        say = _Say(self.names, self.shapes, rng, plain)
        text = say.objects(scene)
        where = say.ground(scene)
        if scene.objects:
            first = scene.layout == "single" and rng.random() < 0.12
            text = (
                f"{where}, {text}"
                if where and first
                else f"{text}{',' if rng.random() < 0.25 and where else ''} {where}"
            )
        else:
            text = where
        text = text.strip()
        if scene.style != "vivid":
            if rng.random() < 0.5:
                text = f"{say.pick(STYLE_LEADS[scene.style])} {text}"
            else:
                text = f"{text}, {say.pick(STYLE_WORDS[scene.style])}"
        elif not plain:
            text = f"{say.pick(LEADS)} {text}" if rng.random() < 0.3 else text
            text += ", vivid" if rng.random() < 0.1 else ""
        if not plain and rng.random() < 0.12:
            text += f", {say.unknown()}"
        return text


class _Say:
    def __init__(self, names: Sequence[str], shapes: dict[str, tuple[str, ...]], rng: Generator, plain: bool) -> None:
        self.names, self.shapes, self.rng, self.plain = names, shapes, rng, plain

    def pick(self, options: Sequence[str]) -> str:
        return options[self.rng.integers(len(options))]

    def unknown(self) -> str:
        """A word that says nothing to the model."""
        if self.rng.random() < 0.4:
            return self.pick(FILLER)
        return "".join(self.pick("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.integers(3, 9)))

    def noun(self, what: int | str) -> str:
        return self.pick(self.shapes[what]) if isinstance(what, str) else self.names[what]

    def phrase(self, what: int | str, colour: str | None, extent: str = "large", *, article: bool = True) -> str:
        """ "a small red circle"."""
        words = [self.noun(what)]
        if colour is not None:
            words.insert(0, self.pick(COLOUR_WORDS[colour]))
        if extent != "large" or (not self.plain and self.rng.random() < 0.1):
            words.insert(0, self.pick(SIZE_WORDS[extent]))
        if not self.plain and self.rng.random() < 0.1:
            words.insert(0, self.unknown())
        if article and (self.plain or self.rng.random() < 0.85):
            words.insert(0, "a" if self.plain else self.pick(("a", "a", "the", "one")))
        return " ".join(words)

    def objects(self, scene: Scene) -> str:
        parts = {}
        for each in scene.objects:
            parts.setdefault(each.what, each)
        each = list(scene.objects)
        if not each:
            return ""
        first = each[0]
        if scene.layout == "single":
            text = self.phrase(first.what, first.colour, scene.extent)
            if scene.position != "centre" or (not self.plain and self.rng.random() < 0.1):
                text += f" {self.pick(POSITION_WORDS[scene.position])}"
            return text
        if scene.layout == "grid":
            tint = f"{self.pick(COLOUR_WORDS[first.colour])} " if first.colour else ""
            return f"{self.pick(COUNTS[scene.count])} {tint}{several(self.noun(first.what))}"
        said = [self.phrase(one.what, one.colour) for one in each]
        if scene.layout == "sky" and each[0].what == each[1].what and each[0].colour == each[1].colour:
            tint = f"{self.pick(COLOUR_WORDS[first.colour])} " if first.colour else ""
            return self.pick(SKY_ONE).format(**{"as": tint + several(self.noun(first.what))})
        forms = {"beside": BESIDE, "above": ABOVE, "row": ROW, "sky": SKY_TWO}[scene.layout]
        bare = self.phrase(first.what, first.colour, article=False)
        return self.pick(forms).format(
            a=said[0], b=said[1], c=said[-1], a0=bare, u="" if self.plain else self.unknown()
        )

    def ground(self, scene: Scene) -> str:
        if isinstance(scene.ground, str):
            if scene.ground == "white" and self.rng.random() < (0.6 if not self.plain else 0.0):
                return ""
            return self.pick(GROUND_WORDS).format(b=self.pick(COLOUR_WORDS[scene.ground]))
        where, time = scene.ground
        place = self.pick((PLACE_WORDS if scene.objects else ALONE)[where])
        return f"{place} {self.pick(TIME_WORDS[time])}".strip()


def several(noun: str) -> str:
    """The plural of a noun, or of what stands for one."""
    return f"{noun}{MANY}" if ord(noun[-1]) >= FIRST else plural(noun)


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


def tokens_of(number: int) -> str:
    """The characters that stand for a thing."""
    return "".join(chr(FIRST + PATCHES * number + at) for at in range(PATCHES))


def leads(things: Sequence[Thing]) -> dict[str, tuple[int, bool]]:
    """Every word or phrase that leads to a thing: its number, and whether it is a plural. What the model knows as
    something else (colours, places, positions) leads to none. Shapes are numbered after the things."""
    known, found = {*known_words(), *FILLER}, {}
    for number, words in enumerate(SHAPE_WORDS.values(), len(things)):
        for word in words:
            found |= {word: (number, False), plural(word): (number, True)}
    shapes = set(found)
    for number, thing in enumerate(things):
        for name in (thing.name, *thing.words):
            for word, many in ((name, False), (plural(name), True)):
                own = word == thing.name and word not in shapes
                whole = len(word) > 1 and word.split()[-1] not in STOP.split()  # not "rock on", as in "a rock on red"
                if whole and word not in known and (own or word not in found):
                    found[word] = (number, many)
    for number, thing in enumerate(things):  # a name is its own thing's, whoever else claims it
        if thing.name not in known | shapes:
            found[thing.name] = (number, False)
    return found


def new_tokenizer(things: Sequence[Thing], *, names: bool = True) -> Tokenizer:
    """Text to ids: small letters, things replaced by their parts, words. `names`: that those are looked for."""
    steps: list[normalizers.Normalizer] = [
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")
    ]  # fmt: skip
    found = leads(things) if names else {}
    if not names:
        steps = [normalizers.Replace(Regex(f"[^a-z0-9{MANY}{PARTS}]+"), " ")]
    for name in sorted(found, key=lambda name: (-len(name), name)):
        number, many = found[name]
        steps.append(normalizers.Replace(Regex(rf"\b{name}\b"), f" {tokens_of(number)}{f' {MANY}' if many else ''} "))
    parts = (char for at in range(len(things) + len(SHAPES)) for char in tokens_of(at))
    vocabulary = [*SPECIAL, MANY, *known_words(), *parts]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(f"[{MANY}{PARTS}]"), "isolated"),
    ])  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return tokenizer


def write_tokenizer(folder: Path, things: Sequence[Thing]) -> int:
    """Writes the tokenizer as transformers reads it; the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer(things)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LENGTH, "pad_token": "[PAD]",
              "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())


def write_vocabulary(file: Path, things: Sequence[Thing]) -> None:
    """Writes which words the model knows, as the hub reads it (hub/vocabulary.py)."""
    names = [*(thing.name for thing in things), *SHAPES]
    meanings = {
        phrase: plural(names[number]) if many else names[number] for phrase, (number, many) in leads(things).items()
    }
    glue = {word for text in (*LEADS, PLEASE, ARTICLES) for word in text.split()} - {*UNHEEDED}
    words = set(known_words()) - glue - set(UNHEEDED)
    known = {"meanings": dict(sorted(meanings.items())), "words": sorted(words), "glue": sorted(glue)}
    file.write_text(json.dumps(known, indent=0, separators=(",", ":")) + "\n")
