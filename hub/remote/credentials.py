"""The owner's keys for remote providers: from the environment, or from a file that nobody else can read.

    [openai]                                   # as `provider`, or `remote.credentials`, of a manifest calls it
    keys = ["sk-…", "sk-…"]                    # each as often as the other

    [lab]
    keys = [{key = "…", weight = 3, name = "team-a"}, {key = "…"}]

A key that the provider refuses is left alone for a while and then tried again, in longer and longer intervals; one that
is told to wait waits for as long as it was told. A key's text leaves this module only into a request's headers: `Key`
shows its name alone.
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
from typing import Annotated, Literal

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


class Key:
    """A key that is never shown: `name` says which one it is, in logs."""

    __slots__ = ("_secret", "name", "parked_until", "refusals", "weight", "why")

    def __init__(self, name: str, secret: str, weight: float = 1.0) -> None:
        self.name = name
        self.weight = weight
        self.parked_until = 0.0
        """Monotonic seconds until which it is not to be used."""
        self.why: Literal["", "refused", "busy"] = ""
        self.refusals = 0
        """How often in a row the provider did not take it."""
        self._secret = secret

    def reveal(self) -> str:
        """Its text, for the header of a request."""
        return self._secret

    def __repr__(self) -> str:
        return f"Key({self.name})"


class Keys:
    """The keys of one name."""

    def __init__(self, keys: Iterable[Key], now: Callable[[], float] = time.monotonic) -> None:
        self.all = list(keys)
        self._now = now

    def pick(self, but: Collection[Key] = ()) -> Key | None:
        """One of those that may be used now, at random by weight; None where there is none."""
        usable = [key for key in self.all if key.parked_until <= self._now() and key not in but]
        if not usable:
            return None
        return random.choices(usable, [key.weight for key in usable])[0]  # noqa: S311  # no secret: a share of the work

    def refuse(self, key: Key) -> float:
        """The provider does not take this key: it is left alone, and tried again after so many seconds."""
        if key.why != "refused" or key.parked_until <= self._now():  # else another request has told so just now
            self._park(key, min(LONGEST_PARKED, PARKED * 2 ** min(key.refusals, 20)), "refused")
            key.refusals += 1
        return key.parked_until - self._now()

    def rest(self, key: Key, seconds: float) -> None:
        """The provider said to wait for so long before this key is used again."""
        self._park(key, seconds, "busy")

    def taken(self, key: Key) -> None:
        """The provider takes this key."""
        key.refusals, key.why = 0, ""

    def _park(self, key: Key, seconds: float, why: Literal["refused", "busy"]) -> None:
        until = self._now() + seconds
        if until > key.parked_until:
            key.parked_until, key.why = until, why

    @property
    def rested_in(self) -> float | None:
        """Seconds until one may be used that was only told to wait; None where there is no such key."""
        resting = [key.parked_until - self._now() for key in self.all if key.why == "busy"]
        return max(0.0, min(resting)) if resting else None


class Credentials:
    """All of them, by name."""

    def __init__(self, keys: Mapping[str, Keys]) -> None:
        self._keys = dict(keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def of(self, name: str) -> Keys:
        """The keys of this name; none where there are none."""
        return self._keys.get(name) or Keys(())


def open_credentials(
    file: Path | None, variables: Mapping[str, str], environ: MutableMapping[str, str] | None = None
) -> Credentials:
    """Reads the file and the environment; the file wins. `variables`: of each provider, the variable with its key,
    which is taken out of the environment, so that no child process inherits it.

    Raises ConfigurationError, which never shows a key.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Keys] = {}
    for name, variable in variables.items():
        text = environ.pop(variable, "").strip()
        if text:
            _check_key(text, variable)
            found[name] = Keys([Key(name, text)])
    if file is not None:
        for name, section in _read(file).items():
            entries = [KeyEntry(key=each) if isinstance(each, str) else each for each in section.keys]
            for number, entry in enumerate(entries, 1):
                _check_key(entry.key, f"{file}: {name}.keys[{number - 1}]")
            named = [f"{name}/{entry.name or number}" for number, entry in enumerate(entries, 1)]
            found[name] = Keys(Key(each, entry.key, entry.weight) for each, entry in zip(named, entries, strict=True))
    return Credentials(found)


def _read(file: Path) -> dict[str, CredentialsSection]:
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"credentials: {file} can be read by others than its owner. Run `chmod 600 {file}`."
                )
            text = stream.read().decode()
        found = msgspec.convert(tomllib.loads(text), dict[str, CredentialsSection])
    except OSError as error:
        raise ConfigurationError(f"credentials: {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"credentials: {file} is not text in UTF-8.") from None
    except tomllib.TOMLDecodeError:  # its words may quote a line
        raise ConfigurationError(f"credentials: {file} is not valid TOML.") from None
    except msgspec.ValidationError:  # they may name a key that stands where a name should
        words = 'it takes sections such as [openai] with keys = ["…"], or keys = [{key = "…", weight = 1, name = "…"}]'
        raise ConfigurationError(f"credentials: {file}: {words}.") from None
    if not all(re.fullmatch(CREDENTIALS_PATTERN, name) for name in found):
        raise ConfigurationError(f"credentials: {file}: a section's name is small letters, digits, '_' and '-'.")
    return found


def _check_key(text: str, label: str) -> None:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            f"{label}: this is no key: it is empty, or holds blanks or letters that are not ASCII."
        )
