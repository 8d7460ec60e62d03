"""A CA certificate, read once into what issuing under it needs to know.

Must not import anything of the floors above, and knows no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.asn1 import der
from estd.asn1.spki import key_type
from estd.errors import Broken, Code, Refused
from estd.keys.contract import ALGORITHMS, Algorithm


@dataclass(frozen=True, slots=True)
class Authority:
    """An issuer's certificate as the certificates under it reflect it."""

    certificate: bytes
    """DER."""
    subject: bytes
    """DER Name, to be copied octet by octet into the issuer field (RFC 5280 §4.1.2.4, §7.1)."""
    spki: bytes
    key_type: str
    key_id: bytes
    """Its subjectKeyIdentifier, to be repeated as keyIdentifier (RFC 5280 §4.2.1.1)."""
    starts: datetime
    ends: datetime
    path_length: int | None
    crl_url: str | None = None
    ocsp_url: str | None = None
    ca_issuers_url: str | None = None

    @property
    def algorithm(self) -> Algorithm:
        """What it signs with."""
        return ALGORITHMS[self.key_type]


def read_authority(
    certificate: bytes, crl_url: str | None = None, ocsp_url: str | None = None, ca_issuers_url: str | None = None
) -> Authority:
    """Read a CA certificate (DER) that `estd.ca` built or an import was checked to be."""
    parsed = x509.load_der_x509_certificate(certificate)
    spki = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        key_id = parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as missing:
        raise Broken(f"an issuer's certificate lacks {missing.oid.dotted_string}") from missing
    if not constraints.ca:
        raise Broken("an issuer's certificate is not a CA certificate")
    return Authority(
        certificate=certificate,
        subject=read_subject(certificate),
        spki=spki,
        key_type=key_type(spki),
        key_id=key_id,
        starts=parsed.not_valid_before_utc,
        ends=parsed.not_valid_after_utc,
        path_length=constraints.path_length,
        crl_url=crl_url,
        ocsp_url=ocsp_url,
        ca_issuers_url=ca_issuers_url,
    )


def read_subject(certificate: bytes) -> bytes:
    """The subject of a certificate, octet by octet as it stands there: another library might write it another way.

    Raises:
        Refused: not a certificate in strict DER.
    """
    start, stop = der.read_whole(certificate, der.SEQUENCE)
    start, stop = der.read_tagged(certificate, start, stop, der.SEQUENCE)
    # [0] version, serialNumber, signature, issuer, validity, subject: every CA certificate is of version 3.
    members = der.read_members(certificate, start, stop)
    if len(members) <= _SUBJECT_AT:
        raise Refused(Code.MALFORMED_REQUEST, "a certificate has no subject", "RFC 5280 §4.1")
    _, at, _, end = members[_SUBJECT_AT]
    return certificate[at:end]


_SUBJECT_AT: Final = 5
