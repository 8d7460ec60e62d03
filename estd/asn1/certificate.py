"""The identifying fields of a certificate, as the octets that stand in it (RFC 5280 §4.1).

A parser that makes objects of names costs more than the rest of an admission; comparing and copying needs octets only.
Nothing is judged here: signature, dates and extensions are `cryptography`'s and `estd.ra.paths`'s affair.
"""

from __future__ import annotations

from typing import NamedTuple

from estd.asn1 import der


class Fields(NamedTuple):
    """Octets of a certificate's fields."""

    serial: bytes
    """Content octets of the INTEGER."""
    issuer: bytes
    """DER Name."""
    subject: bytes
    """DER Name."""
    spki: bytes
    """DER SubjectPublicKeyInfo."""


def read_fields(certificate: bytes) -> Fields:
    """The fields of a DER certificate.

    Raises:
        Refused: the octets do not have the form of a certificate.
    """
    start, stop = der.read_whole(certificate, der.SEQUENCE)
    at, end = der.read_tagged(certificate, start, stop, der.SEQUENCE)
    tag, contents, after = der.read_tlv(certificate, at, end)
    if tag == _VERSION:
        at = after
    contents, after = der.read_tagged(certificate, at, end, der.INTEGER)
    serial = certificate[contents:after]
    _, _, at = der.read_tlv(certificate, after, end)  # signature
    _, _, after = der.read_tlv(certificate, at, end)
    issuer = certificate[at:after]
    _, _, at = der.read_tlv(certificate, after, end)  # validity
    _, _, after = der.read_tlv(certificate, at, end)
    subject = certificate[at:after]
    _, _, stop = der.read_tlv(certificate, after, end)
    return Fields(serial, issuer, subject, certificate[after:stop])


_VERSION = 0xA0
