"""Settings: hub.toml, then HUB_* variables, then command-line flags; the later one wins.

Every field of `Settings` is a key of hub.toml and, upper-cased behind `HUB_`, an environment variable.
docs/settings.md lists them all; a test holds the two together.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
import reprlib
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from hub.errors import ConfigurationError
from hub.keys import PREFIX, hash_key

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "models" / "builtin.toml").is_file() else None

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

log = logging.getLogger(__name__)

NOT_SETTINGS = {"HUB_CONFIG", "HUB_PYTHON", "HUB_API_KEY", "HUB_SIGNING_PASSPHRASE"}
"""Variables for the command line and for scripts/."""

EVERYBODY = "*"
"""In `remote_keys` and `budgets`: every key that is not named, and whoever calls a hub without keys."""

OPTIONAL_PLACES = ("models_dir", "loras_dir", "weights_dir", "bundles_dir", "bundle_signers", "credentials")

PositiveInt = Annotated[int, Meta(ge=1)]
_DEVICE = r"(cpu|mps|cuda(:(0|[1-9][0-9]?))?)"
Device = Annotated[
    str,
    Meta(
        pattern=rf"^(auto|{_DEVICE}(, ?{_DEVICE})*)$",
        description="auto, cpu, mps, cuda or cuda:N (N is a number), or several with commas (cuda:0,cuda:1)",
    ),
]


def default_cache_dir() -> Path:
    """cache/ of a checkout, else the user's cache folder."""
    if CHECKOUT:
        return CHECKOUT / "cache"
    from platformdirs import user_cache_path

    return user_cache_path("hub", appauthor=False)


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the owner decides. Times are in seconds unless the name says otherwise."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    public_url: str | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    api_keys: dict[str, str] = field(default_factory=dict)
    admin_keys: list[str] = field(default_factory=list)
    offline: bool = False
    auto_pull: Literal["off", "refuse", "wait"] = "off"
    default_model: str = "dall-e-2"
    aliases: dict[str, str | list[str]] = field(default_factory=dict)
    remote_models: list[str] = field(default_factory=list)
    remote_keys: list[str] = field(default_factory=list)
    credentials: Path | None = None
    budgets: dict[str, Annotated[float, Meta(ge=0, description="a number of US dollars a month, 0 or more")]] = field(
        default_factory=dict
    )
    models_dir: Path | None = None
    loras_dir: Path | None = None
    weights_dir: Path | None = None
    bundles_dir: Path | None = None
    bundle_signers: Path | None = None
    cache_dir: Path = field(default_factory=default_cache_dir)
    file_ttl: Annotated[int, Meta(ge=1, le=10 * 366 * 24 * 3600)] = 3600
    job_ttl: Annotated[int, Meta(ge=1, le=10 * 366 * 24 * 3600)] = 24 * 3600
    on_disconnect: Literal["cancel", "finish"] = "cancel"
    reuse_results: bool = True
    receipts: bool = True
    image_hosts: list[str] = field(default_factory=list)
    max_body_mb: PositiveInt = 64
    max_queue: PositiveInt = 64
    max_batch: PositiveInt = 16
    device: Device = "auto"
    device_memory_mb: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    device_reserve_mb: Annotated[int, Meta(ge=0, le=100_000_000)] = 512
    keep_alive: Annotated[int, Meta(ge=-1, le=10 * 366 * 24 * 3600)] = 300
    neighbours: list[str] = field(default_factory=list)
    engine_start_timeout: PositiveInt = 300
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        """Hashes the keys at once: their plain text lives nowhere in this object. Refuses what cannot work."""
        for name, key in self.api_keys.items():
            if not KEY_NAME.fullmatch(name):
                raise ValueError(f"api_keys: {name!r} is not a name (letters, digits, '.', '_', '-')")
            if not key or key != key.strip() or not (key.isprintable() and key.isascii()):
                raise ValueError(f"api_keys.{name}: the key is empty, or holds blanks or letters that are not ASCII")
            if key.startswith(PREFIX) and not _HASH.fullmatch(key):
                raise ValueError(f"api_keys.{name}: 'sha256:' must be followed by 64 hexadecimal digits")
        self.api_keys = {name: hash_key(key) for name, key in self.api_keys.items()}
        if self.public_url is not None:
            self.public_url = _origin("public_url", self.public_url, "https://images.example.org")
        self.allowed_hosts = [host.lower() for host in self.allowed_hosts]
        self.image_hosts = [host.lower() for host in self.image_hosts]
        for name, hosts in (("allowed_hosts", self.allowed_hosts), ("image_hosts", self.image_hosts)):
            for host in hosts:
                if not _HOST.fullmatch(host) and not (name == "image_hosts" and host == "*"):
                    raise ValueError(f"{name}: {host!r} is not a host or host:port")
        if twice := [device for device in self.devices if device != "cpu" and self.devices.count(device) > 1]:
            raise ValueError(f"device: {twice[0]} is named twice")
        self.neighbours = [_neighbour(named) for named in self.neighbours]
        self.cache_dir = _absolute("cache_dir", self.cache_dir)
        for name in OPTIONAL_PLACES:
            if (folder := getattr(self, name)) is not None:
                setattr(self, name, _absolute(name, folder))
        self._check_key_names()

    def _check_key_names(self) -> None:
        for name, named in (
            ("admin_keys", set(self.admin_keys)),
            ("remote_keys", set(self.remote_keys) - {EVERYBODY}),
            ("budgets", set(self.budgets) - {EVERYBODY}),
        ):
            if unknown := named - set(self.api_keys):
                raise ValueError(f"{name}: there is no key '{min(unknown)}' among api_keys")

    def may_leave(self, owner: str) -> bool:
        """Whether requests of this key ("" on a hub without keys) may be served by other machines."""
        return owner in self.remote_keys or EVERYBODY in self.remote_keys

    def budget_of(self, owner: str) -> float | None:
        """What this key may spend in a calendar month (UTC), in US dollars; None where nothing limits it."""
        return self.budgets.get(owner, self.budgets.get(EVERYBODY))

    @property
    def loopback(self) -> bool:
        """Whether the hub listens on this machine's loopback interface only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def devices(self) -> list[str]:
        """`auto` alone, or what `device` names, one worker each: cpu, mps or cuda:N."""
        named = [device.strip() for device in self.device.split(",")]
        return ["cuda:0" if device == "cuda" else device for device in named]

    @property
    def models_dirs(self) -> list[Path]:
        """Folders with manifests; the later ones are the owner's and win."""
        shipped = CHECKOUT / "models" if CHECKOUT else PACKAGE / "_models"
        owned = self.models_dir or (None if CHECKOUT else _user_models())
        return [shipped, *([owned] if owned and owned != shipped else [])]

    @property
    def owned_models(self) -> Path:
        """Where manifests of models that are pulled, added or imported are written; it need not be there."""
        return self.models_dir or (CHECKOUT / "models" if CHECKOUT else _users_models_path())

    @property
    def weights_folder(self) -> Path:
        """Where what is pulled, copied or imported lies, in the layout of Hugging Face's cache."""
        return self.weights_dir or self.cache_dir / "weights"

    @property
    def bundles_folder(self) -> Path:
        """Where the admin API writes bundles to, and takes them from."""
        return self.bundles_dir or self.cache_dir / "bundles"

    @property
    def loras_folder(self) -> Path:
        """Where LoRAs lie; unless the owner has named it, it need not be there."""
        return self.loras_dir or self.owned_models / "loras"

    def check_bind(self) -> None:
        """Raises ConfigurationError where strangers could use the hub without a key."""
        if not self.api_keys and not self.loopback:
            raise ConfigurationError(
                f"host {self.host} can be reached from other machines, and no API key is set, so anyone could use "
                "this hub.\nMake a key with `hub keys new NAME` and set it as it says, or listen on 127.0.0.1."
            )


def has_port(host: str) -> bool:
    """Whether a `host` or `host:port` (IPv6 addresses in brackets) names a port."""
    return ":" in host.rpartition("]")[2]


def _origin(name: str, url: str, example: str) -> str:
    try:
        parts = urlsplit(url)
        beyond = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # a port may raise
    except ValueError:
        beyond, named = False, False
    if beyond or not named or not _HOST.fullmatch(parts.netloc):
        shown = "" if "@" in url else f"{url!r} is not possible; "  # there may be a password in it
        raise ValueError(f"{name}: {shown}give an origin such as {example}, without a path")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _neighbour(named: str) -> str:
    kind, _, url = named.partition(":")
    if kind not in ("ollama", "vllm") or not url:
        shown = "" if "@" in named else f"{named!r} is not possible; "
        raise ValueError(f"neighbours: {shown}write ollama:URL or vllm:URL, such as ollama:http://127.0.0.1:11434")
    return f"{kind}:{_origin('neighbours', url, 'http://127.0.0.1:11434')}"


def _absolute(name: str, folder: Path) -> Path:
    try:
        return folder.expanduser().resolve()
    except RuntimeError:  # of expanduser
        raise ValueError(f"{name}: {folder} begins with ~ and no user of this machine has such a home") from None


def _users_models_path() -> Path:
    from platformdirs import user_data_path

    return user_data_path("hub", appauthor=False) / "models"


def _user_models() -> Path | None:
    folder = _users_models_path()
    return folder if folder.is_dir() else None


def find_config(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """--config, else HUB_CONFIG, else ./hub.toml, else the user's configuration folder; None where there is none."""
    named = explicit or (Path(environ["HUB_CONFIG"]) if environ.get("HUB_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(f"{named}: no such settings file")
        return named
    if Path("hub.toml").is_file():
        return Path("hub.toml")
    from platformdirs import user_config_path

    usual = user_config_path("hub", appauthor=False) / "hub.toml"
    return usual if usual.is_file() else None


def _to_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError("not a path")


def _check(name: str, value: Any, label: str, *, strict: bool) -> None:
    """Raises ConfigurationError that says which setting is wrong, what it is, and what is allowed."""
    kinds = {info.name: info.type for info in msgspec.structs.fields(Settings)}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        words = f"Did you mean {near[0]}?" if near else f"There are {', '.join(kinds)}."
        raise ConfigurationError(f"{label}: there is no such setting. {words}")
    try:
        msgspec.convert(value, kinds[name], strict=strict, dec_hook=_to_path)
    except msgspec.ValidationError:
        allowed = _allowed(kinds[name])
        if isinstance(value, dict):  # most likely a line that slipped under the wrong [heading]
            each = get_args(kinds[name])[-1] if get_args(kinds[name]) else str
            key, value = next((item for item in value.items() if not _fits(item[1], each, strict)), ("", value))
            label = f"{label}.{key}".rstrip(".")
            if key:
                allowed = _allowed(each) if name == "budgets" else f"a text in quotes, as all under [{name}]"
        wrong = "" if name == "api_keys" else f"{reprlib.repr(value)} is not possible; "
        number = allowed.startswith(("a whole number", "a number"))
        quoted = (
            f"{', ' * (',' in allowed) or ' '}without quotes" if strict and isinstance(value, str) and number else ""
        )
        raise ConfigurationError(f"{label}: {wrong}it takes {allowed}{quoted}.") from None


def _fits(value: Any, kind: Any, strict: bool) -> bool:
    try:
        msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError:
        return False
    return True


def _allowed(kind: Any) -> str:
    """What a setting takes, in words."""
    from msgspec import inspect

    told = inspect.type_info(kind)
    if isinstance(told, inspect.UnionType):  # with None, which no file can say
        told = next(each for each in told.types if not isinstance(each, inspect.NoneType))
    match told:
        case inspect.Metadata(extra_json_schema={"description": str(words)}):
            return words
        case inspect.LiteralType():
            *some, last = get_args(kind)  # in their order here
            return f"{', '.join(some)} or {last}"
        case inspect.IntType(ge=low, le=None):
            return f"a whole number, {low} or more"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.BoolType():
            return "true or false"
        case inspect.ListType():
            return 'a list of texts, ["…", "…"]'
        case inspect.DictType(value_type=inspect.Metadata(extra_json_schema={"description": str(words)})):
            return f"a table of lines such as NAME = 5.0 ({words})"
        case inspect.DictType():
            return 'a table of lines such as name = "…"'
    return 'a text in quotes, "…"'


def _from_file(source: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{source}: is not text in UTF-8") from None
    except ValueError as error:
        raise ConfigurationError(f"{source}: is not valid TOML: {error}") from None
    for name, value in values.items():
        _check(name, value, f"{source}: {name}", strict=True)  # "8000" is not a port in a file
    try:
        msgspec.convert(values, Settings, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{source}: {error}") from None
    for name in (*OPTIONAL_PLACES, "cache_dir"):
        if name in values:  # relative to the file that says so
            values[name] = str(source.resolve().parent / Path(values[name]).expanduser())
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = {f"HUB_{info.name.upper()}" for info in msgspec.structs.fields(Settings)} | NOT_SETTINGS
    for name in environ:
        if name.startswith("HUB_") and name not in known:
            # Not an error: Kubernetes sets such variables of its own for a service called hub.
            log.warning("the environment variable %s is not a setting; see docs/settings.md", name)
    for info in msgspec.structs.fields(Settings):
        variable = f"HUB_{info.name.upper()}"
        text = environ.get(variable)
        if not text:
            continue
        kind = getattr(info.type, "__origin__", None)
        if kind is dict:
            pairs = [item.partition(":") for item in text.split(",") if item.strip()]
            if any(not colon for _, colon, _ in pairs):
                raise ConfigurationError(f"{variable}: write it as name:value,name:value")
            values[info.name] = {name.strip(): value.strip() for name, _, value in pairs}
            if info.name == "budgets":
                _check(info.name, values[info.name], variable, strict=False)
        elif kind is list:
            values[info.name] = [item.strip() for item in text.split(",") if item.strip()]
        else:
            _check(info.name, text, variable, strict=False)
            values[info.name] = text
    return values


def load_settings(
    config: Path | None = None,
    environ: MutableMapping[str, str] | None = None,
    **overrides: Any,
) -> Settings:
    """Reads hub.toml, HUB_* and `overrides` (None = not given); raises ConfigurationError naming source and setting.

    HUB_API_KEYS is taken out of the environment, so that no child process inherits it.
    """
    environ = os.environ if environ is None else environ
    source = find_config(config, environ)
    values = _from_file(source) if source is not None else {}
    values |= _from_environment(environ)
    environ.pop("HUB_API_KEYS", None)
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=_to_path)
    except msgspec.ValidationError as error:  # its words begin with the setting
        name, words = re.split(r"[.:] ?", str(error), maxsplit=1)
        raise ConfigurationError(f"HUB_{name.upper()}: {words}") from None
