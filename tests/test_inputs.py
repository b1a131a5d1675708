"""No test here sends a packet off the loopback interface: names are resolved by the tests' own resolver."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hub import fetching
from hub.errors import InvalidRequest
from hub.fetching import is_public
from hub.files import Files
from hub.inputs import InputImages

PICTURE = bytes(range(256)) * 4
OWN = "http://127.0.0.1:8000"


class Site(ThreadingHTTPServer):
    """A web server on loopback that remembers who came."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.hits: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.hits.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                answer(self)

            do_CONNECT = do_GET

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up early is expected."""

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


def answers(status: int = 200, body: bytes = PICTURE, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def open_site(answer: Callable[[BaseHTTPRequestHandler], None] | None = None) -> Site:
        opened.append(Site(answer or answers()))
        return opened[-1]

    yield open_site
    for each in opened:
        each.stop()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 60)


class Names:
    """A resolver that answers with one list after another, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = [list(answer) for answer in answers]
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        assert self.answers, f"{host} was looked up"
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def read(files: Files, text: str, hosts: Sequence[str] = (), names: Any = None, own: Sequence[str] = (OWN,)) -> bytes:
    return asyncio.run(InputImages(files, hosts, names or Names()).read(text, own, "image"))


def refused(
    files: Files, text: str, hosts: Sequence[str] = (), names: Any = None, own: Sequence[str] = (OWN,)
) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(files, text, hosts, names, own)
    assert caught.value.param == "image"
    return caught.value


BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        base64.encodebytes(PICTURE).decode(),
        BASE64.replace("A", " \r\n\tA"),
        f"data:image/png;base64,{BASE64}",
        f"data:image/svg+xml;charset=utf-8;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/png;base64,\n{base64.encodebytes(PICTURE).decode()}",
    ],
)
def test_base64_is_read_bare_or_as_a_data_url_with_any_white_space(files: Files, text: str) -> None:
    assert read(files, text) == PICTURE


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "data:image/png;base64,",
        "data:,hello",
        "data:image/png,hello",
        f"data:image/png;base64;{BASE64}",
        "data",
        BASE64[:-1],
        BASE64 + "=",
        BASE64[:8] + "!" + BASE64[8:],
        BASE64[:8] + "\0" + BASE64[8:],
        BASE64[:8] + "-_" + BASE64[10:],
        "ｉＶＢＯ",
    ],
)
def test_what_is_not_base64_or_holds_nothing_is_refused(files: Files, text: str) -> None:
    assert refused(files, text).code == "invalid_image"


def test_a_string_is_never_a_path(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary.png"
    canary.write_bytes(PICTURE)
    for text in (str(canary), f"file://{canary}", f"FILE://{canary}", f"file:{canary}", "canary.png", "./canary.png"):
        assert refused(files, text).code == "invalid_image", text
    Path("canar").write_bytes(PICTURE)
    for text in (
        "/etc/passwd",
        "/etc/hostname",
        "canar",
        "etc/",
        "C:\\canary.png",
        "\\\\host\\share\\a.png",
        "~/canary",
    ):
        try:
            data = read(files, text)
        except InvalidRequest:
            continue
        assert data == base64.b64decode(text), "taken for base64, as any such word is"


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "javascript", "blob", "ws", "jar:http", "http+unix", "\thttp"])
def test_other_schemes_are_refused(files: Files, scheme: str) -> None:
    assert refused(files, f"{scheme}://127.0.0.1/a.png", ["*"]).code == "invalid_image"


def test_a_link_of_this_hub_is_read_from_the_disk_without_any_look_up(files: Files) -> None:
    link = files.link(asyncio.run(files.save(PICTURE)))
    assert read(files, OWN + link) == PICTURE
    assert read(files, f"{OWN}{link}?w=100#top") == PICTURE
    assert read(files, "https://images.example.org" + link, own=[OWN, "https://images.example.org"]) == PICTURE


def test_a_link_of_this_hub_that_is_altered_expired_or_gone_says_so(tmp_path: Path) -> None:
    time = 1000.0
    files = Files(tmp_path, 60, lambda: time)
    link = files.link(asyncio.run(files.save(PICTURE)))
    assert refused(files, OWN + link[:-5] + "1.png").code == "invalid_signature"
    (tmp_path / "files" / link.rpartition("/")[2]).unlink()
    assert refused(files, OWN + link).code == "not_found"
    time += 60
    assert refused(files, OWN + link).code == "file_expired"


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:8001",
        "https://127.0.0.1:8000",
        "http://localhost:8000",
        "http://evil.example",
        "http://127.0.0.1.evil.example:8000",
        "http://127.0.0.1",
    ],
)
def test_a_right_link_under_another_origin_is_not_this_hubs(files: Files, origin: str) -> None:
    link = files.link(asyncio.run(files.save(PICTURE)))
    assert refused(files, origin + link).code == "image_host_not_allowed"


def test_other_paths_of_this_hub_are_not_read(files: Files) -> None:
    for path in ("/v1/models", "/files/a/b/c", "/files/%2e%2e/secret", "/files/", "//files/a/b"):
        assert refused(files, OWN + path).code == "image_host_not_allowed"
    for path in ("/files/../secret", "/files/a/..", "/files/a/secret"):
        assert refused(files, OWN + path).code == "invalid_signature"


def test_nothing_is_fetched_where_the_owner_listed_no_host(files: Files, site: Callable[..., Site]) -> None:
    canary = site()
    port = canary.server_port
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"):
        assert refused(files, f"http://{host}:{port}/a.png").code == "image_host_not_allowed"
    for other in ("other.test", "127.0.0.1:1", "[::1]", "", "27.0.0.1", ".0.0.1"):
        assert refused(files, f"http://127.0.0.1:{port}/a.png", [other]).code == "image_host_not_allowed"
    assert canary.hits == []


@pytest.mark.parametrize("listed", ["pictures.test", "Pictures.Test", "pictures.test:{port}"])
def test_a_listed_host_is_fetched_at_the_address_that_was_looked_up_once(
    files: Files, site: Callable[..., Site], listed: str
) -> None:
    """The second answer of the resolver, a rebinding to nowhere, is never asked for."""
    server = site()
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    url = f"http://PICTURES.test:{server.server_port}/a%20b.png?x=1#part"
    assert read(files, url, [listed.format(port=server.server_port)], names) == PICTURE
    assert names.asked == [("pictures.test", server.server_port)]
    ((path, headers),) = server.hits
    assert path == "/a%20b.png?x=1"
    assert headers["host"].lower() == f"pictures.test:{server.server_port}"
    assert not {"authorization", "cookie", "referer", "x-api-key"} & set(headers)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no 127.0.0.2, or refuse where Linux is silent")
def test_after_an_address_that_is_silent_the_next_one_is_asked(
    files: Files, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "CONNECT", 0.3)
    server = site()
    with contextlib.ExitStack() as sockets:
        silent = sockets.enter_context(socket.socket())
        silent.bind(("127.0.0.2", server.server_port))
        silent.listen(0)
        for _ in range(4):  # its queue is full: to whoever comes now it does not answer
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        names = Names(["127.0.0.2", "127.0.0.1"])
        assert read(files, f"http://a.test:{server.server_port}/", ["a.test"], names) == PICTURE


def test_a_proxy_in_the_environment_is_not_used(
    files: Files, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = site(), site()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    assert read(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"])) == PICTURE
    assert (len(server.hits), proxy.hits) == (1, [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(files: Files, site: Callable[..., Site], status: int) -> None:
    canary = site()
    server = site(answers(status, b"", Location=f"http://127.0.0.1:{canary.server_port}/secret"))
    error = refused(files, f"http://127.0.0.1:{server.server_port}/", ["127.0.0.1"], Names(["127.0.0.1"]))
    assert error.code == "image_fetch_failed"
    assert str(status) in error.message
    assert (len(server.hits), canary.hits) == (1, [])


def test_an_error_of_the_other_host_is_told_without_its_words(files: Files, site: Callable[..., Site]) -> None:
    for status in (204, 206, 404, 500):
        server = site(answers(status, b"" if status == 204 else b"canary"))
        error = refused(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"]))
        assert error.code == "image_fetch_failed"
        assert "canary" not in error.message


def test_a_host_that_does_not_answer_http_is_a_clear_error(files: Files, site: Callable[..., Site]) -> None:
    def no_http(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(bytes(100))

    garbage = site(no_http)
    closing = site(answers(200, b"half", Content_Length="1000"))
    for server in (garbage, closing):
        error = refused(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"]))
        assert (error.code, error.message) == ("image_fetch_failed", "'image' could not be downloaded.")
        assert len(server.hits) == 1


def test_a_port_where_nothing_listens_is_a_clear_error(files: Files, site: Callable[..., Site]) -> None:
    server = Site(answers())
    server.stop()
    error = refused(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"]))
    assert error.code == "image_fetch_failed"
    assert "127.0.0.1" not in error.message


def test_a_slow_host_is_given_up(files: Files, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte now and then keeps every single read within its time; the whole download has a limit too."""
    monkeypatch.setattr("hub.fetching.TIMEOUT", 0.3)
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(60):
            if over.wait(0.05):
                break
            handler.wfile.write(b"x")

    server = site(drip)
    error = refused(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"]))
    over.set()
    assert error.code == "image_fetch_failed"


def test_a_picture_larger_than_the_limit_is_refused_however_it_comes(
    files: Files, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.inputs.MAX_BYTES", 1 << 20)
    for size, fits in (((1 << 20), True), ((1 << 20) + 1, False)):
        data = bytes(size)
        server = site(answers(200, data))
        url = f"http://a.test:{server.server_port}/"
        encoded = base64.b64encode(data).decode()
        if fits:
            assert read(files, url, ["a.test"], Names(["127.0.0.1"])) == data
            assert read(files, encoded) == data
            continue
        for error in (refused(files, url, ["a.test"], Names(["127.0.0.1"])), refused(files, encoded)):
            assert (error.code, error.message) == ("image_too_large", "'image' is larger than 1 MB.")


def test_the_download_stops_at_the_limit_and_not_at_the_end(
    files: Files, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.inputs.MAX_BYTES", 1 << 20)
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while sent < 1 << 28:
            sent += handler.wfile.write(bytes(1 << 16))

    server = site(endless)
    error = refused(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"]))
    assert error.code == "image_too_large"
    server.stop()
    assert sent < 1 << 26


def test_a_compressed_answer_is_not_unpacked(files: Files, site: Callable[..., Site]) -> None:
    import gzip

    packed = gzip.compress(bytes(10_000_000))
    server = site(answers(200, packed, Content_Encoding="gzip"))
    assert read(files, f"http://a.test:{server.server_port}/", ["a.test"], Names(["127.0.0.1"])) == packed


PRIVATE = [
    *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1"),
    *("169.254.169.254", "192.0.2.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "::169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
    *("2002:c0a8:1::1", "2001:0:7f00:1::", "2001:0:808:808::80ff:fffe"),
    *("", "localhost", "1.2.3", "127.1", "2130706433", "0x7f.0.0.1", "①②⑦.0.0.1", "8.8.8.8 ", "08.8.8.8"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_inside_is_not_public_in_whatever_form(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_every_way_of_wrapping_an_ipv4_address_in_ipv6_is_as_public_as_the_address(address: Any) -> None:
    number = int(address)
    high, low = number >> 16, number & 0xFFFF
    wrapped = [f"::ffff:{address}", f"::{high:x}:{low:x}", f"64:ff9b::{high:x}:{low:x}", f"2002:{high:x}:{low:x}::1"]
    assert {is_public(each) for each in wrapped} == {is_public(str(address))}


@pytest.mark.parametrize("address", PRIVATE)
def test_any_public_host_means_no_host_that_leads_inside(files: Files, address: str, site: Callable[..., Site]) -> None:
    canary = site()
    for names in (Names([address]), Names(["8.8.8.8", address]), Names([address, "8.8.8.8"])):
        error = refused(files, f"http://rebind.test:{canary.server_port}/latest/meta-data", ["*"], names)
        assert error.code == "image_host_not_allowed"
        assert not address or address not in error.message
        assert len(names.asked) == 1
    assert canary.hits == []


def test_a_public_host_is_reached_at_the_very_address_that_was_checked(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dialler is replaced: nothing may leave loopback."""
    dialled: list[tuple[str, int]] = []

    async def dial(
        client: Any, address: str, parts: Any, port: int, max_bytes: int, *, follow: bool
    ) -> tuple[bytes, None]:
        dialled.append((address, port))
        return PICTURE, None

    monkeypatch.setattr("hub.fetching._from", dial)
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    assert read(files, "https://pictures.test/a.png", ["*"], names) == PICTURE
    assert dialled == [("8.8.8.8", 443)]
    assert names.asked == [("pictures.test", 443)]


def test_a_listed_host_may_lie_inside_beside_any_public_one(files: Files, site: Callable[..., Site]) -> None:
    server = site()
    url = f"http://intranet.test:{server.server_port}/a.png"
    assert read(files, url, ["*", "intranet.test"], Names(["127.0.0.1"])) == PICTURE
    assert refused(files, url, ["*", "intranet.test:1"], Names(["127.0.0.1"])).code == "image_host_not_allowed"


@pytest.mark.parametrize("failure", [OSError("no"), UnicodeError("label empty or too long"), None])
def test_a_host_that_cannot_be_found_is_a_clear_error(files: Files, failure: Exception | None) -> None:
    async def names(host: str, port: int) -> list[str]:
        if failure is not None:
            raise failure
        return []

    assert refused(files, "http://absent.test/a.png", ["*"], names).code == "image_fetch_failed"


def test_the_systems_resolver_refuses_a_name_that_is_none_without_a_look_up(files: Files) -> None:
    from hub.fetching import resolve

    for host in ("a..b", "a" * 64):
        assert refused(files, f"http://{host}/a.png", ["*"], resolve).code == "image_fetch_failed"


MISLEADING = [
    "http://user@a.test/",
    "http://user:password@a.test/",
    "http://@a.test/",
    "http://:@a.test/",
    "http://a.test\\@evil.test/",
    "http://a.test\\.evil.test/",
    "http:\\\\a.test/",
    "http://a.test/\\..\\",
    "http://a.test/ b",
    "http://a.test/\r\nX-Injected: 1",
    "http://a.test/\n",
    "http://a.te\tst/",
    "http://a.test/\0",
    "http://a.test/\x7f",
    "http://ａ.test/",
    "http://a。test/",
    "http://a.test/é",
    "http://a.test:99999/",
    "http://a.test:-1/",
    "http://a.test:８０/",
    "http://[::1/",
    "http://[a.test]/",
    "http:///a.png",
    "http://",
    "http://?a.test",
    "http://:80/",
    "https:/a.test/",
    "http://a.test/" + "a" * 4096,
]


@pytest.mark.parametrize("url", MISLEADING)
def test_a_url_that_two_parsers_may_read_differently_is_refused_before_any_look_up(files: Files, url: str) -> None:
    error = refused(files, url, ["a.test", "*"])
    assert error.code == "invalid_image"
    assert error.message.isprintable()
    assert "password" not in error.message.replace("user name or password", "")


@given(st.sampled_from(["http://", "https://", "HTTP://", "http:/"]), st.text(max_size=60))
@example("http://", "a.test:80:80/")
@example("http://", "[v1.a]/")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_url_holds_it_is_refused_in_words_and_leads_nowhere(files: Files, scheme: str, rest: str) -> None:
    assert refused(files, scheme + rest).message.isprintable()
    assert refused(files, scheme + rest, ["*"], Names(["127.0.0.1"])).message.isprintable()
