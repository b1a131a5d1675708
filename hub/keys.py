"""API keys: named, kept in memory only as SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

PREFIX = "sha256:"


def new_key() -> str:
    """A fresh key with 256 random bits, in the shape that OpenAI's clients expect (`sk-…`)."""
    return "sk-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """`sha256:<hex>`; a value that already is such a hash stays as it is, so hub.toml need not hold the key."""
    if key.startswith(PREFIX):
        return key
    return PREFIX + hashlib.sha256(key.encode()).hexdigest()


class Keyring:
    """Knows which key belongs to which name; an empty ring means that the hub is open."""

    def __init__(self, hashed: Mapping[str, str]) -> None:
        """`hashed` maps a key's name to its `sha256:<hex>`."""
        self._hashed = dict(hashed)

    def __bool__(self) -> bool:
        return bool(self._hashed)

    def name_of(self, key: str) -> str | None:
        """The name of a presented key, or None. Every stored hash is compared, so time tells nothing."""
        presented = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for name, stored in self._hashed.items():
            if hmac.compare_digest(stored.removeprefix(PREFIX), presented):
                found = name
        return found
