"""CA certificates as issuing reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd.ca.authority import read_authority, read_subject
from estd.errors import Broken, Refused
from estd.names import read_name


def test_what_it_says_is_read(hierarchy: Any, now: datetime) -> None:
    devices = hierarchy.devices
    assert read_name(devices.subject).text == "CN=plant devices"
    assert (devices.key_type, devices.path_length) == ("ec-p256", 0)
    assert devices.spki == hierarchy.devices_key.spki
    assert devices.starts == now - timedelta(hours=1)
    assert devices.ends == devices.starts + timedelta(days=3650) - timedelta(seconds=1)
    assert devices.algorithm.name == "ecdsaWithSHA256"
    assert devices.crl_url == "http://pki.example.com/devices.crl"
    parsed = x509.load_der_x509_certificate(devices.certificate)
    assert parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest == devices.key_id


@pytest.mark.parametrize("without", ["ski", "bc", "ca"])
def test_what_is_no_authority(without: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    at = datetime(2030, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, at, at + timedelta(days=1))
    if without != "ski":
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    if without != "bc":
        builder = builder.add_extension(x509.BasicConstraints(without != "ca", None), True)
    with pytest.raises(Broken):
        read_authority(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_the_subject_is_copied_octet_by_octet(hierarchy: Any) -> None:
    certificate = hierarchy.devices.certificate
    assert read_subject(certificate) == x509.load_der_x509_certificate(certificate).subject.public_bytes()
    # A string type that no library of ours would choose stays as it is (RFC 5280 §4.1.2.4).
    odd = certificate.replace(b"\x0c\x0dplant devices", b"\x14\x0dplant devices")
    assert read_subject(odd) == hierarchy.devices.subject.replace(b"\x0c\x0d", b"\x14\x0d")


@pytest.mark.parametrize("octets", [b"", b"\x30\x00", b"\x30\x02\x30\x00"])
def test_what_is_no_certificate_has_no_subject(octets: bytes) -> None:
    with pytest.raises(Refused):
        read_subject(octets)
