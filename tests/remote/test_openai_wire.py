"""OpenAI's answers, whose base64 never sees a JSON parser."""

from __future__ import annotations

import json

import pytest

from hub.errors import ProviderFailed
from hub.remote.adapter import Answer, Base64, Link, Made
from hub.remote.openai_wire import read_made

TEXT = "QUJD" * 10_000


def made(body: object) -> Made:
    """Of a body, or of its JSON."""
    return read_made(Answer(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode()), "http://a.test")


def texts(body: object) -> list[bytes | str]:
    """The pictures."""
    return [each.text if isinstance(each, Base64) else each.url for each in made(body).pictures if each is not None]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"data": [{"b64_json": TEXT}]}, [TEXT.encode()]),
        (
            {"data": [{"b64_json": TEXT}, {"b64_json": "QQ=="}, {"b64_json": TEXT}]},
            [TEXT.encode(), b"QQ==", TEXT.encode()],
        ),
        (
            {"data": [{"b64_json": None, "url": "http://x.test/a"}, {"b64_json": TEXT}]},
            ["http://x.test/a", TEXT.encode()],
        ),
        ({"data": [{"b64_json": "", "url": "http://x.test/a"}]}, ["http://x.test/a"]),
        ({"data": [{"b64_json": TEXT, "url": None, "revised_prompt": '"b64_json": "x'}]}, [TEXT.encode()]),
        ({"x": {"b64_json": "bm8="}, "data": [{"b64_json": TEXT}]}, [TEXT.encode()]),
        ({'x"b64_json': "bm8=", "data": [{"b64_json": TEXT}]}, [TEXT.encode()]),
        ({"x": "b64_json", "data": [{"b64_json": TEXT}]}, [TEXT.encode()]),
        ({"data": [{"b64_json": "data:image/png;base64,QQ=="}]}, ["data:image/png;base64,QQ=="]),
        (b'{"data":[{"b64_json"  \n:\t"QQ=="}]}', [b"QQ=="]),
        (b'{"data":[{"b64_json":"QU\\/D"},{"b64_json":"QQ=="}]}', [b"QU/D", b"QQ=="]),
        (b'{"data":[{"b64_json":"QQ=="},{"b64_json":"QU\\/D"},{"b64_json":"Qg=="}]}', [b"QQ==", b"QU/D", b"Qg=="]),
        (b'{"data":[{"b64_json":"0"},{"b64_json":"1"}]}', [b"0", b"1"]),
    ],
)
def test_pictures_are_found_wherever_they_stand(body: object, found: list[bytes | str]) -> None:
    assert texts(body) == found


def test_each_text_is_used_once_and_in_its_place() -> None:
    many = {"data": [{"b64_json": f"{k:04}"} for k in range(12)]}
    assert texts(many) == [f"{k:04}".encode() for k in range(12)]


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"b64_json":"QQ=="},{"b64_json":0}]}',
        b'{"data":[{"b64_json":1},{"b64_json":"QQ=="}]}',
        b'{"data":[{"b64_json":0}]}',
        b'{"data":[{"b64_json":true},{"b64_json":"QQ=="}]}',
        b'{"data":[{"b64_json":"QQ==',
        b'{"data":[{"b64_json":"QQ=="}',
        b'{"data":[{"b64_json":"QQ=="]}',
        b'"b64_json":"QQ=="',
        b'{"data":{"b64_json":"QQ=="}}',
    ],
)
def test_what_is_no_such_answer_is_none(body: bytes) -> None:
    with pytest.raises(ProviderFailed) as told:
        made(body)
    assert told.value.may_have_billed


def test_a_link_may_be_relative() -> None:
    (picture,) = made({"data": [{"url": "files/1.png"}]}).pictures
    assert picture == Link("http://a.test/files/1.png")
