"""The settings: whether they can be read, and whether they lead somewhere."""

from __future__ import annotations

import difflib
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from hub.doctor.findings import Case, Finding, ok, problem, warning
from hub.errors import ConfigurationError, HubError
from hub.library.signing import read_trusted
from hub.registry import read_aliases
from hub.settings import NOT_SETTINGS, OPTIONAL_PLACES, Settings, find_config, load_settings

FIELDS = [info.name for info in msgspec.structs.fields(Settings)]
READ = "What each setting takes: docs/settings.md."


def read_settings(config: Path | None, environ: MutableMapping[str, str]) -> tuple[Settings, list[Finding]]:
    """The settings as the hub would read them. Where it would not start with them: what is wrong, and those of them
    that are good, so that everything else can be looked at."""
    told = dict(environ)
    try:
        source = find_config(config, environ)
        settings = load_settings(config, environ)
        where = f"read from {source}" if source else "no hub.toml: defaults, and what the environment says"
        return settings, [ok("settings", "settings", where)]
    except ConfigurationError:
        remedy = f"Correct it: the hub does not start. {READ}"
        found = [problem("settings", "settings", words, remedy) for words in _all_wrong(config, told)]
    try:
        source = find_config(config, told)
    except ConfigurationError:
        source = None
    environ.pop("HUB_API_KEYS", None)  # as load_settings does: no child inherits it
    return _good_ones(source, told), found


def _all_wrong(config: Path | None, environ: Mapping[str, str]) -> list[str]:
    """What is wrong with the settings, which are refused for the first of it: of the file that, and every variable. One
    that was named is left out, and all are read again; where the file was named, without it."""
    words: list[str] = []
    left = dict(environ)
    with tempfile.NamedTemporaryFile(suffix=".toml") as nothing:
        while True:
            try:
                load_settings(config, dict(left))  # it takes out what no child may inherit
                return words
            except ConfigurationError as error:
                told = str(error)
            named = re.match("HUB_[A-Z_]+(?=[:.])", told)
            if named and named[0] in left:
                del left[named[0]]
            elif config == Path(nothing.name) or (named and words):  # it follows from what was left out
                return words
            else:
                config = Path(nothing.name)
                left.pop("HUB_ADMIN_KEYS", None)  # it goes by keys that the file may have
            words.append(told)


def _good_ones(source: Path | None, environ: Mapping[str, str]) -> Settings:
    """Those that can stand together, of a file and then of the environment; the rest as if nobody had said it."""
    values: dict[str, Any] = {}
    for said in (_said_in(source), _said_by(environ)):
        for name in FIELDS:
            if name in said and _convert(values | {name: said[name]}) is not None:
                values[name] = said[name]
    return _convert(values) or Settings()


def _said_in(source: Path | None) -> dict[str, Any]:
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8")) if source else {}
    except (OSError, ValueError):
        return {}
    for name in (*OPTIONAL_PLACES, "cache_dir"):
        if source and isinstance(values.get(name), str):  # relative to the file that says so
            values[name] = str(source.resolve().parent / values[name])
    return values


def _said_by(environ: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for info in msgspec.structs.fields(Settings):
        if text := environ.get(f"HUB_{info.name.upper()}"):
            kind, items = getattr(info.type, "__origin__", None), [item.strip() for item in text.split(",")]
            pairs = dict(item.partition(":")[::2] for item in items if ":" in item)
            said[info.name] = pairs if kind is dict else items if kind is list else text
    return said


def _convert(values: dict[str, Any]) -> Settings | None:
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except (msgspec.ValidationError, ValueError, TypeError):
        return None


def check(case: Case) -> Iterator[Finding]:
    """Of settings that can be read."""
    settings = case.settings
    yield from _unknown(case.environ)
    try:
        settings.check_bind()
        who = f"{len(settings.api_keys)} keys" if settings.api_keys else "no keys: this machine's own programs alone"
        yield ok("settings", "host", f"{settings.host}, {who}")
    except ConfigurationError as error:
        words = str(error).partition("\n")[0]
        yield problem("settings", "host", words, "`hub keys new NAME`, and set it as that says; or host = '127.0.0.1'.")
    if settings.admin_keys:
        yield ok("settings", "admin_keys", ", ".join(settings.admin_keys))
    if settings.bundle_signers is not None:
        yield from _signers(settings.bundle_signers)
    yield from _names(case)


def _signers(file: Path) -> Iterator[Finding]:
    """Of bundles: whether there is anybody who may have signed one."""
    try:
        keys = read_trusted(file)
    except ImportError:  # told among the libraries
        return
    except HubError as error:
        words = f"{file}: {error.message.rstrip('.')}: every import is refused"
        remedy = "Let it be a file with Ed25519 public keys, one a line (docs/air-gap.md), or take the setting out."
        yield problem("settings", "bundle_signers", words, remedy)
    else:
        yield ok("settings", "bundle_signers", f"{len(keys)} keys, in {file}")


def _unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    known = {f"HUB_{name.upper()}" for name in FIELDS} | NOT_SETTINGS
    for name in sorted(environ):
        if name.startswith("HUB_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            remedy = "Correct or unset it. (Kubernetes sets such ones of its own for a service called hub.)"
            yield warning("settings", name, f"this environment variable is not a setting.{meant}", remedy)


def _names(case: Case) -> Iterator[Finding]:
    """Aliases, and the default model: whether there is a model behind each name."""
    settings = case.settings
    listed = [*case.models, *case.elsewhere]
    models = {model.id for model in listed}
    names = models | {alias for model in listed for alias in model.aliases} | set(settings.aliases)
    for alias, target in settings.aliases.items():  # lists are routes, and are looked at with the remote models
        if isinstance(target, str) and target not in models:
            words = f"it leads to '{target}', and there is no such model"
            remedy = f"Correct it under [aliases], or add the model; there are {', '.join(sorted(models)) or 'none'}."
            yield problem("settings", f"aliases.{alias}", words, remedy)
    for folder in settings.models_dirs:
        try:
            chosen = read_aliases(folder)
        except ConfigurationError as error:
            yield problem("settings", "aliases.toml", str(error), "Correct or delete it: the hub does not start.")
            continue
        names |= set(chosen)
        for alias, target in chosen.items():
            if target not in models:
                words = f"in {folder} it leads to '{target}', and there is no such model: it is left out"
                yield warning("settings", f"aliases.toml: {alias}", words, f"`hub models alias {alias} MODEL`")
    default = settings.default_model
    if default in names:
        yield ok("settings", "default_model", default)
    else:
        shown = re.sub(r"[^ -~]", "?", default[:64])
        near = difflib.get_close_matches(default, names, n=3) or sorted(models)[:3]
        remedy = f"Set it to a model that is there: {', '.join(near) or 'add one first'}. The hub does not start so."
        yield problem("settings", "default_model", f"there is no model '{shown}'", remedy)
