"""Small real parts for tests: makers, devices, requests, and ecosystems as a worker would have read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estd.app.new_issuers import make_issuers
from estd.ca.authority import read_authority
from estd.ca.ecosystem import Ecosystem, read_document, write_document
from estd.keys.software import unseal
from estd.ra.order import Order
from estd.store.contract import EcosystemRecord, IssuerRecord
from estd.wire.exchange import Peer

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
KEK = bytes(range(32))


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Party:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def make_certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: Party | None,
    *,
    ca: bool = False,
    starts: datetime = NOW - timedelta(days=1),
    ends: datetime = FOREVER,
    eku: Iterable[x509.ObjectIdentifier] | None = None,
    digital_signature: bool | None = None,
    key_cert_sign: bool | None = None,
    san: Iterable[x509.GeneralName] = (),
    serial: int | None = None,
    path_length: int | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    """`extensions` come with their criticality, behind those that every certificate here has."""
    issuer_key = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    if ca or digital_signature is not None:
        signs = ca if key_cert_sign is None else key_cert_sign
        builder = builder.add_extension(
            x509.KeyUsage(
                bool(digital_signature), False, not digital_signature and not ca, False, False, signs, ca, False, False
            ),
            critical=True,
        )
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    names = list(san)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def make_maker(name: str = "Maker", issuer: Party | None = None, **options: Any) -> Party:
    key = make_key()
    return Party(make_certificate(make_name(name), key, issuer, ca=True, **options), key)


def make_device(maker: Party | None, name: str = "device-1", **options: Any) -> Party:
    key = make_key()
    return Party(make_certificate(make_name(name), key, maker, **options), key)


def make_csr(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey | None = None,
    san: Iterable[x509.GeneralName] = (),
    **more: bytes,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    names = list(san)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if "challenge" in more:
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, more["challenge"])
    return builder.sign(key or make_key(), hashes.SHA256()).public_bytes(Encoding.DER)


DOCUMENT = """
[ecosystem]
label = "{label}"
default_profile = "device"
[[issuer]]
name = "root"
[[issuer]]
name = "devices"
parent = "root"
[[anchor]]
name = "maker"
certificates = ['''{anchors}''']
ignore_expiry = {ignore_expiry}
[profile.device]
issuer = "devices"
enroll = ["anchor:maker", "code"]
keys = ["ec-p256"]
validity = "90d"
registration_authorities = ["issued:authority"]
{profile}
[profile.authority]
issuer = "devices"
enroll = ["code"]
extended_key_usage = ["clientAuth", "cmcRA"]
[profile.gateway]
label = "{label}-gateways"
issuer = "devices"
enroll = ["issued:device"]
{more}
"""


def make_rules(
    maker: Party, label: str = "campus", profile: str = "", more: str = "", *, ignore_expiry: bool = False
) -> Ecosystem:
    text = DOCUMENT.format(
        label=label,
        anchors=maker.pem,
        profile=profile,
        more=more,
        ignore_expiry="true" if ignore_expiry else "false",
    )

    def read_file(path: str) -> bytes:
        raise FileNotFoundError(path)

    return read_document(text, "test.toml", read_file)


def make_record(rules: Ecosystem, ecosystem_id: int = 1, version: int = 1) -> EcosystemRecord:
    issuers: list[IssuerRecord] = []
    ids: dict[str, int] = {}
    for number, issuer in enumerate(
        make_issuers(KEK, None, rules, None, NOW - timedelta(hours=2))[0], ecosystem_id * 100
    ):
        ids[issuer.name] = number
        parent = None if issuer.parent is None else ids[issuer.parent]
        issuers.append(
            IssuerRecord(number, ecosystem_id, issuer.name, parent, issuer.certificate, issuer.sealed_key, NOW)
        )
    return EcosystemRecord(
        ecosystem_id, ecosystem_id, rules.label, version, write_document(rules), NOW, "test", tuple(issuers)
    )


def make_order(name: str = "device-1", **fields: Any) -> Order:
    """An order that waits, for a device of that name."""
    made: dict[str, Any] = {
        "request_key": name.encode(),
        "ecosystem_id": 1,
        "ecosystem_version": 1,
        "node_id": 1,
        "ecosystem": "campus",
        "profile": "device",
        "retry_window": timedelta(hours=1),
        "operation": "simpleenroll",
        "identity": name,
        "device": name,
        "csr": b"",
        "csr_sha256": b"",
        "subject": b"",
        "san": None,
        "code_id": None,
        "address": "192.0.2.7",
        "request_id": "req",
    }
    return Order(**made | fields)


def unseal_issuer(issuer: IssuerRecord) -> Party:
    """An issuer on record, and its key, which `KEK` opens."""
    assert issuer.sealed_key is not None
    key = unseal(issuer.sealed_key, KEK, read_authority(issuer.certificate).spki).private_key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Party(x509.load_der_x509_certificate(issuer.certificate), key)


def make_peer(*certificates: bytes) -> Peer:
    return Peer("192.0.2.7", certificates)


CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
