"""The words that a model of few words knows, and what of a prompt it understands.

Most models make something of any prompt. One that was trained on a closed list of words should say which of a prompt's
words it looked past. The list is a file in the model's folder, which its manifest names: JSON with `meanings`, from a
word or phrase to what it is read as ("kitty": "cat"), `words`, which are read as they are, and `glue`, which may be
there and says nothing ("please"). All in small letters.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path

import msgspec


class Understood(msgspec.Struct, frozen=True):
    """`text`: the prompt in the model's own words, empty where it knows none. `unknown`: the others, each once."""

    text: str
    unknown: tuple[str, ...]


class Vocabulary(msgspec.Struct, frozen=True, dict=True):
    """What a model's file says; see the module."""

    meanings: dict[str, str]
    words: frozenset[str]
    glue: frozenset[str] = frozenset()

    def read(self, prompt: str) -> Understood:
        """Of several meanings that begin at a word, the longest phrase counts."""
        spelled = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower())
        pieces = [(piece, word) for word in spelled for piece in re.findall(r"[a-z0-9]+", word) or [word]]
        said: list[str] = []
        unknown: dict[str, None] = {}
        at = 0
        while at < len(pieces):
            piece, word = pieces[at]
            length, meaning = self._longest([each for each, _ in pieces[at : at + self._most_words]])
            if meaning is not None:
                said.append(meaning)
            elif piece in self.words:
                said.append(piece)
            elif piece not in self.glue:
                unknown[word] = None
            at += length
        return Understood(" ".join(said), tuple(unknown))

    @functools.cached_property
    def _most_words(self) -> int:
        return max((phrase.count(" ") + 1 for phrase in self.meanings), default=1)

    def _longest(self, pieces: list[str]) -> tuple[int, str | None]:
        """How many of the pieces are one phrase, and what it means."""
        for length in range(len(pieces), 0, -1):
            meaning = self.meanings.get(" ".join(pieces[:length]))
            if meaning is not None:
                return length, meaning
        return 1, None


def read_vocabulary(file: Path) -> Vocabulary:
    """The file's, read once while it stays as it is. Raises OSError and ValueError, which msgspec's errors are."""
    return _read(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read(file: Path, _modified: int) -> Vocabulary:
    return msgspec.json.decode(file.read_bytes(), type=Vocabulary)
