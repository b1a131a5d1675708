from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.test_usage import write
from tests.test_cli import hub

OCTOBER = ("--since", "2026-10-01", "--until", "2026-10-31")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hub's cache."""
    folder = tmp_path_factory.mktemp("used")
    write(folder / "cache")
    return folder


def told(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_what_was_used_is_a_table_with_its_sums(used: Path) -> None:
    table = told(hub("usage", "--by", "key", cwd=used))
    assert table[0] == [
        "key",
        "requests",
        "images",
        "text",
        "tokens",
        "output",
        "tokens",
        "device",
        "s",
        "US$",
        "of",
        "it",
        "estimated",
    ]
    assert table[1:] == [
        ["alice", "1", "1", "2", "1,024", "0.0", "0.0400", "0.0000"],
        ["bob", "4", "4", "6", "4,096", "1.2", "0.1600", "0.0400"],
        ["all", "5", "5", "8", "5,120", "1.2", "0.2000", "0.0400"],
    ]
    lengths = {len(line) for line in hub("usage", cwd=used).stdout.splitlines()}
    assert len(lengths) == 1, "numbers stand below one another"


def test_budgets_are_told_for_the_keys_that_are_shown(used: Path) -> None:
    (used / "budgets.toml").write_text('[api_keys]\nalice = "a"\nbob = "b"\neve = "e"\n[budgets]\nbob = 0.5\neve = 1\n')
    config = ("--config", "budgets.toml")
    lines = hub("usage", *config, cwd=used).stdout.splitlines()
    assert lines[-1].startswith("bob: $0.16 of $0.50 is spent or reserved in ")
    assert lines[-1].endswith(", $0.34 is left") and lines[-2] == ""
    assert "bob" not in hub("usage", "--key", "alice", *config, cwd=used).stdout
    assert hub("usage", "--by", "day", *config, cwd=used).stdout.splitlines()[-1].startswith("eve: $0.00 of $1.00")
    assert "eve" not in hub("usage", "--by", "day", "--csv", *config, cwd=used).stdout


def test_days_months_and_keys_may_be_named(used: Path) -> None:
    assert told(hub("usage", "--by", "day,model", *OCTOBER, cwd=used))[1][:3] == ["2026-10-05", "other", "1"]
    assert told(hub("usage", "--by", "day", "--month", "2026-10", cwd=used))[1][:2] == ["2026-10-05", "1"]
    assert [row[0] for row in told(hub("usage", "--key", "alice", cwd=used))[1:]] == ["alice", "all"]


def test_json_and_csv_are_as_the_api_tells_them(used: Path) -> None:
    found = json.loads(hub("usage", "--json", "--by", "target", *OCTOBER, cwd=used).stdout)
    (bucket,) = found["data"]
    assert (found["object"], bucket["object"], bucket["target"]) == ("list", "usage.bucket", "openai/gpt-image-2")
    assert bucket["cost_usd"] == 0.04
    rows = list(csv.DictReader(hub("usage", "--csv", cwd=used).stdout.splitlines()))
    assert [row["model"] for row in rows] == ["image", "'=cmd|' /C calc'!A0", "image"]


def test_where_there_is_no_database_none_is_made(tmp_path: Path) -> None:
    result = hub("usage", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert "Nothing was used from " in result.stderr
    assert not (tmp_path / "cache").exists()
    assert json.loads(hub("usage", "--json", cwd=tmp_path).stdout)["data"] == []
    assert len(hub("usage", "--csv", cwd=tmp_path).stdout.splitlines()) == 1


def test_looking_leaves_the_cache_as_it_is(used: Path) -> None:
    before = (used / "cache" / "hub.db").read_bytes()
    assert hub("usage", cwd=used).returncode == 0
    assert (used / "cache" / "hub.db").read_bytes() == before
    assert not [name for name in os.listdir(used / "cache") if "wal" in name or "shm" in name]


def test_the_last_month_of_all_has_an_end(tmp_path: Path) -> None:
    result = hub("usage", "--month", "9999-12", cwd=tmp_path)
    assert (result.returncode, result.stderr.strip()) == (0, "Nothing was used from 9999-12-01 to 9999-12-31.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--by", "colour"), "use some of key, model, target and day"),
        (("--month", "2026-10", "--since", "2026-10-01"), "Give --month, or --since and --until"),
        (("--since", "2026-10-02", "--until", "2026-10-01"), "--since is after --until"),
        (("--csv", "--json"), "do not go together"),
        (("--month", "October"), "does not match the format"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = hub("usage", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr


def test_a_database_that_cannot_be_read_is_told_plainly(used: Path, tmp_path: Path) -> None:
    shutil.copytree(used / "cache", tmp_path / "cache")
    (tmp_path / "cache" / "hub.db").write_bytes(b"no database " * 999)
    result = hub("usage", cwd=tmp_path)
    assert result.returncode == 1
    assert "hub.db cannot be read: " in result.stderr
    assert "Traceback" not in result.stderr
