from __future__ import annotations

import base64
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hub.errors import HubError, InvalidRequest, ModelRefused
from hub.library import signing
from hub.library.bundles import export, read_bundle
from hub.library.library import Library
from hub.library.orders import Import, Made
from hub.library.progress import Note, Progress, silent
from tests.library.bundling import FILES, Machine, good, members_in, tar_of
from tests.library.shelves import places_in


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As owners make them: `ours`, `other`, and `locked` with a passphrase."""
    folder = tmp_path_factory.mktemp("keys")
    for name, words in (("ours", ""), ("other", ""), ("locked", "secret")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", words, "-C", f"{name} key", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "here")
    machine.install(FILES)
    return machine


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "there")


def signed(here: Machine, target: Path, key: Path | None) -> Path:
    export([here.read("small")], {"small": here.text("small")}, target, here.weights, silent, sign_with=key)
    return target


def shown_fingerprint(public: Path) -> str:
    return subprocess.run(["ssh-keygen", "-l", "-f", public], capture_output=True, text=True).stdout.split()[1]


def refused(there: Machine, bundle: Path, words: str, **options: Any) -> None:
    before = there.tree()
    with pytest.raises(ModelRefused, match=words):
        there.take(bundle, **options)
    assert there.tree() == before


def test_a_bundle_that_is_signed_by_a_key_that_is_trusted_is_taken(
    here: Machine, there: Machine, keys: Path, tmp_path: Path
) -> None:
    bundle = signed(here, tmp_path / "b", keys / "ours")
    trust = tmp_path / "trusted"
    trust.write_text(f"# keys of ours\n\n{(keys / 'other.pub').read_text()}{(keys / 'ours.pub').read_text()}")
    result = there.take(bundle, trust=trust)
    assert result.signer == shown_fingerprint(keys / "ours.pub") == read_bundle(bundle).signer


def test_a_bundle_that_is_signed_by_another_key_is_refused_with_its_fingerprint(
    here: Machine, there: Machine, keys: Path, tmp_path: Path
) -> None:
    bundle = signed(here, tmp_path / "b", keys / "other")
    name = shown_fingerprint(keys / "other.pub").replace("+", r"\+")
    refused(there, bundle, f"signed by {name}, which is none of the keys that are trusted", trust=keys / "ours.pub")


def test_a_bundle_without_a_signature_is_refused_where_one_is_wanted(
    here: Machine, there: Machine, keys: Path, tmp_path: Path
) -> None:
    bundle = signed(here, tmp_path / "b", None)
    refused(there, bundle, "is not signed", trust=keys / "ours.pub")
    assert there.take(bundle).signer is None


def test_without_trusted_keys_the_signer_is_told(here: Machine, there: Machine, keys: Path, tmp_path: Path) -> None:
    bundle = signed(here, tmp_path / "b", keys / "ours")
    notes: list[Progress | Note] = []
    assert there.take(bundle, report=notes.append).signer == shown_fingerprint(keys / "ours.pub")
    name = shown_fingerprint(keys / "ours.pub")
    assert Note(message=f"The bundle is signed by {name} (not checked: no --trust).") in notes


def test_an_index_that_was_changed_is_refused_whoever_is_trusted(
    here: Machine, there: Machine, keys: Path, tmp_path: Path
) -> None:
    bundle = signed(here, tmp_path / "b", keys / "ours")
    (name, index), signature, *blobs = members_in(bundle)
    (tmp_path / "c").write_bytes(tar_of([(name, index.replace(b"Small", b"Smell")), signature, *blobs]))
    refused(there, tmp_path / "c", "signature is wrong", trust=keys / "ours.pub")
    refused(there, tmp_path / "c", "signature is wrong")
    (tmp_path / "d").write_bytes(tar_of([(name, index), *blobs]))
    refused(there, tmp_path / "d", "is not signed", trust=keys / "ours.pub")


def test_a_blob_that_was_changed_is_refused_in_a_bundle_that_is_signed(
    here: Machine, there: Machine, keys: Path, tmp_path: Path
) -> None:
    members = members_in(signed(here, tmp_path / "b", keys / "ours"))
    members[-1] = (members[-1][0], members[-1][1][:-1] + b"\1")
    (tmp_path / "c").write_bytes(tar_of(members))
    refused(there, tmp_path / "c", "is damaged in the bundle", trust=keys / "ours.pub")


@pytest.mark.parametrize("place", range(0, 300, 7))
def test_a_signature_that_was_changed_anywhere_is_refused(keys: Path, place: int) -> None:
    key = signing.load_private(keys / "ours")
    signature = signing.sign(b"message", key)
    assert signing.verify(b"message", signature) == signing.public_bytes(key)
    raw = bytearray(signature)
    raw[place % len(raw)] ^= 4
    with pytest.raises(ModelRefused):
        assert signing.verify(b"message", bytes(raw)) != signing.public_bytes(key)
        raise ModelRefused("by another key, which nobody trusts")


def test_no_signature_that_is_broken_raises_anything_else() -> None:
    armor = b"-----BEGIN SSH SIGNATURE-----\n%s\n-----END SSH SIGNATURE-----\n"
    for blob in (b"", b"SSHSIG", b"SSHSIG\0\0\0\1", b"SSHSIG\0\0\0\1" + b"\xff" * 40, b"SSHSIG\0\0\0\1" + bytes(20)):
        with pytest.raises(ModelRefused, match=r"is no signature|of another kind"):
            signing.verify(b"", armor % base64.b64encode(blob))
    for data in (b"", b"x", armor % b"====", armor % b"a"):
        with pytest.raises(ModelRefused, match="is no signature"):
            signing.verify(b"", data)


def test_openssh_itself_finds_a_signature_right(here: Machine, keys: Path, tmp_path: Path) -> None:
    bundle = signed(here, tmp_path / "b", keys / "ours")
    subprocess.run(["tar", "xf", bundle, "bundle.json", "bundle.json.sig"], cwd=tmp_path, check=True)
    (tmp_path / "signers").write_text(f"owner {(keys / 'ours.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-n", "image-hub-bundle", "-s", "bundle.json.sig", "-I", "owner"]
    with (tmp_path / "bundle.json").open() as index:
        told = subprocess.run([*command, "-f", "signers"], stdin=index, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout.startswith('Good "image-hub-bundle" signature for owner'), told


def test_a_signature_that_openssh_made_counts_only_if_it_was_made_for_bundles(
    there: Machine, keys: Path, tmp_path: Path
) -> None:
    members = _members(good())
    for name, words in (("image-hub-bundle", ""), ("file", "was made for something else")):
        (tmp_path / "bundle.json").write_bytes(members[0][1])
        (tmp_path / "bundle.json.sig").unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys / "ours"), "-n", name, "bundle.json"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        signature = ("bundle.json.sig", (tmp_path / "bundle.json.sig").read_bytes())
        (tmp_path / "b").write_bytes(tar_of([members[0], signature, *members[1:]]))
        if words:
            refused(there, tmp_path / "b", words, trust=keys / "ours.pub")
        else:
            assert read_bundle(tmp_path / "b").signer == shown_fingerprint(keys / "ours.pub")


def _members(data: bytes) -> list[tuple[str, bytes]]:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return members_in(Path(file.name))


def test_a_key_in_pem_signs_and_is_trusted_with_a_passphrase_and_without(
    here: Machine, there: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    for name, encryption in (("plain", NoEncryption()), ("locked", BestAvailableEncryption(b"secret"))):
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.delenv("HUB_SIGNING_PASSPHRASE", raising=False)
    with pytest.raises(InvalidRequest, match="has a passphrase; set HUB_SIGNING_PASSPHRASE"):
        signing.load_private(tmp_path / "locked")
    monkeypatch.setenv("HUB_SIGNING_PASSPHRASE", "wrong")
    with pytest.raises(InvalidRequest, match="is not its passphrase"):
        signing.load_private(tmp_path / "locked")
    assert signing.public_bytes(signing.load_private(tmp_path / "plain")) == signing.public_bytes(key)
    monkeypatch.setenv("HUB_SIGNING_PASSPHRASE", "secret")
    bundle = signed(here, tmp_path / "b", tmp_path / "locked")
    there.take(bundle, trust=tmp_path / "pub")


def test_a_key_of_openssh_with_a_passphrase_needs_it_and_a_library(keys: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"set HUB_SIGNING_PASSPHRASE|the library bcrypt"):
        signing.load_private(keys / "locked", {})
    if find_spec("bcrypt") is None:
        with pytest.raises(InvalidRequest, match="the library bcrypt, which is not installed"):
            signing.load_private(keys / "locked", {"HUB_SIGNING_PASSPHRASE": "secret"})
    else:
        assert signing.load_private(keys / "locked", {"HUB_SIGNING_PASSPHRASE": "secret"})
        with pytest.raises(InvalidRequest, match="is not its passphrase"):
            signing.load_private(keys / "locked", {"HUB_SIGNING_PASSPHRASE": "wrong"})


def test_keys_that_are_none_are_refused_without_their_contents(keys: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "ecdsa")], check=True)
    (tmp_path / "text").write_text("canary-7f3a\n")
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    for name in ("ecdsa", "text", "empty", "large", "nothing"):
        with pytest.raises(HubError) as error:
            signing.load_private(tmp_path / name, {})
        assert "canary" not in error.value.message and str(tmp_path) not in error.value.message
    for name in ("ecdsa.pub", "text", "empty", "large", "nothing"):
        with pytest.raises(HubError) as error:
            signing.read_trusted(tmp_path / name)
        assert "canary" not in error.value.message and str(tmp_path) not in error.value.message
    both = tmp_path / "both"
    both.write_text((keys / "ours.pub").read_text() + "ssh-ed25519 AAAAbroken\n")
    with pytest.raises(InvalidRequest, match="no Ed25519 public key"):
        signing.read_trusted(both)


def test_an_import_tells_who_signed_its_models(here: Machine, keys: Path, tmp_path: Path) -> None:
    bundle = signed(here, tmp_path / "b", keys / "ours")
    for trust in (None, str(keys / "ours.pub")):
        result = Library(places_in(tmp_path)).perform(Import(bundle=str(bundle), trust=trust, replace=True), silent)
        assert isinstance(result, Made) and result.signed_by == shown_fingerprint(keys / "ours.pub")
    bundle.unlink()
    result = Library(places_in(tmp_path)).perform(Import(bundle=str(signed(here, bundle, None)), replace=True), silent)
    assert isinstance(result, Made) and result.signed_by is None
