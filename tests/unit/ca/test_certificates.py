"""Certificates an operator brings along: anchors and imported issuers, and everything that may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from factory import Party
from odd_certificates import ODD_CERTIFICATES

from estd.ca.certificates import is_signed_by, read_anchor, read_import, write_pem
from estd.ca.document import Problems, Table

STARTS, ENDS = datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
CA = (x509.BasicConstraints(True, 1), True)
SIGNS = (x509.KeyUsage(False, False, False, False, False, True, True, False, False), True)
SKI = (x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), False)


def certificate(
    *extensions: tuple[x509.ExtensionType, bool],
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY,
    signer: ec.EllipticCurvePrivateKey = KEY,
    name: str = "Maker CA",
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 5, STARTS, ENDS)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, hashes.SHA256())


def pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(Encoding.PEM)


def private(key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


ROOT = certificate(CA, SIGNS, SKI)


def files(**content: bytes) -> Callable[[str], bytes]:
    def read_file(name: str) -> bytes:
        if name not in content:
            raise FileNotFoundError(2, "No such file or directory")
        return content[name]

    return read_file


def table(**content: object) -> Table:
    return Table(content, "issuer[x].import", Problems("plant.toml"))


def found(inner: Table) -> str:
    return "\n".join(str(problem) for problem in inner.problems.found)


def test_anchors_from_pem_der_and_inline_each_once() -> None:
    other = certificate(CA, name="Other CA")
    read_file = files(bundle=pem(ROOT) + pem(other), der=ROOT.public_bytes(Encoding.DER))
    inner = table()
    anchors = read_anchor(inner, "certificates", ("bundle", "der", pem(other).decode()), read_file)
    assert anchors == (ROOT.public_bytes(Encoding.DER), other.public_bytes(Encoding.DER))
    assert found(inner) == ""
    assert write_pem(anchors[0]).encode() == pem(ROOT)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no certificate that can be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate that can be read"),
        (pem(ROOT) + private(), "holds a private key"),
        (pem(certificate()), "'CN=Maker CA' is not a CA certificate"),
        (pem(certificate((x509.BasicConstraints(False, None), True))), "is not a CA certificate"),
        (
            pem(certificate((x509.UnrecognizedExtension(x509.BasicConstraints.oid, b"\x05\x00"), True))),
            "unreadable extensions",
        ),
    ],
)
def test_what_is_no_anchor(content: bytes, problem: str) -> None:
    inner = table()
    assert read_anchor(inner, "certificates", ("file",), files(file=content)) == ()
    assert problem in found(inner)


def test_a_stored_document_names_no_files() -> None:
    inner = table()
    assert read_anchor(inner, "certificates", ("file",), None) == ()
    assert "names a file where the PEM itself is expected" in found(inner)


def test_an_import_says_what_it_is() -> None:
    inner = table(certificate="ca", key="key")
    imported, key = read_import(inner, files(ca=pem(ROOT), key=private()))
    assert found(inner) == ""
    assert imported is not None
    assert key is not None
    assert imported.certificate == ROOT.public_bytes(Encoding.DER)
    assert (imported.key_type, imported.path_length, imported.self_signed) == ("ec-p256", 1, True)
    assert (imported.starts, imported.ends) == (STARTS, ENDS)
    assert key.spki == KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


WEAK = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"ca": pem(ROOT) + pem(ROOT)}, "holds more than one certificate"),
        ({"ca": pem(certificate())}, "is not a CA certificate"),
        ({"ca": pem(certificate(CA, SKI))}, "has no keyUsage"),
        ({"ca": pem(certificate(CA, SIGNS))}, "has no subjectKeyIdentifier"),
        (
            {"ca": pem(certificate(CA, SKI, (x509.KeyUsage(*[True] * 2, *[False] * 7), True)))},
            "has a key usage without keyCertSign",
        ),
        ({"ca": pem(certificate(CA, SIGNS, SKI, key=WEAK))}, "a key of a type that does not sign here"),
        ({}, "'ca' cannot be read (No such file or directory)"),
        ({"ca": pem(ROOT), "key": private(OTHER)}, "does not belong to the certificate"),
        ({"ca": pem(ROOT), "key": b"nonsense"}, "import.key: no private key can be read from it"),
        ({"ca": pem(ROOT), "key": None}, "'key' cannot be read"),
    ],
)
def test_what_cannot_be_imported(content: dict[str, bytes | None], problem: str) -> None:
    names = {"certificate": "ca"} | ({"key": "key"} if "key" in content else {})
    inner = table(**names)
    read_import(inner, files(**{name: data for name, data in content.items() if data is not None}))
    assert problem in found(inner)


def test_who_signed_whom() -> None:
    der = ROOT.public_bytes(Encoding.DER)
    forged = certificate(CA, SIGNS, SKI, signer=OTHER).public_bytes(Encoding.DER)
    assert is_signed_by(der, der)
    assert not is_signed_by(forged, der)
    assert not is_signed_by(b"nonsense", der)


@pytest.mark.parametrize("what", ODD_CERTIFICATES)
def test_an_odd_certificate_is_a_problem_with_the_document_and_no_fault(what: str) -> None:
    odd = ODD_CERTIFICATES[what](Party(ROOT, KEY))
    given = table(certificates=["odd.cer"])
    assert read_anchor(given, "certificates", ("odd.cer",), files(**{"odd.cer": odd})) == ()
    (problem,) = given.problems.found
    assert "read" in problem.what
    given = table(certificate="odd.cer")
    assert read_import(given, files(**{"odd.cer": odd})) == (None, None)
    (problem,) = given.problems.found
    assert "read" in problem.what
    assert is_signed_by(odd, ROOT.public_bytes(Encoding.DER)) is not what.startswith("version")


def test_a_file_that_may_not_be_read_is_not_looked_for_elsewhere() -> None:
    def forbid(_name: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    inner = table(certificate="ca")
    read_import(inner, forbid)
    assert "Permission denied). Let the user who applies the document read the file." in found(inner)
