"""Certificates with one oddity each, signed by whoever is wanted, for every place that reads what strangers made.

They are written octet by octet, because no library would write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from factory import FOREVER, NOW, Party, make_key, make_name

from estd.asn1 import der

_ALGORITHM = der.sequence(der.oid("ecdsaWithSHA256"))
_BASIC = der.sequence(der.oid("basicConstraints"), der.boolean(True), der.octet_string(b"\x30\x00"))
_X400 = b"\xa3\x02\x30\x00"
_EDI = der.tlv(0xA5, der.tlv(0xA1, der.utf8("x")))


def _extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return der.sequence(der.oid(dotted), der.boolean(True) if critical else b"", der.octet_string(value))


def _cdp(name: bytes) -> bytes:
    return der.sequence(der.sequence(der.tlv(0xA0, der.tlv(0xA0, name))))


ODD_EXTENSIONS: Mapping[str, bytes] = {
    "SAN with an x400Address": _extension("2.5.29.17", der.sequence(_X400)),
    "SAN with an ediPartyName": _extension("2.5.29.17", der.sequence(_EDI)),
    "AIA with an x400Address": _extension(
        "1.3.6.1.5.5.7.1.1", der.sequence(der.sequence(der.oid("1.3.6.1.5.5.7.48.1"), _X400))
    ),
    "CDP with an x400Address": _extension("2.5.29.31", _cdp(_X400)),
    "CDP with an ediPartyName": _extension("2.5.29.31", _cdp(_EDI)),
    "AKI with an x400Address": _extension("2.5.29.35", der.sequence(der.tlv(0xA1, _X400), b"\x82\x01\x01")),
    "IAN with an ediPartyName": _extension("2.5.29.18", der.sequence(_EDI)),
    "name constraints on x400Addresses": _extension(
        "2.5.29.30", der.sequence(der.tlv(0xA0, der.sequence(_X400))), critical=True
    ),
    "an unknown TLS feature": _extension("1.3.6.1.5.5.7.1.24", b"\x30\x03\x02\x01\x63"),
    "a key usage that is none": _extension("2.5.29.15", b"\x04\x00"),
}
"""Requested or certified, each of them makes `cryptography` raise."""


def make_odd(
    issuer: Party | None = None,
    *,
    name: bytes | None = None,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    serial: bytes = b"\x02\x02\x12\x34",
    extensions: bytes = b"",
    starts: datetime = NOW,
    ends: datetime = FOREVER,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A leaf certificate (DER) of that issuer, or self-signed. `name` is a DER Name, the rest whole DER elements."""
    key = key or make_key()
    subject = make_name("pump-7").public_bytes() if name is None else name
    validity = der.sequence(der.time(starts), der.time(ends))
    tbs = der.sequence(
        version,
        serial,
        _ALGORITHM,
        subject if issuer is None else issuer.certificate.subject.public_bytes(),
        validity,
        subject,
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.tlv(0xA3, der.sequence(_BASIC, extensions)),
    )
    signature = (key if issuer is None else issuer.key).sign(tbs, ec.ECDSA(hashes.SHA256()))
    return der.sequence(tbs, _ALGORITHM, der.bit_string(signature))


class Odd(Protocol):
    """Makes one that the issuer signed, or a self-signed one; `key` is the certificate's own."""

    def __call__(self, issuer: Party | None, key: ec.EllipticCurvePrivateKey | None = None) -> bytes: ...


def _with(**elements: bytes) -> Odd:
    return lambda issuer, key=None: make_odd(issuer, key=key, **elements)  # type: ignore[misc, arg-type]  # octets all


ODD_CERTIFICATES: Mapping[str, Odd] = {
    "version 2": _with(version=b"\xa0\x03\x02\x01\x01"),
    "version 5": _with(version=b"\xa0\x03\x02\x01\x04"),
    "basicConstraints twice": _with(extensions=_BASIC),
    "an unknown extension twice": _with(extensions=_extension("1.2.3", b"\x05\x00") * 2),
    **{what: _with(extensions=extension) for what, extension in ODD_EXTENSIONS.items()},
}
"""What → how it is made. None of them can be read whole."""

_CN = der.oid("commonName")


def _name(*rdns: bytes) -> bytes:
    return der.sequence(*(der.tlv(der.SET, rdn) for rdn in rdns))


UNFIT_NAMES: Mapping[str, bytes] = {
    "NUL": _name(der.sequence(_CN, der.utf8("a\0b"))),
    "control": _name(der.sequence(_CN, der.utf8("a\x07b"))),
    "bidi": _name(der.sequence(_CN, der.utf8("a\u202eb"))),
    "line feed": _name(der.sequence(_CN, der.utf8("a\nb"))),
    "noncharacter": _name(der.sequence(_CN, der.utf8("a\uffff"))),
    "white": _name(der.sequence(_CN, der.utf8(" "))),
    "empty RDN": _name(b""),
    "longer than 4096 octets": _name(der.sequence(_CN, der.utf8("a" * 5000))),
}
"""Subjects that a certificate can have and that name no device."""
