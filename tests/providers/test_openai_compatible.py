"""Servers that speak OpenAI's image API, each with its own accent: what is sent, and what is understood."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from hub.errors import (
    InvalidRequest,
    NothingMade,
    ProviderBusy,
    ProviderFailed,
    ProviderKeyRefused,
    ProviderUnavailable,
)
from hub.types import Event, Lora, Preview, Size
from tests.providers.asking import ask, picture
from tests.providers.protocols.openai_compatible import EXTENSIONS, OpenAICompatibleProtocol
from tests.providers.upstream import KEY, Fault, Upstream, raw, serving

SQUARE = Size(1024, 1024)
PICTURE = picture(256, 256)
TEXT = base64.b64encode(PICTURE).decode()
BASE64 = {"options": {"response_format": "b64_json"}}


@pytest.fixture
def server() -> Iterator[Upstream]:
    """One that has all extensions."""
    protocol = OpenAICompatibleProtocol()
    protocol.extensions = frozenset(EXTENSIONS)
    with serving(protocol) as upstream:
        yield upstream
        assert not upstream.failures


def answer(body: Any, status: int = 200, **headers: str) -> Fault:
    return raw(json.dumps(body).encode(), status, **headers)


def stream(*lines: str) -> Fault:
    return raw("".join(f"{line}\n\n" for line in lines).encode(), content_type="text/event-stream; charset=utf-8")


EXTENDED: list[tuple[dict[str, Any], Any]] = [
    ({"seed": 7}, 7),
    ({"seed": 0}, 0),
    ({"num_inference_steps": 4}, 4),
    ({"guidance_scale": 0.0}, 0.0),
    ({"negative_prompt": "rain"}, "rain"),
    ({"strength": 0.3}, 0.3),
    ({"scheduler": "DDIMScheduler"}, "DDIMScheduler"),
    ({"style": "vivid"}, "vivid"),
    ({"loras": (Lora(name="ink", weight=0.5),)}, [{"name": "ink", "weight": 0.5}]),
    ({"moderation": "low"}, "low"),
    ({"user": "u-1"}, "u-1"),
    ({"safety_identifier": "s-1"}, "s-1"),
    ({"strict": True}, True),
]


@pytest.mark.parametrize("edits", [False, True])
@pytest.mark.parametrize(("wish", "sent"), EXTENDED)
def test_parameters_that_the_manifest_names_are_sent(
    server: Upstream, wish: dict[str, Any], sent: Any, edits: bool
) -> None:
    (name,) = wish
    edits = edits or name == "strength"  # which means nothing without a picture
    result = ask(server, remote={"honours": [name]}, images=(PICTURE,) if edits else (), size=SQUARE, **wish)
    assert not result.warnings
    asked = server.work[-1]
    assert (OpenAICompatibleProtocol().form(asked) if edits else asked.json)[name] == sent


@pytest.mark.parametrize(("wish", "_"), [each for each in EXTENDED if set(each[0]) <= {"seed", "style", "strength"}])
def test_parameters_that_it_does_not_name_are_warned_about_and_not_sent(
    server: Upstream, wish: dict[str, Any], _: Any
) -> None:
    (name,) = wish
    (warning,) = ask(server, **wish).warnings
    assert warning.startswith(f"{name}: ")
    assert name not in server.work[-1].json


def test_a_parameter_that_nobody_knows_is_not_sent_though_the_manifest_names_it(server: Upstream) -> None:
    assert ask(server, remote={"honours": ["sead", "prompt"]}, seed=3).warnings


def test_options_are_added_to_bodies_and_forms_and_win(server: Upstream) -> None:
    options = {"response_format": "b64_json", "quality": "low", "guidance_scale": 2.5}
    for images in ((), (PICTURE,)):
        result = ask(server, remote={"options": options}, images=images, quality="high", size=SQUARE)
        assert len(result.encoded) == 1
    assert {name: server.work[0].json[name] for name in options} == options
    assert {name: server.work[1].fields[name] for name in options} == options | {"guidance_scale": "2.5"}


def test_links_are_followed_without_the_key_and_base64_is_passed_on_as_it_came(server: Upstream) -> None:
    linked = ask(server, n=4)
    assert linked.images == tuple(server.pictures.values())
    assert linked.encoded == ()
    inline = ask(server, remote=BASE64, n=2)
    assert [base64.b64decode(text) for text in inline.encoded] == list(inline.images)


def test_more_pictures_than_it_makes_at_once_are_had_by_several_calls_each_with_its_seed(server: Upstream) -> None:
    result = ask(server, remote={**BASE64, "max_n": 2, "honours": ["seed"]}, n=5, seed=10)
    assert len(set(result.images)) == 5
    assert sorted((each.json["seed"], each.json["n"]) for each in server.work) == [(10, 2), (12, 2), (14, 1)]
    assert result.seed == 10


def test_a_server_without_a_key_is_asked_without_one(server: Upstream) -> None:
    with pytest.raises(ProviderKeyRefused):  # the test's server wants one
        ask(server, remote={"credentials": None})
    assert "authorization" not in server.asked[-1].headers


def test_where_the_manifest_names_keys_that_are_not_there_nothing_is_sent(server: Upstream) -> None:
    with pytest.raises(ProviderUnavailable, match="no key"):
        ask(server, remote={"credentials": "nobody"})
    assert server.asked == []


def test_a_stream_of_several_pictures_keeps_them_apart(server: Upstream) -> None:
    events: list[Event] = []
    result = ask(server, events=events, n=2, partial_images=2, size=SQUARE)
    previews = [(event.index, event.partial) for event in events if isinstance(event, Preview)]
    assert previews == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert len(result.images) == 2
    assert len(server.work) == 1


# What servers do differently. Beside each, one that does; none of it may fail, since the pictures were made.


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"b64_json": TEXT}]},  # `created` is not there
        {"created": 1.5, "data": [{"b64_json": TEXT, "url": None, "revised_prompt": None}]},  # vLLM-Omni
        {"created": 1, "data": [{"b64_json": TEXT, "url": ""}], "id": "x"},  # Go's empty texts: LocalAI
        {"created": 1, "data": [{"url": f"data:image/png;base64,{TEXT}"}]},
        {"created": 1, "data": [{"b64_json": f"data:image/png;base64,{TEXT}"}]},
        {"created": 1, "data": [{"b64_json": "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))}]},  # MIME
        {"created": 1, "data": [{"b64_json": TEXT}], "usage": None, "quality": None, "background": None},
        {"created": 1, "data": [{"b64_json": TEXT}], "quality": "auto", "background": "auto", "size": "auto"},
        {"created": 1, "data": [{"b64_json": TEXT}], "usage": {"prompt_tokens": 1, "input_tokens": None}},
        {"created": 1, "data": [{"b64_json": TEXT}], "usage": {"total_tokens": 0, "input_tokens_details": None}},
        {"created": 1, "data": [{"b64_json": TEXT}], "usage": [], "seed": "12", "warnings": "none"},
        {"created": 1, "data": [{"b64_json": TEXT}], "usage": {"input_tokens": 0, "output_tokens": 0}},  # LiteLLM
    ],
)
def test_an_answer_with_an_accent_is_understood(server: Upstream, body: Any) -> None:
    server.faults.append(answer(body))
    result = ask(server)
    assert result.images == (PICTURE,)
    assert result.usage is None
    assert result.seed is None


def test_a_link_may_be_relative_to_the_server(server: Upstream) -> None:
    """SGLang: `/v1/images/ID/content`."""
    server.pictures |= {"/pictures/one.png": PICTURE, "/v1/files/two.png": picture(64, 64)}
    base = {"base_url": f"{server.url}/v1"}
    server.faults.append(answer({"data": [{"url": "/pictures/one.png"}, {"b64_json": "", "url": "files/two.png"}]}))
    assert ask(server, remote=base, n=2).images == tuple(server.pictures.values())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "gopher:x", "http://169.254.169.254/a"])
def test_a_link_leads_nowhere_but_to_a_public_place_or_the_server(server: Upstream, url: str) -> None:
    server.faults.append(answer({"data": [{"url": url}]}))
    with pytest.raises(ProviderFailed) as failed:
        ask(server)
    assert failed.value.may_have_billed


def test_the_picture_itself_may_be_the_answer(server: Upstream) -> None:
    """vLLM-Omni, for `response_format = "file"`."""
    server.faults.append(raw(PICTURE, content_type="image/png"))
    assert ask(server).images == (PICTURE,)


def test_fewer_pictures_than_asked_for_are_told_and_none_is_a_failure(server: Upstream) -> None:
    server.faults.append(answer({"data": [{"b64_json": TEXT}, {"b64_json": None}]}))
    result = ask(server, n=2)
    assert result.images == (PICTURE,)
    assert [warning.partition(":")[0] for warning in result.warnings] == ["n"]
    for body in ({"data": []}, {"data": [{"url": None}]}, {"data": None}, {}, [], "no", {"data": [{"b64_json": 5}]}):
        server.faults.append(answer(body))
        with pytest.raises(ProviderFailed) as failed:
            ask(server)
        assert failed.value.may_have_billed


def test_prompts_that_were_revised_stay_with_their_pictures(server: Upstream) -> None:
    data = [{"b64_json": TEXT}, {"b64_json": TEXT, "revised_prompt": "a fox, painted"}]
    server.faults.append(answer({"data": data}))
    assert ask(server, n=2).revised_prompts == ("", "a fox, painted")


def test_another_hub_s_warnings_are_passed_on_by_parameter_and_not_by_word(server: Upstream) -> None:
    warnings = ["size: secret words", "size: more of them", "unheard-of: x", "scheduler: y", 5]
    server.faults.append(answer({"data": [{"b64_json": TEXT}], "warnings": warnings}))
    told = ask(server).warnings
    assert [warning.partition(":")[0] for warning in told] == ["size", "scheduler"]
    assert "secret" not in "".join(told)


ERRORS = [
    (400, {"error": "prompt required"}, InvalidRequest, None),  # stable-diffusion.cpp
    (500, {"error": "server_error", "message": f"secret {KEY}"}, ProviderFailed, None),
    (422, {"detail": [{"loc": ["body", "size"], "msg": "secret", "type": "value_error"}]}, InvalidRequest, "size"),
    (422, {"detail": [{"loc": ["body", 5]}]}, InvalidRequest, None),
    (400, {"detail": "secret"}, InvalidRequest, None),  # SGLang
    (
        400,
        {"error": {"code": 400, "message": "secret", "param": None, "type": "BadRequestError"}},
        InvalidRequest,
        None,
    ),
    (500, {"error": {"code": 500, "message": "secret", "type": ""}}, ProviderFailed, None),  # LocalAI
    (400, {"error": {"code": ["x"], "param": {"a": 1}, "type": 5}}, InvalidRequest, None),
    (401, {"error": {"message": f"secret {KEY}", "type": "auth_error", "param": "None", "code": "401"}}, None, None),
    (400, {"error": {"message": "No db.", "type": "no_db_connection", "param": None, "code": "400"}}, None, None),
    (404, {"error": {"message": "secret", "code": "model_not_found", "param": "model"}}, NothingMade, None),
    (400, {"error": {"message": "secret", "param": "seed", "code": "invalid_value"}}, InvalidRequest, "seed"),
    (400, [], InvalidRequest, None),
]


@pytest.mark.parametrize(("status", "body", "error", "param"), ERRORS)
def test_errors_of_all_shapes_are_told_by_their_status(
    server: Upstream, status: int, body: Any, error: type[Exception] | None, param: str | None
) -> None:
    server.faults.append(answer(body, status))
    with pytest.raises(error or ProviderKeyRefused) as raised:
        ask(server)
    failure: Any = raised.value
    assert failure.param == param
    assert "secret" not in failure.message
    assert KEY not in failure.message
    assert len(server.work) == 1


def test_a_page_instead_of_an_error_is_an_error(server: Upstream) -> None:
    server.faults.append(raw(b"<html>secret</html>", 400, "text/html"))
    with pytest.raises(InvalidRequest) as refused:
        ask(server)
    assert "secret" not in refused.value.message


def test_a_busy_server_is_asked_again_unless_it_says_that_this_would_not_help(server: Upstream) -> None:
    server.faults.append(answer({"error": {"code": "queue_full"}}, 429, **{"Retry-After": "1"}))
    assert len(ask(server).images) == 1
    assert len(server.work) == 2
    server.faults.append(answer({"error": {"code": "model_unusable"}}, 503, **{"x-should-retry": "false"}))
    with pytest.raises(ProviderFailed) as failed:
        ask(server)
    assert not failed.value.may_have_billed
    assert len(server.work) == 3


PREVIEW = json.dumps({"type": "image_generation.partial_image", "b64_json": TEXT, "partial_image_index": 0})
DONE = json.dumps({"type": "image_generation.completed", "b64_json": TEXT})


@pytest.mark.parametrize(
    ("lines", "previews"),
    [
        ([f"data: {PREVIEW}", f"data: {DONE}", "data: [DONE]"], 1),  # events have no names
        ([f"event: message\ndata: {PREVIEW}", f"event: message\ndata: {DONE}"], 1),
        ([": keep-alive", "event: ping\ndata: {}", f"event: image_generation.completed\ndata: {DONE}"], 0),
        (["data: not json", 'data: {"type": "ar_delta", "delta": "x"}', f"data: {DONE}"], 0),
        (['data: {"object": "image.edit.chunk", "type": "image", "data": [{"b64_json": "' + TEXT + '"}]}'], 0),
        ([f'data: {{"created": 1, "data": [{{"b64_json": "{TEXT}"}}], "error": null}}', "data: [DONE]"], 0),
    ],
)
def test_a_stream_with_an_accent_is_understood(server: Upstream, lines: list[str], previews: int) -> None:
    server.faults.append(stream(*lines))
    events: list[Event] = []
    assert ask(server, partial_images=1, events=events).images == (PICTURE,)
    assert sum(isinstance(event, Preview) for event in events) == previews


def test_a_stream_s_pictures_may_be_links(server: Upstream) -> None:
    server.pictures["/pictures/a.png"] = PICTURE
    event = {"type": "image_generation.completed", "url": "/pictures/a.png", "usage": {"output_tokens": 5}}
    server.faults.append(stream(f"data: {json.dumps(event)}"))
    result = ask(server, partial_images=1)
    assert result.images == (PICTURE,)
    assert result.usage is not None
    assert result.usage.output_tokens == 5


def test_a_preview_s_number_is_believed_where_it_can_be_one(server: Upstream) -> None:
    odd = [{"image_index": 10**9}, {"image_index": -1}, {"image_index": "2"}, {"partial_image_index": None}]
    server.faults.append(stream(*(f"data: {json.dumps(json.loads(PREVIEW) | each)}" for each in odd), f"data: {DONE}"))
    events: list[Event] = []
    ask(server, partial_images=3, events=events)
    assert {(event.index, event.partial) for event in events if isinstance(event, Preview)} == {(0, 0)}


@pytest.mark.parametrize("images", [(), (PICTURE,)])
def test_a_server_that_cannot_stream_is_not_asked_to_where_the_manifest_says_so(
    server: Upstream, images: tuple[bytes, ...]
) -> None:
    remote = {"options": {"stream": False}}
    (warning,) = ask(server, remote=remote, partial_images=2, images=images).warnings
    assert warning.startswith("partial_images: ")
    sent = server.work[-1]
    body = OpenAICompatibleProtocol().form(sent) if images else sent.json
    assert body["stream"] is False
    assert "partial_images" not in body
    with pytest.raises(InvalidRequest) as refused:
        ask(server, remote=remote, partial_images=2, images=images, strict=True)
    assert refused.value.param == "partial_images"


def test_a_server_that_does_not_stream_answers_whole(server: Upstream) -> None:
    server.faults.append(answer({"data": [{"b64_json": TEXT}]}))
    events: list[Event] = []
    assert ask(server, partial_images=2, events=events).images == (PICTURE,)
    assert not any(isinstance(event, Preview) for event in events)


@pytest.mark.parametrize(
    ("event", "error", "billed"),
    [
        ('data: {"object": "error", "error": {"code": 400, "message": "secret"}}', InvalidRequest, False),
        ('data: {"error": {"code": "429", "message": "secret", "type": "None", "param": "None"}}', ProviderBusy, False),
        ('data: {"error": "secret"}', ProviderFailed, True),
        ('event: error\ndata: "secret"', ProviderFailed, True),
        ('data: {"type": "image_generation.completed"}', ProviderFailed, True),
        ("event: image_generation.completed\ndata: <html>", ProviderFailed, True),
    ],
)
def test_what_fails_in_a_stream_is_told(server: Upstream, event: str, error: type[Exception], billed: bool) -> None:
    server.faults.extend([stream(event)] * 3)
    with pytest.raises(error) as raised:
        ask(server, partial_images=1)
    failure: Any = raised.value
    assert getattr(failure, "may_have_billed", False) is billed
    assert "secret" not in failure.message
