"""`hub route`: the decision, in words and in JSON, without asking anybody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hub.cli import main
from hub.types import ImageRequest, ImageResult, Size
from tests.routes import write_credentials, write_local, write_remote, write_route

Ask = Callable[..., Result]
SETTINGS = """
remote_keys = ["alice"]
default_model = "small"
cache_dir = "cache"
models_dir = "models"
credentials = "credentials.toml"
[api_keys]
alice = "sk-alice"
bob = "sk-bob"
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """`far` and `near` cost, `lan` has no price; nobody is where they are said to be."""
    models = tmp_path / "models"
    write_local(models)
    write_remote(models, "far", "http://192.0.2.1/v1")
    write_remote(models, "near", "http://192.0.2.2/v1", price=0.01)
    write_remote(models, "lan", "http://10.0.0.9/v1", price=None)
    write_route(models, "far", "small", "near", order="local-first")
    write_credentials(tmp_path, "far", "near", "lan")
    (tmp_path / "hub.toml").write_text(SETTINGS)
    return tmp_path


def ask(house: Path, *arguments: str, more: str = "") -> Result:
    (house / "hub.toml").write_text(more + SETTINGS)
    return CliRunner().invoke(main, ["route", *arguments, "--config", str(house / "hub.toml")])


def as_json(house: Path, *arguments: str, more: str = "") -> Any:
    found = ask(house, *arguments, "--json", more=more)
    told = json.loads(found.stdout)
    assert found.exit_code == (0 if told["targets"] else 1)
    return told


def test_it_says_who_would_be_asked_in_which_order_why_and_at_what_cost(house: Path) -> None:
    found = ask(house, "image", "--key", "alice")
    assert found.exit_code == 0
    assert found.stdout.splitlines() == [
        "'image' is a route of this hub, local-first; small is asked first: it is on this machine.",
        "For the key 'alice': may leave this machine.",
        "1. small (free): it is on this machine",
        "2. far (about $0.04): it is on another machine, which comes after those on this one",
        "3. near (about $0.01): it is on another machine, which comes after those on this one",
    ]
    assert "Nobody was asked" in found.stderr


def test_and_who_would_not_and_why(house: Path) -> None:
    found = ask(house, "image", "--key", "bob")
    assert found.exit_code == 0
    words = "it is on another machine, and requests of the key 'bob' may not leave this one"
    assert f"-  far is left out (remote_keys): {words}" in found.stdout.splitlines()


def test_where_nobody_would_it_says_what_is_answered_and_exits_with_1(house: Path) -> None:
    found = ask(house, "far")
    assert found.exit_code == 1
    assert "For a caller without a key: may not leave this machine." in found.stdout
    assert "A request is answered 403 remote_not_allowed: far is on another machine" in found.stdout


def test_as_json(house: Path) -> None:
    told = as_json(house, "image", "--key", "bob")
    assert [each["id"] for each in told["targets"]] == ["small"]
    assert told["targets"][0] == {"id": "small", "leaves": False, "cost_usd": 0.0, "why": "it is on this machine"}
    assert [(each["id"], each["code"]) for each in told["left_out"]] == [
        ("far", "remote_keys"),
        ("near", "remote_keys"),
    ]
    assert (told["key"], told["may_leave"], told["error"]) == ("bob", False, None)
    told = as_json(house, "far", "--key", "bob")
    assert (told["error"]["status"], told["error"]["code"]) == (403, "remote_not_allowed")


def test_the_cost_is_that_of_the_request(house: Path) -> None:
    told = as_json(house, "image", "--key", "alice", "-n", "3", "--size", "512x512", "--quality", "high")
    assert [each["cost_usd"] for each in told["targets"]] == pytest.approx([0.0, 0.12, 0.03])


def test_a_task_that_a_model_cannot_do_leaves_it_out(house: Path) -> None:
    told = as_json(house, "image", "--key", "alice", "--task", "inpainting")
    assert [(each["id"], each["code"]) for each in told["left_out"]] == [
        ("small", "task"),
        ("far", "task"),
        ("near", "task"),
    ]
    assert told["error"]["param"] == "mask"


def test_absent_weights_and_keys_are_looked_for(house: Path) -> None:
    (house / "models" / "weights" / "model_index.json").unlink()
    write_credentials(house, "near")
    told = as_json(house, "image", "--key", "alice")
    assert [(each["id"], each["code"]) for each in told["left_out"]] == [("small", "absent"), ("far", "no_key")]
    assert as_json(house, "small")["error"]["code"] == "model_unusable"


def test_an_offline_hub_and_a_budget_count(house: Path) -> None:
    told = as_json(house, "lan", "--key", "alice", more="budgets = { alice = 0.02 }\n")
    assert (told["budget_left_usd"], told["left_out"][0]["code"]) == (0.02, "no_price")
    told = as_json(house, "image", "--key", "alice", more="budgets = { alice = 0.02 }\n")
    assert [each["id"] for each in told["targets"]] == ["small", "near"]


def test_an_alias_is_followed(house: Path) -> None:
    told = as_json(house, "dall-e-3", more='aliases = { "dall-e-3" = "small" }\n')
    assert (told["targets"][0]["id"], told["reason"]) == ("small", "'dall-e-3' is an alias of 'small'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "does not exist"),
        (["image", "--key", "carol"], "there is no key 'carol'"),
        (["image", "--size", "big"], "WIDTHxHEIGHT"),
    ],
)
def test_what_is_wrong_is_told_plainly(house: Path, arguments: list[str], words: str) -> None:
    found = ask(house, *arguments)
    assert found.exit_code in (1, 2)
    assert words in found.stderr and "Traceback" not in found.stderr


def test_no_key_of_a_provider_is_shown(house: Path) -> None:
    assert "canary" not in ask(house, "image", "--key", "alice").output


def test_a_request_without_a_size_is_the_one_that_the_api_makes(house: Path) -> None:
    """1024x1024, which costs a quarter of a dollar here, whatever the model's own default is."""
    small = house / "models" / "small.toml"
    small.write_text(small.read_text() + '\n[prices.images]\n"*/64x64" = 0.01\n"*/1024x1024" = 0.25\n')
    assert [each["cost_usd"] for each in as_json(house, "small")["targets"]] == [0.25]
    write_route(house / "models", "small\nmax_pixels = 1048575", "far")
    assert [each["code"] for each in as_json(house, "image", "--key", "alice")["left_out"]] == ["max_pixels"]


def test_a_size_that_the_model_refuses_is_told_as_the_request_is_answered(house: Path) -> None:
    error = as_json(house, "small", "--size", "9000x64")["error"]
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", "size")
    assert error["message"].startswith("size: 9000x64 is out of range; each side must be 16 to ")


@pytest.mark.parametrize(
    ("arguments", "size", "default"),
    [((), None, "1024x1024"), (("--size", "64x64"), "64x64", None), (("--image", "hub.toml"), None, None)],
)
def test_hub_generate_asks_for_the_usual_size_by_default_alone(
    house: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], size: str | None, default: str | None
) -> None:
    asked: list[ImageRequest] = []

    async def generate(_: object, __: str, request: ImageRequest) -> ImageResult:
        asked.append(request)
        return ImageResult(images=(), seed=None, size=Size(64, 64), quality="low")

    monkeypatch.setattr("hub.cli.draw._generate", generate)
    monkeypatch.chdir(house)
    CliRunner().invoke(main, ["generate", "a star", *arguments], catch_exceptions=False)
    assert [(each.size and str(each.size), each.default_size and str(each.default_size)) for each in asked] == [
        (size, default)
    ]


def draw(house: Path, *arguments: str) -> Result:
    output = str(house / "x.png")
    return CliRunner().invoke(
        main, ["generate", "a star", *arguments, "-o", output, "--config", str(house / "hub.toml")]
    )


def test_hub_generate_asks_as_a_key(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []

    async def generate(_: object, __: str, request: ImageRequest) -> ImageResult:
        owners.append(request.owner)
        return ImageResult(images=(), seed=None, size=Size(64, 64), quality="low")

    monkeypatch.setattr("hub.cli.draw._generate", generate)
    monkeypatch.chdir(house)
    assert draw(house, "--key", "alice").exit_code == draw(house).exit_code == 0
    assert owners == ["alice", ""]
    assert "there is no key 'carol'" in draw(house, "--key", "carol").output


def test_hub_generate_says_that_a_key_may_be_named_where_nobody_may(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(house)
    refused = draw(house, "-m", "far")
    assert refused.exit_code == 1
    assert "may not leave" in refused.output and "`--key NAME`" in refused.output
    assert "`--key NAME`" not in draw(house, "-m", "far", "--key", "bob").output
