"""Private keys that live in this process, and the sealed form in which they are stored.

A sealed key is PKCS#8 (RFC 5958) under AES-256-GCM with a key-encryption key of 32 octets::

    "ESK" version=1 | 4 octets that name the key-encryption key | 12 octets nonce | ciphertext and tag

The header and the caller's `context` (which ecosystem, which issuer) are authenticated with it, so a sealed key moved
to another issuer's row does not open. Who holds the key-encryption key and where it is read from is the roof's affair.

Signatures are deterministic wherever the algorithm allows: ECDSA by RFC 6979 §3.2, RSASSA-PKCS1-v1_5 (RFC 8017 §8.2)
and Ed25519 (RFC 8032 §5.1.6) by nature. ML-DSA is signed in its hedged form (FIPS 204 §3.4), which is not.

Must not import anything of the floors above.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from estd.errors import Code, Invalid, Problem, Unavailable
from estd.keys.contract import ALGORITHMS, Algorithm

KEK_BYTES: Final = 32
"""Length of a key-encryption key."""


class SoftwareKey:
    """A `estd.keys.contract.SigningKey` whose private half is in this process's memory."""

    __slots__ = ("_sign", "algorithm", "deterministic", "key_type", "private_key", "spki")

    key_type: str
    algorithm: Algorithm
    spki: bytes
    deterministic: bool

    def __init__(self, private_key: PrivateKeyTypes) -> None:
        self.key_type, self._sign = _signer(private_key)
        self.algorithm = ALGORITHMS[self.key_type]
        self.deterministic = not self.key_type.startswith("ml-dsa")
        self.private_key = private_key
        self.spki = private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def __repr__(self) -> str:
        return f"SoftwareKey({self.key_type}, {hashlib.sha256(self.spki).hexdigest()[:16]})"

    def sign_many(self, messages: Sequence[bytes]) -> list[bytes]:
        """Sign each message, in order. See `estd.keys.contract.SigningKey.sign_many`."""
        sign = self._sign
        try:
            return [sign(message) for message in messages]
        except (ValueError, MemoryError) as error:
            raise Unavailable(Code.SIGNER_UNAVAILABLE, "the issuer's key could not sign") from error


def generate(key_type: str) -> SoftwareKey:
    """Make a new key of a type in `estd.asn1.spki.KEY_TYPES`."""
    return SoftwareKey(_GENERATORS[key_type]())


def seal(key: SoftwareKey, kek: bytes, context: bytes) -> bytes:
    """Encrypt a private key for the store; `context` must be given again to `unseal`."""
    _check_kek(kek)
    plain = key.private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    header = _MAGIC + _kek_name(kek)
    nonce = os.urandom(_NONCE_BYTES)
    return header + nonce + AESGCM(kek).encrypt(nonce, plain, header + context)


def unseal(sealed: bytes, kek: bytes, context: bytes) -> SoftwareKey:
    """Open what `seal` made.

    Raises:
        Invalid: not a sealed key, sealed with another key-encryption key, for another context, or altered.
    """
    _check_kek(kek)
    header, nonce = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
    if not header.startswith(_MAGIC) or len(sealed) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES:
        raise _unsealable("is not a sealed key of a format this version reads", "Restore it from a backup.")
    if header[len(_MAGIC) :] != _kek_name(kek):
        raise _unsealable(
            "was sealed with another key-encryption key", "Start with the key-encryption key it was sealed with."
        )
    try:
        plain = AESGCM(kek).decrypt(nonce, sealed[_HEADER_BYTES + _NONCE_BYTES :], header + context)
    except InvalidTag:
        raise _unsealable(
            "was altered, or belongs to another issuer", "Restore it from a backup; do not move keys between issuers."
        ) from None
    return SoftwareKey(serialization.load_der_private_key(plain, None))


def is_sealed_under(sealed: bytes, kek: bytes) -> bool:
    """Whether a sealed key names this key-encryption key; it is not opened, so it may be damaged all the same."""
    return sealed[:_HEADER_BYTES] == _MAGIC + _kek_name(kek)


def is_private_key(content: bytes) -> bool:
    """Whether that is a private key, PEM or DER, of a kind we know or not."""
    try:
        read_private_key(content, "")
    except Invalid:
        return b"PRIVATE KEY-----" in content
    return True


def read_private_key(content: bytes, where: str) -> SoftwareKey:
    """Read an operator's unencrypted private key, PEM or DER.

    Raises:
        Invalid: no private key, an encrypted one, or one of a type estd does not sign with.
    """
    try:
        if b"-----BEGIN" in content:
            return SoftwareKey(serialization.load_pem_private_key(content, None))
        return SoftwareKey(serialization.load_der_private_key(content, None))
    except TypeError:
        what, remedy = "the private key is encrypted", "Decrypt it first, for example with `openssl pkey -in … -out …`."
    except Invalid:
        what, remedy = "keys of this type do not sign here", f"Use one of {', '.join(ALGORITHMS)}."
    except (ValueError, UnsupportedAlgorithm):
        what, remedy = "no private key can be read from it", "Give a PKCS#8 private key in PEM or DER form."
    raise Invalid([Problem(where, what, remedy)])


_MAGIC: Final = b"ESK\x01"
_KEK_NAME_BYTES: Final = 4
_HEADER_BYTES: Final = len(_MAGIC) + _KEK_NAME_BYTES
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16

_GENERATORS: Final[dict[str, Callable[[], PrivateKeyTypes]]] = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}

_CURVES: Final[dict[str, tuple[str, ec.ECDSA]]] = {
    "secp256r1": ("ec-p256", ec.ECDSA(hashes.SHA256(), deterministic_signing=True)),
    "secp384r1": ("ec-p384", ec.ECDSA(hashes.SHA384(), deterministic_signing=True)),
    "secp521r1": ("ec-p521", ec.ECDSA(hashes.SHA512(), deterministic_signing=True)),
}

_RSA_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    2048: hashes.SHA256(),
    3072: hashes.SHA256(),
    4096: hashes.SHA384(),
}


def _signer(private_key: PrivateKeyTypes) -> tuple[str, Callable[[bytes], bytes]]:
    """The key's type and the one way it signs."""
    match private_key:
        case ec.EllipticCurvePrivateKey() as elliptic if elliptic.curve.name in _CURVES:
            key_type, algorithm = _CURVES[elliptic.curve.name]
            return key_type, lambda message: elliptic.sign(message, algorithm)
        case rsa.RSAPrivateKey() as modular if modular.key_size in _RSA_HASHES:
            digest = _RSA_HASHES[modular.key_size]
            scheme = padding.PKCS1v15()
            return f"rsa-{modular.key_size}", lambda message: modular.sign(message, scheme, digest)
        case ed25519.Ed25519PrivateKey():
            return "ed25519", private_key.sign
        case mldsa.MLDSA44PrivateKey():
            return "ml-dsa-44", private_key.sign
        case mldsa.MLDSA65PrivateKey():
            return "ml-dsa-65", private_key.sign
        case mldsa.MLDSA87PrivateKey():
            return "ml-dsa-87", private_key.sign
        case _:
            raise Invalid([Problem("private key", "keys of this type do not sign here", "Use a supported key type.")])


def _kek_name(kek: bytes) -> bytes:
    """Four octets that tell key-encryption keys apart and say nothing about them."""
    return hashlib.sha256(b"estd key-encryption key\0" + kek).digest()[:_KEK_NAME_BYTES]


def _check_kek(kek: bytes) -> None:
    if len(kek) != KEK_BYTES:
        raise _unsealable(f"needs a key-encryption key of {KEK_BYTES} octets, not {len(kek)}", "Make a new one.")


def _unsealable(what: str, remedy: str) -> Invalid:
    return Invalid([Problem("sealed key", what, remedy)])
