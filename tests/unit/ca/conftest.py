"""A small hierarchy made by the code under test, and the means to write documents and requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from estd.ca.authority import Authority, read_authority
from estd.ca.ecosystem import Ecosystem, read_document
from estd.ca.issuer import Issuer, issue_authority
from estd.errors import Invalid
from estd.keys.software import SoftwareKey, generate
from estd.names import read_name
from estd.wire.pkcs10 import VerifiedRequest, read_request, verify_request

NOW = datetime(2031, 5, 17, 12, 30, 0, tzinfo=UTC)
RANDOM = bytes(range(100, 120))

HEAD = """
[ecosystem]
label = "plant"

[[issuer]]
name = "root"

[[issuer]]
name = "devices"
parent = "root"
crl_url = "http://pki.example.com/devices.crl"
ocsp_url = "http://ocsp.example.com"
ca_issuers_url = "http://pki.example.com/devices.cer"
"""

MINIMAL = (
    HEAD
    + """
[profile.device]
issuer = "devices"
enroll = ["code"]
"""
)


@dataclass(frozen=True)
class Hierarchy:
    """Real issuers of one document."""

    ecosystem: Ecosystem
    root_key: SoftwareKey
    root: Authority
    devices_key: SoftwareKey
    devices: Authority

    def issuer(self, issuer_id: int = 7) -> Issuer:
        """The issuer ``devices`` with all profiles of the document."""
        return Issuer(
            issuer_id, self.devices, self.devices_key, self.ecosystem.profiles.values(), [self.root.certificate]
        )


def read(text: str, files: dict[str, bytes] | None = None) -> Ecosystem:
    def read_file(name: str) -> bytes:
        if files is None or name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return read_document(text, "plant.toml", read_file)


def complaints(text: str, files: dict[str, bytes] | None = None) -> list[str]:
    """What is wrong with a document, one text for each problem."""
    try:
        read(text, files)
    except Invalid as refusal:
        return [str(problem) for problem in refusal.problems]
    return []


def make_hierarchy(text: str, root_type: str = "ec-p256", devices_type: str = "ec-p256") -> Hierarchy:
    ecosystem = read(text)
    root_spec, devices_spec = (ecosystem.get_issuer(name) for name in ("root", "devices"))
    root_key, devices_key = generate(root_type), generate(devices_type)
    root = read_authority(issue_authority(root_spec, root_key, None, None, NOW, RANDOM))
    certificate = issue_authority(devices_spec, devices_key, root, root_key, NOW, RANDOM)
    devices = read_authority(certificate, devices_spec.crl_url, devices_spec.ocsp_url, devices_spec.ca_issuers_url)
    return Hierarchy(ecosystem, root_key, root, devices_key, devices)


def make_request(
    key: SoftwareKey, subject: bytes = b"\x30\x00", extensions: Sequence[tuple[x509.ExtensionType, bool]] = ()
) -> VerifiedRequest:
    """A request of that key's owner, read and verified."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_parse_name(subject))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = hashes.SHA256() if isinstance(key.private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None
    request = builder.sign(key.private_key, digest)  # type: ignore[arg-type]  # every kind of key signs requests
    return verify_request(read_request(request.public_bytes(Encoding.DER)))


def _parse_name(der: bytes) -> x509.Name:
    return x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(x509.ObjectIdentifier(kind), value)
                    for kind, value in rdn
                    if isinstance(value, str)
                ]
            )
            for rdn in read_name(der).rdns
        ]
    )


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def randomness() -> bytes:
    return RANDOM


@pytest.fixture(name="read")
def read_fixture() -> Callable[..., Ecosystem]:
    return read


@pytest.fixture(name="complaints")
def complaints_fixture() -> Callable[..., list[str]]:
    return complaints


@pytest.fixture(name="make_hierarchy", scope="session")
def make_hierarchy_fixture() -> Callable[..., Hierarchy]:
    return make_hierarchy


@pytest.fixture(name="make_request", scope="session")
def make_request_fixture() -> Callable[..., VerifiedRequest]:
    return make_request


@pytest.fixture(scope="session")
def head() -> str:
    return HEAD


@pytest.fixture(scope="session")
def minimal() -> str:
    return MINIMAL


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    return make_hierarchy(MINIMAL)


@pytest.fixture(scope="session")
def device_key() -> SoftwareKey:
    return generate("ec-p256")
