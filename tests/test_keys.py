from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from hub.keys import Keyring, hash_key, new_key


def ring(**keys: str) -> Keyring:
    return Keyring({name: hash_key(key) for name, key in keys.items()})


def test_a_new_key_looks_like_openais_is_never_the_same_and_needs_no_quoting() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("sk-")
        assert len(key) >= 3 + 43, "256 bits"
        assert key.isascii()
        assert not set(key) & set(" ,:\"'\\")


def test_a_hash_is_sha256_and_stays_as_it_is_when_hashed_again() -> None:
    hashed = hash_key("sk-1")
    assert hashed == "sha256:" + hashlib.sha256(b"sk-1").hexdigest()
    assert hash_key(hashed) == hashed


def test_a_key_opens_under_its_own_name_only() -> None:
    keys = ring(alice="sk-a", bob="sk-b")
    assert (keys.name_of("sk-a"), keys.name_of("sk-b")) == ("alice", "bob")


def test_keys_that_share_a_long_prefix_are_told_apart() -> None:
    keys = ring(alice="sk-12345678901234567890-a", bob="sk-12345678901234567890-b")
    assert keys.name_of("sk-12345678901234567890-b") == "bob"
    for wrong in ("sk-12345678901234567890-c", "sk-12345678901234567890-", "sk-12345678901234567890-a\0", "SK-A"):
        assert keys.name_of(wrong) is None


def test_a_stolen_hash_is_not_a_key() -> None:
    keys = ring(alice="sk-a")
    assert keys.name_of(hash_key("sk-a")) is None
    assert keys.name_of(hash_key("sk-a").removeprefix("sha256:")) is None


def test_a_ring_without_keys_is_false_and_knows_nobody() -> None:
    empty = Keyring({})
    assert not empty
    assert empty.name_of("") is None
    assert ring(alice="sk-a")


def test_the_ring_keeps_no_key_in_plain_text() -> None:
    assert "canary" not in repr(vars(ring(alice="sk-canary")))


@given(st.text(st.characters(max_codepoint=255)) | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_whatever_a_header_holds_is_not_known_and_not_an_error(presented: str) -> None:
    assert ring(alice="sk-the-only-key").name_of(presented) is None
