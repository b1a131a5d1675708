"""What of a prompt a model of few words understands."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.vocabulary import Vocabulary, read_vocabulary

KNOWN = Vocabulary(
    meanings={"kitty": "cat", "cat": "cat", "cats": "cats", "hot dog": "hot dog", "dog": "dog", "tea cup": "cup"},
    words=frozenset({"red", "on", "background"}),
    glue=frozenset({"a", "please", "draw"}),
)


@pytest.mark.parametrize(
    ("prompt", "text", "unknown"),
    [
        ("a red kitty", "red cat", ()),
        ("Please, draw: A RED CAT!", "red cat", ()),
        ("a hot-dog on a dog", "hot dog on dog", ()),
        ("a hot cat", "cat", ("hot",)),
        ("a flurb and another flurb", "", ("flurb", "and", "another")),
        ("ein Kätzchen, 猫, café", "", ("ein", "kätzchen", "猫", "café")),
        ("\uff43\uff41\uff54", "cat", ()),
        ("", "", ()),
        ("...", "", ()),
        ("please draw a", "", ()),
    ],
)
def test_what_is_understood(prompt: str, text: str, unknown: tuple[str, ...]) -> None:
    read = KNOWN.read(prompt)
    assert (read.text, read.unknown) == (text, unknown)


SINGLE = {"red": "red", "on": "on", "kitty": "cat", "cats": "cats", "dog": "dog", "hot dog": "hot dog"}


@given(st.lists(st.sampled_from([*SINGLE, "a", "please", "flurb", "gnarl", "hot"]), max_size=12))
def test_every_word_is_read_or_told_as_unknown_or_says_nothing(words: list[str]) -> None:
    read = KNOWN.read(", ".join(words))
    phrases = " ".join(words).replace("hot dog", "hot_dog").split(" ") if words else []  # whoever said it, and when
    spelled = [phrase.replace("_", " ") for phrase in phrases]
    assert read.text == " ".join(SINGLE[phrase] for phrase in spelled if phrase in SINGLE)
    assert read.unknown == tuple(dict.fromkeys(each for each in spelled if each in ("flurb", "gnarl", "hot")))


def test_a_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text('{"meanings": {"kitty": "cat"}, "words": ["red"]}')
    assert read_vocabulary(file) == Vocabulary({"kitty": "cat"}, frozenset({"red"}))
    file.write_text('{"meanings": {}, "words": ["red"]}')
    os.utime(file, ns=(1, 1))
    assert read_vocabulary(file).read("red kitty").unknown == ("kitty",)


@pytest.mark.parametrize("text", ["", "[]", '{"meanings": {"a": 1}, "words": []}', '{"words": []}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "words.json"
    file.write_text(text)
    with pytest.raises((ValueError, msgspec.ValidationError)):
        read_vocabulary(file)
    with pytest.raises(OSError, match=r"nowhere\.json"):
        read_vocabulary(tmp_path / "nowhere.json")
