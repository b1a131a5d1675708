"""Links to generated files, over HTTP."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.api.conftest import KEYS, Answer, call, generate, picture
from tests.conftest import Server, run_server


@pytest.fixture(scope="module")
def link(server: Server) -> str:
    answer = generate(server, prompt="a red circle", size="64x64", num_inference_steps=1)
    return str(answer.json["data"][0]["url"])


def test_the_headers_of_a_picture_are_right(link: str) -> None:
    answer = call(link)
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["etag"]
    assert "sandbox" in answer.headers["content-security-policy"]
    seconds = int(answer.headers["cache-control"].partition("max-age=")[2].partition(",")[0])
    assert 3500 < seconds <= 3600
    head = call(link, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))


def test_an_unchanged_picture_is_a_304(link: str) -> None:
    etag = call(link).headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = call(link, if_none_match=header)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == etag
    assert call(link, if_none_match='"other"').status == 200


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=0-999999999", slice(None)),
    ],
)
def test_a_range_is_a_206_with_just_that_part(link: str, header: str, part: slice) -> None:
    whole = call(link).body
    answer = call(link, range=header)
    assert answer.status == 206
    assert answer.body == whole[part]
    start = range(len(whole))[part].start
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.body) - 1}/{len(whole)}"


def test_a_range_outside_the_file_is_a_416_and_a_strange_one_is_ignored(link: str) -> None:
    whole = call(link).body
    outside = call(link, range=f"bytes={len(whole)}-")
    assert outside.status == 416
    assert outside.headers["content-range"] == f"bytes */{len(whole)}"
    assert outside.json["error"]["code"] == "range_not_satisfiable"
    for header in (
        "bytes=5-2",
        "bytes=a-b",
        "bytes=-",
        "lines=1-2",
        "bytes=0-1,3-4",
        "bytes=" + "0-0," * 10_000 + "1-1",
    ):
        answer = call(link, range=header)
        assert answer.status in (200, 431, 400), header
        if answer.status == 200:
            assert answer.body == whole
    assert call(link, range="bytes=0-0", if_range='"another"').status == 200


def altered(link: str) -> list[str]:
    origin, _, rest = link.partition("/files/")
    signature, _, name = rest.partition("/")
    key, end, mac = signature.split(".")
    later = name[:33] + str(int(name[33:-4]) + 1) + ".png"
    flipped = signature[:-1] + ("A" if signature[-1] != "A" else "B")
    return [
        f"{origin}/files/{signature}/{later}",
        f"{origin}/files/{key}.{int(end) + 1}.{mac}/{name}",
        f"{origin}/files/{flipped}/{name}",
        f"{origin}/files/x/{name}",
        f"{origin}/files/{signature[:-1]}/{name}",
        f"{origin}/files/{signature}/{name.upper()}",
        f"{origin}/files/{signature}/..%2f..%2fsecret",
        f"{origin}/files/{signature}/%2e%2e",
        f"{origin}/files/{signature}/{name}%00",
    ]


def test_an_altered_or_forged_link_is_refused(link: str) -> None:
    assert call(link).status == 200
    for url in altered(link):
        answer = call(url)
        assert answer.status in (403, 404), url
        assert answer.json["error"]["code"] in ("invalid_signature", "not_found")
    assert [call(url).status for url in altered(link)[:5]] == [403] * 5


def test_a_planted_symbolic_link_is_not_followed(server: Server, link: str, tmp_path: Path) -> None:
    answer = generate(server, prompt="a red circle", size="64x64", num_inference_steps=1)
    url = answer.json["data"][0]["url"]
    stored = server.cache / "files" / url.rpartition("/")[2]
    stored.unlink()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    stored.symlink_to(secret)
    assert call(url).status == 404
    stored.unlink()


@pytest.mark.slow
def test_links_survive_a_restart_and_expire_on_time_and_then_their_files_go(tmp_path: Path) -> None:
    keeps = {"HUB_FILE_TTL": "5", "HUB_JOB_TTL": "1", "HUB_PUBLIC_URL": "https://images.example.org"}
    with run_server(tmp_path, **keeps) as first:
        answer = generate(first, prompt="a red circle", size="64x64", num_inference_steps=1, n=2)
        urls = [item["url"] for item in answer.json["data"]]
        assert all(url.startswith("https://images.example.org/files/") for url in urls)
        paths = [url.removeprefix("https://images.example.org") for url in urls]
        expires = int(paths[0].split(".")[1])
        kept = int(paths[0].rpartition("-")[2].removesuffix(".png"))
        assert expires == kept, "a picture is kept as long as its link is good, although its job is not"
    with run_server(tmp_path, ready=False, HUB_API_KEYS=KEYS) as second:
        fetched = call(second.url + paths[0])
        if time.time() < expires - 1:
            assert fetched.status == 200
            assert picture(fetched.body).size == (64, 64)
        time.sleep(max(0.0, expires - time.time()) + 0.1)
        expired: Answer = call(second.url + paths[0])
        assert expired.status == 410
        assert expired.json["error"]["code"] == "file_expired"
        assert "GET /v1/images/jobs/{id}) gives fresh links" in expired.json["error"]["message"]
    with run_server(tmp_path, ready=False) as third:  # the sweeper runs at once on start
        end = time.monotonic() + 10
        while any(os.scandir(third.cache / "files")) and time.monotonic() < end:
            time.sleep(0.05)
        assert not list((third.cache / "files").iterdir())
        assert call(third.url + paths[0]).status == 410


def test_an_unknown_host_is_never_echoed_into_a_link(keyed_server: Server) -> None:
    wish = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 1}
    key = {"authorization": "Bearer sk-alice-1234567890"}
    own = keyed_server.url
    port = own.rpartition(":")[2]
    for host, origin in (
        ("evil.example", own),
        (f"localhost:{port}", f"http://localhost:{port}"),
        ("localhost:1", own),
        ("127.0.0.1", own),
    ):
        answer = call(f"{own}/v1/images/generations", wish, host=host, x_forwarded_host="evil.example", **key)
        assert answer.json["data"][0]["url"].startswith(f"{origin}/files/"), host
