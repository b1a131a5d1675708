from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from hub.errors import ConfigurationError
from hub.remote import credentials
from hub.remote.adapter import Answer, retry_after
from hub.remote.credentials import LONGEST_PARKED, PARKED, Credentials, Key, Keys, open_credentials
from tests.remote.fake import SECRET


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "credentials.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def texts(found: Credentials, name: str) -> list[str]:
    return [key.reveal() for key in found.of(name).all]


def test_keys_come_from_the_environment_and_leave_it() -> None:
    environ = {"OPENAI_API_KEY": f" {SECRET}\n", "OTHER": "x", "FAL_KEY": ""}
    found = open_credentials(None, {"openai": "OPENAI_API_KEY", "fal": "FAL_KEY"}, environ)
    assert texts(found, "openai") == [SECRET]
    assert texts(found, "fal") == []
    assert environ == {"OTHER": "x"}


def test_a_second_hub_in_the_same_process_has_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> list[str]:
        found = texts(open_credentials(None, {"openai": "OPENAI_API_KEY"}), "openai")
        assert "OPENAI_API_KEY" not in os.environ
        return found

    for now in (SECRET, "another"):
        monkeypatch.setenv("OPENAI_API_KEY", now)
        assert [opened(), opened()] == [[now], [now]]
    assert "another" not in repr(credentials._REMEMBERED)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert opened() == []


def test_the_file_wins_over_the_environment_which_is_emptied_all_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, '[openai]\nkeys = ["one", {key = "two", weight = 3, name = "team"}]\n[lab]\nkeys = ["x"]')
    environ = {"OPENAI_API_KEY": "zero"}
    found = open_credentials(file, {"openai": "OPENAI_API_KEY"}, environ)
    assert texts(found, "openai") == ["one", "two"]
    assert [(key.name, key.weight) for key in found.of("openai").all] == [("openai/1", 1), ("openai/team", 3)]
    assert texts(found, "lab") == ["x"]
    assert texts(found, "nobody") == []
    assert environ == {}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o777])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_credentials(written(tmp_path, '[openai]\nkeys = ["x"]', mode), {}, {})


@pytest.mark.parametrize(
    "text",
    [
        f'[openai]\nkeys = "{SECRET}"',
        f'[openai]\n"{SECRET}" = "x"\nkeys = ["a"]',
        f'["{SECRET}!"]\nkeys = ["a"]',
        f'"{SECRET}" = 1',
        f'[openai]\nkeys = ["{SECRET} x"]',
        f'[openai]\nkeys = ["{SECRET}é"]',
        f'[openai]\nkeys = [{{"{SECRET}" = "a"}}]',
        f'[openai]\nkeys = [{{key = "{SECRET}", weight = 0}}]',
        f'[openai]\nkeys = [{{key = "{SECRET}", name = "{SECRET} "}}]',
        f'[openai]\nkeys = ["{SECRET}"',
        f"[openai]\nkeys = [{SECRET}]",
        '[openai]\nkeys = [""]',
        "[openai]\nkeys = []",
        "[openai]",
    ],
)
def test_a_wrong_file_is_refused_without_showing_what_is_in_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_credentials(written(tmp_path, text), {}, {})
    assert str(tmp_path) in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[openai]\nkeys = ["a"]\n[lab]\nkeys = [{key = "a"}, {key = "b", weight = 0}]',
            "[lab], keys[1].weight: it takes",
        ),
        ('[openai]\nkeys = "a"', "[openai], keys: it takes"),
        ('fal = "a"', "[fal]: it takes"),
        ('[openai]\nkeys = ["a"]\nx = sk', "is not valid TOML, in line 3."),
        (f'"{SECRET}" = "openai"', "json: it takes sections"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_by_section_and_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_credentials(written(tmp_path, text), {"fal": "FAL_KEY"}, {})
    assert words in str(caught.value).replace(".toml:", "json:")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    file.write_bytes(b"\xff\xfe")
    for each in (file, tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigurationError, match="credentials"):
            open_credentials(each, {}, {})


def test_a_wrong_key_in_the_environment_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match="FAL_KEY") as caught:
        open_credentials(None, {"fal": "FAL_KEY"}, {"FAL_KEY": f"{SECRET}\nx"})
    assert SECRET not in str(caught.value)


def test_a_key_is_not_shown_by_anything_that_shows_objects() -> None:
    key = Key("openai/1", SECRET)
    keys = Keys([key])
    for shown in (
        repr(key),
        str(key),
        f"{key}",
        repr(keys),
        repr(vars(keys)),
        repr([key]),
        repr(Credentials({"a": keys})),
    ):
        assert SECRET not in shown
    assert not hasattr(key, "__dict__")


def test_keys_are_used_by_their_weights() -> None:
    keys = Keys([Key("a", "a", 3), Key("b", "b", 1)])
    picked = [str(keys.pick()) for _ in range(4000)]
    assert 0.70 < picked.count("Key(a)") / 4000 < 0.80


def test_a_refused_key_is_tried_again_in_longer_and_longer_intervals_until_it_is_taken() -> None:
    clock = Clock()
    keys = Keys([key := Key("a", "a")], clock)
    waits = []
    for _ in range(12):
        assert keys.pick() is key
        waits.append(keys.refuse(key))
        assert keys.refuse(key) == waits[-1]  # another request, with the same key at the same time
        assert keys.pick() is None
        assert keys.rested_in() is None
        clock.now += waits[-1]
    assert waits[:4] == [PARKED, 2 * PARKED, 4 * PARKED, 8 * PARKED]
    assert waits[-1] == LONGEST_PARKED
    keys.taken(key)
    assert keys.refuse(key) == PARKED


def test_a_key_that_was_told_to_wait_rests_for_that_long() -> None:
    clock = Clock()
    keys = Keys([key := Key("a", "a"), Key("b", "b")], clock)
    keys.rest(key, 7)
    assert {str(keys.pick()) for _ in range(50)} == {"Key(b)"}
    assert keys.pick(keys.all[1:]) is None
    assert keys.rested_in(keys.all[1:]) == 7
    clock.now += 7
    assert keys.pick(keys.all[1:]) is key


def test_a_key_that_rests_goes_on_resting_when_another_request_is_served_with_it() -> None:
    keys = Keys([key := Key("a", "a")], Clock())
    keys.rest(key, 7)
    keys.taken(key)
    assert keys.pick() is None
    assert keys.rested_in() == 7


def test_a_key_that_is_refused_while_it_rests_is_not_waited_for() -> None:
    clock = Clock()
    keys = Keys([key := Key("a", "a")], clock)
    keys.rest(key, 3600)
    keys.refuse(key)
    assert keys.rested_in() is None
    clock.now += 3600
    assert keys.pick() is key
    assert keys.rested_in([key]) is None  # by this request


def test_a_key_that_is_refused_for_one_model_is_left_alone_by_that_one() -> None:
    clock = Clock()
    keys = Keys([key := Key("a", "a")], clock)
    of_a, of_b = keys.of("a"), keys.of("b")
    assert of_a.refuse(key, everywhere=False) == PARKED
    assert of_a.pick() is None and of_a.rested_in() is None
    assert of_b.pick() is key
    of_b.taken(key)
    assert of_a.pick() is None
    clock.now += PARKED
    assert of_a.pick() is key
    of_b.refuse(key)
    assert of_a.pick() is None


def test_a_refused_key_is_not_made_a_resting_one_by_an_answer_that_comes_later() -> None:
    keys = Keys([key := Key("a", "a")], Clock())
    keys.refuse(key)
    keys.rest(key, 1)
    assert keys.rested_in() is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0 "}, 1),
        ({"retry-after": "1.2"}, 2),
        ({"retry-after": "99999999999999999999"}, 3600),
        ({"retry-after": "9e999"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
        ({"retry-after": "Fri, 27 Nov 2026 10:00:30 GMT", "date": "Fri, 27 Nov 2026 10:00:00 GMT"}, 30),
        ({"retry-after": "Fri, 27 Nov 2026 09:00:00 GMT", "date": "Fri, 27 Nov 2026 10:00:00 GMT"}, 1),
        ({"retry-after": "Fri, 27 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Fri, 99 Nov 2026 10:00:30 GMT", "date": "Fri, 27 Nov 2026 10:00:00 GMT"}, None),
    ],
)
def test_a_time_to_wait_is_understood_as_seconds_or_a_date(headers: dict[str, str], seconds: int | None) -> None:
    assert retry_after(Answer(429, headers, b"")) == seconds


def test_keys_do_not_travel_to_other_processes_by_accident() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Key("a", SECRET), protocol=1)
