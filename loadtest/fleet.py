"""Prepared devices for load: keys, birth certificates and CSRs made before the clock runs, and a plain HTTPS client.

`loadtest/generator.py` sends what is made here to a server under measurement; `Connection` is for whoever wants one
exchange after the other.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

_LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its IDevID, that key, and the bodies of the requests it will send (base64 PKCS #10)."""

    name: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    bodies: tuple[bytes, ...]
    next_key: ec.EllipticCurvePrivateKey
    """The key in the first of these requests: whoever sends it can use the certificate it gets."""


def make_devices(maker_certificate: Path, maker_key: Path, count: int, requests_each: int) -> list[Device]:
    """Devices of one maker, each with that many different CSRs (a fresh P-256 key for each)."""
    issuer, issuer_key = read_maker(maker_certificate, maker_key)
    run = os.urandom(4).hex()
    return [make_device(issuer, issuer_key, f"load-{run}-{index}", requests_each) for index in range(count)]


def read_maker(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A maker from its files."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(certificate.read_bytes()), private


def make_authority(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    """A maker's CA certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_FOREVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def make_device(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, name: str, requests_each: int
) -> Device:
    """One device of that maker."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_birth_certificate(issuer, issuer_key, name, key)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(requests_each)]
    bodies = tuple(make_body(certificate.subject, one) for one in keys)
    return Device(name, certificate, key, bodies, (keys or [key])[0])


def make_birth_certificate(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, name: str, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """What that maker gives a device of that name with that key."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.SERIAL_NUMBER, name), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def make_body(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A base64 PKCS #10 request for that key."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return base64.b64encode(csr.public_bytes(serialization.Encoding.DER))


def make_renewing(device: Device, answer: bytes) -> Device:
    """The same device with the certificate that answered its first request, and a request to renew that."""
    issued = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))[0]
    key = ec.generate_private_key(ec.SECP256R1())
    return Device(f"{device.name}'", issued, device.next_key, (make_body(issued.subject, key),), key)


def read_body(body: bytes) -> bytes:
    """The DER request of one body."""
    return base64.b64decode(body)


def make_context(trust: x509.Certificate, device: Device | None) -> SSL.Context:
    """TLS as this device speaks it; made once and kept, so that a connection costs the generator little."""
    context = _CONTEXTS.get((trust, None if device is None else device.name))
    if context is None:
        context = make_new_context(trust, device)
        _CONTEXTS[trust, None if device is None else device.name] = context
    return context


def make_new_context(trust: x509.Certificate, device: Device | None) -> SSL.Context:
    """The same, not kept."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(trust))
    context.set_verify(SSL.VERIFY_PEER, None)
    if device is not None:
        context.use_certificate(device.certificate)
        context.use_privatekey(device.key)
    return context


def forget_contexts() -> None:
    """Let go of what `make_context` kept."""
    _CONTEXTS.clear()


_CONTEXTS: dict[tuple[x509.Certificate, str | None], SSL.Context] = {}


_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")


def write_request(
    method: str, path: str, host: bytes, body: bytes = b"", *, kind: bytes = b"application/pkcs10", headers: bytes = b""
) -> bytes:
    """A request as octets."""
    head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s" % (method.encode(), path.encode(), host, headers)
    if body:
        head += b"Content-Type: %s\r\nContent-Length: %d\r\n" % (kind, len(body))
    return head + b"\r\n" + body


def read_answer(received: bytes) -> tuple[int, bytes] | None:
    """Status and body of an answer; None while it is not complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    found = _LENGTH.search(head)
    if found is None:
        raise ValueError("an answer without Content-Length")
    length = int(found[1])
    return (int(head.split(b" ", 2)[1]), body) if len(body) >= length else None


class Connection:
    """One TLS connection of one device."""

    def __init__(self, address: tuple[str, int], trust: x509.Certificate, device: Device | None) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # pyOpenSSL wants a blocking socket without a Python timeout; the kernel's own timeout takes its place.
        self.socket.settimeout(None)
        self.tls = SSL.Connection(make_context(trust, device), self.socket)
        self.tls.set_connect_state()
        self.tls.do_handshake()
        self._host = f"{address[0]}:{address[1]}".encode()

    def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one exchange."""
        return self.exchange(write_request(method, path, self._host, body, headers=headers))

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """The same for a request that is written already."""
        self.tls.sendall(request)
        received = b""
        while (answer := read_answer(received)) is None:
            received += self.tls.recv(16384)
        return answer

    def close(self) -> None:
        """Say goodbye and close."""
        try:
            self.tls.shutdown()
        except SSL.Error:
            pass  # the server closed first
        self.socket.close()
