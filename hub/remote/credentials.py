"""The owner's keys for remote providers: from the environment, or from a file that nobody else can read.

    [openai]                                   # as `provider`, or `remote.credentials`, of a manifest calls it
    keys = ["sk-…", "sk-…"]                    # each as often as the other

    [lab]
    keys = [{key = "…", weight = 3, name = "team-a"}, {key = "…"}]

A key that the provider refuses is left alone for a while and then tried again, in longer and longer intervals: by all
models, or by the one for which alone it is not good. One that is told to wait waits for as long as it was told. A key's
text leaves this module only into a request's headers: `Key` shows its name alone.
"""

from __future__ import annotations

import os
import random
import re
import stat
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hub.errors import ConfigurationError
from hub.manifest import CREDENTIALS_PATTERN

PARKED = 30.0
"""Seconds for which a key that was refused is not used before it is tried again; twice as long each time it is refused
again."""
LONGEST_PARKED = 3600.0


class KeyEntry(Struct, forbid_unknown_fields=True, kw_only=True):
    """A key in the file. `weight`: how often it is used beside the others."""

    key: str
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")] | None = None

    def __repr__(self) -> str:
        return "KeyEntry(…)"


class CredentialsSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """A provider's keys in the file."""

    keys: Annotated[list[str | KeyEntry], Meta(min_length=1)]

    def __repr__(self) -> str:
        return f"CredentialsSection({len(self.keys)} keys)"


class Rest(Struct):
    """For how long a key is left alone. `until`: monotonic seconds. `refusals`: how often in a row it was not taken;
    `no_credit`: the last time, because nothing was left on it."""

    until: float = 0.0
    why: Literal["", "refused", "busy"] = ""
    refusals: int = 0
    no_credit: bool = False


class Key:
    """A key that is never shown: `name` says which one it is, in logs."""

    __slots__ = ("_rests", "_secret", "name", "weight")

    def __init__(self, name: str, secret: str, weight: float = 1.0) -> None:
        self.name = name
        self.weight = weight
        self._secret = secret
        self._rests: dict[str, Rest] = {}

    def reveal(self) -> str:
        """Its text, for the header of a request."""
        return self._secret

    def rest(self, model: str = "") -> Rest:
        """How it is with one model, or with all."""
        return self._rests.setdefault(model, Rest())

    def __repr__(self) -> str:
        return f"Key({self.name})"


class Keys:
    """The keys of one name, as one model's calls use them."""

    def __init__(self, keys: Iterable[Key], now: Callable[[], float] = time.monotonic, model: str = "") -> None:
        self.all = list(keys)
        self._now = now
        self._model = model

    def of(self, model: str) -> Keys:
        """The same keys for a model's calls."""
        return Keys(self.all, self._now, model)

    def pick(self, but: Collection[Key] = ()) -> Key | None:
        """One of those that may be used now, at random by weight; None where there is none."""
        usable = [key for key in self.all if key not in but and not any(map(self._left, self._rests(key)))]
        if not usable:
            return None
        return random.choices(usable, [key.weight for key in usable])[0]  # noqa: S311  # no secret: a share of the work

    def refuse(self, key: Key, *, everywhere: bool = True, no_credit: bool = False) -> float:
        """The provider does not take this key: it is left alone, and tried again after so many seconds. `everywhere`:
        by all models, and not by this one alone. `no_credit`: it is good, but nothing is left on it."""
        rest = key.rest("" if everywhere else self._model)
        if rest.why != "refused" or not self._left(rest):  # else another request has told so just now
            seconds = min(LONGEST_PARKED, PARKED * 2 ** min(rest.refusals, 20))
            rest.until, rest.why = max(rest.until, self._now() + seconds), "refused"
            rest.refusals += 1
            rest.no_credit = no_credit
        return self._left(rest)

    def rest(self, key: Key, seconds: float) -> None:
        """The provider said to wait for so long before this key is used again."""
        rest = key.rest()
        if rest.why != "refused" or not self._left(rest):
            rest.until, rest.why = max(rest.until, self._now() + seconds), "busy"

    def taken(self, key: Key) -> None:
        """The provider takes this key. One that was told to wait meanwhile goes on waiting."""
        for rest in self._rests(key):
            rest.refusals = 0
            if rest.why == "refused":
                rest.until, rest.why = 0.0, ""

    def rested_in(self, but: Collection[Key] = ()) -> float | None:
        """Seconds until one may be used that was only told to wait; None where there is no such key."""
        waits = [
            max(map(self._left, self._rests(key)))
            for key in self.all
            if key not in but and not any(rest.why == "refused" and self._left(rest) for rest in self._rests(key))
        ]
        return min(waits, default=None)

    @property
    def no_credit(self) -> bool:
        """Whether all are refused, and nothing is left on any of them."""
        refused = [
            [each for each in self._rests(key) if each.why == "refused" and self._left(each)] for key in self.all
        ]
        return bool(refused) and all(any(each.no_credit for each in rests) for rests in refused)

    def _rests(self, key: Key) -> tuple[Rest, Rest]:
        return key.rest(), key.rest(self._model)

    def _left(self, rest: Rest) -> float:
        return max(0.0, rest.until - self._now())


class Credentials:
    """All of them, by name."""

    def __init__(self, keys: Mapping[str, Keys]) -> None:
        self._keys = dict(keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def of(self, name: str, model: str = "") -> Keys:
        """The keys of this name, for a model's calls; none where there are none."""
        return self._keys[name].of(model) if name in self._keys else Keys(())


def open_credentials(
    file: Path | None, variables: Mapping[str, str], environ: MutableMapping[str, str] | None = None
) -> Credentials:
    """Reads the file and the environment; the file wins. `variables`: of each provider, the variable with its key,
    which is taken out of the environment, so that no child process inherits it. Of the process's own environment it is
    remembered, for the next hub in the same process.

    Raises ConfigurationError, which never shows a key.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Keys] = {}
    for name, variable in variables.items():
        text = _taken(variable, environ)
        if text:
            _check_key(text, variable)
            found[name] = Keys([Key(name, text)])
    if file is not None:
        for name, section in _read(file, variables).items():
            entries = [KeyEntry(key=each) if isinstance(each, str) else each for each in section.keys]
            for number, entry in enumerate(entries, 1):
                _check_key(entry.key, f"{file}: {name}.keys[{number - 1}]")
            named = [f"{name}/{entry.name or number}" for number, entry in enumerate(entries, 1)]
            found[name] = Keys(Key(each, entry.key, entry.weight) for each, entry in zip(named, entries, strict=True))
    return Credentials(found)


_REMEMBERED: dict[str, Key] = {}
"""What was taken out of this process's environment, by variable."""


def _taken(variable: str, environ: MutableMapping[str, str]) -> str:
    text = environ.pop(variable, None)
    if environ is os.environ:
        if text is not None:
            _REMEMBERED[variable] = Key(variable, text)
        elif variable in _REMEMBERED:
            text = _REMEMBERED[variable].reveal()
    return (text or "").strip()


def _read(file: Path, providers: Collection[str]) -> dict[str, CredentialsSection]:
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"credentials: {file} can be read by others than its owner. Run `chmod 600 {file}`."
                )
            text = stream.read().decode()
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"credentials: {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"credentials: {file} is not text in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:  # its words may quote the line
        line = re.search(r"\(at (line [0-9]+), column [0-9]+\)$", str(error))
        raise ConfigurationError(f"credentials: {file} is not valid TOML{f', in {line[1]}' if line else ''}.") from None
    if not all(re.fullmatch(CREDENTIALS_PATTERN, name) for name in values):
        raise ConfigurationError(f"credentials: {file}: a section's name is small letters, digits, '_' and '-'.")
    return {name: _section(file, name, value, providers) for name, value in values.items()}


def _section(file: Path, name: str, value: Any, providers: Collection[str]) -> CredentialsSection:
    try:
        return msgspec.convert(value, CredentialsSection)
    except msgspec.ValidationError as error:  # it may name a key that stands where a name should
        named = isinstance(value, dict) or name in providers
        at = re.search(r" - at `\$\.(keys(?:\[[0-9]+\](?:\.(?:key|weight|name))?)?)`$", str(error))
        place = f" [{name}]{f', {at[1]}' if at else ''}:" if named else ""
        words = 'it takes sections such as [openai] with keys = ["…"], or keys = [{key = "…", weight = 1, name = "…"}]'
        raise ConfigurationError(f"credentials: {file}:{place} {words}.") from None


def _check_key(text: str, label: str) -> None:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            f"{label}: this is no key: it is empty, or holds blanks or letters that are not ASCII."
        )
