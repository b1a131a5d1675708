"""Forms that strangers send: damaged, malicious, enormous. Each is a quick and clear 4xx."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hub.api.forms import MAX_PARTS, read_parts, sort_parts
from hub.errors import InvalidRequest
from tests.api.conftest import (
    BOUNDARY,
    Answer,
    Part,
    as_file,
    call,
    from_base64,
    generate,
    multipart,
    picture,
    send_form,
    upload,
)
from tests.api.test_errors import check
from tests.conftest import Server

PNG = as_file(Image.new("RGB", (64, 64), "red"))
GOOD: list[Part] = [
    ("prompt", "a red circle"),
    ("size", "64x64"),
    ("num_inference_steps", "2"),
    ("response_format", "b64_json"),
]
IMAGE = upload("image", PNG)
FORM = f"multipart/form-data; boundary={BOUNDARY}"
WHOLE = multipart(*GOOD, IMAGE)


def quick(server: Server, body: bytes, kind: str = FORM, path: str = "/v1/images/edits") -> Answer:
    """An answer that came in time."""
    start = time.monotonic()
    answer = call(server.url + path, body, content_type=kind)
    assert time.monotonic() - start < 10, "no damage keeps the hub busy"
    return answer


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG of one bit per pixel: huge when decoded, small as a file."""
    row = b"\0" + bytes((width + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_whole_form_is_answered(server: Server) -> None:
    answer = quick(server, WHOLE)
    assert from_base64(answer.json["data"][0]["b64_json"]).size == (64, 64)


CONTENT_TYPES = [
    "multipart/form-data",
    "multipart/form-data; boundary=",
    'multipart/form-data; boundary=""',
    "multipart/form-data; boundary=another",
    f"multipart/form-data; boundary={BOUNDARY}x",
    f"multipart/form-data; boundary={BOUNDARY[:-1]}",
    "multipart/form-data; boundary=" + "x" * 500,
    "multipart/form-data; boundary=ключ",
    "multipart/form-data; boundry=x",
]


@pytest.mark.parametrize("kind", CONTENT_TYPES, ids=lambda value: value[30:60])
def test_a_missing_or_wrong_boundary_is_a_400(server: Server, kind: str) -> None:
    check(quick(server, WHOLE, kind.encode().decode("latin-1")), 400, "invalid_form")


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "no parts": f"--{BOUNDARY}--\r\n".encode(),
    "only a boundary": f"--{BOUNDARY}\r\n".encode(),
    "cut in the last boundary": WHOLE[:-4],
    "cut in the file": WHOLE[:-100],
    "cut in a header": WHOLE[:60],
    "half": WHOLE[: len(WHOLE) // 2],
    "JSON": b'{"prompt": "a"}',
    "bytes": bytes(range(256)) * 100,
    "zeroes": bytes(100_000),
    "line feeds alone": WHOLE.replace(b"\r\n", b"\n"),
    "no empty line": WHOLE.replace(b"\r\n\r\n", b"\r\n"),
    "no disposition": f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\na\r\n--{BOUNDARY}--\r\n".encode(),
    "another disposition": WHOLE.replace(b"form-data;", b"attachment;"),
    "a huge header": WHOLE.replace(b"form-data;", b"form-data; x=" + b"y" * 100_000 + b";"),
    "many headers": WHOLE.replace(b"Content-Disp", b"X: y\r\n" * 1000 + b"Content-Disp"),
    "a header without a colon": WHOLE.replace(b"Content-Disposition:", b"Content-Disposition"),
    "a header in Latin 1": WHOLE.replace(b'name="prompt"', b'name="pr\xf6mpt"'),
    "a wrong length": WHOLE.replace(b"Content-Disp", b"Content-Length: 5\r\nContent-Disp"),
    "a negative length": WHOLE.replace(b"Content-Disp", b"Content-Length: -5\r\nContent-Disp"),
    "too many parts": multipart(*GOOD, IMAGE, *((f"x{k}", "") for k in range(MAX_PARTS))),
    "very many parts": multipart(*(("image[]", b"x") for _ in range(20_000))),
    "nested": WHOLE.replace(b"application/octet-stream", b"multipart/mixed; boundary=inner"),
    "text before the first boundary": b"hello" + WHOLE,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_form_is_a_400(server: Server, kind: str) -> None:
    answer = quick(server, BROKEN[kind])
    if kind in ("nested", "many headers") and answer.status == 200:
        assert kind == "nested", "a file's declared type means nothing"
        return
    check(answer, 400)
    codes = {"invalid_form", "invalid_image", "missing_required_parameter"}
    assert answer.json["error"]["code"] in codes | ({"invalid_value"} if kind == "very many parts" else set())


def replaced(name: str, value: bytes | str) -> list[Part]:
    kept: list[Part] = [part for part in GOOD if part[0] != name]
    return [*kept, (name, value), IMAGE]


BAD_TEXT: list[tuple[list[Part], str]] = [
    (replaced("n", "0"), "n"),
    (replaced("n", "11"), "n"),
    (replaced("n", str(10**9)), "n"),
    (replaced("n", "9" * 5000), "n"),
    (replaced("n", "1.5"), "n"),
    (replaced("n", " 1"), "n"),
    (replaced("n", "٢"), "n"),
    (replaced("n", "one"), "n"),
    (replaced("n", "true"), "n"),
    (replaced("guidance_scale", "1e400"), "guidance_scale"),
    (replaced("guidance_scale", "nan"), "guidance_scale"),
    (replaced("guidance_scale", "NaN"), "guidance_scale"),
    (replaced("guidance_scale", "inf"), "guidance_scale"),
    (replaced("guidance_scale", "-inf"), "guidance_scale"),
    (replaced("strength", "nan"), "strength"),
    (replaced("strength", "0"), "strength"),
    (replaced("strength", "1e-400"), "strength"),
    (replaced("seed", "-1"), "seed"),
    (replaced("seed", str(2**63)), "seed"),
    (replaced("seed", "0x10"), "seed"),
    (replaced("stream", "maybe"), "stream"),
    (replaced("stream", "2"), "stream"),
    (replaced("strict", "yes"), "strict"),
    (replaced("partial_images", "4"), "partial_images"),
    (replaced("output_format", "gif"), "output_format"),
    (replaced("output_compression", "101"), "output_compression"),
    (replaced("size", "64x64\r\n"), "size"),
    (replaced("size", "huge"), "size"),
    (replaced("size", "64x64\0"), "size"),
    (replaced("quality", "best"), "quality"),
    (replaced("prompt", ""), "prompt"),
    (replaced("prompt", " \r\n"), "prompt"),
    (replaced("prompt", "x" * 32_001), "prompt"),
    (replaced("prompt", "x" * 1_000_000), "prompt"),
    (replaced("prompt", b"\xff\xfe"), "prompt"),
    (replaced("user", b"\xc3\x28"), "user"),
    (replaced("user", "x" * 1025), "user"),
    (replaced("prompt_", "x"), "prompt_"),
    (replaced("__proto__", "x"), "__proto__"),
    (replaced("api_base", "http://127.0.0.1"), "api_base"),
    (replaced("n[]", "1"), "n[]"),
    (replaced("x" * 3000, "1"), "x" * 64),
    (replaced("name\u2028", "1"), "name\u2028"),
    ([*GOOD, ("size", "64x64"), IMAGE], "size"),
    ([*GOOD, ("n", "1"), ("n", "1"), IMAGE], "n"),
    ([part for part in [*GOOD, IMAGE] if part[0] != "prompt"], "prompt"),
    (list(GOOD), "image"),
    ([*GOOD, upload("image", b"")], "image"),
    ([*GOOD, ("image", "")], "image"),
    ([*GOOD, ("image", "not base64!")], "image"),
    ([*GOOD, ("image", "/etc/passwd")], "image"),
    ([*GOOD, ("image", "file:///etc/passwd")], "image"),
    ([*GOOD, ("image", "http://169.254.169.254/")], "image"),
    ([*GOOD, ("image", b"\xff\xfe text that is none")], "image"),
    ([*GOOD, IMAGE, upload("mask", PNG), upload("mask", PNG)], "mask"),
    ([*GOOD, IMAGE, upload("mask", b"")], "mask"),
    ([*GOOD, *[upload("image", PNG)] * 17], "image"),
    ([*GOOD, *[upload("image", PNG)] * 9, *[upload("image[]", PNG)] * 8], "image"),
]


@pytest.mark.parametrize(("parts", "param"), BAD_TEXT, ids=lambda value: str(value)[-60:])
def test_a_bad_field_is_a_400_that_names_it(server: Server, parts: list[Part], param: str) -> None:
    check(quick(server, multipart(*parts)), 400, param=param)


@pytest.mark.parametrize("name", ["", 'form-data"', "../../etc/passwd"])
def test_a_part_with_a_strange_name_is_a_400(server: Server, name: str) -> None:
    check(quick(server, multipart(*GOOD, IMAGE, (name, "x"))), 400)


def test_a_part_without_a_name_is_a_400_that_says_so(server: Server) -> None:
    nameless = f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n".encode()
    for body in (nameless + WHOLE, multipart(("", "x"), *GOOD, IMAGE)):
        assert "a part has no name" in check(quick(server, body), 400, "invalid_form")["message"]


def test_too_many_parts_and_headers_are_a_400_that_says_so(server: Server) -> None:
    most = multipart(*GOOD, IMAGE, *[("user", "")] * (MAX_PARTS - len(GOOD) - 1))
    assert quick(server, most).status == 200
    one_more = multipart(("user", ""))[: -len(f"--{BOUNDARY}--\r\n")] + most
    assert f"more than {MAX_PARTS} parts" in check(quick(server, one_more), 400, "invalid_form")["message"]
    for kind in ("many headers", "a huge header"):
        assert "headers" in check(quick(server, BROKEN[kind]), 400, "invalid_form")["message"]


@pytest.mark.parametrize("name", ["image[0]", "images", "picture"])
def test_a_file_under_an_unknown_name_is_an_unknown_parameter(server: Server, name: str) -> None:
    error = check(quick(server, multipart(*GOOD, IMAGE, upload(name, PNG))), 400, "unknown_parameter", name)
    assert error["message"] == f"Unknown parameter: '{name}'."
    assert error["message"] == check(generate(server, prompt="a", **{name: "x"}), 400)["message"]


def test_what_is_wrong_with_a_field_is_said_in_plain_words(server: Server) -> None:
    told = {
        ("n", "one"): "Invalid 'n': it must be an integer.",
        ("n", "11"): "Invalid 'n': it must be at most 10.",
        ("strength", "0"): "Invalid 'strength': it must be more than 0.",
        ("stream", "maybe"): "Invalid 'stream': it must be true or false.",
        ("seed", "9" * 5000): "Invalid 'seed': it is out of range.",
        ("output_format", "gif"): "Invalid 'output_format': it must be one of png, jpeg, webp.",
    }
    for (name, value), words in told.items():
        assert check(quick(server, multipart(*replaced(name, value))), 400, param=name)["message"] == words


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\0b.png", "C:\\x.png", "x" * 3000, "é.png", "%2e%2e/", ""])
def test_a_file_name_means_nothing(server: Server, name: str) -> None:
    answer = quick(server, multipart(*GOOD, ("image", PNG, name, "text/html")))
    assert answer.status == 200, answer.body
    assert not name.strip("%2e/") or name.encode() not in answer.body


@pytest.mark.parametrize("text", ["\0", "a\0red circle", "a\r\nSet-Cookie: x=y", "\u202e\u2028", "😀", "\x1b[31m"])
def test_control_characters_are_text_and_reach_no_header(server: Server, text: str) -> None:
    for name in ("prompt", "user", "model"):
        answer = quick(server, multipart(*replaced(name, text)))
        assert answer.status in ((404,) if name == "model" else (200, 400)), answer.body
        if answer.status != 200:
            check(answer, answer.status, param=name)
        assert "set-cookie" not in answer.headers


def test_the_charset_of_a_part_means_nothing(server: Server) -> None:
    for charset in ("utf-8", "latin-1", "klingon", "utf-16", "zip"):
        kind = f"text/plain; charset={charset}"
        parts = [part for part in GOOD if part[0] != "prompt"]
        answer = quick(server, multipart(*parts, ("prompt", "a réd circle", None, kind), IMAGE))
        assert answer.status == 200, answer.body


def test_empty_text_fields_are_those_that_a_program_left_out(server: Server) -> None:
    empty: list[Part] = [(name, "") for name in ("n", "model", "user", "quality", "seed", "stream", "strength")]
    assert quick(server, multipart(*GOOD, *empty, IMAGE)).status == 200


def test_another_media_type_than_a_form_or_json_is_a_415(server: Server) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/mixed; boundary=x", "", "image/png"):
        check(quick(server, b"prompt=a&n=1", kind), 415, "unsupported_media_type")
    for kind in ("application/x-www-form-urlencoded", "application/json"):
        check(quick(server, b'{"prompt": "a"}', kind, "/v1/images/variations"), 415, "unsupported_media_type")
    check(quick(server, WHOLE, path="/v1/images/generations"), 415, "unsupported_media_type")


def animated(image_format: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("blue", "red", "green")]
    return as_file(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50, lossless=True)


def cmyk() -> bytes:
    return as_file(Image.new("CMYK", (64, 64), (255, 255, 0, 0)), "JPEG", quality=95)


@pytest.mark.parametrize(
    "make", [lambda: animated("PNG"), lambda: animated("WEBP"), cmyk], ids=["APNG", "WebP", "CMYK"]
)
def test_of_an_animation_the_first_frame_is_taken_and_cmyk_is_converted(
    server: Server, make: Callable[[], bytes]
) -> None:
    """The first frame is blue, and so is that CMYK; with little strength the edit stays so."""
    parts = [part for part in GOOD if part[0] != "num_inference_steps"]
    answer = quick(server, multipart(*parts, ("strength", "0.1"), upload("image", make())))
    red, green, blue = from_base64(answer.json["data"][0]["b64_json"]).convert("RGB").getpixel((32, 32))
    assert blue > 150 > max(red, green)


SMALL = as_file(Image.effect_noise((64, 64), 100).convert("RGB"), "PNG")
BAD_PICTURES: dict[str, bytes] = {
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'><rect/></svg>",
    "SVG behind a BOM": b"\xef\xbb\xbf<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "PSD": b"8BPS\0\1" + bytes(200),
    "TIFF": as_file(Image.new("RGB", (64, 64)), "TIFF"),
    "GIF": as_file(Image.new("RGB", (64, 64)), "GIF"),
    "BMP": as_file(Image.new("RGB", (64, 64)), "BMP"),
    "ICO": as_file(Image.new("RGB", (64, 64)), "ICO"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run\n",
    "PDF": b"%PDF-1.7\n" + bytes(100),
    "ELF": b"\x7fELF" + bytes(100),
    "zip": b"PK\3\4" + bytes(100),
    "one byte": b"\x89",
    "a PNG's signature": PNG[:8],
    "a RIFF that is no WebP": b"RIFF\x24\0\0\0WAVEfmt " + bytes(32),
    "1x1": as_file(Image.new("RGB", (1, 1))),
    "1x20000": as_file(Image.new("L", (1, 20_000))),
    "20000x2": as_file(Image.new("1", (20_000, 2))),
    "a truncated PNG": SMALL[: len(SMALL) // 2],
    "a truncated JPEG": as_file(Image.effect_noise((64, 64), 100), "JPEG")[:600],
    "a truncated WebP": as_file(Image.effect_noise((64, 64), 100), "WEBP")[:600],
    "a PNG without pixels": SMALL[:33] + chunk(b"IEND", b""),
    "a PNG with a wrong checksum": PNG[:40] + b"xxxx" + PNG[44:],
    "a PNG of 2^31 pixels a side": PNG[:16] + b"\x7f\xff\xff\xff" * 2 + PNG[24:],
    "a PNG of no width": PNG[:16] + bytes(8) + PNG[24:],
    "a PNG of 100000 chunks": PNG[:33] + chunk(b"tEXt", b"a\0b") * 100_000 + PNG[33:],
    "a PNG of a huge text": PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9)) + PNG[33:],
    "a JPEG of 65535x65535": as_file(Image.new("L", (64, 64)), "JPEG").replace(
        b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40", b"\xff\xc0\x00\x0b\x08\xff\xff\xff\xff"
    ),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_a_400_however_it_is_named(server: Server, kind: str) -> None:
    data = BAD_PICTURES[kind]
    parts = [
        *GOOD,
        ("image", data, "picture.png", "image/png"),
    ]
    answer = quick(server, multipart(*parts))
    if kind == "a PNG of a huge text" and answer.status == 200:
        return
    check(answer, 400, "invalid_image", "image")
    mask = quick(server, multipart(*GOOD, IMAGE, ("mask", data, "mask.png", "image/png")))
    check(mask, 400, "invalid_image", "mask")


def memory(server: Server) -> float:
    """Resident MiB of the API process."""
    return float(psutil.Process(server.process.pid).memory_info().rss / 2**20)


def test_bombs_cost_neither_time_nor_memory(server: Server) -> None:
    bomb = png_bomb(13_000, 13_000)
    assert len(bomb) < 100_000
    bombs = [multipart(*GOOD, upload(name, data)) for name in ("image", "image[]") for data in (bomb, bomb[:-30])]
    bombs.append(multipart(*GOOD, IMAGE, upload("mask", bomb)))
    for body in bombs:
        check(quick(server, body), 400, "invalid_image")
    before = memory(server)
    for _ in range(8):
        for body in bombs:
            check(quick(server, body), 400, "invalid_image")
    assert memory(server) - before < 50
    assert quick(server, WHOLE).status == 200


def test_a_file_over_fifty_megabytes_is_too_large(server: Server) -> None:
    body = multipart(*GOOD, upload("image", PNG + bytes(50 * 1024 * 1024)))
    start = time.monotonic()
    check(call(f"{server.url}/v1/images/edits", body, content_type=FORM), 400, "image_too_large", "image")
    assert time.monotonic() - start < 5
    assert quick(server, WHOLE).status == 200


def answer_to(server: Server, head: str, *pieces: bytes) -> bytes:
    """What comes back on a connection of its own, which the server may close while it is written to."""
    host, port = server.url[7:].split(":")
    lines = f"POST /v1/images/edits HTTP/1.1\r\nHost: {server.url[7:]}\r\nContent-Type: {FORM}\r\n{head}\r\n\r\n"
    answer = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(lines.encode())
            for piece in pieces:
                connection.sendall(piece)
        while b"request_too_large" not in answer and (piece := connection.recv(65536)):
            answer += piece
    return answer


def test_a_body_over_the_limit_is_a_413_and_the_next_request_goes(server: Server) -> None:
    for sent in (b"", WHOLE, bytes(1 << 20)):
        answer = answer_to(server, f"Content-Length: {65 * 1024 * 1024}", sent)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in answer
    assert quick(server, WHOLE).status == 200


def test_a_chunked_body_over_the_limit_is_a_413_and_the_next_request_goes(server: Server) -> None:
    before = memory(server)
    chunks = (b"100000\r\n" + bytes(0x100000) + b"\r\n" for _ in range(80))
    answer = answer_to(server, "Transfer-Encoding: chunked", *chunks)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:300]
    assert b"request_too_large" in answer
    assert quick(server, WHOLE).status == 200
    assert memory(server) - before < 100


FILES = {"image": 16, "mask": 1}
KNOWN = {"prompt", "n", "x", "size", "num_inference_steps", "response_format"}


def taken_apart(body: bytes, boundary: str) -> Any:
    """What comes out: a result, or InvalidRequest in printable words; anything else fails."""
    try:
        fields, sources = sort_parts(body, boundary, FILES, KNOWN)
    except InvalidRequest as error:
        assert error.status == 400
        assert "Traceback" not in error.message
        assert len(error.message) < 500
        return None
    assert all(isinstance(value, str) for value in fields.values())
    assert set(sources) == set(FILES)
    return fields, sources


@given(st.binary(max_size=2000), st.text(st.characters(max_codepoint=126, min_codepoint=33), min_size=1, max_size=70))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_a_form_or_an_invalid_request(body: bytes, boundary: str) -> None:
    taken_apart(body, boundary)
    taken_apart(f"--{boundary}\r\n".encode() + body, boundary)
    taken_apart(
        f"--{boundary}\r\nContent-Disposition: form-data; ".encode() + body + f"--{boundary}--".encode(), boundary
    )


@st.composite
def mutations(draw: Any) -> bytes:
    """A whole form with a few pieces cut out, doubled, swapped or overwritten."""
    body = WHOLE
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 60)))
        body = (
            body[:start] + draw(st.sampled_from([b"", body[start:end] * 2, b"\r\n", b"\0", b'"', b"\xff"])) + body[end:]
        )
    return body


@given(mutations())
@settings(max_examples=200, deadline=None)
def test_a_mutated_form_is_a_form_or_an_invalid_request(body: bytes) -> None:
    taken_apart(body, BOUNDARY)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["prompt", "n", "image", "image[]", "mask", "x"]),
            st.binary(max_size=300).filter(lambda data: BOUNDARY.encode() not in data),
            st.booleans(),
        ),
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_was_put_into_a_form_comes_out_of_it(parts: list[tuple[str, bytes, bool]]) -> None:
    body = multipart(*((name, data, "f") if is_file else (name, data) for name, data, is_file in parts))
    assert [(part.name, data) for part, data in read_parts(body, BOUNDARY)] == [(name, data) for name, data, _ in parts]
    out = taken_apart(body, BOUNDARY)
    if out is not None:
        files = [data for name, data, is_file in parts if name in ("image", "image[]") and (data or is_file)]
        assert [each.encode() if isinstance(each, str) else each for each in out[1]["image"]] == files


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_where_the_boundary_falls_does_not_matter(size: int) -> None:
    near = f"\r\n--{BOUNDARY}"[:-1].encode()
    for data in (near * 50, b"\r\n" * 1000, b"\r" * size, b"--" * size, near + b"\r\n--"):
        ((_, out),) = read_parts(multipart(("image", data, "f")), BOUNDARY)
        assert out == data


def test_text_in_a_file_field_is_a_reference_and_a_file_is_never(server: Server) -> None:
    encoded = base64.b64encode(PNG)
    _, sources = sort_parts(multipart(("image", encoded), ("image", encoded, "f.png")), BOUNDARY, FILES, KNOWN)
    assert sources["image"] == [encoded.decode(), encoded]
    link = generate(server, prompt="x", size="64x64", num_inference_steps=1).json["data"][0]["url"]
    check(quick(server, multipart(*GOOD, upload("image", link.encode()))), 400, "invalid_image", "image")
    assert quick(server, multipart(*GOOD, ("image", link))).status == 200


def test_a_bomb_is_only_told_by_its_header() -> None:
    """The test's own check: the bomb is a picture that a decoder would take."""
    small = picture(png_bomb(130, 130))
    assert small.size == (130, 130)
    assert Image.open(io.BytesIO(png_bomb(1300, 13))).size == (1300, 13)


def test_the_answer_to_a_form_in_flight_equals_that_to_json(server: Server) -> None:
    seeded: list[Part] = [*GOOD, ("seed", "9"), IMAGE]
    wish = {
        "prompt": "a red circle",
        "size": "64x64",
        "num_inference_steps": 2,
        "response_format": "b64_json",
        "seed": 9,
    }
    form = send_form(server, *seeded)
    json_body = call(f"{server.url}/v1/images/edits", wish | {"image": base64.b64encode(PNG).decode()})
    assert form.json["data"] == json_body.json["data"]
