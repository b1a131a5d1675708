"""What the built-in model is told in training: scenes in words."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from builtin.names import plural
from builtin.scenes import Placed, Scene
from builtin.things import Thing
from builtin.tokens import FIRST, MANY, tokens_of
from builtin.words import (
    ABOVE,
    ALONE,
    BESIDE,
    COLOUR_WORDS,
    COUNTS,
    FILLER,
    GROUND_WORDS,
    LEADS,
    PLACE_WORDS,
    POSITION_WORDS,
    ROW,
    SHAPE_WORDS,
    SIZE_WORDS,
    SKY_ONE,
    SKY_TWO,
    STYLE_LEADS,
    STYLE_WORDS,
    TIME_WORDS,
)


class Captions:
    """Describes scenes in words; in one of many ways."""

    def __init__(self, things: Sequence[Thing], *, as_tokens: bool = False) -> None:
        """`as_tokens`: what the tokenizer makes of a thing's name in the name's place, for
        `new_tokenizer(names=False)`: thousands of names are looked for in each text otherwise."""
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

    def phrase(self, what: int | str, colour: str | None, extent: str | None = None, *, article: bool = True) -> str:
        """ "a small red circle". `extent`: None where the size is not to be said."""
        words = [self.noun(what)]
        if colour is not None:
            words.insert(0, self.pick(COLOUR_WORDS[colour]))
        if extent == "small" or (extent == "large" and not self.plain and self.rng.random() < 0.1):
            words.insert(0, self.pick(SIZE_WORDS[extent]))
        if not self.plain and self.rng.random() < 0.1:
            words.insert(0, self.unknown())
        if article and (self.plain or self.rng.random() < 0.85):
            words.insert(0, "a" if self.plain else self.pick(("a", "a", "the", "one")))
        return " ".join(words)

    def some(self, each: Placed) -> str:
        """ "red circles"."""
        tint = f"{self.pick(COLOUR_WORDS[each.colour])} " if each.colour else ""
        return tint + several(self.noun(each.what))

    def objects(self, scene: Scene) -> str:
        each = scene.objects
        if not each:
            return ""
        first = each[0]
        if scene.layout == "single":
            text = self.phrase(first.what, first.colour, scene.extent)
            if scene.position != "centre" or (not self.plain and self.rng.random() < 0.1):
                text += f" {self.pick(POSITION_WORDS[scene.position])}"
            return text
        if scene.layout == "grid":
            return f"{self.pick(COUNTS[scene.count])} {self.some(first)}"
        said = [self.phrase(one.what, one.colour) for one in each]
        if scene.layout == "sky" and each[0].what == each[1].what and each[0].colour == each[1].colour:
            return self.pick(SKY_ONE).format(**{"as": self.some(first)})
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
