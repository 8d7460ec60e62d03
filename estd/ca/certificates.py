"""Certificates an operator brings along: makers' anchors, and issuers that exist already.

A document names a file or holds the PEM itself. What is read here becomes DER inside the ecosystem's value, so that the
stored document stands on its own; a private key never does.

Carries the duties of a CA certificate from RFC 5280 §4.2.1.3, §4.2.1.9 and §4.2.1.2 as far as an import must meet them.
Must not import anything of the floors above; files are read through the function given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.asn1.foreign import Unreadable, read_certificate, read_extensions, read_pem_certificates, reading
from estd.asn1.oids import NAMES
from estd.asn1.spki import KEY_TYPES, key_type
from estd.ca.authority import read_subject
from estd.ca.document import Table
from estd.errors import Invalid, Refused
from estd.keys.software import SoftwareKey, read_private_key

ReadFile = Callable[[str], bytes]
"""The content of a file named in a document, relative to the document; raises OSError."""

_PEM: Final = "-----BEGIN "
_PRIVATE: Final = b"PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class ImportedIssuer:
    """What an existing CA certificate says of itself, as far as issuance has to know."""

    certificate: bytes
    """DER."""
    key_type: str
    subject: bytes
    """DER Name."""
    path_length: int | None
    starts: datetime
    ends: datetime
    self_signed: bool


def read_content(table: Table, key: str, text: str, read_file: ReadFile | None) -> bytes | None:
    """The PEM itself or the file it names; None, with a problem recorded, when there is neither."""
    if text.startswith(_PEM):
        return text.encode("ascii", "replace")
    if read_file is None:
        table.complain(key, "names a file where the PEM itself is expected", "Apply the operator's document again.")
        return None
    try:
        return read_file(text)
    except OSError as error:
        remedy = "Name a file relative to this document."
        if isinstance(error, PermissionError):
            remedy = "Let the user who applies the document read the file."
        table.complain(key, f"{text!r} cannot be read ({error.strerror})", remedy)
        return None


def read_certificates(table: Table, key: str, content: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file, or the one of a DER file; an empty list, with a problem, when there is none."""
    if _PRIVATE in content:
        table.complain(key, "holds a private key", "Name a file that holds certificates only, and guard that key.")
        return []
    try:
        if _PEM.encode() in content:
            return read_pem_certificates(content)
        return [read_certificate(content)]
    except Unreadable:
        table.complain(key, "holds no certificate that can be read", "Give X.509 certificates in PEM or DER form.")
        return []


def read_anchor(table: Table, key: str, texts: tuple[str, ...], read_file: ReadFile | None) -> tuple[bytes, ...]:
    """The CA certificates (DER) of a maker, in order and each once."""
    anchors: list[bytes] = []
    for text in texts:
        content = read_content(table, key, text, read_file)
        for certificate in [] if content is None else read_certificates(table, key, content):
            try:
                with reading():
                    fault = _find_fault(certificate)
            except Unreadable:
                table.complain(key, "holds a certificate with unreadable extensions", "Ask the maker for a valid one.")
                continue
            if fault is not None:
                table.complain(key, *fault)
                continue
            der = certificate.public_bytes(Encoding.DER)
            if der not in anchors:
                anchors.append(der)
    return tuple(anchors)


def read_import(table: Table, read_file: ReadFile | None) -> tuple[ImportedIssuer | None, SoftwareKey | None]:
    """The ``import`` table of an issuer: its certificate, and its private key where the document names one."""
    text = table.text("certificate")
    key_text = table.optional_text("key")
    table.finish()
    imported = None
    content = read_content(table, "certificate", text, read_file) if text else None
    certificates = [] if content is None else read_certificates(table, "certificate", content)
    if len(certificates) > 1:
        table.complain("certificate", "holds more than one certificate", "Keep the issuer's own certificate only.")
    elif certificates:
        imported = _check_import(table, certificates[0])
    if key_text is None:
        return imported, None
    key_content = read_content(table, "key", key_text, read_file)
    if key_content is None:
        return imported, None
    try:
        key = read_private_key(key_content, table.problems.where(table.at("key")))
    except Invalid as refusal:
        table.problems.found.extend(refusal.problems)
        return imported, None
    if imported is not None and key.spki != _spki(certificates[0]):
        table.complain("key", "does not belong to the certificate", "Name the private key of that very certificate.")
    return imported, key


def is_signed_by(child: bytes, parent: bytes) -> bool:
    """Whether that certificate's signature is the parent's (both DER)."""
    try:
        with reading():
            read_certificate(child).verify_directly_issued_by(read_certificate(parent))
    except (Unreadable, InvalidSignature):
        return False
    return True


def write_pem(certificate: bytes) -> str:
    """A certificate (DER) as a document holds it."""
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode("ascii")


# --- private ---------------------------------------------------------------------------------------------------------


def _find_fault(certificate: x509.Certificate) -> tuple[str, str] | None:
    """Why that certificate cannot be an anchor, and what to do."""
    if not _is_authority(certificate):
        return (
            f"{_call(certificate)} is not a CA certificate",
            "Name the certificate that signed the devices' certificates, not one of a device.",
        )
    if not isinstance(certificate.public_key(), rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return (
            f"{_call(certificate)} has a kind of key that path validation does not know yet",
            "Use a maker's CA with an RSA or EC key.",
        )
    return None


def _check_import(table: Table, certificate: x509.Certificate) -> ImportedIssuer | None:
    try:
        extensions = read_extensions(certificate)
        with reading():
            if not _is_authority(certificate):
                what = f"{_call(certificate)} is not a CA certificate"
                table.complain("certificate", what, "Name a CA's certificate.")
                return None
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
            extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            path_length = extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
            signs_as = _key_type(certificate)
            der = certificate.public_bytes(Encoding.DER)
            subject = read_subject(der)
    except x509.ExtensionNotFound as missing:
        # RFC 5280 §4.2.1.2 and §4.2.1.3: a conforming CA certificate has both.
        table.complain(
            "certificate", f"has no {NAMES[missing.oid.dotted_string]}", "Have the CA certificate reissued with it."
        )
        return None
    except (Unreadable, Refused):
        table.complain("certificate", "has extensions or a key that cannot be read", "Give a valid CA certificate.")
        return None
    if not usage.key_cert_sign:
        table.complain("certificate", "has a key usage without keyCertSign", "Have it reissued with keyCertSign.")
    if signs_as is None:
        table.complain("certificate", "has a key of a type that does not sign here", "Use a supported key type.")
        return None
    return ImportedIssuer(
        certificate=der,
        key_type=signs_as,
        subject=subject,
        path_length=path_length,
        starts=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        self_signed=certificate.subject == certificate.issuer and is_signed_by(der, der),
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_type(certificate: x509.Certificate) -> str | None:
    try:
        found = key_type(_spki(certificate))
    except Refused:
        return None
    return found if found in KEY_TYPES else None


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _call(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}")
