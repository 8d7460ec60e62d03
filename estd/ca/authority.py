"""A CA certificate, read once into what issuing under it needs to know.

Must not import anything of the floors above, and knows no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.errors import Broken
from estd.keys.contract import ALGORITHMS, Algorithm
from estd.wire.spki import key_type


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
        subject=parsed.subject.public_bytes(),
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
