"""The router by a table: a set of models, a route, a caller and a state, and who serves in which order. No network."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from hub.errors import HubError, ModelNotFound
from hub.manifest import (
    DefaultsSection,
    ModelManifest,
    RemoteDefaults,
    RemoteManifest,
    RemoteSection,
    RouteManifest,
    SizeSection,
    TargetSection,
)
from hub.prices import Budget, micro
from hub.refusal import refusal
from hub.registry import Registry
from hub.route import Caller, Route, Servable, State
from hub.routing import broken, leaves, route
from hub.types import ImageRequest, Size, Task


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a decision asks nobody")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def local(name: str, tasks: list[Task] | None = None) -> ModelManifest:
    return ModelManifest(
        id=name,
        name=name,
        description="",
        license="",
        path="/nowhere",
        tasks=tasks or ["text-to-image", "image-to-image", "inpainting"],
        size=SizeSection(native="512x512", multiple=8, min=64, max=1024, max_output=1024),
        defaults=DefaultsSection(num_inference_steps=4, guidance_scale=5.0, size="512x512"),
    )


def remote(name: str, tasks: list[Task] | None = None, **section: Any) -> RemoteManifest:
    return RemoteManifest(
        id=name,
        name=name,
        description="",
        provider="openai",
        tasks=tasks or ["text-to-image", "image-to-image"],
        remote=RemoteSection(model="painter", **section),
    )


MODELS = [
    local("small"),
    local("large"),
    local("sketch", ["text-to-image"]),
    remote("far"),
    remote("further"),
    remote("fixed"),
    remote("lan", base_url="http://10.0.0.5:8000/v1"),
    remote("beside", base_url="http://127.0.0.1:9/v1"),
    remote("proxy", base_url="http://localhost:4000/v1", leaves=True),
    remote("rack", base_url="http://10.0.0.6/v1", leaves=False),
]
FREE = {"small": 0.0, "large": 0.0, "sketch": 0.0, "beside": 0.0, "rack": 0.0}
MODELS[5].defaults = RemoteDefaults(size="512x512")
PRICES = {**FREE, "far": 0.04, "fixed": 0.01, "further": 0.02, "lan": None, "proxy": 0.03}


def registry(*more: RouteManifest) -> Registry:
    manifests = {each.id: each for each in (*MODELS, *more)}
    return Registry(manifests, {"tiny": "small", "cloud": "far"}, dict.fromkeys(manifests, ""))


def to(*targets: str | dict[str, Any], **manifest: Any) -> RouteManifest:
    sections = [TargetSection(model=each) if isinstance(each, str) else TargetSection(**each) for each in targets]
    return RouteManifest(id="image", name="image", description="", targets=sections, **manifest)


def decide(
    own: RouteManifest | str,
    request: ImageRequest | None = None,
    caller: Caller | None = None,
    states: Mapping[str, dict[str, Any]] | None = None,
    **more: Any,
) -> Route:
    known = registry(own) if isinstance(own, RouteManifest) else registry()

    def state_of(manifest: Servable) -> State:
        return State(**{"cost": PRICES[manifest.id], **(states or {}).get(manifest.id, {})})

    listed = known.get(own if isinstance(own, str) else own.id)
    return route(listed, known, request or ImageRequest(prompt="a star"), caller or Caller(), state_of, **more)


def shown(found: Route) -> str:
    """The decision on a line: who is asked, in order, and of the others why not."""
    served = " ".join(each.manifest.id for each in found.targets)
    left = " ".join(f"{each.model}:{each.code}" for each in found.left_out)
    return f"{served} | {left}".strip()


MAY = Caller(owner="alice", may_leave=True)
MAY_NOT = Caller(owner="bob")
DRAW = ImageRequest(prompt="a star")
PLAIN = ImageRequest(prompt="a star", default_size=Size(1024, 1024))
EDIT = ImageRequest(prompt="a star", images=(b"",))
MASK = ImageRequest(prompt="a star", images=(b"",), mask=b"")
VARY = ImageRequest(prompt="", images=(b"",), variation=True)
WIDE = ImageRequest(prompt="a star", size=Size(2048, 1024))
SMALL = ImageRequest(prompt="a star", size=Size(512, 512))


def budget(left: float) -> Caller:
    own = Budget(limit=micro(left), spent=0, ends_at=1_796_083_200.0)
    return Caller(owner="alice", may_leave=True, budget=own)


ALL = ("far", "small", "further", "beside")
ROWS: list[tuple[str, RouteManifest | str, dict[str, Any], str]] = [
    # ── a model by itself ──
    ("a local model serves whoever asks", "small", {}, "small |"),
    ("a local model serves an offline hub", "small", {"offline": True}, "small |"),
    ("a remote model serves a key that may leave", "far", {"caller": MAY}, "far |"),
    ("a remote model serves no other key", "far", {"caller": MAY_NOT}, "| far:remote_keys"),
    ("nor a hub without keys, where nothing is set", "far", {}, "| far:remote_keys"),
    ("nor an offline hub", "far", {"caller": MAY, "offline": True}, "| far:offline"),
    ("a server on loopback does not leave", "beside", {"caller": MAY_NOT}, "beside |"),
    ("not even offline", "beside", {"caller": MAY_NOT, "offline": True}, "beside |"),
    ("one in the same network does", "lan", {"caller": MAY_NOT}, "| lan:remote_keys"),
    ("unless the owner says that it does not", "rack", {"caller": MAY_NOT}, "rack |"),
    ("which an offline hub does not believe", "rack", {"caller": MAY_NOT, "offline": True}, "| rack:offline"),
    ("a proxy on loopback that passes on leaves", "proxy", {"caller": MAY_NOT}, "| proxy:remote_keys"),
    ("also for an offline hub", "proxy", {"caller": MAY, "offline": True}, "| proxy:offline"),
    ("an alias is the model behind it", "cloud", {"caller": MAY_NOT}, "| far:remote_keys"),
    # ── orders ──
    ("local-first: this machine's before the others", to(*ALL), {"caller": MAY},
        "small beside far further |"),
    ("listed: as they stand", to(*ALL, order="listed"), {"caller": MAY}, "far small further beside |"),
    ("cheapest: by price", to(*ALL, order="cheapest"), {"caller": MAY}, "small beside further far |"),
    ("cheapest: no price is the highest", to("lan", "far", order="cheapest"), {"caller": MAY}, "far lan |"),
    ("cheapest: what this machine will work comes after what is free",
        to("large", "far", "rack", "small", "lan", order="cheapest"),
        {"caller": MAY, "states": {"large": {"cost": None}}}, "rack small large far lan |"),
    ("cheapest: equals as listed", to("large", "small", order="cheapest"), {}, "large small |"),
    ("cheapest: at one price, this machine first", to("far", "small", order="cheapest"),
        {"caller": MAY, "states": {"far": {"cost": 0.0}}}, "small far |"),
    # ── never leave this machine, in its three forms ──
    ("never leave: the key", to("far", "small"), {"caller": MAY_NOT}, "small | far:remote_keys"),
    ("never leave: the id", to("far", "small", remote=False), {"caller": MAY}, "small | far:never_leaves"),
    ("never leave: the hub", to("far", "small"), {"caller": MAY, "offline": True}, "small | far:offline"),
    ("a failed local target changes nothing", to("small", "far"), {"caller": MAY_NOT,
        "tried": {"small": "out_of_memory"}}, "| small:failed far:remote_keys"),
    ("nor absent weights", to("small", "far", remote=False), {"caller": MAY,
        "states": {"small": {"absent": True}}}, "| small:absent far:never_leaves"),
    ("what is on loopback goes on", to("far", "beside", remote=False), {}, "beside | far:never_leaves"),
    # ── what a model can do ──
    ("an edit goes to one that edits", to("sketch", "small"), {"request": EDIT}, "small | sketch:task"),
    ("a mask to one that knows masks", to("far", "small", order="listed"), {"caller": MAY, "request": MASK},
        "small | far:task"),
    ("a variation to a local one", to("far", "small", order="listed"), {"caller": MAY, "request": VARY},
        "small | far:task"),
    ("a large picture to one that draws it", to("small", "far"), {"caller": MAY, "request": WIDE},
        "far | small:size"),
    # ── conditions of the route ──
    ("tasks", to({"model": "far", "tasks": ["image-to-image"]}, "small"), {"caller": MAY},
        "small | far:tasks"),
    ("tasks, met", to({"model": "far", "tasks": ["image-to-image"]}, "small", order="listed"),
        {"caller": MAY, "request": EDIT}, "far small |"),
    ("keys", to({"model": "large", "keys": ["alice"]}, "small"), {"caller": MAY_NOT}, "small | large:keys"),
    ("keys, met", to({"model": "large", "keys": ["alice"]}, "small"), {"caller": MAY}, "large small |"),
    ("keys do not let leave", to({"model": "far", "keys": ["bob"]}), {"caller": MAY_NOT}, "| far:remote_keys"),
    ("max_pixels", to({"model": "large", "max_pixels": 262143}, "small"), {"request": SMALL},
        "small | large:max_pixels"),
    ("max_pixels, just met", to({"model": "large", "max_pixels": 262144}, "small"), {"request": SMALL},
        "large small |"),
    ("max_pixels, without a size: as the API asks", to({"model": "large", "max_pixels": 262144}, "small"),
        {"request": PLAIN}, "small | large:max_pixels"),
    ("max_pixels, of an edit: the model's default", to({"model": "large", "max_pixels": 262144}),
        {"request": EDIT}, "large |"),
    ("max_pixels, elsewhere: the manifest's default", to({"model": "fixed", "max_pixels": 262144}),
        {"caller": MAY, "request": PLAIN}, "fixed |"),
    ("max_waiting", to({"model": "small", "max_waiting": 2}, "far"), {"caller": MAY, "waiting": 3},
        "far | small:max_waiting"),
    ("max_waiting, just met", to({"model": "small", "max_waiting": 2}, "far"), {"caller": MAY, "waiting": 2},
        "small far |"),
    # ── targets that are none ──
    ("a model that is gone", to("was-here", "small"), {}, "small | was-here:gone"),
    ("a route", to("image", "small"), {}, "small | image:nested"),
    ("an alias", to("tiny"), {}, "small |"),
    # ── how they are ──
    ("absent weights", to("small", "far"), {"caller": MAY, "states": {"small": {"absent": True}}},
        "far | small:absent"),
    ("no key", to("far", "further"), {"caller": MAY, "states": {"far": {"key": "none"}}},
        "further | far:no_key"),
    ("a refused key", to("far", "further"), {"caller": MAY, "states": {"far": {"key": "refused"}}},
        "further | far:key_refused"),
    ("a provider that is busy", to("far", "further"), {"caller": MAY,
        "states": {"far": {"key": "busy", "wait": 20.0}}}, "further | far:busy"),
    ("an open breaker", to("far", "further"), {"caller": MAY, "states": {"far": {"open": True}}},
        "further | far:unavailable"),
    ("one that has failed at this request", to("small", "large"), {"tried": {"small": "out_of_memory"}},
        "large | small:failed"),
    # ── money ──
    ("a budget with room", to("far", "further", order="cheapest"), {"caller": budget(0.04)}, "further far |"),
    ("a budget with room for one", to("far", "further"), {"caller": budget(0.03)}, "further | far:budget"),
    ("a spent budget leaves what is free", to("far", "small", order="listed"), {"caller": budget(0.0)},
        "small | far:budget"),
    ("a budget needs a price", to("lan", "far"), {"caller": budget(9.0)}, "far | lan:no_price"),
    ("no budget, no price needed", to("lan"), {"caller": MAY}, "lan |"),
    ("nothing is paid twice", to("far", "further", "small", order="listed"),
        {"caller": MAY, "tried": {"far": "provider_timeout"}, "billed": True}, "small | far:failed further:billed"),
    ("nor where the price is not known", to("far", "lan"),
        {"caller": MAY, "tried": {"far": "provider_timeout"}, "billed": True}, "| far:failed lan:billed"),
    ("but what costs nothing follows", to("far", "beside", order="listed"),
        {"caller": MAY, "tried": {"far": "provider_timeout"}, "billed": True}, "beside | far:failed"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "given", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_table(own: RouteManifest | str, given: dict[str, Any], wanted: str) -> None:
    found = decide(own, **given)
    assert shown(found) == wanted
    if not found.targets:
        request = given.get("request", DRAW)
        tried = [HubError(code) for code in given.get("tried", {}).values()]
        assert isinstance(refusal(found, request, given.get("caller", Caller()), tried), HubError)
    assert all(each.why for each in found.targets) and all(each.words for each in found.left_out)


REFUSALS: list[tuple[str, RouteManifest | str, dict[str, Any], int, str, str]] = [
    ("nothing may leave, and what to set", "far", {"caller": MAY_NOT}, 403, "remote_not_allowed",
        'key \'bob\' may not leave this one. The owner of this hub allows it with remote_keys = ["bob"] in hub.toml.'),
    ("on a hub without keys", "far", {}, 403, "remote_not_allowed", 'remote_keys = ["*"]'),
    ("an id that stays", to("far", remote=False), {"caller": MAY}, 403, "remote_not_allowed",
        "`remote = false`"),
    ("offline", "far", {"caller": MAY, "offline": True}, 503, "offline", "far is on another machine, and this hub is"),
    ("a budget", "far", {"caller": budget(0.01)}, 402, "budget_exceeded",
        "$0.01 a month; $0.00 is spent or reserved, and this request may cost $0.04. The month ends on 2026-12-01"),
    ("a route's budget", to("far"), {"caller": budget(0.000005)}, 402, "budget_exceeded",
        "far would cost about $0.04, and $0.000005 of the budget is left. The budget of this key is $0.000005 a month"),
    ("no price", "lan", {"caller": budget(5.0)}, 402, "budget_exceeded", "`prices`"),
    ("failing", "far", {"caller": MAY, "states": {"far": {"open": True, "wait": 17.2}}}, 503, "provider_unavailable",
        "left alone for 17 s"),
    ("busy", "far", {"caller": MAY, "states": {"far": {"key": "busy", "wait": 20.0}}}, 503, "provider_busy", "20 s"),
    ("no key", "far", {"caller": MAY, "states": {"far": {"key": "none"}}}, 503, "provider_unavailable", "owner"),
    ("no good key", "far", {"caller": MAY, "states": {"far": {"key": "refused"}}}, 503, "provider_key_refused", "key"),
    ("too many wait", to({"model": "small", "max_waiting": 0}), {"waiting": 1}, 429, "queue_full", "1 do"),
    ("no weights", to("small"), {"states": {"small": {"absent": True}}}, 503, "model_unusable", "hub doctor"),
    ("no weights here, and no way out", to("small", "far"), {"states": {"small": {"absent": True}}}, 503,
        "model_unusable", "small has no weights on this machine; far is on another machine, and this hub's requests"),
    ("nobody edits", to("sketch"), {"request": EDIT}, 400, "unsupported_value", "sketch cannot edit"),
    ("who edits is far", to("sketch", "far"), {"request": EDIT}, 403, "remote_not_allowed", "remote_keys"),
    ("a size that a model by itself refuses", "small", {"request": WIDE}, 400, "invalid_value",
        "size: 2048x1024 is out of range; each side must be 16 to 1024 pixels."),
    ("nobody draws so large", to("small"), {"request": WIDE}, 400, "unsupported_value", "1024 pixels"),
    ("other keys", to({"model": "small", "keys": ["alice"]}), {}, 403, "model_forbidden",
        "small is kept for other keys."),
    ("nothing is there", to("was-here"), {}, 503, "model_unusable", "was-here is no model"),
    ("the budget before the key", to({"model": "small", "keys": ["x"]}, "far"), {"caller": budget(0.0)}, 402,
        "budget_exceeded", "small is kept for other keys; far would cost"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "given", "status", "code", "words"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_what_nothing_can_serve_is_refused_with_the_error_that_helps(
    own: RouteManifest | str, given: dict[str, Any], status: int, code: str, words: str
) -> None:
    error = refusal(decide(own, **given), given.get("request", DRAW), given.get("caller", Caller()))
    assert (error.status, error.code) == (status, code)
    assert words in error.message


def test_the_time_to_come_back_is_that_of_the_first_that_may_be_asked_again() -> None:
    states = {"far": {"open": True, "wait": 40.0}, "further": {"key": "busy", "wait": 12.0}}
    error = refusal(decide(to("far", "further"), caller=MAY, states=states), DRAW, MAY)
    assert error.headers["Retry-After"] == "12"


def test_the_reason_names_who_is_first_and_why() -> None:
    assert decide("small").reason == "'small' is a model of this hub"
    assert decide("tiny").reason == "'tiny' is an alias of 'small'"
    words = "'image' is a route of this hub, cheapest; further is asked first: it costs about $0.02"
    assert decide(to("far", "further", order="cheapest"), caller=MAY).reason == words


def test_an_answer_warns_of_what_should_have_come_first_and_of_nothing_that_was_planned() -> None:
    found = decide(to("small", "sketch", "far"), EDIT, MAY, tried={"small": "out_of_memory"})
    assert found.warning(found.targets[0]) == "target: served by far; small was left out: it failed (out_of_memory)"
    found = decide(to("sketch", "small"), EDIT)
    assert found.warning(found.targets[0]) is None
    found = decide(to("small", "far"), caller=MAY_NOT)
    assert found.warning(found.targets[0]) is None, "what was left out would not have been asked"
    found = decide("small")
    assert found.warning(found.targets[0]) is None


def test_an_unknown_model_has_no_route() -> None:
    with pytest.raises(ModelNotFound):
        registry().get("smal")


def test_targets_that_can_never_serve_are_told() -> None:
    own = to("small", "was-here", "image")
    assert [(each.model, each.code) for each in broken(own, registry(own))] == [
        ("was-here", "gone"),
        ("image", "nested"),
    ]


def test_every_target_is_either_asked_or_left_out_with_a_reason() -> None:
    own = to(*(each.id for each in MODELS), "was-here")
    for caller in (MAY, MAY_NOT, budget(0.0)):
        for request in (DRAW, EDIT, MASK, VARY, WIDE):
            for offline in (False, True):
                found = decide(own, request, caller, offline=offline)
                told = [each.manifest.id for each in found.targets] + [each.model for each in found.left_out]
                assert sorted(told) == sorted([*(each.id for each in MODELS), "was-here"])
                if offline or not caller.may_leave:
                    assert not any(each.leaves or leaves(each.manifest) for each in found.targets)


def test_a_decision_can_be_printed() -> None:
    found = decide(to(*ALL), caller=MAY_NOT)
    assert msgspec.json.decode(msgspec.json.encode(found.left_out))[0]["code"] == "remote_keys"
