from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.accounts import Sums
from hub.ledger import Ledger
from hub.report import as_csv, bucket_of
from hub.store import Store
from tests.api.conftest import KEYS, Answer, call
from tests.conftest import Server, run_server
from tests.test_ledger import BUILTIN, asks, made, remote

ANN, BOB = ({"authorization": f"Bearer {key.partition(':')[2]}"} for key in KEYS.split(","))
"""Alice is the owner."""
EARLIER = dt.datetime(2026, 10, 5, 23, 59, tzinfo=dt.UTC).timestamp()


def write(cache: Path) -> None:
    """What a sibling that shares the cache writes down: four requests of now, one of the 5th of October."""

    async def live() -> None:
        store = Store(cache)
        now = Ledger(store, lambda _: None)
        earlier = Ledger(store, lambda _: None, lambda: EARLIER)
        async with store.running(b"{}"), now.running(), earlier.running():
            for ledger, owner, asked, n in (
                (now, "alice", "image", 1),
                (now, "bob", "image", 2),
                (now, "bob", "image", 1),
                (earlier, "bob", "other", 1),
            ):
                entry = await ledger.reserve(owner=owner, asked=asked, target=remote(), request=asks(n=n))
                await ledger.settle(entry, made(n), may_have_billed=False)
            await now.reserve(owner="bob", asked="=cmd|' /C calc'!A0", target=remote(), request=asks())
            entry = await now.reserve(owner="bob", asked="image", target=BUILTIN, request=asks())
            await now.settle(entry, made(device_seconds=1.25), may_have_billed=False)

    asyncio.run(live())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub of two keys: alice is its owner, bob may spend half a dollar."""
    folder = tmp_path_factory.mktemp("usage")
    environ = {"HUB_API_KEYS": KEYS, "HUB_ADMIN_KEYS": "alice", "HUB_BUDGETS": "bob:0.5"}
    with run_server(folder, ready=False, **environ) as running:
        write(running.cache)
        yield running


def ask(hub: Server, query: str = "", *, path: str = "/v1/usage", **headers: str) -> Answer:
    return call(f"{hub.url}{path}?{query}", **headers)


def told(answer: Answer, *names: str) -> list[list[Any]]:
    assert answer.status == 200, answer.body
    return [[bucket.get(name) for name in names] for bucket in answer.json["data"]]


def test_the_owner_sees_all_and_a_key_its_own(hub: Server) -> None:
    every = ask(hub, **ANN)
    assert told(every, "key", "model", "requests", "images", "cost_usd", "estimated_usd") == [
        ["alice", "image", 1, 1, 0.04, 0],
        ["bob", "=cmd|' /C calc'!A0", 1, 0, 0.04, 0.04],
        ["bob", "image", 3, 4, 0.12, 0],
    ]
    assert told(ask(hub, **BOB), "key", "model") == [["bob", "=cmd|' /C calc'!A0"], ["bob", "image"]]
    assert told(ask(hub, "key=bob", **ANN), "key", "requests") == [["bob", 1], ["bob", 3]]
    assert told(ask(hub, "key=bob", **BOB), "key", "requests") == [["bob", 1], ["bob", 3]]
    assert told(ask(hub, "key=gone", **ANN)) == []
    refusal = ask(hub, "key=alice", **BOB)
    assert (refusal.status, refusal.json["error"]["code"]) == (403, "admin_required")
    assert ask(hub).status == 401


def test_a_bucket_has_all_that_was_used_and_only_the_columns_that_were_asked_for(hub: Server) -> None:
    (bucket,) = [each for each in ask(hub, "by=target,key", **BOB).json["data"] if each["target"] == "builtin"]
    assert bucket == {
        "object": "usage.bucket",
        "key": "bob",
        "target": "builtin",
        "requests": 1,
        "images": 1,
        "text_tokens": 2,
        "image_tokens": 0,
        "output_tokens": 1024,
        "device_seconds": 1.25,
        "cost_usd": 0.0,
        "estimated_usd": 0.0,
        "unpriced_requests": 0,
    }


def test_days_are_those_of_utc_and_both_ends_count(hub: Server) -> None:
    assert told(ask(hub, "by=day&from=2026-10-05&to=2026-10-05", **BOB), "day", "requests") == [["2026-10-05", 1]]
    assert told(ask(hub, "by=day&from=2026-10-06&to=2026-10-31", **BOB)) == []
    assert told(ask(hub, "by=day&to=2026-10-31", **BOB), "requests") == [[1]], "its whole month"
    assert told(ask(hub, "by=day&from=2026-10-01", **BOB), "requests") == [[1], [4]]
    assert told(ask(hub, "by=day&month=2026-10", **BOB), "day", "requests") == [["2026-10-05", 1]]
    assert told(ask(hub, "from=0001-01-01&to=9999-12-31&by=key", **ANN), "key", "requests") == [
        ["alice", 1],
        ["bob", 5],
    ]


def test_the_budget_and_what_is_left_of_it_is_told(hub: Server) -> None:
    budget = ask(hub, **BOB).json["budget"]
    month = dt.datetime.now(dt.UTC)
    end = (month.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=32)).replace(day=1)
    assert budget == {
        "object": "usage.budget",
        "key": "bob",
        "month": f"{month:%Y-%m}",
        "ends_at": int(end.timestamp()),
        "limit_usd": 0.5,
        "spent_usd": 0.16,
        "left_usd": 0.34,
    }
    assert ask(hub, "key=bob", **ANN).json["budget"] == budget
    own = ask(hub, **ANN).json["budget"]
    assert (own["key"], own["limit_usd"], own["left_usd"]) == ("alice", None, None)


def test_csv_is_the_buckets_and_holds_no_formula(hub: Server) -> None:
    answer = ask(hub, "by=key,model&format=csv", **BOB)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    first, second = csv.DictReader(answer.body.decode().splitlines())
    assert first["model"] == "'=cmd|' /C calc'!A0"
    assert (second["key"], second["images"], second["cost_usd"], second["device_seconds"]) == (
        "bob",
        "4",
        "0.12",
        "1.25",
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", " =1"])
def test_a_text_that_a_spreadsheet_would_run_begins_with_an_apostrophe(text: str) -> None:
    numbers = dict.fromkeys(Sums.__struct_fields__[4:], 0)
    written = as_csv([bucket_of(Sums(model=text, **numbers))], ["model"])
    (_, row) = csv.reader(io.StringIO(written, newline=""))
    assert row[0] == f"'{text.replace(text[0], ' ') if text[0].isspace() else text}"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("colour=red", "colour"),
        ("by=colour", "by"),
        ("by=", "by"),
        ("by=key,", "by"),
        ("by=key&by=day", "by"),
        ("from=yesterday", "from"),
        ("from=2026-02-30", "from"),
        ("to=2026-13-01", "to"),
        ("to=20261101", "to"),
        ("from=2026-11-02&to=2026-11-01", "to"),
        ("month=2026-13", "month"),
        ("month=2026", "month"),
        ("month=2026-10&from=2026-10-01", "from"),
        ("format=xml", "format"),
        ("format=", "format"),
        ("key=a%20b", "key"),
        ("key=", "key"),
    ],
)
def test_what_is_wrong_with_the_query_is_told_by_name(hub: Server, query: str, param: str) -> None:
    answer = ask(hub, query, **ANN)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param


def test_the_other_path_answers_alike(hub: Server) -> None:
    assert ask(hub, **BOB, path="/api/usage").json == ask(hub, **BOB).json


def test_on_a_hub_without_keys_all_is_shown_and_nothing_need_be_there(server: Server) -> None:
    answer = ask(server, "from=2020-01-01&to=2020-01-31")
    assert answer.json["data"] == []
    assert answer.json["budget"]["key"] == ""
    assert json.loads(answer.body)["object"] == "list"
