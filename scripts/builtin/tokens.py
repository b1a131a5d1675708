"""How the built-in model reads: the tokenizer, and the list of words that the hub is told.

A thing's name becomes PATCHES tokens, one for each part of its picture: the tokenizer's normalizer puts that many
characters of Unicode's private use in its place, for the name, its plural, and every word that leads to it. So the text
encoder's table holds the things' pictures, and the denoiser has to learn where a part belongs, not how each of a
thousand things looks. Words that are neither things nor known are one and the same token, and looked past.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from builtin.names import plural
from builtin.scenes import ACROSS
from builtin.shapes import SHAPES
from builtin.things import Thing
from builtin.words import ARTICLES, FILLER, LEADS, PLEASE, SHAPE_WORDS, STOP, UNHEEDED, known_words

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


def tokens_of(number: int) -> str:
    """The characters that stand for a thing."""
    return "".join(chr(FIRST + PATCHES * number + at) for at in range(PATCHES))


def leads(things: Sequence[Thing]) -> dict[str, tuple[int, bool]]:
    """Every word or phrase that leads to a thing: its number, and whether it is a plural. What the model knows as
    something else (colours, places, positions) leads to none; of what is left, a thing's name is its own, then its
    name's plural, then other words are whose comes first. Shapes are numbered after the things."""
    known, found = {*known_words(), *FILLER}, dict[str, tuple[int, bool]]()

    def claim(word: str, number: int, *, many: bool) -> None:
        whole = (
            len(word) > 1 and word.rsplit(maxsplit=1)[-1] not in STOP.split()
        )  # not "rock on", as in "a rock on red"
        if whole and word not in known:
            found.setdefault(word, (number, many))

    for number, words in enumerate(SHAPE_WORDS.values(), len(things)):
        for word in words:
            found |= {word: (number, False), plural(word): (number, True)}
    for number, thing in enumerate(things):
        claim(thing.name, number, many=False)
    for number, thing in enumerate(things):
        claim(plural(thing.name), number, many=True)
    for number, thing in enumerate(things):
        for word in thing.words:
            claim(word, number, many=False)
            claim(plural(word), number, many=True)
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


def write_tokenizer(folder: Path, things: Sequence[Thing]) -> None:
    """Writes the tokenizer as transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer(things)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LENGTH, "pad_token": "[PAD]",
              "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


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
