"""Certificates as an auditor sees them: which bytes were signed, and whether their issuer signed them. RFC 5280 §4.1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding


class Content(NamedTuple):
    """What a table repeats of the to-be-signed bytes of a certificate."""

    serial: bytes
    """Content octets of the INTEGER."""
    not_before: datetime
    not_after: datetime
    spki_sha256: bytes


def read_content(tbs: bytes) -> Content | None:
    """What to-be-signed bytes say; None where they are not those of a certificate."""
    outer = _read_element(tbs, 0)
    if outer is None or outer[1] != len(tbs):
        return None
    at = outer[0]
    if tbs[at : at + 1] == b"\xa0":
        version = _read_element(tbs, at, 0xA0)
        if version is None:
            return None
        at = version[1]
    found: list[tuple[int, int, int]] = []
    for tag in (0x02, 0x30, 0x30, 0x30, 0x30, 0x30):  # serial, algorithm, issuer, validity, subject, key
        element = _read_element(tbs, at, tag)
        if element is None:
            return None
        found.append((at, *element))
        at = element[1]
    serial, _, _, validity, _, key = found
    try:
        not_before, after = _read_time(tbs, validity[1])
        not_after, _ = _read_time(tbs, after)
    except ValueError:
        return None
    return Content(tbs[serial[1] : serial[2]], not_before, not_after, hashlib.sha256(tbs[key[0] : key[2]]).digest())


def read_tbs(certificate: bytes) -> bytes | None:
    """The to-be-signed bytes of a certificate; None where there are none."""
    outer = _read_element(certificate, 0)
    if outer is None or outer[1] != len(certificate):
        return None
    inner = _read_element(certificate, outer[0])
    return None if inner is None else certificate[outer[0] : inner[1]]


def find_fault(certificate: bytes, serial: bytes, issuer: x509.Certificate) -> str | None:
    """What is wrong with a certificate of this issuer under this serial, if anything is.

    Raises:
        UnsupportedAlgorithm: nobody here can verify that kind of signature.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        if parsed.serial_number != int.from_bytes(serial, "big", signed=True):
            return "it carries another serial"
        parsed.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return "its issuer did not sign it"
    except (UnsupportedAlgorithm, TypeError) as error:
        raise UnsupportedAlgorithm(str(error)) from None
    except ValueError as error:
        return f"it is no certificate of this issuer ({error})"
    return None


def read_received(path: Path) -> Iterator[tuple[str, bytes]]:
    """The certificates in a file, or in every file below a directory, PEM or DER, each with where it stands.

    Files that hold none (keys, requests) are passed over.

    Raises:
        OSError: one cannot be read.
    """
    for file in sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
        content = file.read_bytes()
        try:
            if _PEM in content:
                found = x509.load_pem_x509_certificates(content)
            elif content[:1] == b"\x30":
                found = [x509.load_der_x509_certificate(content)]
            else:
                continue
        except ValueError:
            continue
        for number, certificate in enumerate(found, 1):
            yield f"{file}#{number}" if len(found) > 1 else str(file), certificate.public_bytes(Encoding.DER)


_PEM: Final = b"-----BEGIN CERTIFICATE-----"


def _read_time(content: bytes, at: int) -> tuple[datetime, int]:
    """A Time of RFC 5280 §4.1.2.5, and where it ends; ValueError where there is none."""
    tag = content[at] if at < len(content) else 0
    element = _read_element(content, at, tag)
    if element is None or tag not in (0x17, 0x18):
        raise ValueError
    text = content[element[0] : element[1]].decode("ascii")
    if tag == 0x17:
        text = ("20" if text[:2] < "50" else "19") + text
    if len(text) != 15 or text[14] != "Z":
        raise ValueError
    # A fifth of the time that strptime takes.
    year, parts = int(text[:4]), [int(text[at : at + 2]) for at in range(4, 14, 2)]
    return datetime(year, parts[0], parts[1], parts[2], parts[3], parts[4], tzinfo=UTC), element[1]


def _read_element(content: bytes, at: int, tag: int = 0x30) -> tuple[int, int] | None:
    """Where the element with that tag at this place has its content and where it ends."""
    if len(content) < at + 2 or content[at] != tag:
        return None
    length, start = content[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(content[at + 2 : start], "big")
    return (start, start + length) if start + length <= len(content) else None
