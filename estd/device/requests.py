"""Keys and certification requests (PKCS#10, RFC 2986) made on the device's side.

A `SigningRequest` keeps the key and the request's bytes together, so that the answer can be held against both. Key types
are those of `estd.keys.contract`. Signing is deterministic wherever the algorithm allows: the same key asking for the
same names makes the same bytes, which a server answers with the same certificate. Must not import the server's floors
above `keys`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estd.asn1 import der
from estd.asn1.foreign import Unreadable, read_pem_certificates
from estd.asn1.oids import OIDS
from estd.asn1.spki import KEY_TYPES
from estd.errors import Invalid, Problem, Refused
from estd.keys.software import SoftwareKey, generate, read_private_key
from estd.names import EMPTY_NAME, write_name, write_san

DEFAULT_KEY_TYPE: Final = "ec-p256"


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A certification request together with the key that signed it."""

    der: bytes
    key: SoftwareKey = field(repr=False)

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, which the certificate must hold."""
        return self.key.spki


def generate_key(key_type: str) -> SoftwareKey:
    """A new private key.

    Raises:
        Invalid: no such key type.
    """
    if key_type not in KEY_TYPES:
        raise Invalid([Problem(f"key type {key_type!r}", "is unknown", f"Use one of {', '.join(KEY_TYPES)}.")])
    return generate(key_type)


def write_request(
    key: SoftwareKey, subject: bytes = EMPTY_NAME, san: bytes | None = None, *, san_critical: bool = False
) -> SigningRequest:
    """Ask for a certificate over that key with that subject (DER Name) and alternative names (DER GeneralNames).

    The empty subject leaves the name to the server, where the profile takes it from the credential or the inventory.
    """
    attributes = b""
    if san is not None:
        flag = der.boolean(True) if san_critical else b""
        extension = der.sequence(der.oid("subjectAltName"), flag, der.octet_string(san))
        # RFC 2985 §5.4.2: extensions travel in one extensionRequest attribute.
        attributes = der.sequence(der.oid("extensionRequest"), der.set_of([der.sequence(extension)]))
    # RFC 2986 §4.1: attributes are there even when there are none.
    body = der.sequence(der.integer(0), subject, key.spki, der.tlv(0xA0, attributes))
    [signature] = key.sign_many([body])
    return SigningRequest(der.sequence(body, key.algorithm.identifier, der.bit_string(signature)), key)


def write_renewal(key: SoftwareKey, current: x509.Certificate) -> SigningRequest:
    """Ask for a successor: RFC 7030 §4.2.2 wants the names of the current certificate, unchanged."""
    subject = current.subject.public_bytes()
    for extension in current.extensions:
        if extension.oid.dotted_string == OIDS["subjectAltName"]:
            return write_request(key, subject, extension.value.public_bytes(), san_critical=extension.critical)
    return write_request(key, subject)


def read_subject(text: str) -> bytes:
    """A subject as a person writes it: RFC 4514, such as ``CN=pump-17,O=Harbour``; empty text is the empty name.

    Raises:
        Invalid: not such a name.
    """
    try:
        return write_name(text)
    except Refused as reason:
        raise Invalid([Problem(f"subject {text!r}", reason.detail, "Write it like CN=pump-17,O=Harbour.")]) from None


def read_names(texts: Iterable[str]) -> bytes | None:
    """Alternative names as a person writes them: ``dns:…``, ``ip:…``, ``uri:…``, ``email:…``; None for none.

    Raises:
        Invalid: one of them is no such name.
    """
    texts = list(texts)
    try:
        return write_san(texts) if texts else None
    except Refused as reason:
        raise Invalid([Problem("subjectAltName", reason.detail, "Write names like dns:pump-17.example.")]) from None


def read_key(path: Path) -> SoftwareKey:
    """An unencrypted private key in PEM or DER.

    Raises:
        Invalid: missing, encrypted, or no private key.
    """
    return read_private_key(_read_file(path), str(path))


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file, in order.

    Raises:
        Invalid: missing, or without a certificate.
    """
    try:
        return read_pem_certificates(_read_file(path))
    except Unreadable:
        raise Invalid([Problem(str(path), "holds no certificate", "Name a PEM file with certificates.")]) from None


def write_key(key: SoftwareKey) -> bytes:
    """PKCS#8 in PEM (RFC 5958, RFC 7468 §10), unencrypted."""
    return key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid([Problem(str(path), f"cannot be read ({error.strerror})", "Name a readable file.")]) from None
