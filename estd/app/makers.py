"""Demonstration makers: a CA that gives devices their birth certificates (IDevIDs, IEEE 802.1AR-2018 §8).

For trying estd out. A real maker's key never lies in a file beside the server that trusts it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from estd.device.answers import write_pem
from estd.device.requests import read_certificates, read_key, write_key
from estd.keys.software import SoftwareKey, generate

FOREVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""IEEE 802.1AR-2018 §8.7: an IDevID does not expire (RFC 5280 §4.1.2.5)."""
_EARLIER: Final = timedelta(days=1)


class Maker:
    """A maker's CA: one self-signed certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, name: str, now: datetime) -> Maker:
        """A new maker of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(_serial())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(FOREVER)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Maker:
        """A maker that was saved."""
        private_key = read_key(key).private_key
        assert isinstance(private_key, ec.EllipticCurvePrivateKey)
        return cls(read_certificates(certificate)[0], private_key)

    @property
    def certificate_pem(self) -> bytes:
        """What an ecosystem names as its anchor."""
        return write_pem([self.certificate])

    @property
    def key_pem(self) -> bytes:
        """The key, unencrypted."""
        return write_key(SoftwareKey(self._key))

    def make_device(
        self,
        subject: Sequence[tuple[x509.ObjectIdentifier, str]],
        now: datetime,
        purposes: Sequence[x509.ObjectIdentifier] = (),
    ) -> tuple[bytes, bytes]:
        """A device as it leaves the factory: certificate and key, both PEM. `subject` is outermost first.

        `purposes` are key purposes (RFC 5280 §4.2.1.12), which a birth certificate has none of.
        """
        key = generate("ec-p256")
        assert isinstance(key.private_key, ec.EllipticCurvePrivateKey)
        public = key.private_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(kind, value) for kind, value in subject]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(_serial())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(FOREVER)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return write_pem([builder.sign(self._key, hashes.SHA256())]), write_key(key)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _serial() -> int:
    # RFC 5280 §4.1.2.2: positive and at most 20 octets; 127 random bits are plenty.
    return secrets.randbits(127) | 1
