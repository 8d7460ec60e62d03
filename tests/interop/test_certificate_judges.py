"""What estd issues, before foreign judges: pkilint in process, OpenSSL and GnuTLS where they are installed.

pkilint's RFC 5280 validators (`pkilint.pkix.certificate`, those of its lint_pkix_cert) apply to private device
certificates as they are; its CA/Browser Forum and ETSI sets do not. No finding is waived, but the names asked for keep
clear of four things it disputes: wildcards, URIs without an authority, domainComponents of a single label, and object
identifiers as short as 1.2.3 or 2.999.1. ML-DSA needs a judge that knows it, so OpenSSL 3.0 and GnuTLS 3.7 are asked
about other keys.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from estd.ca.authority import read_authority
from estd.ca.certificates import write_pem
from estd.ca.ecosystem import read_document
from estd.ca.issuer import Issuer, issue_authority
from estd.keys.software import SoftwareKey, generate
from estd.names import EMPTY_NAME, write_name, write_san
from estd.wire.pkcs10 import VerifiedRequest, read_request, verify_request

pytestmark = pytest.mark.interop

NOW = datetime(2031, 5, 17, 12, 30, 0, tzinfo=UTC)
RANDOM = bytes(range(100, 119))
HARDWARE = "other:1.3.6.1.5.5.7.8.4=#301006092b0601040182375e010403313233"

DOCUMENT = """
[ecosystem]
label = "judged"
organization = "Acme"

[[issuer]]
name = "root"

[[issuer]]
name = "devices"
parent = "root"
crl_url = "http://pki.example.com/devices.crl"
ocsp_url = "http://ocsp.example.com"
ca_issuers_url = "http://pki.example.com/devices.cer"

[profile.plain]
issuer = "devices"

[profile.ldevid]
base = "ldevid"
issuer = "devices"
enroll = []

[profile.server]
issuer = "devices"
san = "credential"
extended_key_usage = ["serverAuth", "clientAuth"]
validity = "5y"

[profile.grid]
issuer = "devices"
keys = ["ec-p256"]
subject = "empty"
san = "credential"
key_usage = ["digitalSignature", "keyAgreement"]
extended_key_usage = []
policies = ["1.3.6.1.4.1.40732.1.3"]
policies_critical = true
basic_constraints = false
key_id = "sha1-160"
serial_bytes = 9
align = "issuer"

[profile.full]
issuer = "devices"
keys = ["ed25519", "ec-p521", "rsa-4096", "ml-dsa-44"]
key_usage = ["digitalSignature", "nonRepudiation"]
extended_key_usage = ["clientAuth", "codeSigning", "emailProtection"]
extended_key_usage_critical = true
policies = ["1.2.3.4", "1.3.6.1.4.1.40732.2.1"]
san = "credential"
extension = [{ oid = "masaURL", value = "16106d6173612e6578616d706c652e636f6d" }]
"""

# profile, key type of the device, subject, alternative names
CASES = [
    ("plain", "ec-p256", "CN=device-1", []),
    ("plain", "rsa-2048", "CN=device-1,O=Acme,C=CH", []),
    ("ldevid", "ec-p384", "serialNumber=123,CN=device-1", [HARDWARE]),
    (
        "server",
        "ec-p256",
        "CN=a.example.com",
        ["dns:a.example.com", "ip:10.0.0.1", "ip:2001:db8::1"],
    ),
    ("server", "rsa-3072", "", ["uri:https://a.example.com/1", "dns:a.example.com"]),
    ("grid", "ec-p256", "", [HARDWARE]),
    (
        "full",
        "ed25519",
        "CN=é,DC=example,DC=com,UID=1",
        ["email:a@example.com", "dirname:CN=x,C=CH", "rid:1.3.6.1.4.1.1"],
    ),
    ("full", "ml-dsa-44", "CN=device-1", ["dns:a.example.com"]),
]
ISSUER_TYPES = ["ec-p256", "ec-p384", "ec-p521", "rsa-2048", "ed25519", "ml-dsa-65"]


@pytest.fixture(scope="module")
def key() -> Callable[[str], SoftwareKey]:
    keys: dict[str, SoftwareKey] = {}
    return lambda key_type: keys.setdefault(key_type, keys.get(key_type) or generate(key_type))


@pytest.fixture(scope="module")
def issue(key: Callable[[str], SoftwareKey]) -> Callable[..., list[bytes]]:
    """Leaf, issuer and root, DER."""

    def issue(
        issuer_type: str, profile: str, device_type: str, subject: str, names: Sequence[str], now: datetime = NOW
    ) -> list[bytes]:
        ecosystem = read_document(DOCUMENT, "judged.toml", lambda name: b"")
        root_spec, spec = ecosystem.issuers
        root_key, issuer_key, device_key = generate(issuer_type), key(issuer_type), key(device_type)
        root = issue_authority(root_spec, root_key, None, None, now, RANDOM)
        certificate = issue_authority(spec, issuer_key, read_authority(root), root_key, now, RANDOM)
        authority = read_authority(certificate, spec.crl_url, spec.ocsp_url, spec.ca_issuers_url)
        issuer = Issuer(1, authority, issuer_key, ecosystem.profiles.values(), [root])
        san = write_san(names) if names else None
        subject_der = write_name(subject) if subject else EMPTY_NAME
        leaf = issuer.seal(issuer.prepare(profile, _request(device_key), subject_der, san, now, RANDOM))
        return [leaf, certificate, root]

    return issue


def _request(key: SoftwareKey) -> VerifiedRequest:
    digest = hashes.SHA256() if isinstance(key.private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key.private_key, digest)  # type: ignore[arg-type]  # every kind of key signs requests
    return verify_request(read_request(request.public_bytes(Encoding.DER)))


@pytest.fixture(scope="module")
def pkilint() -> Callable[[bytes], list[str]]:
    """Everything it finds that is more than information, as ``SEVERITY code``."""
    from pkilint import loader
    from pkilint.pkix import certificate, extension, name
    from pkilint.validation import ValidationFindingSeverity

    validator = certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )

    def lint(der: bytes) -> list[str]:
        document = loader.load_certificate(der, "certificate")
        return [
            f"{found.finding.severity.name} {found.finding.code} {found.message}"
            for result in validator.validate(document.root)
            for found in result.finding_descriptions
            if found.finding.severity is not ValidationFindingSeverity.INFO
        ]

    return lint


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
@pytest.mark.parametrize("issuer_type", ["ec-p256", "rsa-2048"])
def test_pkilint_finds_nothing(
    issuer_type: str, case: Any, issue: Callable[..., list[bytes]], pkilint: Callable[[bytes], list[str]]
) -> None:
    for der in issue(issuer_type, *case):
        assert pkilint(der) == []


def _files(directory: Path, chain: Sequence[bytes]) -> list[Path]:
    paths = [directory / f"{name}.pem" for name in ("leaf", "issuer", "root")]
    for path, der in zip(paths, chain, strict=True):
        path.write_text(write_pem(der))
    return paths


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("issuer_type", ISSUER_TYPES[:-1])
def test_openssl_verifies(issuer_type: str, issue: Callable[..., list[bytes]], tmp_path: Path) -> None:
    for case in CASES[:-1]:
        leaf, issuer, root = _files(tmp_path, issue(issuer_type, *case))
        command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-attime", str(int(NOW.timestamp()))]
        result = subprocess.run([*command, "-CAfile", root, "-untrusted", issuer, leaf], capture_output=True, text=True)
        assert result.returncode == 0, (case, result.stdout, result.stderr)


@pytest.mark.skipif(shutil.which("certtool") is None, reason="certtool is not installed")
@pytest.mark.parametrize("issuer_type", ISSUER_TYPES[:-1])
def test_gnutls_verifies(issuer_type: str, issue: Callable[..., list[bytes]], tmp_path: Path) -> None:
    # This judge knows no other time than the present.
    now = datetime.now(UTC).replace(microsecond=0)
    for case in CASES[:-1]:
        chain = tmp_path / "chain.pem"
        chain.write_text("".join(path.read_text() for path in _files(tmp_path, issue(issuer_type, *case, now=now))))
        command = ["certtool", "--verify-chain", "--infile", chain]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, (case, result.stdout, result.stderr)
        assert "Chain verification output: Verified" in result.stdout, (case, result.stdout)


@pytest.mark.parametrize("issuer_type", ISSUER_TYPES)
def test_signatures_of_every_issuer_key_verify(issuer_type: str, issue: Callable[..., list[bytes]]) -> None:
    for case in CASES:
        leaf, issuer, root = (x509.load_der_x509_certificate(der) for der in issue(issuer_type, *case))
        leaf.verify_directly_issued_by(issuer)
        issuer.verify_directly_issued_by(root)
        root.verify_directly_issued_by(root)
