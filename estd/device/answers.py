"""What a server's answers mean: certificates in, chains out, refusals told apart. Pure; no socket, no clock.

RFC 7030 §4.1.3 and §4.2.3 (certs-only), §4.5.2 with RFC 9908 (CSR attributes), RFC 8951 §3 (base64 in whatever
wrapping), RFC 9110 §10.2.3 (Retry-After).
Must not import the server's floors above `keys`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd.asn1.foreign import Unreadable, read_certificate, reading
from estd.errors import Refused as FormRefused
from estd.names import write_serial
from estd.wire.cms import read_certs_only
from estd.wire.csrattrs import Wanted, read_csrattrs

LONGEST_CHAIN: Final = 8
_LONGEST_TEXT: Final = 500
_WHITE: Final = b" \t\r\n"


class ServerRefused(Exception):
    """The server understood and said no; the same request again will not help.

    Attributes:
        status: the HTTP status.
        detail: what the server said, made printable, or what its status means.
        request_id: names the request in the server's log and audit trail; empty when the server gave none.
    """

    def __init__(self, status: int, detail: str, request_id: str = "") -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.request_id = request_id


class TryLater(Exception):
    """Not now: the server is busy, wants to think (202), or cannot be reached. The same request may be sent again."""

    def __init__(self, detail: str, retry_after_seconds: int, request_id: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class WrongServer(Exception):
    """Whoever answered is not the EST server we were told to trust, or does not speak EST."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def read_body(body: bytes) -> bytes:
    """The DER of an EST body. Base64 with any white space in it, or none (RFC 8951 §3.1); bare DER is let through.

    Raises:
        WrongServer: neither.
    """
    if body[:1] == b"\x30":
        return body
    try:
        return base64.b64decode(body.translate(None, _WHITE), validate=True)
    except binascii.Error:
        raise WrongServer("the answer is not base64, so this is hardly an EST server") from None


def read_certificates(body: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a certs-only answer.

    Raises:
        WrongServer: it is not certs-only CMS, or a certificate in it cannot be read.
    """
    try:
        return tuple(read_certificate(der) for der in read_certs_only(read_body(body)))
    except FormRefused as refused:
        raise WrongServer(f"the answer is no list of certificates: {refused.detail}") from None
    except Unreadable:
        raise WrongServer("the answer holds a certificate that cannot be read") from None


def read_wanted(body: bytes) -> Wanted:
    """The CSR attributes of a csrattrs answer.

    Raises:
        WrongServer: they cannot be read.
    """
    try:
        return read_csrattrs(read_body(body))
    except FormRefused as refused:
        raise WrongServer(f"the answer is no list of CSR attributes: {refused.detail}") from None


def choose_certificate(certificates: Iterable[x509.Certificate], spki: bytes) -> x509.Certificate:
    """The certificate that holds our key; some servers send their CA certificates along.

    Raises:
        WrongServer: none does.
    """
    for certificate in certificates:
        if _holds(certificate, spki):
            return certificate
    raise WrongServer("the certificate that came back is not for the key that was sent")


def build_chain(
    leaf: x509.Certificate, authorities: Iterable[x509.Certificate]
) -> tuple[list[x509.Certificate], x509.Certificate]:
    """The way from a certificate to its root: intermediates, nearest first, and the root.

    Signatures are verified; validity and revocation are the relying party's affair.

    Raises:
        WrongServer: the authorities do not lead to a root.
    """
    pool = list(authorities)
    intermediates: list[x509.Certificate] = []
    at = leaf
    while len(intermediates) < LONGEST_CHAIN:
        issuer = next((candidate for candidate in pool if _issued(candidate, at)), None)
        if issuer is None:
            break
        if _issued(issuer, issuer):
            return intermediates, issuer
        intermediates.append(issuer)
        at = issuer
    raise WrongServer("the CA certificates of the server do not lead from the new certificate to a root")


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number as estd writes it everywhere: its content octets (RFC 5280 §4.1.2.2) in hexadecimal."""
    number = certificate.serial_number
    return write_serial(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def write_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates in PEM, in this order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def read_retry_after(value: str | None, default_seconds: int, now: datetime) -> int:
    """Seconds to wait: a number or a date (RFC 9110 §10.2.3), never less than one."""
    if value is None:
        return default_seconds
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return max(1, int(text))
    try:
        at = parsedate_to_datetime(text)
        return max(1, round((at - now).total_seconds()))
    except (ValueError, TypeError):
        return default_seconds


def read_refusal(body: bytes) -> str:
    """The server's own words in one printable line; empty when there are none."""
    text = " ".join(body.decode("utf-8", "replace").split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text[:_LONGEST_TEXT]


def _holds(certificate: x509.Certificate, spki: bytes) -> bool:
    try:
        with reading():
            return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    except Unreadable:
        return False  # a kind of key that nobody here knows is not ours


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if issuer.subject != certificate.issuer:
        return False
    try:
        with reading():
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, Unreadable):
        return False
    return True
