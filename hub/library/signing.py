"""Who vouches for a bundle: Ed25519 signatures, in the form that OpenSSH gives its own (SSHSIG).

So keys are made by `ssh-keygen -t ed25519`, and a bundle can be checked without the hub: `tar xf` its first two
members, then `ssh-keygen -Y verify -n image-hub-bundle -s bundle.json.sig …`. What is signed is a SHA-512 within a
frame that names its purpose: no signature that was made for anything else counts here, and none made here elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import InvalidRequest, ModelRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NAMESPACE = b"image-hub-bundle"
PASSPHRASE = "HUB_SIGNING_PASSPHRASE"  # noqa: S105  # the variable's name
MAX_KEYS = 1 << 20
"""Bytes of a file with keys."""
KIND, HASH, MAGIC = b"ssh-ed25519", b"sha512", b"SSHSIG"
ARMOR = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\n([A-Za-z0-9+/=\n]{1,4000})\n-----END SSH SIGNATURE-----\n?", re.DOTALL
)
PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def load_private(file: Path, environ: Mapping[str, str] = os.environ) -> Ed25519PrivateKey:
    """The key to sign with, in OpenSSH's format or PEM; its passphrase, where it has one, is in the environment. Raises
    InvalidRequest."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _read(file, "The signing key")
    load = load_ssh_private_key if b"BEGIN OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        try:
            key = load(data, None)
        except TypeError:  # it is encrypted
            if not environ.get(PASSPHRASE):
                raise InvalidRequest(f"The signing key has a passphrase; set {PASSPHRASE} to it.") from None
            key = load(data, environ[PASSPHRASE].encode())
    except UnsupportedAlgorithm:
        raise InvalidRequest(
            "A key with a passphrase in OpenSSH's format is read with the library bcrypt, which is not installed (pip "
            "install bcrypt). Or keep the key as PEM (openssl genpkey -algorithm ed25519 -aes256)."
        ) from None
    except ValueError:
        raise InvalidRequest(
            f"The signing key is no private key in OpenSSH's format or PEM, or {PASSPHRASE} is not its passphrase."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidRequest("The signing key is not an Ed25519 key; `ssh-keygen -t ed25519` makes one.")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of its public half, by which keys are compared here."""
    return key.public_key().public_bytes_raw()


def read_trusted(file: Path) -> frozenset[bytes]:
    """The public keys of a file: OpenSSH's lines (`ssh-ed25519 AAAA… name`, # comments) and PEM. Raises InvalidRequest
    for a line that is neither: a key that was mistyped must not be passed over."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data, found = _read(file, "The file of trusted keys"), set()
    blocks = [(load_pem_public_key, block) for block in PEM.findall(data)]
    lines = [line.strip() for line in PEM.sub(b"", data).splitlines()]
    for load, text in [*blocks, *((load_ssh_public_key, line) for line in lines if line and line[:1] != b"#")]:
        try:
            key = load(text)
        except Exception:  # the library has no base for what it raises for broken keys
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidRequest(
                "The file of trusted keys has something that is no Ed25519 public key: it takes lines such as "
                "`ssh-ed25519 AAAA… name`, and PEM."
            )
        found.add(key.public_bytes_raw())
    if not found:
        raise InvalidRequest("The file of trusted keys has no key.")
    return frozenset(found)


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` shows a public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(_public(key)).digest()).decode().rstrip("=")


def sign(message: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature's file."""
    signature = _text(KIND) + _text(key.sign(_framed(message)))
    fields = (_public(public_bytes(key)), NAMESPACE, b"", HASH, signature)
    blob = MAGIC + (1).to_bytes(4, "big") + b"".join(map(_text, fields))
    lines = re.findall(".{1,70}", base64.b64encode(blob).decode())
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""]).encode()


def verify(message: bytes, signature: bytes) -> bytes:
    """The public key by which this is a right signature; whether it is trusted is another question. Raises
    ModelRefused."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key, raw = _parse(signature)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(raw, _framed(message))
    except (InvalidSignature, ValueError):
        raise ModelRefused("The bundle's signature is wrong: bundle.json was changed after it was signed.") from None
    return key


def _parse(signature: bytes) -> tuple[bytes, bytes]:
    try:
        found = ARMOR.fullmatch(signature)
        blob = base64.b64decode(found[1].replace(b"\n", b""), validate=True) if found else b""
        if blob[:10] != MAGIC + (1).to_bytes(4, "big"):
            raise ValueError
        public, namespace, _reserved, digest, signed = _texts(blob[10:], 5)
        (kind, key), (signing, raw) = _texts(public, 2), _texts(signed, 2)
    except (ValueError, binascii.Error):
        raise ModelRefused("bundle.json.sig is no signature.") from None
    if (kind, signing, digest, namespace, _reserved) != (KIND, KIND, HASH, NAMESPACE, b""):
        raise ModelRefused("bundle.json.sig is a signature of another kind, or was made for something else.")
    return key, raw


def _framed(message: bytes) -> bytes:
    return MAGIC + b"".join(map(_text, (NAMESPACE, b"", HASH, hashlib.sha512(message).digest())))


def _public(key: bytes) -> bytes:
    return _text(KIND) + _text(key)


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _texts(data: bytes, count: int) -> list[bytes]:
    """Exactly so many; raises ValueError."""
    found = []
    for _ in range(count):
        end = 4 + int.from_bytes(data[:4], "big")
        if end > len(data) or len(data) < 4:
            raise ValueError
        found.append(data[4:end])
        data = data[end:]
    if data:
        raise ValueError
    return found


def _read(file: Path, what: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_KEYS + 1)
    except OSError as error:
        raise InvalidRequest(f"{what} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_KEYS:
        raise InvalidRequest(f"{what} is too large to be one.")
    return data
