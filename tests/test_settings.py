from __future__ import annotations

from pathlib import Path

import pytest

from hub.errors import ConfigurationError
from hub.keys import hash_key
from hub.settings import CHECKOUT, Settings, find_config, load_settings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub.toml of the developer's takes part."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write(text: str, name: str = "hub.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_flags_win_over_variables_and_variables_over_the_file() -> None:
    write('port = 1\nfile_ttl = 10\nlog_level = "debug"\n')
    settings = load_settings(environ={"HUB_PORT": "2", "HUB_FILE_TTL": "20"}, port=3, host=None)
    assert (settings.port, settings.file_ttl, settings.log_level) == (3, 20, "debug")
    assert settings.host == "127.0.0.1"


def test_port_zero_as_a_flag_counts_as_given() -> None:
    assert load_settings(environ={"HUB_PORT": "8123"}, port=0).port == 0


def test_an_empty_variable_counts_as_absent() -> None:
    assert load_settings(environ={"HUB_PORT": "", "HUB_PUBLIC_URL": ""}) == load_settings(environ={})


def test_the_settings_file_is_the_named_one_then_the_variables_then_here_then_the_users(tmp_path: Path) -> None:
    usual = tmp_path / "config" / "hub" / "hub.toml"
    assert find_config(None, {}) is None
    usual.parent.mkdir(parents=True)
    usual.write_text("port = 4\n")
    assert load_settings(environ={}).port == 4
    write("port = 3\n")
    assert load_settings(environ={}).port == 3
    write("port = 2\n", "variable.toml")
    assert load_settings(environ={"HUB_CONFIG": "variable.toml"}).port == 2
    write("port = 1\n", "named.toml")
    assert load_settings(Path("named.toml"), {"HUB_CONFIG": "variable.toml"}).port == 1


@pytest.mark.parametrize("environ", [{}, {"HUB_CONFIG": "absent.toml"}])
def test_a_named_settings_file_that_is_missing_is_an_error_and_not_skipped(environ: dict[str, str]) -> None:
    write("port = 3\n")
    with pytest.raises(ConfigurationError, match=r"absent\.toml: no such settings file"):
        load_settings(None if environ else Path("absent.toml"), environ)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 8000", "prot: there is no such setting. Did you mean port?"),
        ("[server]\nport = 8000", "server: there is no such setting. There are host, port, "),
        ('port = "8000"', "port: '8000' is not possible; it takes a whole number from 0 to 65535 without quotes."),
        ('port = "x"', "port: 'x' is not possible; it takes a whole number from 0 to 65535 without quotes."),
        ("port = 65536", "port: 65536 is not possible; it takes a whole number from 0 to 65535."),
        ("port = 99999999999999999999", "port: 99999999999999999999 is not possible; it takes a whole number"),
        ("file_ttl = 0", "file_ttl: 0 is not possible; it takes a whole number from 1 to 316224000."),
        ("max_queue = 0.5", "max_queue: 0.5 is not possible; it takes a whole number, 1 or more."),
        ('device = "gpu"', "device: 'gpu' is not possible; it takes auto, cpu, mps, cuda or cuda:N"),
        (
            'device = "cpu;cpu"',
            "device: 'cpu;cpu' is not possible; it takes auto, cpu, mps, cuda or cuda:N (N is a number),",
        ),
        ('device = "auto,cpu"', "device: 'auto,cpu' is not possible"),
        ('device = "cuda,cuda:0"', "device: cuda:0 is named twice"),
        ('log_level = "verbose"', "log_level: 'verbose' is not possible; it takes debug, info, warning or error."),
        ('on_disconnect = "stop"', "on_disconnect: 'stop' is not possible; it takes cancel or finish."),
        ("reuse_results = 1", "reuse_results: 1 is not possible; it takes true or false."),
        ('image_hosts = "a"', "image_hosts: 'a' is not possible; it takes a list of texts"),
        ("cache_dir = 3", "cache_dir: 3 is not possible; it takes a text in quotes"),
        ('cache_dir = "~nobody-has-this-name/x"', "cache_dir: ~nobody-has-this-name/x begins with ~"),
        ("[aliases]\nport = 1", "aliases.port: 1 is not possible; it takes a text in quotes, as all under [aliases]."),
        (
            "[budgets]\nann = -1",
            "budgets.ann: -1 is not possible; it takes a number of US dollars a month, 0 or more.",
        ),
        (
            '[budgets]\nann = "5"',
            "budgets.ann: '5' is not possible; it takes a number of US dollars a month, 0 or more, without quotes.",
        ),
        (
            "[budgets]\nann = 5\nport = true",
            "budgets.port: True is not possible; it takes a number of US dollars a month, 0 or more.",
        ),
        (
            "budgets = 5",
            "budgets: 5 is not possible; it takes a table of lines such as NAME = 5.0 (a number of US dollars a month",
        ),
        ("port = ", "is not valid TOML: Invalid value"),
        ('public_url = "images.example.org"', "public_url: 'images.example.org' is not possible; give an origin"),
        ('[api_keys]\nalice = ""', "api_keys.alice: the key is empty"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_file_setting_value_and_what_is_allowed(text: str, words: str) -> None:
    write(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={})
    assert str(caught.value).startswith(f"hub.toml: {words}")


def test_a_file_that_is_no_text_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    Path("hub.toml").write_bytes(b"port = 1 # \xff")
    with pytest.raises(ConfigurationError, match=r"hub\.toml: is not text in UTF-8"):
        load_settings(environ={})


@pytest.mark.parametrize("text", ['api_keys = "sk-canary"', "[api_keys]\nalice = [1, 'sk-canary']"])
def test_a_key_in_the_wrong_place_is_not_quoted(text: str) -> None:
    write(text)
    with pytest.raises(ConfigurationError, match="api_keys") as caught:
        load_settings(environ={})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("value", ["many", "1.5", "-1", "٨٠", "0x50", "[1]"])
@pytest.mark.parametrize("name", ["port", "file_ttl"])
def test_a_mistake_in_a_variable_is_told_with_its_name_value_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={f"HUB_{name.upper()}": value})
    words = f"HUB_{name.upper()}: {value!r} is not possible; it takes a whole number from "
    assert str(caught.value).startswith(words)
    assert "quotes" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PUBLIC_URL", "x", "HUB_PUBLIC_URL: 'x' is not possible; give an origin"),
        ("PUBLIC_URL", "https://me:canary@x.org", "HUB_PUBLIC_URL: give an origin"),
        ("API_KEYS", "alice:", "HUB_API_KEYS: alice: the key is empty"),
        ("ALLOWED_HOSTS", "a/b", "HUB_ALLOWED_HOSTS: 'a/b' is not a host"),
        ("PUBLIC_URL", "https://x.org:66000", "HUB_PUBLIC_URL: 'https://x.org:66000' is not possible; give an origin"),
        ("NEIGHBOURS", "http://127.0.0.1:1", "HUB_NEIGHBOURS: 'http://127.0.0.1:1' is not possible; write ollama:URL"),
        ("NEIGHBOURS", "ollama", "HUB_NEIGHBOURS: 'ollama' is not possible; write ollama:URL or vllm:URL, such as"),
        ("NEIGHBOURS", "lmstudio:http://a", "HUB_NEIGHBOURS: 'lmstudio:http://a' is not possible; write ollama:URL"),
        ("NEIGHBOURS", "ollama:", "HUB_NEIGHBOURS: 'ollama:' is not possible; write ollama:URL or vllm:URL, such as"),
        ("NEIGHBOURS", "ollama:127.0.0.1:11434", "HUB_NEIGHBOURS: '127.0.0.1:11434' is not possible; give an origin"),
        ("NEIGHBOURS", "vllm:ftp://a", "HUB_NEIGHBOURS: 'ftp://a' is not possible; give an origin"),
        ("NEIGHBOURS", "vllm:http://a/v1", "HUB_NEIGHBOURS: 'http://a/v1' is not possible; give an origin"),
        ("NEIGHBOURS", "vllm:http://a:0", "HUB_NEIGHBOURS: 'http://a:0' is not possible; give an origin"),
        ("NEIGHBOURS", "vllm:http://[::1", "HUB_NEIGHBOURS: 'http://[::1' is not possible; give an origin"),
        ("NEIGHBOURS", "vllm:http://me:canary@a", "HUB_NEIGHBOURS: give an origin"),
        ("NEIGHBOURS", "http://me:canary@a", "HUB_NEIGHBOURS: write ollama:URL"),
        ("DEVICE", "gpu", "HUB_DEVICE: 'gpu' is not possible; it takes auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_a_variable_that_makes_no_sense_is_told_with_its_name(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={f"HUB_{name}": value})
    assert str(caught.value).startswith(words)
    assert "canary" not in str(caught.value)


def test_lists_and_tables_in_variables_are_written_with_commas() -> None:
    settings = load_settings(
        environ={
            "HUB_ALLOWED_HOSTS": "a:8000, b ,,",
            "HUB_ALIASES": "dall-e-3:mine, gpt-image-1 : mine",
            "HUB_CACHE_DIR": "somewhere",
        }
    )
    assert settings.allowed_hosts == ["a:8000", "b"]
    assert settings.aliases == {"dall-e-3": "mine", "gpt-image-1": "mine"}
    assert settings.cache_dir == Path("somewhere").resolve()


def test_neighbours_are_kinds_and_origins() -> None:
    write('neighbours = ["ollama:http://LOCALHOST:11434/", "vllm:https://[::1]:8000"]')
    named = ["ollama:http://localhost:11434", "vllm:https://[::1]:8000"]
    assert load_settings(environ={}).neighbours == named
    assert load_settings(environ={"HUB_NEIGHBOURS": ", ".join(named)}).neighbours == named
    write('neighbours = ["ollama"]')
    with pytest.raises(ConfigurationError, match=r"^hub\.toml: neighbours: 'ollama' is not possible; write ollama:URL"):
        load_settings(environ={})


def test_a_table_without_colons_is_refused_and_its_secret_is_not_quoted() -> None:
    with pytest.raises(ConfigurationError, match="HUB_API_KEYS: write it as name:value") as caught:
        load_settings(environ={"HUB_API_KEYS": "sk-canary"})
    assert "canary" not in str(caught.value)


def test_keys_are_hashed_at_once_and_taken_out_of_the_environment() -> None:
    write('[api_keys]\nbob = "sk-canary-bob"\n')
    environ = {"HUB_API_KEYS": f"alice:sk-canary-alice,carol:{hash_key('sk-canary-carol')}"}
    settings = load_settings(environ=environ)
    assert environ == {}
    assert settings.api_keys == {name: hash_key(f"sk-canary-{name}") for name in ("alice", "carol")}
    assert "canary" not in repr(settings)
    assert load_settings(environ={}).api_keys == {"bob": hash_key("sk-canary-bob")}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("", "sk-canary"),
        ("a b", "sk-canary"),
        ("a\r\nb", "sk-canary"),
        ("x" * 65, "sk-canary"),
        ("alice", " sk-canary"),
        ("alice", "sk-canary\n"),
        ("alice", "sk-\x00canary"),
        ("alice", "sha256:canary"),
        ("alice", "sha256:" + "A" * 64),
    ],
)
def test_a_key_that_could_never_be_presented_is_refused_without_quoting_it(name: str, key: str) -> None:
    with pytest.raises(ValueError, match="api_keys") as caught:
        Settings(api_keys={name: key})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_an_open_hub_may_listen_on_loopback(host: str) -> None:
    Settings(host=host).check_bind()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "", "localhost.example", "127.0.0.1.nip.io", "2130706433", "0x7f000001"]
)
def test_a_hub_that_others_can_reach_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigurationError, match="hub keys new"):
        Settings(host=host).check_bind()
    Settings(host=host, api_keys={"alice": "sk-1"}).check_bind()


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://images.example.org", "https://images.example.org"),
        ("https://images.example.org/", "https://images.example.org"),
        ("HTTP://Images.Example.org:8080", "http://images.example.org:8080"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_public_url_becomes_an_origin_in_lower_case(url: str, origin: str) -> None:
    assert Settings(public_url=url).public_url == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://images.example.org",
        "https://",
        "https://images.example.org/hub",
        "https://images.example.org?x=1",
        "https://images.example.org/#top",
        "https://user:password@images.example.org",
        "https://images.example.org:port",
        "https://images example.org",
        'https://images.example.org"onload=',
        "https://[::1",
    ],
)
def test_a_public_url_that_is_no_origin_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Settings(public_url=url)


@pytest.mark.parametrize(
    ("device", "devices"),
    [
        ("auto", ["auto"]),
        ("cuda", ["cuda:0"]),
        ("cuda:1, cuda:0,cpu", ["cuda:1", "cuda:0", "cpu"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_a_device_or_several_are_one_worker_each(device: str, devices: list[str]) -> None:
    assert load_settings(environ={"HUB_DEVICE": device}).devices == devices


def test_folders_are_absolute_with_the_users_home_filled_in(tmp_path: Path) -> None:
    settings = load_settings(environ={"HUB_CACHE_DIR": "~/cache", "HUB_MODELS_DIR": "models"})
    assert settings.cache_dir == tmp_path / "home" / "cache"
    assert settings.models_dirs[-1] == tmp_path / "work" / "models"


def test_loras_lie_beside_the_owners_models_unless_the_owner_says_where() -> None:
    assert CHECKOUT is not None
    assert Settings().loras_folder == CHECKOUT / "models" / "loras"
    assert Settings(models_dir=Path("own")).loras_folder == Path("own").resolve() / "loras"
    write('loras_dir = "here"\n')
    assert load_settings(environ={"HUB_MODELS_DIR": "own"}).loras_folder == Path("here").resolve()


def test_the_owners_models_come_after_the_shipped_ones_and_never_twice() -> None:
    assert CHECKOUT is not None
    shipped = CHECKOUT / "models"
    assert Settings(models_dir=Path("own")).models_dirs == [shipped, Path("own").resolve()]
    assert Settings(models_dir=shipped).models_dirs == [shipped] == Settings().models_dirs
