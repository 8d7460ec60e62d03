from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

from estd.asn1.spki import KEY_TYPES
from estd.device.requests import (
    generate_key,
    read_certificates,
    read_key,
    read_names,
    read_subject,
    write_key,
    write_renewal,
    write_request,
)
from estd.errors import Invalid


@pytest.mark.parametrize("key_type", [name for name in KEY_TYPES if name not in ("rsa-3072", "rsa-4096")])
def test_a_request_is_well_formed_and_signed_by_its_key(key_type: str) -> None:
    key = generate_key(key_type)
    request = write_request(key, read_subject("CN=pump-17,O=Harbour"), read_names(["dns:pump.example", "ip:192.0.2.1"]))
    csr = x509.load_der_x509_csr(request.der)
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == "CN=pump-17,O=Harbour"
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["pump.example"]
    assert not names.critical
    assert request.spki == key.spki
    assert key.key_type == key_type


def test_without_names_the_request_has_an_empty_subject_and_no_attributes() -> None:
    csr = x509.load_der_x509_csr(write_request(generate_key("ec-p256")).der)
    assert list(csr.subject) == []
    assert list(csr.attributes) == []


def test_the_same_key_asking_for_the_same_makes_the_same_bytes() -> None:
    key = generate_key("ec-p256")
    assert write_request(key).der == write_request(key).der


def make_certificate(subject: x509.Name, *extensions: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 5)
    builder = builder.not_valid_before(datetime(2001, 1, 1, tzinfo=UTC)).not_valid_after(
        datetime(2049, 1, 1, tzinfo=UTC)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())


def test_a_renewal_asks_for_the_very_names_of_the_certificate() -> None:
    # PrintableString on purpose: written anew as UTF8String it would be another encoding of the same name.
    subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "A-17")])
    names = x509.SubjectAlternativeName([x509.DNSName("pump.example")])
    csr = x509.load_der_x509_csr(write_renewal(generate_key("ec-p256"), make_certificate(subject, (names, True))).der)
    assert csr.subject.public_bytes() == subject.public_bytes()
    extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (extension.critical, extension.value) == (True, names)


def test_a_renewal_without_alternative_names_asks_for_none() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pump")])
    csr = x509.load_der_x509_csr(write_renewal(generate_key("ec-p256"), make_certificate(subject)).der)
    assert list(csr.extensions) == []


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: generate_key("ec-p255"), "ec-p255"),
        (lambda: read_subject("pump 17"), "pump 17"),
        (lambda: read_names(["host:pump"]), "subjectAltName"),
    ],
)
def test_what_a_person_gets_wrong_is_named(call: Callable[[], object], part: str) -> None:
    with pytest.raises(Invalid) as invalid:
        call()
    [problem] = invalid.value.problems
    assert part in problem.where
    assert problem.remedy


def test_a_key_is_written_and_read_again(tmp_path: Path) -> None:
    key = generate_key("ec-p384")
    (tmp_path / "k").write_bytes(write_key(key))
    assert read_key(tmp_path / "k").spki == key.spki


def test_files_that_will_not_do(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "locked").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    (tmp_path / "empty").write_bytes(b"")
    for read, name, said in (
        (read_key, "absent", "cannot be read"),
        (read_key, "locked", "encrypted"),
        (read_key, "empty", "no private key"),
        (read_certificates, "absent", "cannot be read"),
        (read_certificates, "empty", "no certificate"),
    ):
        with pytest.raises(Invalid) as invalid:
            read(tmp_path / name)
        assert said in invalid.value.problems[0].what
